"""Someone else's processes use the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, check_at_least


class NoisyNeighbour(Timed):
    """`processes` foreign processes on every GPU, working in bursts: exponential times on and off.

    In a burst each has work all the time and gets the share of one of our busy processes. DCGM counts it as busy.
    """

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        processes: int
        busy_share: float
        burst_s: float

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 <= self.processes <= 4:
                raise refuse("processes", self.processes, "must lie in 1..4")
            if not 0 < self.busy_share <= 1:
                raise refuse("busy_share", self.busy_share, "must be greater than 0 and at most 1")
            check_at_least("burst_s", self.burst_s, 0.01)

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        c = self.config
        if c.busy_share == 1:
            return FaultPlan.during(begin_s, end_s, neighbours=c.processes)
        pause_s = c.burst_s * (1 - c.busy_share) / c.busy_share
        pairs = 1 + int((end_s - begin_s) / (c.burst_s + pause_s) * 2)
        while True:
            lengths_s = rng.exponential((c.burst_s, pause_s), (pairs, 2)).ravel()
            from_s_K = begin_s + np.concatenate([[0.0], np.cumsum(lengths_s)])
            if from_s_K[-1] >= end_s:
                break
            pairs *= 2
        busy_K = np.where(np.arange(len(from_s_K)) % 2 == 0, float(c.processes), 0.0)
        inside_K = from_s_K < end_s
        return FaultPlan(
            from_s_K=np.append(from_s_K[inside_K], end_s), neighbours_K=np.append(busy_K[inside_K], 0.0)
        )
