"""Several levels within one run, in drawn order and with drawn switch times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import refuse
from gpusched.load.closed import Closed, Floats, check_share, check_users


class Mixed(Closed):
    """Every level of `levels` once; each holds at least `hold_share` of an equal part of the run.

    The order is drawn where `shuffle` is set, the switch times always.
    """

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        levels: list[int]
        shuffle: bool
        hold_share: float

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.levels:
                raise refuse("levels", self.levels, "must name at least one number of users")
            for k, users in enumerate(self.levels):
                check_users(f"levels[{k}]", users)
            check_share("hold_share", self.hold_share)

    config: Config

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        count, hold = len(self.config.levels), self.config.hold_share
        order = rng.permutation(count) if self.config.shuffle else np.arange(count)
        # A guaranteed part each, and the rest split uniformly (flat Dirichlet) between the levels.
        share_K = hold / count + (1 - hold) * rng.dirichlet(np.ones(count))
        switch_s_K = duration_s * np.cumsum(share_K)[:-1]
        levels_K = np.asarray(self.config.levels, dtype=np.float64)[order]
        return levels_K[np.searchsorted(switch_s_K, t_s_T, side="right")]
