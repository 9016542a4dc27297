"""Statistics against textbook data, closed forms and Monte Carlo."""

import math

import numpy as np
import pytest

from gpusched.report import statistics as s

# Student (1908), hours of extra sleep under two drugs; results as printed by R's t.test(extra ~ group).
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
EXACT = 1e-9


def test_paired_t_and_welch_on_students_sleep_data() -> None:
    result = s.paired(SLEEP_1, SLEEP_2)
    assert result.difference.mean == pytest.approx(-1.58, abs=EXACT)
    assert result.t == pytest.approx(-4.0621, abs=5e-5)
    assert result.p == pytest.approx(0.002833, abs=5e-7)
    assert (result.difference.low, result.difference.high) == pytest.approx(
        (-2.4598858, -0.7001142), abs=5e-8
    )
    assert result.welch_p == pytest.approx(0.07939, abs=5e-6)


def test_two_pairs_follow_the_cauchy_distribution() -> None:
    result = s.paired([1.0, 3.0], [0.0, 0.0])  # t = 2 with one degree of freedom
    assert result.t == pytest.approx(2.0, abs=EXACT)
    assert result.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, abs=EXACT)
    half = math.tan(math.pi * 0.475)
    assert (result.difference.low, result.difference.high) == pytest.approx((2 - half, 2 + half), abs=EXACT)
    assert math.isnan(result.g)  # J is not defined for one degree of freedom


def test_three_pairs_follow_the_closed_form_of_two_degrees_of_freedom() -> None:
    result = s.paired([2.0, 4.0, 9.0], [1.0, 1.0, 1.0])  # differences 1, 3, 8: mean 4, variance 13
    t = 4 / math.sqrt(13 / 3)
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=EXACT)
    assert result.g == pytest.approx(4 / math.sqrt(13) / math.sqrt(math.pi), abs=EXACT)  # J(2) = 1/√π


def test_small_sample_factor_in_closed_form() -> None:
    assert s.small_sample_factor(2) == pytest.approx(1 / math.sqrt(math.pi), abs=EXACT)
    assert s.small_sample_factor(4) == pytest.approx(math.sqrt(2 / math.pi), abs=EXACT)
    assert s.small_sample_factor(50) == pytest.approx(1 - 3 / (4 * 50 - 1), abs=2e-5)  # Hedges' approximation


def test_interval_of_g_where_t_is_zero_is_normal() -> None:
    # P(T <= 0) = Φ(-δ) for every number of degrees of freedom, so the bounds are ±1.959963984540054/√n times J.
    g, low, high = s.hedges_g(0.0, 5)
    half = math.sqrt(2 / math.pi) * 1.959963984540054 / math.sqrt(5)
    assert (g, low, high) == pytest.approx((0.0, -half, half), abs=EXACT)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_interval_of_g_excludes_zero_exactly_when_p_is_below_five_percent(n: int) -> None:
    from scipy import stats

    critical = float(stats.t.ppf(0.975, n - 1))
    assert s.hedges_g(critical, n)[1] == pytest.approx(0.0, abs=1e-8)
    assert s.hedges_g(1.01 * critical, n)[1] > 0 > s.hedges_g(0.99 * critical, n)[1]


@pytest.mark.parametrize("t", [50.0, -300.0, 2e4, 3e5, -1e6, 1e9])
def test_interval_of_g_stays_finite_and_ordered_for_huge_effects(t: float) -> None:
    g, low, high = s.hedges_g(t, 5)
    assert low < g < high and math.isfinite(low) and math.isfinite(high)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_interval_of_g_runs_into_its_limit(n: int) -> None:
    """There g is known but for the spread, whose interval is that of χ² (scipy's own inverse does not end there)."""
    below, above = (np.array(s.hedges_g(t, n)) / t for t in (0.999e3, 1.001e3))
    assert above == pytest.approx(below, rel=1e-4)


def test_holm_by_hand() -> None:
    adjusted = s.holm(
        [0.01, 0.04, math.nan, 0.03, 0.005]
    )  # 4 tests: .005·4, .01·3, .03·2, then the running maximum
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02], atol=EXACT)
    assert np.isnan(s.holm([math.nan])).all() and len(s.holm([])) == 0


def test_holm_agrees_with_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(2)
    for p_M in (rng.random(24) ** 3, rng.random(7).round(1), np.zeros(3), np.ones(2)):  # with ties
        np.testing.assert_allclose(s.holm(p_M), multipletests(p_M, method="holm")[1], atol=1e-12)


