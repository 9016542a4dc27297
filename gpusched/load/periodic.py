"""Users that swing like a day, compressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.load.closed import Closed, Floats, check_time, check_users


class Periodic(Closed):
    """A sine between `low_users` and `users`; the phase is drawn per seed."""

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        low_users: int
        users: int
        period_s: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_users("low_users", self.low_users)
            check_users("users", self.users)
            if self.users < self.low_users:
                raise refuse("users", self.users, f"must be at least low_users ({self.low_users})")
            check_time("period_s", self.period_s)

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        c = self.config
        wave_T = np.sin(2 * np.pi * (t_s_T / c.period_s + rng.uniform()))
        return c.low_users + (c.users - c.low_users) * 0.5 * (1 + wave_T)
