"""The same store behind an MLflow server: one key of the configuration, the same behaviour."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.core.logs import TickLog
from gpusched.tracking.store import Store

PATIENCE_S = 120.0


@pytest.fixture
def server(mlruns: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", address.rsplit(":", 1)[1],
               "--backend-store-uri", f"sqlite:///{mlruns}/mlflow.db", "--artifacts-destination", str(tmp_path / "art")]  # fmt: skip
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        assert process.poll() is None, "the server ended at once"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the server did not answer")


@pytest.mark.slow
def test_a_run_through_a_server(server: str, ticks: TickLog, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "policy.json").write_text('{"levers": [6]}')
    store = Store(server)
    with store.start("training", study="far", name="ppo 0", params={"a": 1}, tags={"policy": "ppo"}) as run:
        run.kpis({"latency_p95_s": 0.1, "recovery_s": float("nan")})
        run.ticks(ticks, 10.0)
        run.model(policy)
    (found,) = Store(server).find("far", "training", tags={"policy": "ppo"})
    assert found.metrics["kpi/latency_p95_s"] == 0.1
    assert store.download(run.id, "ticks.csv").read_text().startswith("t_s,users")
    assert (store.download(run.id, "model") / "policy.json").read_text() == '{"levers": [6]}'
    assert store.series(run.id, "tick/users")[0].tolist() == [5, 10]