def test_holm_keeps_the_rate_of_any_false_finding() -> None:
    rng, studies, tests = np.random.default_rng(3), 4000, 20
    shared = rng.normal(size=(studies, 1))  # tests of one study are correlated
    z = 0.6 * shared + 0.8 * rng.normal(size=(studies, tests))
    from scipy import stats

    any_false = np.mean([np.any(s.holm(p_M) < 0.05) for p_M in 2 * stats.norm.sf(np.abs(z))])
    assert any_false < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_welch_keeps_its_rate_under_unequal_variances() -> None:
    rng, runs = np.random.default_rng(4), 4000
    p_R = [
        s.welch(a, b) for a, b in zip(rng.normal(0, 1, (runs, 8)), rng.normal(0, 4, (runs, 8)), strict=True)
    ]
    assert np.mean(np.array(p_R) < 0.05) == pytest.approx(0.05, abs=0.01)


def test_g_av_by_hand() -> None:
    # means 5 and 1, variances 13 and 0: 4 / √6.5, times J(2) = 1/√π
    assert s.paired([2.0, 4.0, 9.0], [1.0, 1.0, 1.0]).g_av == pytest.approx(
        4 / math.sqrt(6.5 * math.pi), abs=EXACT
    )
    assert math.isnan(s.hedges_g_av([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))
    # Pairing makes g large and leaves g_av alone.
    base = [1.0, 5.0, 9.0, 13.0, 17.0]
    near = s.paired([x + 1 + e for x, e in zip(base, (0.1, -0.1, 0.0, 0.1, -0.1), strict=True)], base)
    assert near.g > 5 > 0.2 > near.g_av > 0


def test_power_as_gpower_gives_it() -> None:
    # G*Power 3.1 manual, "difference between two dependent means": dz 0.421637, N 50, two-sided 5 %: power 0.832114.
    assert s._power(0.421637, 50, 0.05) == pytest.approx(0.832114, abs=1e-6)
    from statsmodels.stats.power import TTestPower

    for effect, n, alpha in ((0.3, 5, 0.05), (2.0, 5, 0.05 / 24), (1.0, 34, 0.01)):
        theirs = TTestPower().power(effect, n, alpha, alternative="two-sided")
        assert s._power(effect, n, alpha) == pytest.approx(theirs, abs=1e-8)
    assert s.pairs_needed(0.5, 0.05) == 34
    assert s.pairs_needed(-0.5, 0.05) == 34
    assert s.pairs_needed(0.0, 0.05) is None and s.pairs_needed(0.001, 0.05) is None


def test_detectable_difference_is_where_power_is_eighty_percent() -> None:
    found = s.detectable(sd=2.0, n=34, alpha=0.05)
    assert s._power(found / 2.0, 34, 0.05) == pytest.approx(0.8, abs=EXACT)
    assert found < 2.0 * 0.5 < s.detectable(sd=2.0, n=33, alpha=0.05)
    assert math.isnan(s.detectable(0.0, 5, 0.05)) and math.isnan(s.detectable(1.0, 1, 0.05))
    assert s.detectable(1.0, 2, 0.05 / 24) > s.detectable(1.0, 5, 0.05 / 24) > 0


def test_probability_of_improvement_by_hand() -> None:
    # 1 beats 0; 2 beats 0 and ties twice; 3 beats all: (1 + 1 + 2/2 + 3) / 9
    assert s.improvement([1, 2, 3], [2, 2, 0], better=1) == pytest.approx(6 / 9, abs=EXACT)
    assert s.improvement([3.0], [1.0, 3.0], better=1) == 0.75
    assert s.improvement([3.0], [1.0, 3.0], better=-1) == 0.25
    assert math.isnan(s.improvement([3.0], [1.0], better=0)) and math.isnan(
        s.improvement([], [1.0], better=1)
    )


@pytest.mark.parametrize(("share", "n", "m"), [(1.0, 5, 5), (0.0, 5, 3), (0.72, 5, 5), (0.5, 30, 12)])
def test_interval_of_the_probability_of_improvement_solves_the_score_equation(
    share: float, n: int, m: int
) -> None:
    # Newcombe (2006): the bounds p with (share - p)² = z²·V(p), V of Hanley & McNeil (1982) with both n - 1 and m - 1
    # replaced by their mean.
    low, high = s.improvement_interval(share, n, m)
    assert 0.0 <= low <= share <= high <= 1.0
    for p in {low, high} - {share}:
        q1, q2, k = p / (2 - p), 2 * p * p / (1 + p), (n + m) / 2 - 1
        variance = (p * (1 - p) + k * (q1 - p * p) + k * (q2 - p * p)) / (n * m)
        assert (share - p) ** 2 == pytest.approx(1.959963984540054**2 * variance, abs=1e-10)
    mirrored = s.improvement_interval(1.0 - share, n, m)
    assert (1.0 - mirrored[1], 1.0 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    assert all(map(math.isnan, s.improvement_interval(math.nan, 5, 5)))


@pytest.mark.parametrize("effect", [0.0, 1.0, 2.0])
def test_coverage_of_the_probability_of_improvement(effect: float) -> None:
    from scipy import stats

    rng, runs, n = np.random.default_rng(12), 8000, 5
    a_RS, b_RS = rng.normal(effect, 1.0, (runs, n)), rng.normal(0.0, 1.0, (runs, n))
    share_R = (a_RS[:, :, None] > b_RS[:, None, :]).mean(axis=(1, 2)).round(12)
    bounds = {x: s.improvement_interval(x, n, n) for x in set(share_R.tolist())}
    low_R, high_R = np.array([bounds[x] for x in share_R.tolist()]).T
    true = stats.norm.cdf(effect / math.sqrt(2))
    assert np.mean((low_R <= true) & (true <= high_R)) == pytest.approx(0.95, abs=0.02)  # an approximation


def test_gaps_are_said_and_give_no_p() -> None:
    one = s.paired([1.0], [2.0])
    assert one.difference.mean == -1.0 and math.isnan(one.p) and one.note == "1 pair: no test"
    same = s.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert math.isnan(same.p) and same.note == "equal in every pair: no test" and same.difference.high == 0.0
    shifted = s.paired([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])  # 0.1 up to rounding: no variance, not p = 1e-30
    assert math.isnan(shifted.p) and "no variance" in shifted.note
    lost = s.paired([1.0, 2.0, math.nan, 4.0], [0.0, 0.5, 1.0, 1.0])
    assert lost.difference.n == 3 and math.isfinite(lost.p) and "1 of 4 pairs" in lost.note
    assert s.interval([]).note == "no value" and math.isnan(s.interval([math.nan]).mean)
    assert s.interval([5.0]).note == "one value: no interval"
    assert s.interval([2.0, 2.0]).note == "no variance"


def test_five_pairs_can_never_be_significant_by_wilcoxon() -> None:
    from scipy import stats

    extreme = stats.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0], method="exact").pvalue
    assert s.least_p_wilcoxon(5) == pytest.approx(float(extreme), abs=EXACT) == 0.0625


