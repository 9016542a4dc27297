"""table: so many users, so many replicas. Thresholds on the estimated population, found by a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation
from gpusched.policy.tuned import Hold, Picker, Tuned, Value, check_span, population


@dataclass(kw_only=True)
class Space:
    """What the search may choose, lowest and highest.

    users  population above which the second least number of replicas is asked for
    gap    users between one threshold and the next
    band   share of a threshold by which the population must fall below it before a replica goes
    hold   control steps for which a smaller wish must last before it is followed
    """

    users: list[float]
    gap: list[float]
    band: list[float]
    hold: list[int]

    def __post_init__(self) -> None:
        for key in ("users", "gap", "hold"):
            check_span(f"space.{key}", getattr(self, key), 0)
        check_span("space.band", self.band, 0, 1)


class Table(Tuned):
    """Reads the number of replicas off a table of population thresholds."""

    @dataclass(kw_only=True)
    class Config(Tuned.Config):
        think_s: float
        space: Space

        def __post_init__(self) -> None:
            if not self.think_s >= 0:
                raise refuse("think_s", self.think_s, "must be at least 0 s")

    config: Config

    def rule(self, pick: Picker, limits: Limits) -> TableRule:
        space = self.config.space
        gaps = [pick.real("users", space.users)]
        more = range(limits.min_replicas + 2, limits.max_replicas + 1)
        gaps += [pick.real(f"gap_{replicas}", space.gap) for replicas in more]
        thresholds = np.cumsum(gaps)[: limits.max_replicas - limits.min_replicas]
        return TableRule(
            thresholds,
            think_s=self.config.think_s,
            band=pick.real("band", space.band),
            hold=pick.whole("hold", space.hold),
        )

    def first(self, limits: Limits) -> dict[str, Value]:
        gaps = {f"gap_{k}": 30.0 for k in range(limits.min_replicas + 2, limits.max_replicas + 1)}
        return {"users": 30.0, **gaps, "band": 0.1, "hold": 2}


class TableRule:
    """min_replicas plus the number of thresholds below the population.

    thresholds   population above which each further replica is asked for, not decreasing
    think_s      mean think time assumed when users are estimated from the rate
    band, hold   see Space
    """

    def __init__(
        self,
        thresholds: Sequence[float] | NDArray[np.float64],
        *,
        think_s: float,
        band: float = 0.0,
        hold: int = 0,
    ) -> None:
        self.thresholds_K = np.asarray(thresholds, dtype=np.float64)
        self.think_s, self.band, self.hold = think_s, band, hold

    def reset(self, limits: Limits, envs: int) -> None:
        self._low, self._hold = limits.min_replicas, Hold(self.hold, envs)
        self._level_E: NDArray[np.int64] | None = None

    def act(self, observation: Observation) -> Controls:
        """Ask for what the table says; without metrics, for what there is."""
        users_E = population(observation, self.think_s)
        up_E, down_E = self._read(users_E, 1.0), self._read(users_E, 1.0 - self.band)
        if self._level_E is None:
            self._level_E = np.where(np.isnan(users_E), observation.replicas_spec_E, up_E).astype(np.int64)
        level_E = np.clip(self._level_E, up_E, down_E)
        self._level_E = np.where(np.isnan(users_E), self._level_E, level_E)
        return Controls.scale(self._hold.pass_on(self._level_E))

    def _read(self, users_E: NDArray[np.float64], share: float) -> NDArray[np.int64]:
        above_EK = users_E[:, None] > share * self.thresholds_K
        return np.asarray(self._low + above_EK.sum(axis=1), dtype=np.int64)
