"""One of several shapes per episode, all its numbers drawn anew: what policies train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.load import LoadPlan
from gpusched.load.closed import Closed, Floats, check_share, check_time, check_users

Shape = Callable[["Assorted", Floats, np.random.Generator], Floats]


class Assorted(Closed):
    """An episode is steady, or steps from level to level, swings, bursts once or ramps; levels in `least_users..users`.

    The shape is drawn from `shapes` (one named twice is drawn twice as often); then, all uniform unless said
    otherwise: levels; how long a level holds (log-uniform); period (log-uniform) and phase of the swing; begin
    and length (log-uniform) of the burst; begin and end of the ramp.

    A share `open_share` of the episodes is open loop: as many requests as the users would send if every answer
    came at once, whether or not answers come; and as many fewer users as `open_users` is less than `users`, since where
    nobody waits an overload heals only by itself. Their rate is gusty, as that of the real traces is: it is multiplied
    by gamma-distributed factors of mean 1 and spread `gust_cv`, each of which lasts for `gust_s` (log-uniform).
    """

    @dataclass(kw_only=True)
    class Config(Closed.Config):
        shapes: list[str]
        least_users: int
        users: int
        hold_s: list[float]
        period_s: list[float]
        burst_s: list[float]
        open_share: float
        open_users: int
        gust_s: list[float]
        gust_cv: list[float]

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.shapes or not set(self.shapes) <= set(SHAPES):
                raise refuse("shapes", self.shapes, f"must list one or more of {', '.join(SHAPES)}")
            check_users("least_users", self.least_users)
            check_users("users", self.users)
            if self.users < self.least_users:
                raise refuse("users", self.users, f"must be at least least_users ({self.least_users})")
            for key in ("hold_s", "period_s", "burst_s", "gust_s"):
                check_range(key, getattr(self, key))
            check_share("open_share", self.open_share)
            check_users("open_users", self.open_users)
            if len(self.gust_cv) != 2 or not 0 < self.gust_cv[0] <= self.gust_cv[1] < 10:
                raise refuse(
                    "gust_cv", self.gust_cv, "must be [lowest, highest] within 0..10, without the ends"
                )

    config: Config

    def plan(self, duration_s: float, rng: np.random.Generator) -> LoadPlan:
        closed = super().plan(duration_s, rng)
        if rng.uniform() >= self.config.open_share or not closed.think_mean_s:
            return closed
        return replace(closed, arrivals_s_N=self.arrivals(closed, duration_s, rng))

    def arrivals(self, closed: LoadPlan, duration_s: float, rng: np.random.Generator) -> Floats:
        """Draw Poisson arrivals at the gusty rate of the users of a closed plan, in seconds, sorted."""
        t_s_T = np.arange(float(np.ceil(duration_s)))
        share = self.config.open_users / max(self.config.users, 1)
        rate_rps_T = share * closed.users_at(t_s_T) / closed.think_mean_s * self.gusts(t_s_T, rng)
        times_s_N = np.repeat(t_s_T, rng.poisson(rate_rps_T))
        times_s_N = np.sort(times_s_N + rng.uniform(size=len(times_s_N)))
        return np.asarray(times_s_N[times_s_N < duration_s])

    def gusts(self, t_s_T: Floats, rng: np.random.Generator) -> Floats:
        """Draw the factor of the rate at each second, shape [T]."""
        spread = rng.uniform(self.config.gust_cv[0], self.config.gust_cv[1])
        gust_s = log_uniform(self.config.gust_s, rng)
        number_T = np.floor(t_s_T / gust_s).astype(np.int64)
        factor_G = rng.gamma(spread**-2, spread**2, size=number_T[-1] + 1)
        return np.asarray(factor_G[number_T])

    def users(self, t_s_T: Floats, duration_s: float, rng: np.random.Generator) -> Floats:
        shape = self.config.shapes[rng.integers(len(self.config.shapes))]
        return SHAPES[shape](self, t_s_T, rng)

    def level(self, rng: np.random.Generator) -> float:
        """Draw a number of users."""
        return float(rng.integers(self.config.least_users, self.config.users + 1))

    def two_levels(self, rng: np.random.Generator) -> tuple[float, float]:
        """Draw a lower and an upper number of users."""
        one, other = self.level(rng), self.level(rng)
        return min(one, other), max(one, other)


def check_range(key: str, span_s: Sequence[float]) -> None:
    """Raise InputError unless `span_s` is a shortest and a longest time."""
    if len(span_s) != 2 or span_s[0] > span_s[1]:
        raise refuse(key, list(span_s), "must be [shortest, longest] in s")
    check_time(f"{key}[0]", span_s[0])
    check_time(f"{key}[1]", span_s[1])


def log_uniform(span_s: Sequence[float], rng: np.random.Generator) -> float:
    """Draw a time whose order of magnitude is uniform."""
    return float(np.exp(rng.uniform(np.log(span_s[0]), np.log(span_s[1]))))


def steady(load: Assorted, t_s_T: Floats, rng: np.random.Generator) -> Floats:
    """One level for the whole run."""
    return np.full(len(t_s_T), load.level(rng))


def steps(load: Assorted, t_s_T: Floats, rng: np.random.Generator) -> Floats:
    """Level after level, each for a time of its own."""
    users_T, begin_s = np.full(len(t_s_T), load.level(rng)), 0.0
    while (begin_s := begin_s + log_uniform(load.config.hold_s, rng)) <= t_s_T[-1]:
        users_T[t_s_T >= begin_s] = load.level(rng)
    return users_T


def periodic(load: Assorted, t_s_T: Floats, rng: np.random.Generator) -> Floats:
    """A sine between two levels."""
    low, high = load.two_levels(rng)
    turns_T = t_s_T / log_uniform(load.config.period_s, rng) + rng.uniform()
    return np.asarray(low + (high - low) * 0.5 * (1 + np.sin(2 * np.pi * turns_T)))


def spike(load: Assorted, t_s_T: Floats, rng: np.random.Generator) -> Floats:
    """A level, and for a time a higher one."""
    low, high = load.two_levels(rng)
    begin_s = rng.uniform(0.0, t_s_T[-1])
    inside_T = (t_s_T >= begin_s) & (t_s_T < begin_s + log_uniform(load.config.burst_s, rng))
    return np.where(inside_T, high, low)


def ramp(load: Assorted, t_s_T: Floats, rng: np.random.Generator) -> Floats:
    """From one level to another, linearly between two moments."""
    ends_s = np.sort(rng.uniform(0.0, t_s_T[-1], 2))
    return np.interp(t_s_T, ends_s, [load.level(rng), load.level(rng)])


SHAPES: dict[str, Shape] = {
    "steady": steady, "steps": steps, "periodic": periodic, "spike": spike, "ramp": ramp
}  # fmt: skip
