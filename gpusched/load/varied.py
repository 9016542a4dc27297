"""Everything a day may bring, drawn anew every time: what a learning policy trains on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.load.closed import Closed, Floats, check_share, check_time, check_users

SHAPES = ("step", "ramp", "spike")
"""How a segment begins: jump to its level, rise to it over the whole segment, or burst above it for a third."""


class Varied(Closed):
    """Random levels in `least_users..users`: a steady run, or segments of steps, ramps and spikes.

    A run is steady with probability `steady_share`; otherwise segments of `segment_min_s..segment_max_s`
    follow each other, each with a level and a shape of its own, all uniform.
    """

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        least_users: int
        users: int
        steady_share: float
        segment_min_s: float
        segment_max_s: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_users("least_users", self.least_users)
            check_users("users", self.users)
            if self.users < self.least_users:
                raise refuse("users", self.users, f"must be at least least_users ({self.least_users})")
            check_share("steady_share", self.steady_share)
            check_time("segment_min_s", self.segment_min_s)
            check_time("segment_max_s", self.segment_max_s)
            if self.segment_max_s < self.segment_min_s:
                raise refuse(
                    "segment_max_s",
                    self.segment_max_s,
                    f"must be at least segment_min_s ({self.segment_min_s} s)",
                )

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        level = self._level(rng)
        users_T = np.full(len(t_s_T), level)
        if rng.uniform() < self.config.steady_share:
            return users_T
        begin_s = 0.0
        while begin_s < duration_s:
            end_s = begin_s + rng.uniform(self.config.segment_min_s, self.config.segment_max_s)
            inside_T = (t_s_T >= begin_s) & (t_s_T < end_s)
            level = self._segment(users_T, inside_T, level, rng)
            begin_s = end_s
        return users_T

    def _segment(
        self, users_T: Floats, inside_T: np.ndarray, before: float, rng: np.random.Generator
    ) -> float:
        """Write one segment in place and return the level it ends on."""
        level, shape = self._level(rng), SHAPES[rng.integers(len(SHAPES))]
        seconds = int(np.count_nonzero(inside_T))
        users_T[inside_T] = np.linspace(before, level, seconds) if shape == "ramp" else level
        if shape == "spike":
            begin = int(np.argmax(inside_T)) + rng.integers(0, seconds // 2 + 1)
            users_T[begin : begin + seconds // 3] = rng.uniform(level, self.config.users)
        return level

    def _level(self, rng: np.random.Generator) -> float:
        return float(rng.integers(self.config.least_users, self.config.users + 1))
