"""A lease: one holder at a time, whoever dies; nobody waits for work that is done."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from gpusched.tracking import lease as module
from gpusched.tracking.store import Store

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from gpusched.tracking.store import Store
with Store(sys.argv[1]).lease("work", lambda: False) as lease:
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
COUNT = """
import sys
from pathlib import Path
from gpusched.tracking.store import Store
done = Path(sys.argv[2])
with Store(sys.argv[1]).lease("once", done.exists) as lease:
    if lease.held:
        assert not done.exists()
        done.write_text("x")
        print("did it", flush=True)
"""


def start(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)


def test_the_second_waits_for_the_first(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with store.lease("both", lambda: False) as lease:
            assert lease.held
            order.append("second")

    with store.lease("both", lambda: False):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(3 * module.POLL_S)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]
    assert not store._client.search_registered_models("name LIKE 'lease.%'")


def test_what_is_done_is_neither_waited_for_nor_held(store: Store) -> None:
    with store.lease("done", lambda: False), store.lease("done", lambda: True) as late:
        assert not late.held


def test_an_error_gives_the_lease_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lease("broken", lambda: False):
        raise ZeroDivisionError
    begin_s = time.monotonic()
    with store.lease("broken", lambda: False) as lease:
        assert lease.held
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize(
    "call", ["search_registered_models", "create_registered_model", "delete_registered_model"]
)
def test_a_store_that_is_locked_for_a_while_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr("gpusched.tracking.database.PAUSE_S", 0.01)
    refusals, do = ["(sqlite3.OperationalError) database is locked"] * 3, getattr(store._client, call)

    def busy(*args: object, **kwargs: object) -> object:
        if refusals:
            raise MlflowException(refusals.pop())
        return do(*args, **kwargs)

    monkeypatch.setattr(store._client, call, busy)
    with store.lease("patient", lambda: False) as lease:
        assert lease.held
    assert not refusals
    assert not store._client.search_registered_models("name LIKE 'lease.patient%'")


def test_work_that_is_done_stays_done_where_its_lease_cannot_be_given_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*args: object, **kwargs: object) -> None:
        raise MlflowException("gone")

    with store.lease("done", lambda: False) as lease:
        assert lease.held
        monkeypatch.setattr(store._client, "delete_registered_model", refused)
    assert "lapses by itself" in caplog.text


def test_a_holder_of_another_machine_is_dead_once_its_count_stands_still(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_S", 1.0)
    store._client.create_registered_model(
        "lease.far.7", tags={"machine": "elsewhere", "pid": "1", "started_s": "5.0", "count": "3"}
    )
    begin_s = time.monotonic()
    with store.lease("far", lambda: False) as lease:
        assert lease.held
        assert [m.name for m in store._client.search_registered_models("name LIKE 'lease.far.%'")] == [
            "lease.far.8"
        ]
    assert time.monotonic() - begin_s > 1.0


def test_a_dead_holder_s_lease_that_cannot_be_dropped_keeps_nobody_from_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*args: object, **kwargs: object) -> None:
        raise MlflowException("gone")

    monkeypatch.setattr(module, "DEAD_S", 1.0)
    dead = {"machine": "elsewhere", "pid": "1", "started_s": "5.0", "count": "3"}
    store._client.create_registered_model("lease.stuck.3", tags=dead)
    monkeypatch.setattr(store._client, "delete_registered_model", refused)
    with store.lease("stuck", lambda: False) as lease:
        assert lease.held
    assert lease._beat is not None
    assert not lease._beat.is_alive(), "nobody goes on counting for work that is over"


def test_a_holder_of_another_machine_that_counts_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_S", 1.5)
    store._client.create_registered_model(
        "lease.busy.0", tags={"machine": "elsewhere", "pid": "1", "started_s": "5.0", "count": "0"}
    )
    stop = threading.Event()

    def beat() -> None:
        for count in range(1, 100):
            if stop.wait(0.3):
                return
            store._client.set_registered_model_tag("lease.busy.0", "count", str(count))

    thread = threading.Thread(target=beat)
    thread.start()
    begin_s = time.monotonic()
    try:
        with store.lease("busy", lambda: time.monotonic() - begin_s > 3.0) as lease:
            assert not lease.held
    finally:
        stop.set()
        thread.join()


def test_a_holder_that_is_killed_is_followed_at_once(mlruns: Path) -> None:
    uri = f"sqlite:///{mlruns}/mlflow.db"
    holder = start(HOLD, uri, "600")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    begin_s = time.monotonic()
    with Store(uri).lease("work", lambda: False) as lease:
        assert lease.held
    assert time.monotonic() - begin_s < 10


def test_work_done_between_the_look_and_the_taking_is_not_done_again(mlruns: Path) -> None:
    store, answers = Store(f"sqlite:///{mlruns}/mlflow.db"), iter([False, True])
    with store.lease("once", lambda: next(answers)) as lease:
        assert not lease.held
    with store.lease("once", lambda: False) as free:
        assert free.held, "the first gave back what it had taken"


def test_a_name_refused_and_given_back_meanwhile_is_tried_again(
    mlruns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow, refused by the unique name, looks for its owner and says that there is none."""
    create, calls = MlflowClient.create_registered_model, list[str]()

    def lost_once(client: MlflowClient, name: str, **more: object) -> object:
        calls.append(name)
        if len(calls) == 1:
            raise MlflowException("not found", error_code=RESOURCE_DOES_NOT_EXIST)
        return create(client, name, **more)

    monkeypatch.setattr(MlflowClient, "create_registered_model", lost_once)
    with Store(f"sqlite:///{mlruns}/mlflow.db").lease("once", lambda: False) as lease:
        assert lease.held
    assert len(calls) == 2


def test_of_many_processes_one_does_the_work(mlruns: Path, tmp_path: Path) -> None:
    uri, done = f"sqlite:///{mlruns}/mlflow.db", tmp_path / "done"
    processes = [start(COUNT, uri, str(done)) for _ in range(4)]
    told = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert told.count("did it\n") == 1
