"""The wall-clock cluster under contract, over a small Triton-speaking server and a real Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from contract import Case, Session, service

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))

from live_double import PODS, LiveDouble
from triton_double import TritonDouble

from gpusched.core.controls import Limits
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster
from gpusched.core.trial import TrialSpec

NAME = "live"
MARKS = ()
TRIAL = TrialSpec(duration_s=4.0, warmup_s=2.0, control_s=1.0, tick_s=0.5, start_replicas=2)


@contextmanager
def opened(session: Session) -> Iterator[Case]:
    prometheus = session.fixture("prometheus")
    triton = TritonDouble(0.05, prometheus.port())
    prometheus.wait_for(f'nv_inference_request_success{{pod=~"{PODS}"}}')
    config = LiveDouble.Config(
        url=triton.url, prometheus=prometheus.url, scrape_s=0.2, window_s=1.0, cpu_window_s=1.0
    )

    def make(envs: int = 1) -> Cluster:
        return LiveDouble(config, service=service(), trial=TRIAL, limits=Limits(), slo_s=0.3, envs=envs)

    plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.array([10]), think_min_s=0.05, think_max_s=0.15)
    try:
        yield Case(make=make, trial=TRIAL, plan=plan)
    finally:
        triton.stop()
