"""The simulator under contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from contract import Case, Session, configured, service

from gpusched.core.controls import Limits
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster
from gpusched.core.trial import TrialSpec

NAME = "sim"
MARKS = ()
TRIAL = TrialSpec(duration_s=300.0, warmup_s=30.0, control_s=15.0, tick_s=5.0, start_replicas=2)


@contextmanager
def opened(session: Session) -> Iterator[Case]:
    kind, config = configured("sim")

    def make(envs: int = 1) -> Cluster:
        return kind(config, service=service(), trial=TRIAL, limits=Limits(), slo_s=0.3, envs=envs)

    plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.array([12]))
    yield Case(make=make, trial=TRIAL, plan=plan, settle=5, wire_s=0.3)
