"""Containers crash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, instants


class PodCrash(Timed):
    """`crashes` times, at times drawn within the span, the container of a ready pod drawn each time dies.

    Its requests fail; it is restarted in place at once, or after its back-off if it has crashed before.
    """

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        crashes: int

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 <= self.crashes <= 1000:
                raise refuse("crashes", self.crashes, "must lie in 1..1000")

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        death_s_D = instants(self.config.crashes, begin_s, end_s, rng)
        return FaultPlan(death_s_D=death_s_D, death_draw_D=rng.random(len(death_s_D)))
