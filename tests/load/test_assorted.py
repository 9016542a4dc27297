"""Training load: every shape is what it says, every number lies in its range, open episodes offer what users would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpusched.core.errors import InputError
from gpusched.core.load import LoadPlan
from gpusched.load.assorted import SHAPES, Assorted

DURATION_S = 1320.0
GIVEN: dict[str, Any] = {
    "shapes": list(SHAPES),
    "least_users": 5,
    "users": 80,
    "hold_s": [100.0, 400.0],
    "period_s": [300.0, 600.0],
    "burst_s": [60.0, 120.0],
    "open_share": 0.0,
    "open_users": 80,
    "gust_s": [10.0, 10.0],
    "gust_cv": [0.1, 1.0],
    "think_min_s": 1.0,
    "think_max_s": 2.0,
}


def load(*shapes: str, **more: Any) -> Assorted:
    return Assorted(Assorted.Config(**{**GIVEN, **({"shapes": list(shapes)} if shapes else {}), **more}))


def plans(of: Assorted, count: int = 60) -> list[LoadPlan]:
    return [of.plan(DURATION_S, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_users_stay_in_their_range_and_seeds_repeat(shape: str) -> None:
    drawn, again = plans(load(shape)), plans(load(shape))
    users = np.concatenate([p.users_K for p in drawn])
    assert users.min() >= 5 and users.max() <= 80
    assert all(np.array_equal(a.users_K, b.users_K) for a, b in zip(drawn, again, strict=True))
    assert len({tuple(p.users_K) for p in drawn}) > 20


def test_steady_is_one_level_and_levels_are_uniform() -> None:
    levels = [p.users_K for p in plans(load("steady"), 400)]
    assert {len(k) for k in levels} == {1}
    mean, error = np.mean(levels), np.sqrt((76**2 - 1) / 12 / 400)
    assert abs(mean - 42.5) < 4 * error


def test_steps_last_as_long_as_they_may() -> None:
    for plan in plans(load("steps", least_users=0, users=100_000)):  # two equal levels in a row: 1 in 100 000
        assert np.diff(plan.from_s_K).min() >= 99 and np.diff(plan.from_s_K).max() <= 401


def test_a_spike_is_one_higher_level_for_its_time() -> None:
    for plan in plans(load("spike")):
        assert len(plan.users_K) <= 3
        if len(plan.users_K) == 3:
            low, high, after = plan.users_K
            assert high > low == after and 59 <= plan.from_s_K[2] - plan.from_s_K[1] <= 121


def test_a_swing_repeats_after_its_period() -> None:
    t_s_T = np.arange(300.0)
    for plan in plans(load("periodic", period_s=[300.0, 300.0])):
        np.testing.assert_allclose(plan.users_at(t_s_T), plan.users_at(t_s_T + 300.0), atol=1)


def test_a_ramp_goes_one_way() -> None:
    for plan in plans(load("ramp")):
        steps = np.diff(plan.users_K)
        assert (steps >= 0).all() or (steps <= 0).all()


@pytest.mark.slow
def test_an_open_episode_offers_what_the_users_would_send() -> None:
    drawn = plans(load("steady", least_users=60, users=60, open_share=1.0, open_users=60), 200)
    counts = np.array([len(p.arrivals_s_N) for p in drawn if p.arrivals_s_N is not None])
    assert len(counts) == 200  # 60 users who think for 1.5 s: 40 requests per second
    assert abs(counts.mean() - 40 * DURATION_S) < 4 * counts.std(ddof=1) / np.sqrt(200)
    for plan in drawn:
        assert plan.arrivals_s_N is not None and (np.diff(plan.arrivals_s_N) >= 0).all()
        assert plan.arrivals_s_N[0] >= 0 and plan.arrivals_s_N[-1] < DURATION_S


def test_open_episodes_may_be_smaller() -> None:
    whole, half = (plans(load(open_share=1.0, open_users=most), 20) for most in (80, 40))
    sent = [sum(len(p.arrivals_s_N) for p in drawn if p.arrivals_s_N is not None) for drawn in (whole, half)]
    assert sent[1] == pytest.approx(sent[0] / 2, rel=0.02)


def test_gusts_have_the_spread_they_are_given() -> None:
    of = load("steady", gust_s=[1.0, 1.0], gust_cv=[0.5, 0.5])
    factor_T = of.gusts(np.arange(200_000.0), np.random.default_rng(0))
    assert factor_T.mean() == pytest.approx(1.0, abs=4 * 0.5 / np.sqrt(200_000))
    assert factor_T.std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.slow
def test_the_open_share_is_a_share() -> None:
    drawn = plans(load(open_share=0.3), 400)
    assert abs(np.mean([p.is_open for p in drawn]) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shapes", []),
        ("shapes", ["steady", "zigzag"]),
        ("users", 4),
        ("hold_s", [10.0]),
        ("period_s", [20.0, 10.0]),
        ("burst_s", [0.0, 10.0]),
        ("gust_s", [1.0, float("inf")]),
        ("gust_cv", [0.0, 1.0]),
        ("open_share", 1.5),
        ("open_users", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        load(**{key: value})
