"""Containers take longer to start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, check_at_least


class SlowStart(Timed):
    """The start of every container that is scheduled or restarted meanwhile takes `factor` times as long.

    An image that must be pulled again, or a model store that is slow: replicas come, but late.
    """

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        factor: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least("factor", self.factor, 1.0)

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return FaultPlan.during(begin_s, end_s, start_factor=self.config.factor)
