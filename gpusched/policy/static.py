"""static: a fixed number of replicas, the simplest thing that could work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation
from gpusched.core.ports import Policy


class Static(Policy):
    """Asks for the same number of replicas at every control tick."""

    @dataclass(kw_only=True)
    class Config:
        replicas: int

    config: Config

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode; InputError where the limits do not allow that many replicas."""
        low, high = limits.min_replicas, limits.max_replicas
        if not low <= self.config.replicas <= high:
            raise refuse("replicas", self.config.replicas, f"must lie in the trial's limits, {low}..{high}")
        self._envs = envs

    def act(self, observation: Observation) -> Controls:
        return Controls.scale(np.full(self._envs, self.config.replicas))
