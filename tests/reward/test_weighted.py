"""The weighted reward: each term by hand, its bounds, its direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.core.errors import InputError
from gpusched.core.observation import Outcome
from gpusched.reward.weighted import Weighted


def reward(w1: float = 0, w2: float = 0, w3: float = 0, w4: float = 0, slo_s: float = 0.2) -> Weighted:
    return Weighted(Weighted.Config(w1=w1, w2=w2, w3=w3, w4=w4, slo_s=slo_s))


def outcome(**more: Any) -> Outcome:
    usual = {"gpu_busy_E": 0.5, "replicas_alive_E": 3, "cpu_cores_limit_E": 3, "completed_E": 90, "failed_E": 10,
             "slow_E": 0, "latency_p95_s_E": 0.1}  # fmt: skip
    columns = {key: np.atleast_1d(np.asarray(value, dtype=float)) for key, value in {**usual, **more}.items()}
    return Outcome(**columns, replicas_max=6, cpu_cores_max=12.0, slo_s=0.2)


def test_each_term_by_hand() -> None:
    o = outcome()  # 10 of 100 requests failed; 3 of 6 replicas, 3 of 12 cores
    assert reward(w1=1).score(o) == pytest.approx([0.5 * 0.9])
    assert reward(w2=1).score(o) == pytest.approx([1 - (0.5 + 0.25) / 2])
    assert reward(w3=1).score(o) == pytest.approx([0])
    assert reward(w3=1).score(outcome(latency_p95_s_E=0.3)) == pytest.approx([-0.5])
    assert reward(w3=1).score(outcome(latency_p95_s_E=9)) == pytest.approx([-1])
    assert reward(w4=1).score(o) == pytest.approx([-0.5])
    assert reward(w4=1).score(outcome(slow_E=40)) == pytest.approx([-1])
    assert reward(w1=1, w2=2, w3=3, w4=4).score(o) == pytest.approx([0.45 + 2 * 0.625 - 4 * 0.5])


def test_an_idle_interval_violates_nothing() -> None:
    idle = outcome(completed_E=0, failed_E=0, gpu_busy_E=0, latency_p95_s_E=0)
    assert reward(w1=1, w3=1, w4=1).score(idle) == pytest.approx([0])


shares = st.floats(0, 1)


@given(busy=shares, held=shares, failed=shares, slow=shares, p95_s=st.floats(0, 100))
def test_every_term_stays_in_its_unit(
    busy: float, held: float, failed: float, slow: float, p95_s: float
) -> None:
    done = 100 * (1 - failed)
    o = outcome(gpu_busy_E=busy, replicas_alive_E=6 * held, cpu_cores_limit_E=12 * held, completed_E=done,
                failed_E=100 * failed, slow_E=done * slow, latency_p95_s_E=p95_s)  # fmt: skip
    for weights, sign in (({"w1": 1}, 1), ({"w2": 1}, 1), ({"w3": 1}, -1), ({"w4": 1}, -1)):
        assert 0 <= sign * reward(**weights).score(o)[0] <= 1 + 1e-12


@given(replicas=st.integers(1, 5))
def test_a_replica_more_costs_and_a_violation_more_costs(replicas: int) -> None:
    r = reward(w1=0.25, w2=1, w3=0.25, w4=2)
    fewer, more = outcome(replicas_alive_E=replicas), outcome(replicas_alive_E=replicas + 1)
    assert r.score(fewer)[0] > r.score(more)[0]
    assert r.score(outcome(slow_E=0))[0] > r.score(outcome(slow_E=1))[0]


def test_environments_are_scored_one_by_one() -> None:
    both = outcome(slow_E=[0, 9], completed_E=[90, 90], failed_E=[10, 10])
    assert reward(w4=1).score(both) == pytest.approx([-0.5, -0.95])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"slo_s": 0.0}, "slo_s = 0.0"),
        ({"slo_s": -1.0}, "slo_s = -1.0"),
        ({"slo_s": float("nan")}, "slo_s = nan"),
        ({"w1": -0.1}, "w1 = -0.1"),
        ({"w4": float("inf")}, "w4 = inf"),
        ({}, "at least one weight"),
    ],
)
def test_what_is_no_reward_is_refused(more: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        reward(**more)
