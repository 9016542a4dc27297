"""Aggregates over loads: definitions by hand and against SciPy, coverage by Monte Carlo, the same numbers on every run."""

import math

import numpy as np
import pytest
from made_up import study_of
from scipy import stats

from gpusched.report import robust as r
from gpusched.report.statistics import improvement_interval


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    assert r.iqm(np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0])) == pytest.approx(
        (2 + 3 + 4 + 5) / 4, abs=1e-12
    )
    assert r.iqm(np.array([1.0, 2.0, 6.0])) == pytest.approx(
        3.0, abs=1e-12
    )  # a quarter of three is no whole score
    x = np.random.default_rng(1).normal(size=(7, 15))
    np.testing.assert_allclose(
        r.iqm(x), stats.trim_mean(x, 0.25, axis=1), rtol=1e-12
    )  # as rliable computes it


def test_the_iqm_leaves_out_what_is_missing() -> None:
    x = np.array([[5.0, math.nan, 1.0, 2.0, 3.0, 4.0], [math.nan] * 5 + [7.0], [math.nan] * 6])
    found = r.iqm(x)
    np.testing.assert_allclose(found[:2], [(2 + 3 + 4) / 3, 7.0])
    assert math.isnan(found[2])


def test_scores_by_hand() -> None:
    np.testing.assert_allclose(r.scores([1.0, 3.0], [2.0, 6.0], better=-1), [0.25, 0.75])
    np.testing.assert_allclose(r.scores([-1.0, -3.0], [-2.0, -6.0], better=1), [0.25, 0.75])
    np.testing.assert_allclose(
        r.scores([1.0, math.nan, 3.0], [2.0, 5.0, 6.0], better=-1), [0.25, math.nan, 0.75]
    )
    assert np.isnan(r.scores([1.0], [0.0], better=-1)).all()
    assert np.isnan(r.scores([1.0], [2.0], better=0)).all()
    assert len(r.scores([], [], 1)) == 0


def test_the_interval_is_the_bootstraps_own_where_it_can_be_counted() -> None:
    # Two seeds, one load: a resample's IQM is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4, so any tail below 1/4
    # gives [0, 1].
    found = r.iqm_interval(np.array([[0.0], [1.0]]), np.random.default_rng(0))
    assert (found.n, found.value, found.low, found.high) == (2, 0.5, 0.0, 1.0)
    single = r.iqm_interval(np.array([[1.0, 3.0]]), np.random.default_rng(0))
    assert (single.value, single.n) == (2.0, 2)
    assert math.isnan(single.low)
    assert math.isnan(r.iqm_interval(np.empty((0, 0)), np.random.default_rng(0)).value)


def test_a_seed_is_drawn_with_all_its_loads() -> None:
    # Loads far apart: drawing loads would make the interval as wide as the gap.
    apart_SL = np.array([[0.0, 10.0], [0.01, 10.01], [0.02, 10.02], [0.03, 10.03]])
    found = r.iqm_interval(apart_SL, np.random.default_rng(0))
    assert 4.9 < found.low < found.value < found.high < 5.1
    # One seed good and one bad under every load: more loads tell no more of what a seed is like.
    one, ten = (
        r.iqm_interval(np.repeat([[0.0], [1.0]], n, axis=1), np.random.default_rng(0)) for n in (1, 10)
    )
    assert (one.low, one.high) == (ten.low, ten.high) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("seeds", "loads", "least"), [(5, 6, 0.88), (20, 8, 0.93)])
def test_coverage_of_the_iqm(seeds: int, loads: int, least: float, shared: float) -> None:
    """Whatever part of a seed's luck is the same under every load; drawn by load, 20 seeds of 8 loads covered 0.50 at 1."""
    rng, runs, hits = np.random.default_rng(41), 1000, 0
    for _ in range(runs):
        luck_SL = rng.normal(size=(seeds, 1)) * math.sqrt(shared) + rng.normal(
            size=(seeds, loads)
        ) * math.sqrt(1 - shared)
        found = r.iqm_interval(0.3 + luck_SL, rng)
        hits += found.low <= 0.3 <= found.high
    assert least <= hits / runs <= 0.98


def test_profile_by_hand() -> None:
    tau_T = np.array([-1.0, 0.0, 0.5, 2.0])
    nan = math.nan
    scores_SL = np.array([[0.0, 1.0], [1.0, 1.0], [nan, 3.0], [nan, 0.4], [nan, nan]])
    found = r.profile("ppo", scores_SL, tau_T, np.random.default_rng(0))
    np.testing.assert_allclose(
        found.share_T, [1.0, (1 / 2 + 1) / 2, (1 / 2 + 3 / 4) / 2, (0 + 1 / 4) / 2]
    )  # loads weigh the same
    assert np.all((found.low_T <= found.share_T) & (found.share_T <= found.high_T))
    assert np.all(np.diff(found.low_T) <= 0) and np.all(np.diff(found.high_T) <= 0)
    single = r.profile("ppo", np.array([[1.0]]), tau_T, np.random.default_rng(0))
    assert np.isnan(single.low_T).all()


