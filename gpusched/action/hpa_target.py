"""One lever: the CPU target of an HPA that owns the replica count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.action.levers import check_choices, pick, sizes, target_expense
from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.ports import Action


class HPATarget(Action):
    """Choice k sets the HPA's target to `targets[k]` percent of the CPU request."""

    @dataclass(kw_only=True)
    class Config:
        targets: list[float]

        def __post_init__(self) -> None:
            check_choices("targets", self.targets, 1, 1000)

    config: Config

    def sizes(self, limits: Limits) -> list[int]:
        return sizes({"targets": self.config.targets})

    def expense(self, limits: Limits) -> NDArray[np.float64]:
        return target_expense(self.config.targets)

    def decode(self, choice_EA: NDArray[np.int64], limits: Limits) -> Controls:
        targets = self.config.targets
        spec = HPASpec(target=targets[0], min_replicas=limits.min_replicas, max_replicas=limits.max_replicas)
        controls = Controls.autoscale(spec, len(choice_EA))
        controls.hpa_target_E = pick({"targets": targets}, choice_EA)["targets"]
        return controls