@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_of_the_mean_interval(n: int) -> None:
    rng = np.random.default_rng(20 + n)
    hits = sum(e.low <= 7.0 <= e.high for e in map(s.interval, rng.normal(7.0, 3.0, (10_000, n))))
    assert hits / 10_000 == pytest.approx(0.95, abs=0.01)


def test_coverage_of_the_interval_of_g() -> None:
    rng, true_d, n = np.random.default_rng(7), 1.2, 5
    x_RS = rng.normal(true_d, 1.0, (2_500, n))
    t_R = x_RS.mean(axis=1) / (x_RS.std(axis=1, ddof=1) / math.sqrt(n))
    bounds = np.array([s.hedges_g(t, n)[1:] for t in t_R]) / s.small_sample_factor(
        n - 1
    )  # the interval of d itself
    hits = np.mean((bounds[:, 0] <= true_d) & (true_d <= bounds[:, 1]))
    assert hits == pytest.approx(0.95, abs=0.01)


def test_hedges_factor_removes_the_bias() -> None:
    rng, n, runs = np.random.default_rng(11), 5, 200_000
    x_RS = rng.normal(1.0, 1.0, (runs, n))
    d_R = x_RS.mean(axis=1) / x_RS.std(axis=1, ddof=1)
    g_R = s.small_sample_factor(n - 1) * d_R
    error = g_R.std() / math.sqrt(runs)
    assert abs(g_R.mean() - 1.0) < 4 * error < abs(d_R.mean() - 1.0)
