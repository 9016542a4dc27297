"""Users that rise (or fall) linearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.load.closed import Closed, Floats, check_share, check_users


class Ramp(Closed):
    """From `from_users` to `users`, linearly between two shares of the run.

    Both ends of the ramp move by up to `jitter_share` of the run, drawn per seed.
    """

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        from_users: int
        users: int
        begin_share: float
        end_share: float
        jitter_share: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_users("from_users", self.from_users)
            check_users("users", self.users)
            for key in ("begin_share", "end_share", "jitter_share"):
                check_share(key, getattr(self, key))
            if self.end_share <= self.begin_share:
                raise refuse(
                    "end_share", self.end_share, f"must be greater than begin_share ({self.begin_share})"
                )

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        c = self.config
        shift = rng.uniform(-c.jitter_share, c.jitter_share)
        ends_s = duration_s * (np.array([c.begin_share, c.end_share]) + shift)
        return np.interp(t_s_T, ends_s, [c.from_users, c.users])
