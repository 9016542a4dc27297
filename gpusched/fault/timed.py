"""What faults with a beginning and an end share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.core.ports import Fault


def check_at_least(key: str, value: float, least: float) -> None:
    """Raise InputError unless `value` is finite and at least `least`."""
    if not least <= value < math.inf:
        raise refuse(key, value, f"must be at least {least:g}")


def check_share(key: str, value: float) -> None:
    """Raise InputError unless `value` lies in 0..1."""
    if not 0 <= value <= 1:
        raise refuse(key, value, "must lie in 0..1")


def check_speed(key: str, value: float) -> None:
    """Raise InputError unless `value` is a positive share of the full speed."""
    if not 0.01 <= value <= 1:
        raise refuse(key, value, "must lie in 0.01..1, a share of the full speed")


class Timed(Fault):
    """Begins at a time drawn between two shares of the episode, after the warm-up, and lasts for `lasts_s`."""

    @dataclass(kw_only=True)
    class Config:
        first_share: float
        last_share: float
        lasts_s: float

        def __post_init__(self) -> None:
            check_share("first_share", self.first_share)
            check_share("last_share", self.last_share)
            if self.last_share < self.first_share:
                raise refuse(
                    "last_share", self.last_share, f"must be at least first_share ({self.first_share})"
                )
            check_at_least("lasts_s", self.lasts_s, 1.0)

    config: Any

    def span(self, begin_s: float, end_s: float, rng: np.random.Generator) -> tuple[float, float]:
        """Draw from when to when it goes wrong, at the longest until the trial ends."""
        c = self.config
        from_s = begin_s + (end_s - begin_s) * rng.uniform(c.first_share, c.last_share)
        return from_s, max(min(from_s + c.lasts_s, end_s), from_s + 1e-3)

    def timeline(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return self.during(*self.span(begin_s, end_s, rng), rng)

    def during(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        """Return what goes wrong from `begin_s` to `end_s`."""
        return FaultPlan()


def instants(count: int, begin_s: float, end_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw that many times between two, in order."""
    return np.sort(rng.uniform(begin_s, end_s, count))
