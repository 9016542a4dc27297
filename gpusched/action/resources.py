"""The size of one pod: its CPU limit, its Triton instances, its share of the GPU; an HPA owns the replicas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.action.levers import Sizes, levers, pick, resize, sizes
from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.errors import refuse
from gpusched.core.ports import Action


class Resources(Action):
    """One lever per resource with more than one choice; the HPA's CPU target is fixed."""

    @dataclass(kw_only=True)
    class Config(Sizes):
        target: float

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 <= self.target <= 1000:
                raise refuse("target", self.target, "must lie in 1..1000 percent of the CPU request")

    config: Config

    def sizes(self, limits: Limits) -> list[int]:
        return sizes(levers(limits))

    def decode(self, choice_EA: NDArray[np.int64], limits: Limits) -> Controls:
        spec = HPASpec(
            target=self.config.target, min_replicas=limits.min_replicas, max_replicas=limits.max_replicas
        )
        return resize(Controls.autoscale(spec, len(choice_EA)), pick(levers(limits), choice_EA), limits)
