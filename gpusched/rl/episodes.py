"""The episodes a method learns on, is searched on or is validated on, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpusched.core.ports import Episode, Load

Trouble = Callable[[Episode, np.random.SeedSequence], Episode]
"""Lets something go wrong in an episode, with draws of its own."""


class Episodes:
    """Draws episode after episode of one load; the same seed sequence gives the same episodes.

    `trouble`, where there is any, goes wrong in every one of them; users and their choices stay what they are without it.
    """

    def __init__(
        self, load: Load, duration_s: float, source: np.random.SeedSequence, trouble: Trouble | None = None
    ) -> None:
        self._load, self._duration_s, self._source, self._trouble = load, duration_s, source, trouble

    def draw(self, count: int) -> list[Episode]:
        """Return the next `count` episodes."""
        return [self._one(child) for child in self._source.spawn(count)]

    def _one(self, child: np.random.SeedSequence) -> Episode:
        plan_seed, user_seed, trouble_seed = child.spawn(3)
        plan = self._load.plan(self._duration_s, np.random.default_rng(plan_seed))
        episode = Episode(plan=plan, seed=user_seed)
        return self._trouble(episode, trouble_seed) if self._trouble else episode
