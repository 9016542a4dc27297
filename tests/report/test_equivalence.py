"""Equivalence and non-inferiority against closed forms, statsmodels, published power, and Monte Carlo."""

import math

import numpy as np
import pytest

from gpusched.report import equivalence as e

EXACT = 1e-9


def test_two_pairs_follow_the_cauchy_distribution() -> None:
    b = e.bounded(
        [1.0, 3.0], [0.0, 0.0], 5.0, relative=False
    )  # mean 2, standard error 1, one degree of freedom
    assert b.p_above == pytest.approx(0.5 - math.atan(7.0) / math.pi, abs=EXACT)
    assert b.p_below == pytest.approx(0.5 - math.atan(3.0) / math.pi, abs=EXACT)
    half = math.tan(math.pi * 0.45)  # 95 % point of Cauchy
    assert (b.value, b.low, b.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=EXACT)
    assert b.p == b.p_below
    assert (b.not_worse(1), b.not_worse(-1)) == (b.p_above, b.p_below)
    assert math.isnan(b.not_worse(0))


def test_tost_agrees_with_statsmodels() -> None:
    from statsmodels.stats.weightstats import ttost_paired

    rng = np.random.default_rng(5)
    for n in (3, 5, 40):
        x, y = rng.normal(10.0, 1.0, (2, n))
        p, (_, p_above, _), (_, p_below, _) = ttost_paired(x, y, -0.7, 0.7)
        b = e.bounded(x, y, 0.7, relative=False)
        assert (b.p, b.p_above, b.p_below) == pytest.approx((p, p_above, p_below), abs=1e-12)


def test_a_share_of_a_constant_baseline_is_an_absolute_margin() -> None:
    a, b = [9.0, 10.5, 11.0, 10.2], [10.0] * 4
    share, plain = e.bounded(a, b, 0.08, relative=True), e.bounded(a, b, 0.8, relative=False)
    assert (share.p_above, share.p_below) == pytest.approx((plain.p_above, plain.p_below), abs=1e-12)
    assert (share.value, share.low, share.high) == pytest.approx(
        (plain.value / 10, plain.low / 10, plain.high / 10), abs=1e-12
    )
    assert share.spread == pytest.approx(plain.spread / 10, abs=1e-12)


def test_fiellers_interval_by_hand() -> None:
    # a = (1, 4), b = (4, 6): means 2.5 and 5, var(a - r·b) = 2·(1.5 - r)², n = 2, so the ends solve
    # 2.5 - 5r = ± t·(1.5 - r). With t > 5 the set of ratios is unbounded: b's mean cannot be told from 0.
    a, b = [1.0, 4.0], [4.0, 6.0]
    assert math.tan(math.pi * 0.45) > 5
    assert "cannot be told from 0" in e.bounded(a, b, 0.1, relative=True).note
    t = math.tan(math.pi * 0.3)  # a level at which it can: 20 %
    found = e.bounded(a, b, 0.1, relative=True, alpha=0.2)
    ends = sorted(((2.5 - 1.5 * t) / (5 - t), (2.5 + 1.5 * t) / (5 + t)))
    assert (found.low, found.high) == pytest.approx((ends[0] - 1, ends[1] - 1), abs=EXACT)


def test_the_interval_lies_within_the_margin_exactly_when_the_test_rejects() -> None:
    rng = np.random.default_rng(6)
    decided = 0
    for _ in range(400):
        base = rng.normal(rng.choice([-5.0, 5.0]), 0.3, 5)
        a = base + rng.normal(0.0, rng.uniform(0.01, 0.3), 5)
        for relative, margin in ((True, 0.02), (False, 0.1)):
            b = e.bounded(a, base, margin, relative=relative)
            assert (b.p < 0.05) == (-margin < b.low and b.high < margin)
            assert (b.p_above < 0.05) == (b.low > -margin)
            assert (b.p_below < 0.05) == (b.high < margin)
            decided += b.p < 0.05
    assert 100 < decided < 700


def test_a_negative_baseline_mirrors_a_positive_one() -> None:
    a, b = np.array([1.0, 1.2, 0.9, 1.1]), np.array([1.1, 1.15, 1.0, 1.05])
    plus, minus = e.bounded(a, b, 0.05, relative=True), e.bounded(-a, -b, 0.05, relative=True)
    assert (minus.value, minus.low, minus.high) == pytest.approx(
        (-plus.value, -plus.high, -plus.low), abs=1e-12
    )
    assert (minus.p_above, minus.p_below) == pytest.approx((plus.p_below, plus.p_above), abs=1e-12)


