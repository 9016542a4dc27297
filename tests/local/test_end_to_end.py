"""One trial on real Triton servers, by the command a person would type: scaled up under load, recorded, audited."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from local_setup import ROOT

from gpusched.core.kpi import KPIS
from gpusched.tracking.store import Store

pytestmark = [pytest.mark.local, pytest.mark.slow]

LIMIT_S = 180.0
TRIAL = (
    "study=end-to-end", "cluster=local", "policy=hpa", "policy.target=30", "load=medium", "load.users=40",
    "load.think_min_s=0.5", "load.think_max_s=1.0", "trial.start_replicas=1", "trial.max_replicas=2",
    "trial.warmup_s=15", "trial.duration_s=45", "trial.control_s=5", "trial.tick_s=5",
    # The pipeline of Kubernetes takes a minute until it acts; the same one, faster.
    "cluster.advisor_s=1", "cluster.metrics_server_s=2", "cluster.hpa_sync_s=3", "cluster.window_s=10",
    "cluster.cpu_window_s=10", "service.probe_delay_s.value=0", "service.probe_period_s.value=1",
    "service.prestop_s.value=1", "service.grace_s.value=10",
)  # fmt: skip


def of_ours() -> set[str]:
    """Return the processes of any local cluster."""
    done = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if "gpusched-" in line and "tritonserver" in line}


def test_the_hpa_scales_real_triton_under_load(installed: Path, tmp_path: Path) -> None:
    before, begin_s = of_ours(), time.monotonic()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *TRIAL, f"cluster.triton={installed}", f"tracking.uri={uri}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = Store(uri).find("end-to-end", kind="trial")
    ticks = np.genfromtxt(Store(uri).download(run.id, "ticks.csv"), delimiter=",", names=True)
    assert ticks["replicas_ready"][0] == 1.0
    assert ticks["replicas_ready"][-1] == 2.0, "the HPA did not scale up"
    assert (np.diff(ticks["replicas_spec"]) >= 0).all()
    for name in ("latency_p95_s", "throughput_rps", "goodput_rps", "cpu_utilization", "replica_seconds"):
        assert run.metrics[f"kpi/{name}"] > 0, name
    assert set(KPIS) >= {name.removeprefix("kpi/") for name in run.metrics if name.startswith("kpi/")}
    assert run.metrics["kpi/success_rate"] == 1.0, "scaling up lost requests"
    assert run.tags["gate/load_audit"] == run.tags["gate/readiness"] == run.tags["gate/telemetry"] == "ok"
    assert of_ours() <= before
    assert time.monotonic() - begin_s < LIMIT_S
