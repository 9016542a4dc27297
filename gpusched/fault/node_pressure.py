"""Others take the node's resources."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.fault.timed import Timed, check_at_least, check_speed, instants


class NodePressure(Timed):
    """Other pods request `cores`, contend for caches and hyperthreads, and use up the memory.

    What is left must hold every new pod; host phases run at `host_speed`; and the kubelet evicts a ready pod
    `evictions` times, which the Deployment replaces, room permitting.
    """

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        cores: float
        host_speed: float
        evictions: int

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least("cores", self.cores, 0.0)
            check_speed("host_speed", self.host_speed)
            if not 0 <= self.evictions <= 1000:
                raise refuse("evictions", self.evictions, "must lie in 0..1000")

    config: Config

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        c = self.config
        levels = FaultPlan.during(begin_s, end_s, stolen_cores=c.cores, host_speed=c.host_speed)
        death_s_D = instants(c.evictions, begin_s, end_s, rng)
        return dataclasses.replace(
            levels,
            death_s_D=death_s_D,
            death_draw_D=rng.random(c.evictions),
            evicted_D=np.ones(c.evictions),
        )
