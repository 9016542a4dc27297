"""What is written can be read back, and only what ended well counts as finished."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpusched.core.errors import StoreError
from gpusched.core.logs import RequestLog, TickLog
from gpusched.tracking.run import CURVE_POINTS, cut
from gpusched.tracking.store import Run, Store


def begin(store: Store, study: str, kind: str = "trial", **tags: str) -> Run:
    return store.start(kind, study=study, name="one", params={"seed": 0}, tags=tags)


def test_a_run_is_read_back_as_it_was_written(store: Store) -> None:
    params = {"load.users": 10, "policy": "hpa", "long": "x" * 9000}
    with store.start("trial", study="round", name="hpa low 0", params=params, tags={"policy": "hpa"}) as run:
        run.kpis({"latency_p95_s": 0.25, "recovery_s": float("nan"), "cost": float("inf")})
        run.metrics(0, {"reward_mean": -1.5})
        run.gate("load_audit", True, "")
        run.gate("readiness", False, "two pods were not Ready")
    (found,) = store.find("round", "trial")
    assert (found.id, found.name, found.status) == (run.id, "hpa low 0", "FINISHED")
    assert found.metrics == {"kpi/latency_p95_s": 0.25, "reward_mean": -1.5}
    assert found.tags["kpi_nan"] == "recovery_s,cost"
    assert found.tags["gate/load_audit"] == "ok"
    assert found.tags["gate/readiness"] == "failed: two pods were not Ready"
    assert found.params["load.users"] == "10"
    assert len(found.params["long"]) == 6000 and found.params["long"].endswith("…")


def test_what_a_gate_said_finds_room_beside_a_full_batch_of_points(store: Store) -> None:
    with begin(store, "full") as run:
        run.gate("load_audit", True, "")
        for step in range(1100):
            run.metrics(step, {"reward": float(step)})
    (found,) = store.find("full", "trial")
    assert found.tags["gate/load_audit"] == "ok"
    assert store.series(run.id, "reward")[1].tolist() == list(range(1100))


def test_logs_are_read_back_relative_to_the_end_of_the_warm_up(
    store: Store, ticks: TickLog, requests: RequestLog
) -> None:
    with begin(store, "logs") as run:
        run.ticks(ticks, offset_s=10.0)
        run.requests(requests, offset_s=10.0)
        run.json("verdict.json", {"converged": True})
    rows = store.download(run.id, "ticks.csv").read_text().splitlines()
    assert rows[0].split(",")[:3] == ["t_s", "users", "replicas_spec"]
    assert [row.split(",")[0] for row in rows[1:]] == ["-5", "0", "5", "10"]
    assert [row.split(",")[1] for row in rows[1:]] == ["10", "10", "50", "50"]
    stored = np.load(store.download(run.id, "requests.npz"))
    np.testing.assert_array_equal(stored["start_s"], np.float32([-9.5, 1.0, 2.0]))
    np.testing.assert_array_equal(stored["status"], [0, 1, 2])
    assert json.loads(store.download(run.id, "verdict.json").read_text()) == {"converged": True}
    steps, values = store.series(run.id, "tick/latency_p95_s")
    assert (steps.tolist(), values.tolist()) == ([5], [0.3])  # no request in the last tick: a gap
    assert store.series(run.id, "tick/users")[0].tolist() == [5, 10]


def test_a_long_tick_log_is_whole_in_its_file_and_thinned_as_a_curve(store: Store) -> None:
    table_TC = np.ones((720, len(TickLog.columns())))
    table_TC[:, 0] = 5.0 * np.arange(1, 721)
    with begin(store, "many") as run:
        run.ticks(TickLog.from_table(table_TC), 0.0)
    assert len(store.download(run.id, "ticks.csv").read_text().splitlines()) == 721
    steps, _ = store.series(run.id, "tick/users")
    assert len(steps) == CURVE_POINTS
    assert (steps[0], steps[-1]) == (5, 3600)
    assert np.diff(steps).min() >= 30


def test_a_long_series_arrives_whole_and_in_order(store: Store) -> None:
    with begin(store, "long", "training") as run:
        for step in range(2500):
            run.metrics(step, {"train/reward": step / 7})
    steps, values = store.series(run.id, "train/reward")
    np.testing.assert_array_equal(steps, np.arange(2500))
    np.testing.assert_array_equal(values, np.arange(2500) / 7)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED")],
)
def test_the_end_of_a_run_tells_how_it_came(store: Store, error: BaseException, status: str) -> None:
    study = f"end-{type(error).__name__}"
    with pytest.raises(type(error)), begin(store, study) as run:
        run.metrics(0, {"reward_mean": 1.0})
        raise error
    assert store.find(study) == []
    (found,) = store.find(study, status=None)
    assert found.status == status
    assert found.metrics == {"reward_mean": 1.0}  # what was known before the end is kept
    if status == "FAILED":
        assert found.tags["error"].startswith(type(error).__name__)


def test_find_selects_by_study_kind_status_and_tags_newest_first(store: Store) -> None:
    ids = []
    for seed in range(3):
        with begin(store, "select", policy="ppo", seed=str(seed)) as run:
            ids.append(run.id)
    with begin(store, "select", kind="training", policy="ppo"):
        pass
    with begin(store, 'other\'s "study"', policy="ppo"):
        pass
    open_run = begin(store, "select", policy="ppo", seed="9")
    assert [f.id for f in store.find("select", "trial")] == ids[::-1]
    assert [f.id for f in store.find("select", "trial", tags={"seed": "1"})] == [ids[1]]
    assert store.find("select", "trial", tags={"seed": "9"}) == []
    assert [f.id for f in store.find("select", tags={"seed": "9"}, status="RUNNING")] == [open_run.id]
    assert store.find("no such study") == []
    assert len(store.find('other\'s "study"')) == 1
    assert "select" in store.studies() and "Default" not in store.studies()


def test_children_name_their_parent(store: Store) -> None:
    sweep = store.start("sweep", study="family", name="sweep", params={}, tags={})
    with sweep, store.start("trial", study="family", name="t", params={}, tags={}, parent=sweep.id):
        pass
    (child,) = store.find("family", "trial", tags={"mlflow.parentRunId": sweep.id})
    assert child.name == "t"


def test_an_unknown_kind_is_a_programming_error(store: Store) -> None:
    with pytest.raises(ValueError, match=r"kind 'trail'"):
        begin(store, "x", kind="trail")


def test_text_is_cut_with_a_mark() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"


CHILD = """
import sys, time
from gpusched.tracking.store import Store
with Store(sys.argv[1]).start("trial", study="signals", name="child", params={}, tags={"how": sys.argv[2]}) as run:
    run.metrics(0, {"reward_mean": 1.0})
    print("ready", flush=True)
    time.sleep(60)