def test_power_as_published() -> None:
    # R package PowerTOST, power.TOST(theta0 = 0.95, CV = 0.2, n = 20), 2x2 crossover: 0.8346802. On the log scale the
    # standard error is √(2/n)·√log(1 + CV²) with n - 2 degrees of freedom and the limits are ± log 1.25.
    sd = math.sqrt(2 * math.log(1 + 0.2**2))
    found = e.power(math.log(1.25) / sd, 20, 0.05, both=True, shift=math.log(0.95) / sd, m=18)
    assert found == pytest.approx(0.8346802, abs=5e-8)


def test_one_sided_power_agrees_with_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    for margin, n, alpha in ((0.5, 5, 0.05), (1.0, 10, 0.01), (0.2, 100, 0.05)):
        theirs = TTestPower().power(margin, n, alpha, alternative="larger")
        assert e.power(margin, n, alpha, both=False) == pytest.approx(theirs, abs=1e-8)


def test_needed_pairs_and_least_margin_are_where_power_is_eighty_percent() -> None:
    for both in (True, False):
        needed = e.pairs_needed(0.5, 0.05, both=both)
        assert needed is not None
        assert e.power(0.5, needed, 0.05, both=both) >= 0.8 > e.power(0.5, needed - 1, 0.05, both=both)
        least = e.least_margin(5, 0.05 / 24, both=both)
        assert e.power(least, 5, 0.05 / 24, both=both) == pytest.approx(0.8, abs=1e-8)
    assert (
        e.pairs_needed(0.5, 0.05, both=False) == 27
    )  # ((1.6449 + 0.8416) / 0.5)² = 24.7 for a known variance
    assert e.pairs_needed(0.001, 0.05, both=True) is None
    assert math.isnan(e.least_margin(1, 0.05, both=True))
    assert e.power(0.1, 5, 0.05, both=True) < 1e-3  # the two bounds leave almost no room


@pytest.mark.parametrize("n", [3, 5])
def test_power_by_monte_carlo(n: int) -> None:
    from scipy import stats

    rng, runs, margin = np.random.default_rng(8), 200_000, 2.0
    x_RS = rng.normal(0.2, 1.0, (runs, n))
    half_R = stats.t.ppf(0.95, n - 1) * x_RS.std(axis=1, ddof=1) / math.sqrt(n)
    inside = np.mean((x_RS.mean(axis=1) - half_R > -margin) & (x_RS.mean(axis=1) + half_R < margin))
    assert e.power(margin, n, 0.05, both=True, shift=0.2) == pytest.approx(
        inside, abs=4 * 0.5 / math.sqrt(runs)
    )


@pytest.mark.slow  # Monte Carlo
@pytest.mark.parametrize("relative", [True, False])
def test_at_the_margin_five_percent_are_wrongly_called_not_worse(relative: bool) -> None:
    # The baseline varies as much as the margin is wide: taking its mean as known would not keep the rate.
    rng, runs, n, margin = np.random.default_rng(9), 8000, 5, 0.1
    base_RS = rng.normal(10.0, 1.0, (runs, n))
    edge = (1 + margin) * base_RS if relative else base_RS + margin
    a_RS = edge + rng.normal(0.0, 0.5, (runs, n))
    found = [e.bounded(a, b, margin, relative=relative) for a, b in zip(a_RS, base_RS, strict=True)]
    assert np.mean([b.p_below < 0.05 for b in found]) == pytest.approx(0.05, abs=0.01)
    truth = margin
    assert np.mean([b.low <= truth <= b.high for b in found]) == pytest.approx(0.90, abs=0.01)


def test_gaps_are_said() -> None:
    one = e.bounded([1.0], [2.0], 0.1, relative=False)
    assert (one.note, one.value) == ("1 pair: no test", -1.0)
    assert math.isnan(one.p)
    assert e.bounded([600.0], [1200.0], 0.1, relative=True).value == -0.5, "a share, as with more pairs"
    same = e.bounded([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.1, relative=True)
    assert same.note == "equal in every pair: no test"
    shifted = e.bounded([1.1, 2.1], [1.0, 2.0], 0.1, relative=False)
    assert shifted.note == "the same difference in every pair: no test"
    zero = e.bounded([0.0, 0.1, 0.0], [0.0, 0.0, 0.0], 0.1, relative=True)
    assert "cannot be told from 0" in zero.note
    assert math.isnan(zero.p) and math.isnan(zero.not_worse(-1))
    lost = e.bounded([1.0, math.nan, 2.0], [1.0, 1.0, 1.5], 0.1, relative=False)
    assert lost.n == 2
