"""Calibration and comparison on real servers whose batches take a known time, so that what comes out is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_setup import make

from gpusched.tracking.store import Store

pytestmark = [pytest.mark.local, pytest.mark.slow]

ALPHA, BETA = 0.030, 0.010
SLACK_S = 0.006
"""Room for what surrounds a batch (copies, threads, a busy machine), about 1 ms on a quiet one."""
EMULATED = (
    f"cluster.emulate_alpha_s={ALPHA}", f"cluster.emulate_beta_s={BETA}", "cluster.endpoint.shape=[3,32,32]",
    "trial.max_replicas=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def profile(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a profile calibrated in half a minute."""
    folder = tmp_path_factory.mktemp("calibration")
    job, built = make(
        *EMULATED, "job=calibrate", "job.name=known", f"job.folder={folder}", "job.users=[1,3,8]", "job.repeats=2",
        "job.step_s=2", "job.starts=2",
    )  # fmt: skip
    job.run(built, None, None)  # type: ignore[arg-type]
    return folder


def test_known_times_are_measured(profile: Path) -> None:
    told: dict[str, Any] = yaml.safe_load((profile / "service" / "known.yaml").read_text())
    alpha, beta = told["host_alpha_s"]["value"], told["host_beta_s"]["value"]
    assert ALPHA <= alpha < ALPHA + SLACK_S
    assert beta == pytest.approx(BETA, abs=0.1 * BETA)
    assert told["gpu_alpha_s"]["value"] == told["gpu_beta_s"]["value"] == 0
    assert 0.1 < told["start_s"]["value"] < 20
    assert 5e7 < told["pod_memory_bytes"]["value"] < 1e9
    assert {c["status"] for c in told.values() if isinstance(c, dict)} == {"measured", "reported"}


def test_the_simulator_runs_on_it_and_agrees(profile: Path, tmp_path: Path) -> None:
    job, built = make(
        *EMULATED, f"hydra.searchpath=[file://{profile}]", "service=known", "job=fidelity", f"job.folder={tmp_path}",
        "job.levels=[0.6]", "job.replicas=[1]", "job.batches=[1]", "job.scaling=false", "job.warmup_s=5",
        "job.duration_s=20", "job.episodes=8",
    )  # fmt: skip
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    job.run(built, store, None)
    (stored,) = store.find(kind="fidelity")
    assert stored.tags["emulated"] == "true"
    told = json.loads((tmp_path / "fidelity.json").read_text())
    rows = {row["measure"]: row for row in told["rows"]}
    assert abs(rows["throughput_rps"]["error"]) < 0.1
    # Twenty seconds on a machine that may be busy: a wrong model of the queue is off by more.
    assert abs(rows["p50_s"]["error"]) < 0.35
    assert told["cases"][0]["schedule_lag_p99_s"] < 0.5
