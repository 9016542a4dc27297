"""The forecast on series whose future is known, and the capacity it buys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.controls import Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.predictive import Forecast, Predictive, PredictiveRule, Space, autocorrelation
from gpusched.policy.tuned import Chosen, SearchConfig

LIMITS = Limits(min_replicas=1, max_replicas=6)
SEARCH = SearchConfig(frames=1000, episodes=2, batch=2, finalists=1, validate_episodes=2)
SPACE: dict[str, Any] = {
    "rps_per_replica": [1.0, 100.0], "sharing": [0.3, 1.0], "level_gain": [0.1, 1.0], "trend_gain": [0.0, 1.0],
    "lookahead": [0, 6], "hold": [0, 12],
}  # fmt: skip


def forecast(**changes: Any) -> Forecast:
    made = Forecast(
        **{
            "level_gain": 1.0,
            "trend_gain": 1.0,
            "damping": 1.0,
            "season_min": 1.0,
            "lookahead": 3,
            **changes,
        }
    )
    made.reset()
    return made


def followed(one: Forecast, series: Any) -> tuple[float, float]:
    """Return the present and the coming demand after the whole series."""
    for value in series:
        now_E, ahead_E = one.follow(np.array([float(value)]))
    return float(now_E[0]), float(ahead_E[0])


def test_a_line_goes_on() -> None:
    assert followed(forecast(), range(10, 60, 10)) == (50.0, 80.0)


def test_a_damped_trend_runs_out() -> None:
    assert followed(forecast(damping=0.5), [0, 0, 8]) == (8.0, 8.0 + 8.0 * (0.5 + 0.25 + 0.125))


def test_the_smoothed_level_by_hand() -> None:
    # level 10; then 0.5·20 + 0.5·10 = 15, trend 0.5·5 = 2.5; then 0.5·20 + 0.5·17.5 = 18.75, trend 0.5·3.75 + 0.5·2.5
    now, ahead = followed(forecast(level_gain=0.5, trend_gain=0.5, lookahead=2), [10, 20, 20])
    assert now == 18.75
    assert ahead == 18.75 + 2 * 3.125


def test_demand_is_never_negative() -> None:
    assert followed(forecast(), [30, 20, 10]) == (10.0, 0.0)


@settings(deadline=None)
@given(st.floats(0, 1e4), st.integers(1, 40), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 6))
def test_what_is_constant_stays_so(
    level: float, steps: int, gain: float, trend: float, lookahead: int
) -> None:
    one = forecast(level_gain=gain, trend_gain=trend, lookahead=lookahead, season_min=0.8, damping=0.9)
    assert followed(one, [level] * steps) == pytest.approx((level, level))


def wave(t: Any) -> Any:
    return 50.0 + 40.0 * np.sin(2 * np.pi * np.asarray(t) / 20)


@pytest.mark.parametrize("end", [40, 44, 47, 51, 55])
def test_a_period_that_was_seen_comes_again(end: int) -> None:
    """A straight line from a wave's flank misses its turn; last period's course does not."""
    now, ahead = followed(forecast(season_min=0.8), wave(range(end)))
    assert now == pytest.approx(wave(end - 1))
    assert ahead == pytest.approx(wave(end + 2), abs=1e-6)


def periods(series: Any) -> int:
    return int(forecast(season_min=0.8)._period(np.asarray(series, dtype=float)[:, None])[0])


def test_only_what_repeats_has_a_period() -> None:
    rng = np.random.default_rng(1)
    t = np.arange(80)
    assert periods(wave(t)) == 20
    assert periods(wave(t) + rng.normal(0, 4, 80)) % 20 in (19, 0, 1)  # a multiple serves as well
    assert periods(np.where(t < 40, 10, 100)) == 0  # a step
    assert periods(t) == 0  # a ramp
    assert periods(np.full(80, 7)) == 0
    assert periods(np.where((t > 30) & (t < 42), 100, 20)) == 0  # one spike
    assert periods(wave(np.arange(28))) == 0  # not yet one and a half


def test_noise_has_no_period() -> None:
    rng = np.random.default_rng(2)
    found = [periods(rng.normal(50, 5, 80)) for _ in range(200)]
    assert np.mean(np.array(found) > 0) < 0.02


def test_autocorrelation_of_known_series() -> None:
    square = np.tile([1.0, 1.0, -1.0, -1.0], 6)[:22, None]
    assert autocorrelation(square, 4)[[3, 1], 0] == pytest.approx([1.0, -1.0])
    assert list(autocorrelation(np.ones((9, 1)), 3)[:, 0]) == [0.0] * 3
    flat_ends = np.concatenate([np.ones(10), [5.0, 7.0], np.ones(10)])[:, None]
    assert autocorrelation(flat_ends, 14)[13, 0] == 0.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=9, max_size=40))
def test_autocorrelation_is_what_it_says(series: list[int]) -> None:
    x = np.array(series, dtype=float)
    got = autocorrelation(x[:, None], len(x) // 2)[:, 0]
    for lag, value in enumerate(got, start=1):
        later, earlier = x[lag:], x[:-lag]
        moves = later.var() + earlier.var()
        expected = 1 - ((later - earlier) ** 2).mean() / moves if moves > 1e-6 * x.var() else 0.0
        assert value == pytest.approx(expected, abs=1e-5)


def rule(**changes: Any) -> PredictiveRule:
    made = {
        "think_s": 1.5,
        "answer_s": 0.5,
        "forecast": forecast(lookahead=0),
        "rps_per_replica": 10.0,
        "sharing": 1.0,
        "hold": 0,
        "most": 6,
    }
    one = PredictiveRule(**{**made, **changes})
    one.reset(LIMITS, changes.get("envs", 1))
    return one


def seen(users: float) -> Observation:
    """Return what so many users look like while every answer takes 0.5 s."""
    table = {name: np.full(1, np.nan) for name in Observation.columns()}
    table |= {
        "rate_rps_E": np.array([users / 2.0]),
        "in_flight_E": np.array([users / 4.0]),
        "replicas_spec_E": np.array([2.0]),
    }
    return Observation(**table)


@pytest.mark.parametrize(
    ("demand_rps", "sharing", "most", "replicas"),
    [
        (0.0, 1.0, 6, 1),
        (10.0, 1.0, 6, 1),
        (10.1, 1.0, 6, 2),
        (25.0, 1.0, 6, 3),
        (20.0, 0.5, 6, 4),  # 10 · √4 = 20
        (21.0, 0.5, 6, 5),
        (1e6, 1.0, 6, 6),
        (1e6, 1.0, 2, 2),
    ],
)
def test_the_least_replicas_that_serve_the_demand(
    demand_rps: float, sharing: float, most: int, replicas: int
) -> None:
    assert list(rule(sharing=sharing, most=most).needed(np.array([demand_rps]))) == [replicas]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=9), st.floats(0.3, 1.0), st.integers(1, 6))
def test_more_demand_never_needs_less(demand: list[float], sharing: float, most: int) -> None:
    replicas = rule(sharing=sharing, most=most).needed(np.array(sorted(demand)))
    assert np.all(np.diff(replicas) >= 0)
    assert replicas.min() >= 1
    assert replicas.max() <= most


def test_users_become_the_rate_they_would_have() -> None:
    # 50 users: 25 req/s, 12.5 waiting; X·Z + in flight = 50; / (1.5 + 0.5) s = 25 req/s
    assert list(rule().act(seen(50)).replicas_E) == [3]
    # The service saturates: 10 req/s leave it, 35 users wait. The demand is the same.
    observation = seen(50)
    observation.rate_rps_E, observation.in_flight_E = np.array([10.0]), np.array([35.0])
    assert list(rule().act(observation).replicas_E) == [3]


def test_it_is_there_before_the_demand() -> None:
    ahead, blind = rule(forecast=forecast(lookahead=3)), rule()
    for users in (20, 30, 40):
        early, late = (int(one.act(seen(users)).replicas_E[0]) for one in (ahead, blind))
    # 40 users are 20 req/s now, rising by 5 each step: 35 in three steps
    assert (early, late) == (4, 2)


def test_a_falling_forecast_takes_nothing_away_early() -> None:
    one = rule(forecast=forecast(lookahead=3))
    for users in (80, 70, 60):
        asked = int(one.act(seen(users)).replicas_E[0])
    assert asked == 3  # 30 req/s now, 15 in three steps


def test_without_metrics_it_asks_for_the_same() -> None:
    one = rule()
    assert [int(one.act(seen(users)).replicas_E[0]) for users in (np.nan, 50, np.nan, 50)] == [2, 3, 3, 3]


def test_metrics_that_come_late_are_no_rise() -> None:
    one = rule(forecast=forecast(lookahead=3, season_min=0.8))
    assert [int(one.act(seen(users)).replicas_E[0]) for users in (np.nan, np.nan, 50, 50)] == [2, 2, 3, 3]


def test_a_smaller_wish_must_last() -> None:
    one = rule(hold=2)
    assert [int(one.act(seen(users)).replicas_E[0]) for users in (70, 10, 10, 10)] == [4, 4, 4, 1]


def predictive(**changes: Any) -> Predictive:
    own = {"think_s": 1.5, "answer_s": 0.1, "damping": 0.9, "season_min": 0.8}
    return Predictive(
        Predictive.Config(search=SEARCH, train_load=None, **{**own, **changes}, space=Space(**SPACE))
    )


def test_the_search_s_parameters_make_the_rule() -> None:
    values = {"level_gain": 0.5, "trend_gain": 0.25, "lookahead": 4, "rps_per_replica": 12.0, "sharing": 0.7,
              "hold": 5, "most": 3}  # fmt: skip
    made = predictive().rule(Chosen(values, "here"), LIMITS)
    assert (made.rps_per_replica, made.sharing, made.hold, made.most) == (12.0, 0.7, 5, 3)
    assert (made.forecast.level_gain, made.forecast.trend_gain, made.forecast.lookahead) == (0.5, 0.25, 4)
    predictive().rule(Chosen(predictive().first(LIMITS), "first"), LIMITS)


@pytest.mark.parametrize("changes", [{"think_s": -1.0}, {"answer_s": -0.1}, {"damping": 1.1}, {"season_min": -0.1},
                                     {"think_s": 0.0, "answer_s": 0.0}])  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        predictive(**changes)


@pytest.mark.parametrize(
    "space", [{"level_gain": [0.0, 1.1]}, {"sharing": [0.0, 1.0]}, {"lookahead": [3, 1]}]
)
def test_a_space_that_cannot_be_is_refused(space: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match="space"):
        Space(**{**SPACE, **space})
