"""predictive: forecasts the demand to when a replica started now would be ready, and buys capacity for it.

The shape is that of NVIDIA Dynamo's planner (load predictor, profiled capacity of a replica, replicas =
ceil(predicted load / capacity); docs.nvidia.com/dynamo, "Planner Design") and of Knative's autoscaler, which
adds at once and removes only after a stable window (knative.dev, "Modes": stable and panic). The forecast is
Holt's with a damped trend (Gardner and McKenzie, 1985), and seasonal once the history shows a period.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation
from gpusched.policy.tuned import Hold, Picker, Tuned, Value, check_span, population

Floats = NDArray[np.float64]

SHORTEST_PERIOD = 8
"""Control steps below which a repetition is taken for noise."""
LONGEST_HISTORY = 400
"""Control steps that are remembered."""
NEAR = 1e-9
"""Demand that exceeds a capacity by rounding only needs no further replica."""


@dataclass(kw_only=True)
class Space:
    """What the search may choose, lowest and highest.

    rps_per_replica  requests per second one replica serves at the utilisation that is aimed at
    sharing          a in capacity(n) = rps_per_replica · n^a: below 1 where replicas share one GPU
    level_gain       weight of the newest demand in its smoothed level
    trend_gain       weight of the newest change in the trend
    lookahead        control steps ahead, the cold start
    hold             control steps for which a smaller wish must last before it is followed

    The most replicas it asks for are searched within the trial's limits.
    """

    rps_per_replica: list[float]
    sharing: list[float]
    level_gain: list[float]
    trend_gain: list[float]
    lookahead: list[int]
    hold: list[int]

    def __post_init__(self) -> None:
        check_span("space.rps_per_replica", self.rps_per_replica, 1e-3)
        check_span("space.sharing", self.sharing, 0.05, 2.0)
        for key in ("level_gain", "trend_gain"):
            check_span(f"space.{key}", getattr(self, key), 0, 1)
        for key in ("lookahead", "hold"):
            check_span(f"space.{key}", getattr(self, key), 0)


class Predictive(Tuned):
    """Asks for the replicas that the forecast demand needs, and never for fewer than the present demand does."""

    @dataclass(kw_only=True)
    class Config(Tuned.Config):
        """`think_s` and `answer_s` turn users into demand; `damping` and `season_min` shape every forecast."""

        think_s: float
        answer_s: float
        damping: float
        season_min: float
        space: Space

        def __post_init__(self) -> None:
            if self.think_s < 0 or not self.think_s + self.answer_s > 0:
                raise refuse(
                    "think_s", self.think_s, "must be at least 0 s, and greater than 0 with answer_s"
                )
            if self.answer_s < 0:
                raise refuse("answer_s", self.answer_s, "must be at least 0 s")
            for key in ("damping", "season_min"):
                if not 0 <= getattr(self, key) <= 1:
                    raise refuse(key, getattr(self, key), "must lie in 0..1")

    config: Config

    def rule(self, pick: Picker, limits: Limits) -> PredictiveRule:
        c, space = self.config, self.config.space
        return PredictiveRule(
            think_s=c.think_s,
            answer_s=c.answer_s,
            forecast=Forecast(
                level_gain=pick.real("level_gain", space.level_gain),
                trend_gain=pick.real("trend_gain", space.trend_gain),
                damping=c.damping,
                season_min=c.season_min,
                lookahead=pick.whole("lookahead", space.lookahead),
            ),
            rps_per_replica=pick.real("rps_per_replica", space.rps_per_replica, log=True),
            sharing=pick.real("sharing", space.sharing),
            hold=pick.whole("hold", space.hold),
            most=pick.whole("most", [limits.min_replicas, limits.max_replicas]),
        )

    def first(self, limits: Limits) -> dict[str, Value]:
        return {"level_gain": 0.6, "trend_gain": 0.2, "lookahead": 3, "rps_per_replica": 30.0, "sharing": 0.8,
                "hold": 4, "most": limits.max_replicas}  # fmt: skip


class Forecast:
    """Demand some control steps ahead, for every environment: level and damped trend, or last period's course.

    A period (or a multiple, which serves as well) is taken from the autocorrelation: its largest value after it
    has first become negative, if that reaches `season_min` (1: never).
    """

    def __init__(
        self, *, level_gain: float, trend_gain: float, damping: float, season_min: float, lookahead: int
    ) -> None:
        self.level_gain, self.trend_gain, self.damping = level_gain, trend_gain, damping
        self.season_min, self.lookahead = season_min, lookahead
        # With a damped trend b the demand h steps ahead is level + (d + d² + ... + d^h)·b.
        self._reach = float(sum(damping**k for k in range(1, lookahead + 1)))

    def reset(self) -> None:
        """Forget everything."""
        self._past_TE: list[Floats] = []

    def follow(self, demand_E: Floats) -> tuple[Floats, Floats]:
        """Take the newest demand and return the smoothed present one and the one to come, shape [E] each.

        NaN, where there has been none yet, gives NaN.
        """
        if not self._past_TE:
            self._level_E, self._trend_E = np.full_like(demand_E, np.nan), np.zeros_like(demand_E)
        # Where nothing has been seen yet, the first demand is the level.
        damped_E = self.damping * self._trend_E
        expected_E = np.where(np.isnan(self._level_E), demand_E, self._level_E + damped_E)
        level_E = self.level_gain * demand_E + (1 - self.level_gain) * expected_E
        change_E = np.where(np.isnan(self._level_E), 0.0, level_E - self._level_E)
        self._trend_E = self.trend_gain * change_E + (1 - self.trend_gain) * damped_E
        self._level_E = level_E
        self._past_TE = [*self._past_TE[-(LONGEST_HISTORY - 1) :], demand_E]
        return self._level_E, self._ahead()

    def _ahead(self) -> Floats:
        ahead_E = self._level_E + self._reach * self._trend_E
        past_TE = np.stack(self._past_TE)
        period_E = self._period(past_TE)
        for e in np.flatnonzero(period_E):
            then, later = -1 - period_E[e], -1 - period_E[e] + self.lookahead
            ahead_E[e] = self._level_E[e] + past_TE[later, e] - past_TE[then, e]
        return np.asarray(np.maximum(ahead_E, 0.0))

    def _period(self, past_TE: Floats) -> NDArray[np.int64]:
        """Return each environment's period in control steps, 0 where its history shows none."""
        steps = len(past_TE)
        shortest = max(SHORTEST_PERIOD, self.lookahead + 1)
        # At least half a period more than the period itself must have been seen.
        longest = 2 * steps // 3
        found_E = np.zeros(past_TE.shape[1], dtype=np.int64)
        if self.season_min >= 1 or longest < shortest:
            return found_E
        lags = np.arange(1, longest + 1)
        likeness_LE = autocorrelation(past_TE, longest)
        fell_LE = np.logical_or.accumulate(likeness_LE < 0, axis=0)
        fits_LE = fell_LE & (likeness_LE >= self.season_min) & (lags >= shortest)[:, None]
        best_E = np.where(fits_LE, likeness_LE, -np.inf).argmax(axis=0)
        return np.where(fits_LE.any(axis=0), lags[best_E], found_E)


