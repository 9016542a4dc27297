import shutil
from pathlib import Path

import numpy as np
import pytest

from gpusched.core.logs import RequestLog, TickLog
from gpusched.tracking.store import Store


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store to copy, made where an earlier start was broken off: making one takes more than a second."""
    folder = tmp_path_factory.mktemp("empty") / "mlruns"
    folder.mkdir()
    (folder / "mlflow.db.new").write_bytes(b"half a database")
    Store(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def mlruns(empty: Path, tmp_path: Path) -> Path:
    """A store of the test's own."""
    return Path(shutil.copytree(empty, tmp_path / "mlruns"))


@pytest.fixture(scope="module")
def store(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that the tests of a file share, each with studies of its own."""
    folder = shutil.copytree(empty, tmp_path_factory.mktemp("store") / "mlruns")
    return Store(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def ticks() -> TickLog:
    """Four ticks of 5 s, two of them before the end of a warm-up of 10 s; one without requests."""
    table_TC = np.ones((4, len(TickLog.columns())))
    table_TC[:, 0] = [5.0, 10.0, 15.0, 20.0]
    ticks = TickLog.from_table(table_TC)
    ticks.latency_p95_s_T = np.array([0.1, 0.2, 0.3, np.nan])
    ticks.users_T = np.array([10.0, 10.0, 50.0, 50.0])
    return ticks


@pytest.fixture
def requests() -> RequestLog:
    return RequestLog(
        start_s_N=np.array([0.5, 11.0, 12.0]),
        latency_s_N=np.array([0.25, 0.5, 8.0]),
        status_N=np.array([0, 1, 2], dtype=np.int8),
    )
