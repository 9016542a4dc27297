"""One training per fingerprint: found again, shared by jobs at once, never taken from one that broke off."""

from __future__ import annotations

import multiprocessing as mp
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import make

from gpusched.core.errors import InputError
from gpusched.job import train
from gpusched.tracking.store import Store

trainings: list[int] = []


class Verdict:
    converged, reason, frames, wall_s, values = True, "told to", 64, 0.1, {"best_reward": 1.0}


def quick(*, folder: Path, seed: int, on_update: Any, make_cluster: Any, **more: Any) -> Verdict:
    """Stand for rl.train: the real one has tests of its own and takes seconds."""
    trainings.append(seed)
    assert make_cluster(3).envs == 3
    on_update(32, {"reward": 0.5, "kl": 0.1})
    on_update(64, {"reward": 0.7})
    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_text(f'{{"seed": {seed}}}')
    return Verdict()


def broken(**more: Any) -> Verdict:
    raise RuntimeError("the training broke")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    trainings.clear()
    monkeypatch.setitem(sys.modules, "gpusched.rl.train", types.SimpleNamespace(train=quick))
    yield


@pytest.fixture(scope="module")
def uri(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = shutil.copytree(empty, tmp_path_factory.mktemp("store") / "mlruns")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def store(uri: str) -> Store:
    return Store(uri)


@pytest.mark.slow
def test_the_loads_of_one_seed_share_one_training(store: Store) -> None:
    folders = [
        train.model(make("policy=ppo", "study=share", f"load={load}")[1], store, None)
        for load in ("low", "high")
    ]
    assert folders[0] == folders[1]
    assert trainings == [0]
    other = train.model(make("policy=ppo", "study=share", "seed=1")[1], store, None)
    assert trainings == [0, 1]
    assert '"seed": 1' in (other / "policy.json").read_text()


def test_a_training_is_stored_with_curves_verdict_and_gate(store: Store) -> None:
    job, setup = make("policy=ppo", "study=curves", "job=train")
    result = job.run(setup, store, None)
    (found,) = store.find("curves", kind="training")
    assert result.run_id == found.id
    steps, values = store.series(found.id, "train/reward")
    assert (list(steps), list(values)) == ([32, 64], [0.5, 0.7])
    assert found.tags["converged"] == "true"
    assert found.tags["verdict"] == "told to"
    assert found.tags["fingerprint"] == setup.fingerprint
    assert found.tags["gate/action_sensitivity"] == "ok"
    assert found.metrics["wall_s"] > 0


def test_a_training_that_broke_off_is_marked_and_not_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, setup = make("policy=ppo", "study=broken")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gpusched.rl.train", types.SimpleNamespace(train=broken))
        with pytest.raises(RuntimeError, match="the training broke"):
            train.model(setup, store, None)
    assert [found.status for found in store.find("broken", kind="training", status=None)] == ["FAILED"]
    train.model(setup, store, None)
    assert trainings == [0]


def test_a_policy_that_does_not_learn_is_refused(store: Store) -> None:
    job, setup = make("job=train")
    with pytest.raises(InputError, match="policy = 'hpa': does not learn"):
        job.run(setup, store, None)


def at_once(uri: str, load: str, go: Any, out: Any) -> None:
    sys.modules["gpusched.rl.train"] = types.SimpleNamespace(train=quick)  # type: ignore[assignment]
    trainings.clear()
    store = Store(uri)
    setup = make("policy=ppo", "study=parallel", f"load={load}")[1]
    go.wait(60)
    train.model(setup, store, None)
    out.put(len(trainings))


@pytest.mark.slow
def test_jobs_at_once_train_once(uri: str, store: Store) -> None:
    context = mp.get_context("spawn")
    go, out = context.Barrier(3), context.Queue()
    jobs = [context.Process(target=at_once, args=(uri, load, go, out)) for load in ("low", "medium", "high")]
    for job in jobs:
        job.start()
    counts = [out.get(timeout=120) for _ in jobs]
    for job in jobs:
        job.join(30)
    assert sorted(counts) == [0, 0, 1]
    assert len(store.find("parallel", kind="training")) == 1