def autocorrelation(past_TE: Floats, longest: int) -> Floats:
    """Return how alike the series is to itself 1..longest steps before, 1 = the same, 0 = unrelated, shape [L, E].

    One minus the mean squared difference over the variances of the two stretches compared: where both are flat,
    however alike, nothing has repeated.
    """
    steps = len(past_TE)
    lags, count_L1 = np.arange(1, longest + 1), steps - np.arange(1, longest + 1)[:, None]
    x_TE = past_TE - past_TE.mean(axis=0)
    spectrum = np.fft.rfft(x_TE, 2 * steps, axis=0)
    product_LE = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[lags] / count_L1
    sums, squares = (np.concatenate([np.zeros_like(x_TE[:1]), np.cumsum(y, axis=0)]) for y in (x_TE, x_TE**2))
    later_LE, earlier_LE = (sums[-1] - sums[lags]) / count_L1, sums[steps - lags] / count_L1
    power_LE = (squares[-1] - squares[lags] + squares[steps - lags]) / count_L1
    moves_LE = power_LE - later_LE**2 - earlier_LE**2
    apart_LE = power_LE - 2 * product_LE
    # What rounding leaves of a flat stretch is no movement.
    real_LE = moves_LE > 1e-6 * x_TE.var(axis=0)
    return np.asarray(1.0 - np.divide(apart_LE, moves_LE, out=np.ones_like(apart_LE), where=real_LE))


class PredictiveRule:
    """replicas = least n with capacity(n) ≥ the larger of present and forecast demand; parameters: see Space.

    Demand is the rate the present users would have if every answer came within `answer_s`: unlike the measured
    rate it does not saturate with the service.
    """

    def __init__(
        self,
        *,
        think_s: float,
        answer_s: float,
        forecast: Forecast,
        rps_per_replica: float,
        sharing: float,
        hold: int,
        most: int,
    ) -> None:
        self.think_s, self.answer_s, self.forecast = think_s, answer_s, forecast
        self.rps_per_replica, self.sharing, self.hold, self.most = rps_per_replica, sharing, hold, most

    def reset(self, limits: Limits, envs: int) -> None:
        self.forecast.reset()
        self._low, self._hold = limits.min_replicas, Hold(self.hold, envs)
        self._demand_E: Floats | None = None
        self._wish_E = np.full(envs, self._low, dtype=np.int64)

    def act(self, observation: Observation) -> Controls:
        """Ask for the capacity the demand needs; without metrics, for what was asked for last."""
        demand_E = population(observation, self.think_s) / (self.think_s + self.answer_s)
        blind_E = np.isnan(demand_E)
        if self._demand_E is None:
            self._wish_E, self._demand_E = observation.replicas_spec_E.astype(np.int64), demand_E
        self._demand_E = np.where(blind_E, self._demand_E, demand_E)
        now_E, ahead_E = self.forecast.follow(self._demand_E)
        self._wish_E = np.where(blind_E, self._wish_E, self.needed(np.maximum(now_E, ahead_E)))
        return Controls.scale(self._hold.pass_on(self._wish_E))

    def needed(self, demand_E: Floats) -> NDArray[np.int64]:
        """Return the least replicas whose capacity covers the demand, within the bounds."""
        times_E = np.maximum(np.nan_to_num(demand_E), 0.0) / self.rps_per_replica
        replicas_E = np.ceil(times_E ** (1.0 / self.sharing) - NEAR)
        return np.clip(replicas_E, self._low, max(self._low, self.most)).astype(np.int64)