"""


def test_sigterm_closes_the_run_as_killed(store: Store) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, begin(store, "term") as outer, begin(store, "term", "training"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143
    assert {f.status for f in store.find("term", status=None)} == {"KILLED"}
    assert outer.id in {f.id for f in store.find("term", "trial", status="KILLED")}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_sigterm_and_kill_never_look_finished(store: Store) -> None:
    sent = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
    command = [sys.executable, "-c", CHILD, store.uri]
    children = {how: subprocess.Popen([*command, how], stdout=subprocess.PIPE, text=True) for how in sent}
    for how, child in children.items():
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        os.kill(child.pid, sent[how])
    codes = {how: child.wait(timeout=30) for how, child in children.items()}
    assert codes == {"term": 143, "kill": -signal.SIGKILL}
    assert store.find("signals") == []
    ends = {f.tags["how"]: f.status for f in store.find("signals", status=None)}
    assert ends == {"term": "KILLED", "kill": "RUNNING"}


def test_files_have_one_place_a_study_and_it_is_tried_first(mlruns: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{mlruns}/mlflow.db"
    with begin(Store(uri, artifacts=str(tmp_path / "one")), "placed"):
        pass
    with pytest.raises(StoreError, match=r"keeps its artifacts in .*one, not in tracking.artifacts"):
        begin(Store(uri, artifacts=str(tmp_path / "other")), "placed")
    with pytest.raises(StoreError, match=r"/proc/x cannot be written"):
        Store(uri, artifacts="/proc/x")
    with pytest.raises(StoreError, match=r"needs the package of google.cloud.storage"):
        Store(uri, artifacts="gs://bucket/runs")


def test_a_moved_store_is_readable_and_refuses_to_mix_places(
    mlruns: Path, tmp_path: Path, ticks: TickLog
) -> None:
    with begin(Store(f"sqlite:///{mlruns}/mlflow.db"), "moved") as run:
        run.ticks(ticks, 0.0)
    mlruns.rename(tmp_path / "new")
    store = Store(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert store.download(run.id, "ticks.csv").is_relative_to(tmp_path / "new")
    with pytest.raises(StoreError, match=r"was moved.*set study to another name"):
        begin(store, "moved")
