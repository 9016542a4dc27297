"""The contract of an option: one file in conf/<kind>/ that builds and lives through a short trial, no edit elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from composing import composed

from gpusched.job.build import setup
from gpusched.job.setup import Job, Setup
from gpusched.job.trial import live, verdicts
from gpusched.tracking.store import Store

CONF = Path(__file__).parents[1] / "conf"
KINDS = ("job", "policy", "guard", "fault", "load", "reward", "action", "service", "cluster")
SHORT = ["trial.duration_s=60", "trial.warmup_s=30"]


def options() -> list[tuple[str, str]]:
    return [(kind, path.stem) for kind in KINDS for path in sorted((CONF / kind).glob("*.yaml"))]


def make(kind: str, name: str, folder: Path, *more: str) -> tuple[Job, Setup]:
    (folder / "trace.csv").write_text("\n".join(str(0.5 * i) for i in range(100)))
    # A file or folder that only the user can name; columns that only that file has.
    values = yaml.safe_load((CONF / kind / f"{name}.yaml").read_text())
    files = [key for key, value in values.items() if value == "???" or key == "path"]
    needed = [f"{kind}.{key}={folder / 'trace.csv'}" for key in files]
    needed += [f"{kind}.column=0"] if "column" in values else []
    group = "guard@policy" if kind == "guard" else kind
    return setup(*composed(f"{group}={name}", *SHORT, *needed, *more))


def test_every_kind_has_options() -> None:
    assert {kind for kind, _ in options()} == set(KINDS)


def test_every_target_lives_in_the_room_of_its_kind() -> None:
    for kind, name in options():
        text = (CONF / kind / f"{name}.yaml").read_text()
        room = {"service": "core.service"}.get(kind, kind)
        if kind == "guard":
            assert "_target_" not in text  # values of every policy, no object of its own
            continue
        assert f"_target_: gpusched.{room}." in text, f"conf/{kind}/{name}.yaml"


@pytest.mark.parametrize(("kind", "name"), options())
def test_every_option_builds_and_lives_through_a_short_trial(kind: str, name: str, tmp_path: Path) -> None:
    job, built = make(kind, name, tmp_path)
    assert isinstance(job, Job)
    if built.policy.trained:
        pytest.skip("learns first: test_learning_policies_train_and_act")
    if built.cluster_type.real:
        pytest.skip("takes real parts and wall time: tests/cluster/test_contract.py")
    lived = live(built)
    assert np.isfinite(lived.reward_T).all()
    assert len(lived.reward_T) == built.spec.steps == 4
    assert lived.window.judged > 0
    ticks = lived.ticks
    assert ticks.replicas_spec_T.min() >= built.limits.min_replicas
    assert ticks.replicas_spec_T.max() <= built.limits.max_replicas
    assert {gate.name for gate in verdicts(built, lived)} == {"load_audit", "readiness", "degenerate"}


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "policy").glob("*.yaml"))])
def test_every_policy_can_be_guarded_without_a_word_in_its_file(name: str, tmp_path: Path) -> None:
    _, built = make("policy", name, tmp_path, "policy.shadow=true", "guard@policy=careful")
    assert built.guard.shadow and built.guard.max_change > 0


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "action").glob("*.yaml"))])
def test_every_action_can_be_taken_at_both_ends(name: str, tmp_path: Path) -> None:
    _, built = make("action", name, tmp_path)
    sizes = built.action.sizes(built.limits)
    assert sizes, "nothing to choose"
    cluster = built.cluster(envs=2, record=False)
    cluster.reset([built.episode, built.episode])
    cluster.step(built.action.decode(np.array([[0] * len(sizes), [n - 1 for n in sizes]]), built.limits))
    assert np.isfinite(built.reward.score(cluster.outcome())).all()
    cluster.close()


@pytest.mark.slow
@pytest.mark.parametrize("action", [path.stem for path in sorted((CONF / "action").glob("*.yaml"))])
def test_learning_policies_train_and_act(action: str, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    job, built = make("experiment", "smoke", tmp_path, f"action={action}")
    result = job.run(built, store, None)
    assert result.status == "finished"
    assert np.isfinite(result.values["reward_mean"])
    assert len(store.find("smoke", kind="training")) == len(store.find("smoke", kind="trial")) == 1


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))])
def test_every_experiment_composes(name: str, tmp_path: Path) -> None:
    make("experiment", name, tmp_path)


@pytest.mark.slow
def test_every_row_of_the_ablation_composes(tmp_path: Path) -> None:
    """Its rows change PPO's keys, so PPO must be the policy before the sweep says anything."""
    recipe = (CONF.parent / "Makefile").read_text().split("for row in", 1)[1].split("; do", 1)[0]
    rows = re.findall(r"policy\.[\w.]+=[\w\[\]]*", recipe)
    assert len(rows) >= 8
    for row in rows:
        make("experiment", "ablation", tmp_path, row)
