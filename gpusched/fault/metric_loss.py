"""Monitoring gets no answers for a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed


class MetricLoss(Timed):
    """Every scrape fails: Prometheus', metrics-server's and DCGM's. What was there before grows old."""

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        pass

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return FaultPlan.during(begin_s, end_s, metrics_lost=1.0)
