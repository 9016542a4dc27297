"""A local cluster as run.py would build it, small and quick."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from composing import composed

from gpusched.cluster.local import LocalCluster
from gpusched.job.build import setup
from gpusched.job.setup import Job, Setup

ROOT = Path(__file__).parents[2]
QUICK = (
    "cluster=local", "cluster.endpoint.shape=[3,96,96]", "service.probe_delay_s.value=0", "service.probe_period_s.value=0.5",
    "service.prestop_s.value=0.5", "service.grace_s.value=10", "trial.start_replicas=1", "trial.max_replicas=3",
)  # fmt: skip


def make(*overrides: str) -> tuple[Job, Setup]:
    """Compose and build one job on cluster=local."""
    mine = [*QUICK, f"cluster.triton={ROOT / '.venv-triton'}", *overrides]
    return setup(*composed(*mine), mine)


def cluster(*overrides: str) -> LocalCluster:
    """Return a local cluster that nobody has started yet."""
    return cast(LocalCluster, make(*overrides)[1].cluster())
