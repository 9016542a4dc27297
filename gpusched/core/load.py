"""What a load option draws before a trial: closed-loop users or open-loop arrivals over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import refuse


@dataclass(kw_only=True)
class LoadPlan:
    """Users over time (closed loop, as Locust) or arrival times (open loop, a trace).

    Closed: `users_K[k]` users are active from `from_s_K[k]` on; `from_s_K[0]` is 0; each thinks
    uniformly between `think_min_s` and `think_max_s` after every answer.
    Open: `arrivals_s_N` is not None, sorted, in seconds from the start of the warm-up.
    """

    from_s_K: NDArray[np.float64]
    users_K: NDArray[np.int64]
    think_min_s: float = 1.0
    think_max_s: float = 2.0
    arrivals_s_N: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.arrivals_s_N is None:
            if len(self.from_s_K) == 0 or len(self.from_s_K) != len(self.users_K) or self.from_s_K[0] != 0.0:
                raise ValueError("from_s_K must start at 0 and be as long as users_K")
            if np.any(np.diff(self.from_s_K) <= 0):
                raise ValueError("from_s_K must increase")
            if np.any(self.users_K < 0):
                raise refuse("users", int(self.users_K.min()), "must be at least 0")
        if not 0 <= self.think_min_s <= self.think_max_s:
            raise refuse("think_min_s", self.think_min_s, f"must lie in 0..think_max_s ({self.think_max_s})")

    @property
    def is_open(self) -> bool:
        return self.arrivals_s_N is not None

    @property
    def max_users(self) -> int:
        """Largest number of users at any time; 0 for an open load."""
        return 0 if self.is_open else int(self.users_K.max())

    @property
    def think_mean_s(self) -> float:
        return 0.5 * (self.think_min_s + self.think_max_s)

    def users_at(self, t_s_T: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the target number of users at each time, shape [T]."""
        if self.is_open:
            return np.zeros(len(t_s_T), dtype=np.int64)
        k = np.searchsorted(self.from_s_K, t_s_T, side="right") - 1
        return self.users_K[np.maximum(k, 0)]

    def mean_users(self, begin_s: float, end_s: float) -> float:
        """Return the time average of users over [begin_s, end_s)."""
        edges = np.concatenate([self.from_s_K, [np.inf]])
        lengths = np.clip(edges[1:], begin_s, end_s) - np.clip(edges[:-1], begin_s, end_s)
        return float(np.sum(lengths * self.users_K) / (end_s - begin_s))
