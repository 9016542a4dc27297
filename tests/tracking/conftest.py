import shutil
from pathlib import Path

import numpy as np
import pytest

from gpusched.core.logs import RequestLog, TickLog


@pytest.fixture
def mlruns(empty: Path, tmp_path: Path) -> Path:
    """A store of the test's own."""
    return Path(shutil.copytree(empty, tmp_path / "mlruns"))


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
