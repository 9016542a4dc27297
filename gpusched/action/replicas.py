"""One lever: the number of replicas, absolute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.action.levers import sizes
from gpusched.core.controls import Controls, Limits
from gpusched.core.ports import Action


class Replicas(Action):
    """Choice k asks for min_replicas + k replicas."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose: the trial's limits say it all."""

    def sizes(self, limits: Limits) -> list[int]:
        return sizes({"replicas": range(limits.min_replicas, limits.max_replicas + 1)})

    def expense(self, limits: Limits) -> NDArray[np.float64]:
        return np.arange(sum(self.sizes(limits)), dtype=float)

    def decode(self, choice_EA: NDArray[np.int64], limits: Limits) -> Controls:
        chosen_E = choice_EA[:, 0] if choice_EA.shape[1] else np.zeros(len(choice_EA), dtype=np.int64)
        return Controls.scale(limits.min_replicas + chosen_E)
