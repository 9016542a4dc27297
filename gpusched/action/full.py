"""Every lever at once: the HPA's target and the size of one pod."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.action.levers import Sizes, check_choices, levers, pick, resize, sizes, target_expense
from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.ports import Action


class Full(Action):
    """The first lever is the HPA's CPU target, then one lever per resource with more than one choice."""

    @dataclass(kw_only=True)
    class Config(Sizes):
        targets: list[float]

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices("targets", self.targets, 1, 1000)

    config: Config

    def sizes(self, limits: Limits) -> list[int]:
        return sizes(levers(limits, targets=self.config.targets))

    def expense(self, limits: Limits) -> NDArray[np.float64]:
        of_target = target_expense(self.config.targets)
        return np.concatenate([of_target, np.zeros(sum(self.sizes(limits)) - len(of_target))])

    def decode(self, choice_EA: NDArray[np.int64], limits: Limits) -> Controls:
        targets = self.config.targets
        chosen = pick(levers(limits, targets=targets), choice_EA)
        spec = HPASpec(target=targets[0], min_replicas=limits.min_replicas, max_replicas=limits.max_replicas)
        controls = Controls.autoscale(spec, len(choice_EA))
        controls.hpa_target_E = chosen["targets"].astype(np.float64)
        return resize(controls, chosen, limits)
