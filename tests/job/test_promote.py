"""A policy in service is replaced only by one that is not worse, and whatever happens the folder stays usable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import make

from gpusched.core.errors import InputError, StoreError
from gpusched.core.seeds import stream
from gpusched.job import promote, train
from gpusched.policy.network import Network
from gpusched.policy.ppo import CARD, PPO, PROGRAM
from gpusched.rl.network import export
from gpusched.tracking.store import Store

pytestmark = pytest.mark.slow

TINY = [
    "policy=ppo", "cluster=sim", "cluster@policy.train_cluster=sim", "policy.network.hidden=[16]",
    "policy.training.frames=1024", "policy.training.envs=8", "policy.training.rollout=32", "policy.training.epochs=2",
    "policy.training.minibatch=128", "policy.training.validate_every=2", "policy.training.validate_episodes=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(store: Store) -> Path:
    return train.model(make(*TINY, "study=serve")[1], store, None)


@pytest.fixture
def served(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "served"))


def renew(store: Store, served: Path, *more: str) -> tuple[dict[str, float], dict[str, str]]:
    job, setup = make(*TINY, "job=promote", f"job.folder={served}", "job.episodes=8", "study=renew", *more)
    result = job.run(setup, store, None)
    (found,) = [run for run in store.find("renew", kind="training") if run.id == result.run_id]
    return result.values, found.tags


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_what_is_not_worse_takes_the_place(store: Store, served: Path) -> None:
    values, tags = renew(store, served, "load=high", "job.margin=100")
    assert values["promoted"] == 1.0
    assert tags["promoted"] == "true"
    assert "the load it meets now" in tags["promotion"]
    assert "the load it was trained on" in tags["promotion"]
    assert not list(served.glob(".new*"))
    _, setup = make(*TINY)
    setup.policy.load(str(served))


def test_what_is_worse_does_not(store: Store, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate always asks for the most replicas, which at low load is known to cost."""

    def wasteful(
        setup: promote.Setup, policy: PPO, in_service: Network, folder: Path, run: object
    ) -> Network:
        weights = {
            name: np.zeros_like(w) if "layers" in name else w.copy() for name, w in in_service.weights.items()
        }
        last = max(name for name in weights if name.endswith("bias"))
        weights[last][-1] = 50.0  # whatever thrift says
        network = Network(weights)
        export(network, policy.config.network.hidden, folder / PROGRAM)
        (folder / CARD).write_text("{}")
        return network

    monkeypatch.setattr(promote, "_learn_on", wasteful)
    before = bytes_of(served)
    values, tags = renew(store, served, "load=low", "job.margin=0.001")
    assert values["promoted"] == 0.0
    assert values["reward_candidate"] < values["reward_in_service"]
    assert "not shown to be no worse" in tags["promotion"]
    assert bytes_of(served) == before


def test_without_drift_nothing_is_learnt_where_that_is_wanted(store: Store, served: Path) -> None:
    values, tags = renew(store, served, "load=assorted", "job.only_on_drift=true")
    assert values == {"drift_features": 0.0, "promoted": 0.0}
    assert tags["drift"] == "none"


def test_another_load_is_drift(store: Store, served: Path) -> None:
    values, tags = renew(store, served, "load=high", "job.margin=100", "load@policy.train_load=low")
    assert values["drift_features"] > 0
    assert "population" in tags["drift"]


def test_the_two_loads_have_episodes_of_their_own_and_both_policies_the_same(
    store: Store, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two options of one class, here even the same option, must not share them: drift is tested on independent samples."""
    drawn = []

    def heard(study: str, name: str, seed: int, purpose: str) -> np.random.SeedSequence:
        drawn.append((name, purpose))
        return stream(study, name, seed, purpose)

    monkeypatch.setattr(promote, "stream", heard)
    renew(store, served, "load=low", "load@policy.train_load=low", "job.margin=100")
    assert sorted(drawn) == [("meets now", "promote")] * 2 + [("trained on", "promote")] * 2


def test_a_folder_that_holds_no_policy_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained policy here"):
        renew(store, tmp_path)


def test_a_policy_of_another_shape_is_told(store: Store, served: Path) -> None:
    with pytest.raises(InputError, match=r"policy.network.hidden = \[8\]: must be that of"):
        renew(store, served, "policy.network.hidden=[8]")


def test_a_rule_cannot_be_renewed(store: Store, served: Path) -> None:
    job, setup = make("policy=hpa", "job=promote", f"job.folder={served}")
    with pytest.raises(InputError, match="does not learn on"):
        job.run(setup, store, None)


def test_a_full_disk_leaves_the_policy_in_service(
    trained: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    before = bytes_of(served)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match="No space left on device"):
        promote.replace_policy(trained, served)
    assert bytes_of(served) == before
