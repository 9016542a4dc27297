"""A sudden crowd on top of any load."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.core.load import LoadPlan
from gpusched.fault.timed import Timed, check_at_least

MOST = 1000.0
"""Beyond it a slip is likelier than a crowd."""


class FlashCrowd(Timed):
    """For `lasts_s` there are `factor` times as many users, or arrivals. Real clusters can live through it too.

    Arrivals are repeated, each a little later, so that a trace keeps its own pattern.
    """

    @dataclass(kw_only=True)
    class Config(Timed.Config):
        factor: float

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least("factor", self.factor, 1.0)
            if self.factor > MOST:
                raise refuse("factor", self.factor, f"must be at most {MOST:g}")

    config: Config
    simulated = False

    def timeline(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        return FaultPlan()

    def on_plan(self, plan: LoadPlan, begin_s: float, end_s: float, rng: np.random.Generator) -> LoadPlan:
        from_s, to_s = (float(round(t)) for t in self.span(begin_s, end_s, rng))
        return self._repeat(plan, from_s, to_s, rng) if plan.is_open else self._crowd(plan, from_s, to_s)

    def _crowd(self, plan: LoadPlan, from_s: float, to_s: float) -> LoadPlan:
        from_s_K = np.unique(np.concatenate([plan.from_s_K, [from_s, to_s]]))
        inside_K = (from_s_K >= from_s) & (from_s_K < to_s)
        users_K = plan.users_at(from_s_K) * np.where(inside_K, self.config.factor, 1.0)
        return replace(plan, from_s_K=from_s_K, users_K=np.rint(users_K).astype(np.int64))

    def _repeat(self, plan: LoadPlan, from_s: float, to_s: float, rng: np.random.Generator) -> LoadPlan:
        assert plan.arrivals_s_N is not None
        hit_s = plan.arrivals_s_N[(plan.arrivals_s_N >= from_s) & (plan.arrivals_s_N < to_s)]
        more = round((self.config.factor - 1.0) * len(hit_s))
        if more == 0:
            return plan
        copies_s = rng.choice(hit_s, more) + rng.random(more)
        return replace(plan, arrivals_s_N=np.sort(np.concatenate([plan.arrivals_s_N, copies_s])))
