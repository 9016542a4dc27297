"""What closed loads share: users that think, answer by answer, as Locust's do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import refuse
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Load

MOST_USERS = 100_000
"""More users than one node can mean; a typing slip is likelier."""
MOST_THINK_S = 1e6
"""As good as never again."""

Floats = NDArray[np.float64]


def check_users(key: str, value: int) -> None:
    """Raise InputError unless `value` is a possible number of users."""
    if not 0 <= value <= MOST_USERS:
        raise refuse(key, value, f"must lie in 0..{MOST_USERS} users")


def check_share(key: str, value: float) -> None:
    """Raise InputError unless `value` is a share of the run."""
    if not 0 <= value <= 1:
        raise refuse(key, value, "must lie in 0..1, a share of the run")


def check_time(key: str, value: float) -> None:
    """Raise InputError unless `value` is a time of at least one second, the resolution of closed loads."""
    if not 1 <= value < math.inf:
        raise refuse(key, value, "must be at least 1 s")


class Closed(Load, ABC):
    """Users over time on a grid of one second; each thinks uniformly between two answers."""

    @dataclass(kw_only=True)
    class Config:
        think_min_s: float
        think_max_s: float

        def __post_init__(self) -> None:
            if not 0 <= self.think_min_s < math.inf:
                raise refuse("think_min_s", self.think_min_s, "must be at least 0 s")
            if not self.think_min_s <= self.think_max_s <= MOST_THINK_S:
                raise refuse(
                    "think_max_s",
                    self.think_max_s,
                    f"must lie in think_min_s..{MOST_THINK_S:g} s ({self.think_min_s:g} s or more)",
                )

    config: Any

    @abstractmethod
    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        """Return the users wanted at each second of [0, duration_s), shape [T]; the plan rounds them."""

    def plan(self, duration_s: float, rng: np.random.Generator) -> LoadPlan:
        t_s_T = np.arange(float(max(1, math.ceil(duration_s))))
        users_T = np.rint(self.users(t_s_T, duration_s, rng)).astype(np.int64)
        changed_T = np.diff(users_T, prepend=-1) != 0
        return LoadPlan(
            from_s_K=t_s_T[changed_T],
            users_K=users_T[changed_T],
            think_min_s=self.config.think_min_s,
            think_max_s=self.config.think_max_s,
        )
