"""Loads, seeds, service profiles and trial specs."""

from __future__ import annotations

import numpy as np
import pytest

from gpusched.core.controls import HPASpec
from gpusched.core.errors import InputError, did_you_mean
from gpusched.core.load import LoadPlan
from gpusched.core.seeds import child, states, stream
from gpusched.core.service import Constant
from gpusched.core.trial import TrialSpec


def test_a_stream_depends_on_everything_but_the_policy() -> None:
    first = {
        tuple(states(stream(*key), 2))
        for key in [("a", "low", 0), ("b", "low", 0), ("a", "high", 0), ("a", "low", 1)]
    }
    assert len(first) == 4
    assert tuple(states(stream("a", "low", 0), 2)) in first
    purposes = {tuple(states(stream("a", "low", 0, p), 2)) for p in ("trial", "train", "validate", "tune")}
    assert len(purposes) == 4


def test_the_streams_are_the_same_on_every_machine() -> None:
    # printf study | sha256sum, first 16 digits; the same for low
    assert stream("study", "low", 0).entropy == [0x0C87ED818FB90F3F, 0x6C1FF09DB3A73DC4, 0, 0]


def test_a_child_can_be_asked_for_again() -> None:
    parent = stream("a", "low", 0)
    assert np.array_equal(states(child(parent, 1), 4), states(child(parent, 1), 4))
    assert not np.array_equal(states(child(parent, 1), 4), states(child(parent, 2), 4))


def test_seeds_are_uncorrelated() -> None:
    draws = np.array([np.random.default_rng(stream("s", "low", k)).random(2000) for k in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_users_of_a_plan() -> None:
    plan = LoadPlan(from_s_K=np.array([0.0, 10.0, 30.0]), users_K=np.array([1, 5, 2]))
    assert plan.users_at(np.array([0.0, 9.9, 10.0, 100.0])).tolist() == [1, 1, 5, 2]
    assert plan.mean_users(0.0, 40.0) == pytest.approx((10 * 1 + 20 * 5 + 10 * 2) / 40)
    assert plan.max_users == 5


@pytest.mark.parametrize("users", [[-1], [3, -2]])
def test_negative_users_are_refused(users: list[int]) -> None:
    with pytest.raises(InputError, match="users = -"):
        LoadPlan(from_s_K=10.0 * np.arange(len(users)), users_K=np.array(users))


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"duration_s": 0.0}, "duration_s"), ({"duration_s": float("inf")}, "at most"), ({"warmup_s": float("nan")}, "must lie in"), ({"duration_s": 1e300}, "at most"), ({"control_s": 7.0}, "multiple of tick_s"), ({"warmup_s": -1.0}, "warmup_s"),
     ({"start_replicas": 9}, "start_replicas"), ({"min_replicas": 4, "max_replicas": 3}, "min_replicas")],
)  # fmt: skip
def test_impossible_trials_are_refused(changed: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        TrialSpec(**changed)  # type: ignore[arg-type]


def test_an_hpa_with_min_above_max_is_refused() -> None:
    with pytest.raises(InputError, match="at least min_replicas"):
        HPASpec(min_replicas=5, max_replicas=2)


def test_a_constant_says_where_it_comes_from() -> None:
    with pytest.raises(InputError, match="measured, reported, assumed"):
        Constant(value=1.0, unit="s", status="guessed", source="x")
    with pytest.raises(InputError, match="where the value comes from"):
        Constant(value=1.0, unit="s", status="assumed", source="")


def test_did_you_mean() -> None:
    assert did_you_mean("targett", ["target", "metric"]) == " Did you mean 'target'?"
    assert did_you_mean("zzz", ["target"]) == ""
