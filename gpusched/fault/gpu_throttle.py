"""The GPU lowers its clocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, check_speed


class GPUThrottle(Timed):
    """Heat or power: every GPU runs at `speed`, a share of its full clock. DCGM shows it busier, not slower."""

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        speed: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_speed("speed", self.speed)

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return FaultPlan.during(begin_s, end_s, gpu_speed=self.config.speed)
