"""Metrics arrive late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, check_at_least


class MetricDelay(Timed):
    """Every sample can be seen `delay_s` later than it was taken; at first nothing new comes for that long."""

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        delay_s: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least("delay_s", self.delay_s, 0.0)

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return FaultPlan.during(begin_s, end_s, metric_delay_s=self.config.delay_s)
