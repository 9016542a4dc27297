"""The same store in a real PostgreSQL: made by one of many openers, shared by many writers, its password never shown."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.core.errors import StoreError
from gpusched.core.logs import TickLog
from gpusched.tracking import postgres
from gpusched.tracking.postgres import is_postgres, masked
from gpusched.tracking.store import Store

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
OPEN = "import sys; from gpusched.tracking.store import Store; print(Store(sys.argv[1], artifacts=sys.argv[2]).studies())"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS, reason="no PostgreSQL here; on Debian: apt install postgresql"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a PostgreSQL of the tests' own and return its address without a database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = Path("/tmp") / f"gpusched-postgres-{port}"
    data.mkdir(mode=0o700)
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(data, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    password = data.parent / f"{data.name}.pw"
    password.write_text("secret")
    programs = PROGRAMS[-1]

    def do(program: str, *words: str) -> None:
        command = [*as_user, str(programs / program), *words]
        subprocess.run(command, cwd="/tmp", check=True, stdout=subprocess.DEVNULL, timeout=120)

    try:
        do("initdb", "-D", str(data), "-U", "gpusched", "--auth=scram-sha-256", f"--pwfile={password}", "-N")
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        do("pg_ctl", "-D", str(data), "-o", options, "-l", str(data / "log"), "-w", "start")
        yield f"postgresql://gpusched:secret@127.0.0.1:{port}"
        do("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(data, ignore_errors=True)
        password.unlink(missing_ok=True)


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """Make an empty database of the test's own and return its address."""
    from sqlalchemy import create_engine

    name = request.node.name.replace("test_", "db_")
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    engine.dispose()
    return f"{server}/{name}"


def test_a_run_and_its_files(database: str, ticks: TickLog, tmp_path: Path) -> None:
    store = Store(database, artifacts=str(tmp_path / "files"))
    with store.start("trial", study="far", name="t", params={"a": 1}, tags={"policy": "hpa"}) as run:
        run.kpis({"latency_p95_s": 0.1})
        run.ticks(ticks, 10.0)
    (found,) = Store(database).find("far", "trial", tags={"policy": "hpa"})
    assert found.metrics["kpi/latency_p95_s"] == 0.1
    path = store.download(run.id, "ticks.csv")
    assert path.read_text().startswith("t_s,users")
    assert list((tmp_path / "files").rglob("ticks.csv"))
    assert "secret" not in store.where
    with store.lease("work", lambda: False) as lease:
        assert lease.held


def test_many_may_open_an_empty_database_at_once(database: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, database, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors


def test_a_turn_that_does_not_come_is_not_waited_for_for_ever(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import create_engine

    monkeypatch.setattr(postgres, "TURN_S", 1)
    engine = create_engine(database)
    with engine.connect() as other:
        other.exec_driver_sql(f"select pg_advisory_lock({postgres.TURN})")
        with pytest.raises(StoreError, match=r"another process has been making its tables") as refused:
            postgres.prepare(database, str(tmp_path))
    engine.dispose()
    assert "secret" not in str(refused.value)
    postgres.prepare(database, str(tmp_path))


def test_sixteen_trials_at_once(database: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "-m", "policy=static", "load=low", "seed=range(16)",
               "trial.duration_s=60", "trial.warmup_s=15", "cluster.threads=1", f"tracking.uri={database}",
               f"tracking.artifacts={tmp_path}/files", "hydra/launcher=joblib", "hydra.launcher.n_jobs=16"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = Store(database).find("main", "trial")
    assert sorted(int(run.tags["seed"]) for run in found) == list(range(16))
    (sweep,) = Store(database).find("main", "sweep")
    assert {run.tags["mlflow.parentRunId"] for run in found} == {sweep.id}
    assert len(list((tmp_path / "files").rglob("ticks.csv"))) == 16
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "files").rglob("*.json"))


def test_a_wrong_password_is_one_message_without_it(server: str) -> None:
    with pytest.raises(StoreError, match="password authentication failed") as told:
        Store(server.replace("secret", "wr0ng") + "/postgres")
    assert "wr0ng" not in str(told.value)
    assert "***" in str(told.value)


def test_nobody_answering_is_one_message() -> None:
    with pytest.raises(StoreError, match="Start it"):
        Store("postgresql://me@127.0.0.1:9/none")


def test_addresses() -> None:
    assert masked("postgresql://me:p%40ss@host:5/db") == "postgresql://me:***@host:5/db"
    assert masked("postgresql://me@host/db") == "postgresql://me@host/db"
    assert is_postgres("postgresql+psycopg://h/d")
    assert not is_postgres("sqlite:///a.db")
