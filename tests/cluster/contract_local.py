"""Real Triton servers as processes under contract; needs `make local`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contract import Case, Session, configured, service

from gpusched.core.check import FAIL
from gpusched.core.controls import Limits
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster
from gpusched.core.trial import TrialSpec

NAME = "local"
MARKS = (pytest.mark.local,)
TRIAL = TrialSpec(duration_s=40.0, warmup_s=5.0, control_s=5.0, tick_s=2.5, start_replicas=2)
VENV = Path(__file__).parents[2] / ".venv-triton"
QUICK = {"probe_delay_s": 0.0, "probe_period_s": 0.5, "prestop_s": 0.5, "grace_s": 10.0, "queue_size": 0.0}


@contextmanager
def opened(session: Session) -> Iterator[Case]:
    kind, config = configured(
        "local",
        f"cluster.triton={VENV}",
        "cluster.endpoint.shape=[3,96,96]",
        "cluster.scrape_s=0.5",
        "cluster.window_s=5",
        "cluster.cpu_window_s=5",
    )
    profile = service()
    profile = replace(
        profile, **{name: replace(getattr(profile, name), value=value) for name, value in QUICK.items()}
    )

    def make(envs: int = 1) -> Cluster:
        return kind(config, service=profile, trial=TRIAL, limits=Limits(), slo_s=0.3, envs=envs)

    if missing := [f"{check.detail} {check.cure}" for check in make().checks() if check.status == FAIL]:
        pytest.skip(missing[0])
    plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.array([10]), think_min_s=0.1, think_max_s=0.3)
    yield Case(make=make, trial=TRIAL, plan=plan, settle=2)
