"""A constant number of users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.load.closed import Closed, Floats, check_users


class Steady(Closed):
    """`users` users from the first second to the last."""

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        users: int

        def __post_init__(self) -> None:
            super().__post_init__()
            check_users("users", self.users)

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        return np.full(len(t_s_T), float(self.config.users))