@pytest.mark.slow  # Monte Carlo
def test_coverage_of_the_profiles_band() -> None:
    rng, runs, hits = np.random.default_rng(42), 800, 0
    for x_SL in rng.normal(0.0, 1.0, (runs, 40, 2)):
        found = r.profile("ppo", x_SL, np.array([0.5]), rng)
        hits += found.low_T[0] <= stats.norm.sf(0.5) <= found.high_T[0]
    assert hits / runs == pytest.approx(0.95, abs=0.025)  # steps of 1/80 in the estimate


def test_thresholds_span_the_scores() -> None:
    tau_T = r.thresholds(np.array([-0.2, 0.4, math.nan, 1.0]))
    assert tau_T[0] < -0.2 and tau_T[-1] > 1.0 and 0.0 in tau_T
    assert np.all(np.diff(tau_T) > 0)


def test_improvement_over_loads_by_hand() -> None:
    wins, ties = ([3.0, 4.0], [1.0, 2.0]), ([1.0, 1.0], [1.0, 1.0])
    both = r.improvement_over_loads([wins, ties], better=1)
    assert (both.value, both.n) == (0.75, 8)
    ends = [improvement_interval(share, 2, 2) for share in (1.0, 0.5)]
    assert (both.low, both.high) == pytest.approx(np.mean(ends, axis=0), abs=1e-12)
    one = r.improvement_over_loads([wins], better=1)
    assert (one.low, one.high) == pytest.approx(improvement_interval(1.0, 2, 2), abs=1e-12)
    assert math.isnan(r.improvement_over_loads([wins], better=0).value)


LATENCY = {
    "hpa": [1.0, 1.1, 0.9, 1.0, 1.2],
    "ppo": [0.8, 0.9, 0.7, 0.9, 0.9],
    "keda": [1.0, 1.0, 1.0, 1.0, 1.1],
}


def test_aggregates_are_the_same_on_every_run_and_whoever_else_is_there() -> None:
    two = study_of({p: {"latency_p95_s": LATENCY[p]} for p in ("hpa", "ppo")}, loads=("low", "high"))
    three = study_of({p: {"latency_p95_s": LATENCY[p]} for p in LATENCY}, loads=("low", "high"))
    first, again, other = (r.aggregate(s, "ppo", "hpa", "latency_p95_s") for s in (two, two, three))
    assert first is not None
    assert first == again == other
    assert (first.loads, first.seeds, first.iqm.n) == (2, 5, 10)
    assert 0.05 < first.iqm.low < first.iqm.value < first.iqm.high < 0.3


def test_a_load_without_a_unit_is_left_out_and_named() -> None:
    values = {"hpa": {"qos_violation_rate": [0.0, 0.0]}, "ppo": {"qos_violation_rate": [0.1, 0.2]}}
    assert r.aggregate(study_of(values), "ppo", "hpa", "qos_violation_rate") is None
    assert r.profiles(study_of(values), ["hpa", "ppo"], "hpa", "qos_violation_rate") == []


def test_profiles_share_their_thresholds_and_leave_the_baseline_out() -> None:
    study = study_of({p: {"latency_p95_s": LATENCY[p]} for p in LATENCY}, loads=("low", "high"))
    found = r.profiles(study, ["hpa", "ppo", "keda"], "hpa", "latency_p95_s")
    assert [p.policy for p in found] == ["ppo", "keda"]
    np.testing.assert_array_equal(found[0].tau_T, found[1].tau_T)
    assert len(found[0].runs) == 20
    at_zero = int(np.flatnonzero(found[0].tau_T == 0.0)[0])
    assert found[0].share_T[at_zero] == 1.0  # better in every seed
    assert found[1].share_T[at_zero] == pytest.approx(0.4)  # in two of five; ties are not above


def test_the_reward_is_won_or_lost_and_has_no_score() -> None:
    """A share of a mean near 0 made +2006 % of a difference of 0.4."""
    values = {"hpa": {"reward_mean": [-0.02, 0.01]}, "ppo": {"reward_mean": [0.3, 0.4]}}
    found = r.aggregate(study_of(values), "ppo", "hpa", "reward_mean")
    assert found is not None
    assert math.isnan(found.iqm.value) and found.improvement.value == 1.0
