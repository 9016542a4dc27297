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


def test_scores_by_hand() -> None:
    np.testing.assert_allclose(r.scores([1.0, 3.0], [2.0, 6.0], better=-1), [0.25, 0.75])
    np.testing.assert_allclose(r.scores([-1.0, -3.0], [-2.0, -6.0], better=1), [0.25, 0.75])
    np.testing.assert_allclose(r.scores([1.0, math.nan, 3.0], [2.0, 5.0, 6.0], better=-1), [0.25, 0.75])
    assert (
        len(r.scores([1.0], [0.0], better=-1))
        == len(r.scores([1.0], [2.0], better=0))
        == len(r.scores([], [], 1))
        == 0
    )


def test_the_interval_is_the_bootstraps_own_where_it_can_be_counted() -> None:
    # Two seeds per load, one load: a resample's IQM is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4, so any tail below 1/4
    # gives [0, 1].
    found = r.iqm_interval([np.array([0.0, 1.0])], np.random.default_rng(0))
    assert (found.n, found.value, found.low, found.high) == (2, 0.5, 0.0, 1.0)
    single = r.iqm_interval([np.array([1.0]), np.array([3.0])], np.random.default_rng(0))
    assert (single.value, single.n) == (2.0, 2)
    assert math.isnan(single.low)
    assert math.isnan(r.iqm_interval([], np.random.default_rng(0)).value)


def test_resamples_stay_within_their_load() -> None:
    # Loads far apart: mixing them would make the interval as wide as the gap.
    strata = [np.array([0.0, 0.01, 0.02, 0.03]), np.array([10.0, 10.01, 10.02, 10.03])]
    found = r.iqm_interval(strata, np.random.default_rng(0))
    assert 4.9 < found.low < found.value < found.high < 5.1


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "loads", "tolerance"), [(5, 3, 0.02), (15, 3, 0.01), (40, 2, 0.01)])
def test_coverage_of_the_iqm(seeds: int, loads: int, tolerance: float) -> None:
    rng, runs = np.random.default_rng(41), 3000
    hits = 0
    for x_LS in rng.normal(0.3, 1.0, (runs, loads, seeds)):
        found = r.iqm_interval(list(x_LS), rng)
        hits += found.low <= 0.3 <= found.high
    assert hits / runs == pytest.approx(0.95, abs=tolerance)


def test_profile_by_hand() -> None:
    tau_T = np.array([-1.0, 0.0, 0.5, 2.0])
    found = r.profile(
        "ppo", [np.array([0.0, 1.0]), np.array([1.0, 1.0, 3.0, 0.4])], tau_T, np.random.default_rng(0)
    )
    np.testing.assert_allclose(
        found.share_T, [1.0, (1 / 2 + 1) / 2, (1 / 2 + 3 / 4) / 2, (0 + 1 / 4) / 2]
    )  # loads weigh the same
    assert np.all((found.low_T <= found.share_T) & (found.share_T <= found.high_T))
    assert np.all(np.diff(found.low_T) <= 0) and np.all(np.diff(found.high_T) <= 0)
    single = r.profile("ppo", [np.array([1.0])], tau_T, np.random.default_rng(0))
    assert np.isnan(single.low_T).all()


@pytest.mark.slow  # Monte Carlo
def test_coverage_of_the_profiles_band() -> None:
    rng, runs, hits = np.random.default_rng(42), 800, 0
    for x_LS in rng.normal(0.0, 1.0, (runs, 2, 40)):
        found = r.profile("ppo", list(x_LS), np.array([0.5]), rng)
        hits += found.low_T[0] <= stats.norm.sf(0.5) <= found.high_T[0]
    assert hits / runs == pytest.approx(0.95, abs=0.025)  # steps of 1/80 in the estimate


def test_thresholds_span_the_scores() -> None:
    tau_T = r.thresholds([np.array([-0.2, 0.4]), np.array([1.0])])
    assert tau_T[0] < -0.2 and tau_T[-1] > 1.0 and 0.0 in tau_T
    assert np.all(np.diff(tau_T) > 0)


def test_improvement_over_loads_by_hand() -> None:
    wins, ties = ([3.0, 4.0], [1.0, 2.0]), ([1.0, 1.0], [1.0, 1.0])
    both = r.improvement_over_loads([wins, ties], better=1)
    assert (both.value, both.n) == (0.75, 8)
    low = [1.0 - improvement_interval(1.0, 2, 2)[0], 0.5 - improvement_interval(0.5, 2, 2)[0]]
    assert both.low == pytest.approx(0.75 - math.hypot(*low) / 2, abs=1e-12)
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
    assert first.loads == 2 and first.iqm.n == 10
    assert 0.1 < first.iqm.low < first.iqm.value < first.iqm.high < 0.3


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
