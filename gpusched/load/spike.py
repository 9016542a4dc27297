"""A sudden burst of users over a calm level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.load.closed import Closed, Floats, check_share, check_time, check_users


class Spike(Closed):
    """`base_users`, and `users` for `spike_s` from a time drawn between two shares of the run."""

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        base_users: int
        users: int
        spike_s: float
        first_share: float
        last_share: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_users("base_users", self.base_users)
            check_users("users", self.users)
            check_time("spike_s", self.spike_s)
            check_share("first_share", self.first_share)
            check_share("last_share", self.last_share)
            if self.last_share < self.first_share:
                raise refuse(
                    "last_share", self.last_share, f"must be at least first_share ({self.first_share})"
                )

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        c = self.config
        begin_s = duration_s * rng.uniform(c.first_share, c.last_share)
        spike_T = (t_s_T >= begin_s) & (t_s_T < begin_s + c.spike_s)
        return np.where(spike_T, float(c.users), float(c.base_users))
