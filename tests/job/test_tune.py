"""A search as a job: once per fingerprint, its ledger in the store, and a trial that plays what it found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import ROOT, make

from gpusched.core.errors import GateError, InputError
from gpusched.job import train
from gpusched.job.setup import Job, Setup
from gpusched.policy.tuned import Tuned
from gpusched.rl import search
from gpusched.tracking.store import Found, Store

pytestmark = pytest.mark.slow

TUNED = ("hpa_tuned", "keda", "predictive", "table")
TINY = [
    "policy.search.frames=400", "policy.search.episodes=4", "policy.search.batch=2", "policy.search.finalists=2",
    "policy.search.validate_episodes=2",
]  # fmt: skip
STEPS = 8
"""Control steps of the short trials all these jobs are made for."""


def small(*overrides: str) -> tuple[Job, Setup]:
    return make("policy=table", "cluster@policy.train_cluster=double", *TINY, *overrides)


def stored(store: Store, study: str) -> list[Found]:
    return store.find(study, kind="tuning", status=None)


def test_a_search_is_stored_with_its_ledger_and_its_candidates(store: Store) -> None:
    job, setup = small("job=tune", "study=ledger")
    result = job.run(setup, store, None)
    (found,) = stored(store, "ledger")
    assert result.run_id == found.id
    ledger = {key.removeprefix("ledger/"): value for key, value in found.metrics.items() if "ledger/" in key}
    assert set(ledger) == {"steps", "validate_steps", "episodes", "candidates", "dropped", "wall_s"}
    assert 0 < ledger["steps"] <= 400
    assert ledger["steps"] == ledger["episodes"] * STEPS
    assert ledger["validate_steps"] <= 2 * 2 * STEPS
    assert result.values["ledger/steps"] == ledger["steps"]
    steps, best = store.series(found.id, "tune/best_reward")
    assert list(best) == sorted(best)
    assert steps[-1] <= ledger["steps"] - ledger["validate_steps"]
    table = store.download(found.id, "candidates.csv").read_text().splitlines()
    assert len(table) == 1 + ledger["candidates"]
    assert found.tags["fingerprint"] == setup.fingerprint
    assert found.tags["load"] == "assorted"
    assert found.tags["gate/action_sensitivity"] == "ok"
    assert found.tags["verdict"] == "budget of 400 control steps spent"
    card = json.loads((store.download(found.id, "model") / "policy.json").read_text())
    assert card["reward"] == pytest.approx(found.metrics["tune/validation_reward"])


def test_a_trial_searches_once_and_plays_what_was_found(store: Store) -> None:
    for load in ("low", "high"):
        job, setup = small("study=once", f"load={load}")
        assert job.run(setup, store, None).status == "finished"
    (found,) = stored(store, "once")
    trials = store.find("once", kind="trial")
    assert len(trials) == 2
    assert {trial.tags["fingerprint"] for trial in trials} == {found.tags["fingerprint"]}
    setup.policy.load(str(store.download(found.id, "model")))


def test_a_search_depends_on_space_budget_load_and_reward_and_not_on_the_trial_s_load() -> None:
    own = small("load=low")[1].fingerprint
    assert small("load=high")[1].fingerprint == own
    others = ["seed=1", "reward=latency", "policy.search.frames=500", "policy.space.hold=[0,3]", "policy.think_s=1.0",
              "policy.train_load.users=99", "service.gpu_cv.value=0.1", "trial.max_replicas=4"]  # fmt: skip
    prints = {small(one)[1].fingerprint for one in others}
    assert len(prints) == len(others)
    assert own not in prints


@pytest.mark.slow
def test_a_search_that_broke_off_is_marked_and_begun_again_goes_the_same_way(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a killed search is kept: it is short, and its seed leads it the very same way."""
    lived, calls = search.Hunt._live, list[int]()

    def breaks(self: search.Hunt, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return lived(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(search.Hunt, "_live", breaks)
        with pytest.raises(KeyboardInterrupt):
            train.trained(small("study=broken")[1], store, None)
    assert [run.status for run in stored(store, "broken")] == ["KILLED"]
    found = train.trained(small("study=broken")[1], store, None)
    assert train.trained(small("study=broken")[1], store, None).id == found.id
    assert sorted(run.status for run in stored(store, "broken")) == ["FINISHED", "KILLED"]
    elsewhere = Store(f"sqlite:///{tmp_path}/mlflow.db")
    unbroken = train.trained(small("study=broken")[1], elsewhere, None)
    tables = [s.download(run.id, "candidates.csv").read_text()
              for s, run in ((store, found), (elsewhere, unbroken))]  # fmt: skip
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("hpa", "policy = 'hpa': has nothing to search. Run trials"),
        ("ppo", r"policy = 'ppo\[.*\]': .* job=train"),
    ],
)
def test_a_policy_without_a_space_is_refused(store: Store, policy: str, message: str) -> None:
    job, setup = make("job=tune", f"policy={policy}")
    with pytest.raises(InputError, match=message):
        job.run(setup, store, None)


def test_where_replicas_make_no_difference_nothing_is_searched(store: Store) -> None:
    _, setup = small("study=same", "policy.train_load.users=1", "policy.train_load.least_users=1",
                     "reward.w2=0", "reward.w1=0.01")  # fmt: skip
    with pytest.raises(GateError, match="opposite constant choices earn the same reward"):
        train.trained(setup, store, None)
    assert stored(store, "same") == []


@pytest.mark.parametrize("policy", TUNED)
def test_every_tuned_policy_has_the_budget_of_a_training(policy: str) -> None:
    """The budget of a training is that of its rollouts and of its validations."""
    search_frames = make(f"policy={policy}")[1].policy.config.search.frames
    # The shipped length of a trial, not the short one of these jobs.
    _, trained = make("policy=ppo", "trial.duration_s=1200")
    spec, steps = trained.policy.config.training, trained.spec.steps
    rollouts = spec.frames // (spec.envs * spec.rollout)
    looks = 1 + math.ceil((rollouts - 1) / spec.validate_every)
    spent = rollouts * spec.envs * spec.rollout + looks * spec.validate_episodes * steps
    assert 0.95 * search_frames <= spent <= search_frames


def test_the_tuned_policies_are_all_named_here() -> None:
    names = [path.stem for path in sorted((ROOT / "conf" / "policy").glob("*.yaml"))]
    assert tuple(n for n in names if isinstance(make(f"policy={n}")[1].policy, Tuned)) == TUNED


@pytest.mark.slow
@pytest.mark.parametrize("policy", TUNED)
def test_every_tuned_policy_searches_and_acts_in_the_simulator(policy: str, store: Store) -> None:
    job, setup = make(f"policy={policy}", "cluster=sim", "load=mixed", f"study=sim-{policy}", *TINY)
    result = job.run(setup, store, None)
    assert result.status == "finished"
    assert np.isfinite(result.values["reward_mean"])
    (found,) = stored(store, f"sim-{policy}")
    assert found.metrics["ledger/steps"] <= 400
