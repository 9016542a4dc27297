"""Closed loads: levels known on paper, the same seed the same users, another seed other switch times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.errors import InputError
from gpusched.core.load import LoadPlan
from gpusched.load.closed import Closed
from gpusched.load.mixed import Mixed
from gpusched.load.periodic import Periodic
from gpusched.load.ramp import Ramp
from gpusched.load.spike import Spike
from gpusched.load.steady import Steady
from gpusched.load.varied import Varied

THINK = {"think_min_s": 1.0, "think_max_s": 2.0}
OPTIONS: dict[type[Closed], dict[str, Any]] = {
    Steady: {"users": 7},
    Mixed: {"levels": [10, 100, 50], "shuffle": True, "hold_share": 0.6},
    Ramp: {"from_users": 10, "users": 100, "begin_share": 0.25, "end_share": 0.75, "jitter_share": 0.0},
    Periodic: {"low_users": 10, "users": 100, "period_s": 300.0},
    Spike: {"base_users": 20, "users": 100, "spike_s": 60.0, "first_share": 0.3, "last_share": 0.7},
    Varied: {
        "least_users": 1,
        "users": 130,
        "steady_share": 0.3,
        "segment_min_s": 60.0,
        "segment_max_s": 300.0,
    },
}


def make(kind: type[Closed], **more: Any) -> Closed:
    return kind(kind.Config(**{**THINK, **OPTIONS[kind], **more}))


def draw(kind: type[Closed], seed: int = 0, duration_s: float = 1200.0, **more: Any) -> LoadPlan:
    return make(kind, **more).plan(duration_s, np.random.default_rng(seed))


def users(plan: LoadPlan, *t_s: float) -> list[int]:
    return [int(u) for u in plan.users_at(np.array(t_s))]


def test_steady_never_changes() -> None:
    plan = draw(Steady)
    assert list(plan.users_K) == [7]
    assert list(plan.from_s_K) == [0.0]
    assert plan.think_mean_s == 1.5


def test_mixed_visits_every_level_once_and_long_enough() -> None:
    for seed in range(50):
        plan = draw(Mixed, seed)
        assert sorted(plan.users_K) == [10, 50, 100]
        lengths_s = np.diff([*plan.from_s_K, 1200.0])
        assert lengths_s.min() >= 0.6 * 1200 / 3 - 1  # one second of grid
    orders = {tuple(draw(Mixed, seed).users_K) for seed in range(50)}
    assert len(orders) == 6
    assert {tuple(draw(Mixed, seed, shuffle=False).users_K) for seed in range(20)} == {(10, 100, 50)}


def test_ramp_is_linear_between_its_shares() -> None:
    plan = draw(Ramp, duration_s=1000.0)
    assert users(plan, 0, 250, 500, 750, 999) == [10, 10, 55, 100, 100]
    assert np.all(np.diff(plan.users_K) == 1)


def test_periodic_spans_its_levels_and_repeats() -> None:
    plan = draw(Periodic)
    assert (plan.users_K.min(), plan.users_K.max()) == (10, 100)
    assert users(plan, 100.0, 400.0)[0] == pytest.approx(users(plan, 100.0, 400.0)[1], abs=1)
    assert plan.mean_users(0, 1200) == pytest.approx(55, abs=0.5)  # four whole periods


def test_spike_lasts_as_long_as_it_should_wherever_it_is() -> None:
    for seed in range(20):
        plan = draw(Spike, seed)
        assert list(plan.users_K) == [20, 100, 20]
        begin_s, end_s = plan.from_s_K[1:]
        assert end_s - begin_s == pytest.approx(60, abs=1)
        assert 0.3 * 1200 <= begin_s <= 0.7 * 1200 + 1


def test_varied_covers_steady_runs_steps_ramps_and_every_level() -> None:
    plans = [draw(Varied, seed) for seed in range(200)]
    steady = sum(len(plan.users_K) == 1 for plan in plans)
    assert steady == pytest.approx(0.3 * 200, abs=4 * np.sqrt(200 * 0.3 * 0.7))
    all_users = np.concatenate([plan.users_K for plan in plans])
    assert (all_users.min(), all_users.max()) == (1, 130)
    jumps = np.concatenate([np.abs(np.diff(plan.users_K)) for plan in plans if len(plan.users_K) > 1])
    assert (jumps == 1).any()
    assert (jumps > 50).any()


@pytest.mark.parametrize("kind", OPTIONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), duration_s=st.floats(0.5, 5000))
def test_any_plan_is_whole_and_repeats_with_its_seed(
    kind: type[Closed], seed: int, duration_s: float
) -> None:
    plan, again = draw(kind, seed, duration_s), draw(kind, seed, duration_s)
    assert plan.from_s_K[0] == 0
    assert plan.from_s_K[-1] < max(duration_s, 1)
    assert plan.users_K.min() >= 0
    assert plan.users_K.max() <= 130
    assert np.array_equal(plan.users_K, again.users_K)
    assert np.array_equal(plan.from_s_K, again.from_s_K)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (Steady, "users", -1),
        (Steady, "users", 10**9),
        (Steady, "think_min_s", -1.0),
        (Steady, "think_max_s", 0.5),
        (Steady, "think_max_s", float("nan")),
        (Mixed, "levels", []),
        (Mixed, "levels", [3, -2]),
        (Mixed, "hold_share", 1.5),
        (Ramp, "end_share", 0.1),
        (Ramp, "from_users", -1),
        (Periodic, "period_s", 0.0),
        (Periodic, "users", 5),
        (Spike, "spike_s", -1.0),
        (Spike, "last_share", 0.1),
        (Varied, "least_users", 131),
        (Varied, "segment_max_s", 10.0),
        (Varied, "steady_share", -0.1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind: type[Closed], key: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"^(\w+(\[\d\])?) = .*must") as caught:
        make(kind, **{key: value})
    assert str(caught.value).startswith((key, "users"))
