"""A store that cannot be used is refused with what, where and the cure; eight first starts at once lose nothing."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpusched.core.errors import GpuschedError, InputError, StoreError
from gpusched.tracking.run import Run
from gpusched.tracking.store import Store

NOBODY = 65534


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def begin(store: Store) -> Run:
    return store.start("trial", study="s", name="n", params={}, tags={})


def refusal(address: str, wait_s: float = 0.2) -> str:
    with pytest.raises(StoreError) as caught:
        Store(address, wait_s=wait_s)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permission bits do not bind root: act as another user for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared(empty: Path) -> Iterator[Path]:
    """A store that its user may write, in a place every user may enter (pytest's own folders are private)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(empty, Path(name) / "mlruns"))
        for path in (Path(name), folder, *folder.rglob("*")):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, -1)
        with unprivileged():
            Store(uri(folder))
        yield folder


def test_a_store_is_made_whole_after_a_start_that_was_broken_off(empty: Path) -> None:
    names = {p.name for p in empty.iterdir()}
    assert {"mlflow.db", "artifacts", ".init.lock"} <= names
    assert "mlflow.db.new" not in names
    with sqlite3.connect(empty / "mlflow.db") as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_folder_is_made_and_a_store_is_used_again(mlruns: Path) -> None:
    with begin(Store(uri(mlruns))) as run:
        pass
    assert [f.id for f in Store(uri(mlruns)).find()] == [run.id]


def test_missing_parent(tmp_path: Path) -> None:
    message = refusal(uri(tmp_path / "nosuch" / "mlruns"))
    assert f"{tmp_path}/nosuch" in message and "missing" in message and "Create it" in message
    assert not (tmp_path / "nosuch").exists()


def test_a_reader_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no tracking database"):
        Store(uri(tmp_path / "mlruns"), create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("")
    assert "is a file" in refusal(uri(tmp_path / "mlruns"))


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    assert "is a folder" in refusal(uri(tmp_path))


@pytest.mark.parametrize("content", [b"hello, I am text", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    message = refusal(uri(tmp_path))
    assert str(tmp_path / "mlflow.db") in message and "Move it away" in message
    assert (tmp_path / "mlflow.db").read_bytes() == content  # never overwritten


def test_a_database_of_something_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('0123456789ab')")
    assert "mlflow.db" in refusal(uri(tmp_path))


def test_locked_by_another_connection(mlruns: Path) -> None:
    holder = sqlite3.connect(mlruns / "mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    try:
        message = refusal(uri(mlruns))
    finally:
        holder.close()
    assert "locked" in message and "another process" in message and str(mlruns) in message
    Store(uri(mlruns))


@pytest.mark.slow
def test_locked_while_another_process_opens_it(tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / ".init.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another process has been opening it" in refusal(uri(tmp_path))


@pytest.mark.parametrize("what", ["folder", "file"])
def test_read_only(shared: Path, what: str) -> None:
    target = shared if what == "folder" else shared / "mlflow.db"
    before = target.stat().st_mode
    os.chmod(target, 0o555 if what == "folder" else 0o444)
    try:
        with unprivileged():
            message = refusal(uri(shared))
    finally:
        os.chmod(target, before)
    assert "read-only" in message and str(shared) in message and "write permission" in message


def test_a_write_to_a_locked_database_is_told_too(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    run = begin(Store(uri(mlruns)))

    def locked(*args: object, **kwargs: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    # MLflow itself waits 20 s before it says so, and the run asks again; both waits are left out here.
    monkeypatch.setattr(run, "_patience_s", 0.0)
    monkeypatch.setattr(run._client, "log_batch", locked)
    with pytest.raises(StoreError, match=r"mlflow.db is locked"):
        run.params({"a": 1})


@pytest.mark.parametrize(
    "cause", ["(sqlite3.OperationalError) database is locked", "database or disk is full"]
)
def test_a_run_outlives_a_store_that_is_locked_or_full_for_a_while(
    mlruns: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr("gpusched.tracking.database.PAUSE_S", 0.01)
    store = Store(uri(mlruns))
    with begin(store) as run:
        write, refusals = run._client.log_batch, [cause] * 3

        def busy(*args: object, **kwargs: object) -> object:
            if refusals:
                raise MlflowException(refusals.pop())
            return write(*args, **kwargs)

        monkeypatch.setattr(run._client, "log_batch", busy)
        run.metrics(1, {"reward": 2.0})
    (found,) = [f for f in store.find() if f.id == run.id]
    assert not refusals and (found.status, found.metrics["reward"]) == ("FINISHED", 2.0)


def test_an_interrupt_does_not_wait_for_a_locked_store(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def locked(*args: object, **kwargs: object) -> None:
        raise MlflowException("database is locked")

    run = begin(Store(uri(mlruns)))
    asleep: list[float] = []
    monkeypatch.setattr("gpusched.tracking.run.time.sleep", asleep.append)
    monkeypatch.setattr(run._client, "log_batch", locked)
    with pytest.raises(KeyboardInterrupt), run:
        run.gate("load_audit", True, "")
        raise KeyboardInterrupt
    assert asleep == []


@pytest.mark.parametrize("address", ["mlruns", "file:///x", "sqlite://", "sqlite:///:memory:", "mysql://h/d"])
def test_another_kind_of_address(address: str) -> None:
    with pytest.raises(InputError, match=r"tracking.uri = .* must be sqlite:///"):
        Store(address)


def test_no_server_answers() -> None:
    message = refusal("http://127.0.0.1:9")
    assert "No MLflow server answers at http://127.0.0.1:9" in message and "mlflow server" in message


def test_every_refusal_is_one_the_scripts_show() -> None:
    assert issubclass(StoreError, GpuschedError) and issubclass(InputError, GpuschedError)


WRITER = """
import sys
from gpusched.tracking.store import Store
store, me = Store(sys.argv[1]), sys.argv[2]
for k in range(2):
    with store.start("trial", study="crowd", name=f"{me}.{k}", params={"me": me, "k": k}, tags={"seed": me}) as run:
        for step in range(600):
            run.metrics(step, {"a": step, "b": -step})
        run.kpis({"latency_p95_s": float(me)})
        run.json("me.json", {"me": me, "k": k})
"""


@pytest.mark.slow
def test_eight_processes_on_a_fresh_database_lose_nothing(tmp_path: Path) -> None:
    address = uri(tmp_path / "mlruns")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, address, str(i)]) for i in range(8)]
    assert [w.wait(timeout=240) for w in writers] == [0] * 8
    store = Store(address)
    found = store.find("crowd", "trial")
    assert sorted((f.params["me"], f.params["k"]) for f in found) == [
        (str(i), str(k)) for i in range(8) for k in range(2)
    ]
    for f in found:
        assert f.metrics["kpi/latency_p95_s"] == float(f.tags["seed"])
        assert store.series(f.id, "a")[1].tolist() == list(range(600))
        assert store.series(f.id, "b")[1].tolist() == [-s for s in range(600)]
        assert f.params["me"] in store.download(f.id, "me.json").read_text()


@pytest.mark.parametrize("name", ["50%25", "what?", "feature%2Fx"])
def test_a_path_that_an_address_reads_otherwise_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy decodes it, looks in another folder, and MLflow tries that for more than a minute."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match=r"neither . nor %XX"):
        Store("sqlite:///mlruns/mlflow.db")
