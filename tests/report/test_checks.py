"""The checks of assumptions against published and exact values."""

import math

import numpy as np
import pytest
from made_up import study_of

from gpusched.report.checks import equal_variance, normality, qq
from gpusched.report.compare import compare

# Shapiro & Wilk (1965), weights of eleven men; R's shapiro.test gives W = 0.7888, p = 0.006704.
WEIGHTS = [148.0, 154.0, 158.0, 160.0, 161.0, 162.0, 166.0, 170.0, 182.0, 195.0, 236.0]


def test_shapiro_wilk_as_published() -> None:
    found = normality(WEIGHTS)
    assert (found.statistic, found.p) == pytest.approx((0.7888, 0.006704), abs=5e-5)


def test_shapiro_wilk_of_three_in_closed_form() -> None:
    # n = 3: W = (range²/2) / Σ(x - mean)², and its distribution is known: p = 6/π·(asin √W - asin √(3/4)).
    x = [0.0, 1.0, 4.0]
    w = 8.0 / (26.0 / 3.0)
    found = normality(x)
    assert found.statistic == pytest.approx(w, abs=1e-9)
    assert found.p == pytest.approx(
        6 / math.pi * (math.asin(math.sqrt(w)) - math.asin(math.sqrt(0.75))), abs=1e-6
    )


def test_brown_forsythe_by_hand() -> None:
    # Distances to the medians 1, 0, 1 and 2, 0, 2: means 2/3 and 4/3, F = (2/3) / (10/3 / 4), degrees of freedom 1 and 4.
    found = equal_variance([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found.statistic == pytest.approx(0.8, abs=1e-9)
    # F(1, 4) = t²(4): p = 1 - t·(6 + t²) / (4 + t²)^1.5
    assert found.p == pytest.approx(1 - math.sqrt(0.8) * 6.8 / 4.8**1.5, abs=1e-9)


def test_gaps_are_said() -> None:
    assert normality([1.0, 2.0]).note == "fewer than 3 pairs"
    assert normality([1.0, 1.0, 1.0]).note == "no variance"
    assert equal_variance([1.0, 2.0], [1.0, 2.0, 3.0]).note == "fewer than 3 seeds"
    assert equal_variance([1.0] * 3, [2.0] * 3).note == "no variance"


@pytest.mark.slow
def test_rates_under_normality() -> None:
    rng, runs = np.random.default_rng(51), 3000
    assert np.mean([normality(x).p < 0.05 for x in rng.normal(size=(runs, 5))]) == pytest.approx(
        0.05, abs=0.012
    )


def test_qq_points_are_standardised_and_in_order() -> None:
    values = {"hpa": {"latency_p95_s": [1.0, 1.0, 1.0, 1.0]}, "ppo": {"latency_p95_s": [1.4, 1.1, 1.2, 1.3]}}
    (points,) = qq(compare(study_of(values), "hpa", "ppo"))
    np.testing.assert_allclose(
        points.observed_S, np.array([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(5 / 3), atol=1e-9
    )
    np.testing.assert_allclose(points.theory_S, -points.theory_S[::-1], atol=1e-12)
    assert points.theory_S[3] == pytest.approx(1.0491, abs=5e-5)  # Blom's point (4 - 3/8) / 4.25 = 0.85294
    assert len(points.runs) == 8
