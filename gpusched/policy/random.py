"""random: any number of replicas at every control tick; what every other policy must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.controls import Controls, Limits
from gpusched.core.observation import Observation
from gpusched.core.ports import Policy


class Random(Policy):
    """Draws the number of replicas uniformly within the limits, from a stream of its own."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose: the trial's limits say it all."""

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode; the same seed draws the same replicas."""
        self._rng, self._limits, self._envs = np.random.default_rng(seed), limits, envs

    def act(self, observation: Observation) -> Controls:
        low, high = self._limits.min_replicas, self._limits.max_replicas
        return Controls.scale(self._rng.integers(low, high + 1, self._envs))
