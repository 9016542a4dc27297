"""Variance between seeds and between repeats: a published example, closed forms, and the coverage of the intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from gpusched.report.nested import nested

# Davies (1947), yield of dyestuff: five preparations of each of six batches. lme4's documentation gives the variance
# components 1764.05 (batches) and 2451.25 (residual).
DYESTUFF = [
    [1545, 1440, 1440, 1520, 1580], [1540, 1555, 1490, 1560, 1495], [1595, 1550, 1605, 1510, 1560],
    [1445, 1440, 1595, 1465, 1545], [1595, 1630, 1515, 1635, 1625], [1520, 1455, 1450, 1480, 1445],
]  # fmt: skip


def test_dyestuff() -> None:
    found = nested(DYESTUFF)
    assert (found.between, found.within) == pytest.approx((1764.05, 2451.25), abs=1e-9)
    assert found.share == pytest.approx(1764.05 / (1764.05 + 2451.25), abs=1e-12)
    assert (found.seeds, found.runs, found.repeats) == (6, 30, pytest.approx(5.0))
    assert found.repeat_part == pytest.approx(2451.25 / 5 / (1764.05 + 2451.25 / 5), abs=1e-12)
    # exact intervals: chi-square with 24 degrees of freedom, F with (5, 24); F = 11271.5 / 2451.25
    assert found.within_low == pytest.approx(24 * 2451.25 / stats.chi2.ppf(0.975, 24), rel=1e-9)
    assert found.within_high == pytest.approx(24 * 2451.25 / stats.chi2.ppf(0.025, 24), rel=1e-9)
    ratio = (11271.5 / 2451.25 / stats.f.ppf(0.975, 5, 24) - 1) / 5
    assert found.share_low == pytest.approx(ratio / (1 + ratio), rel=1e-9)


def test_two_seeds_with_two_repeats_by_hand() -> None:
    found = nested([[1.0, 3.0], [6.0, 8.0]])  # means 2 and 7, within 2, between (25/2 · 2 - 2) / 2
    assert (found.within, found.between) == pytest.approx((2.0, 11.5), abs=1e-12)


def test_what_repeats_alone_explain_is_no_variance_between_seeds() -> None:
    found = nested([[1.0, 5.0], [2.0, 4.0], [0.0, 6.0]])  # three equal means
    assert (found.between, found.between_low, found.share_low) == (0.0, 0.0, 0.0)
    assert "fell below 0" in found.note
    assert found.repeat_part == 1.0


def test_repeats_without_variance_leave_everything_to_the_seeds() -> None:
    found = nested([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert (found.within, found.between, found.share, found.repeat_part) == (
        0.0,
        pytest.approx(1.0),
        1.0,
        0.0,
    )


def test_gaps_are_said() -> None:
    assert "one repeat per seed" in nested([[1.0], [2.0], [3.0]]).note
    assert "one seed" in nested([[1.0, 2.0]]).note
    assert nested([]).note == nested([[math.nan]]).note == "no value"
    assert nested([[2.0, 2.0], [2.0, 2.0]]).note == "no variance"
    missing = nested([[1.0, math.nan, 2.0], [3.0, 4.0, 5.0]])
    assert (missing.runs, missing.repeats) == (5, pytest.approx(2 / (1 / 2 + 1 / 3)))


@pytest.mark.slow  # Monte Carlo
@pytest.mark.parametrize(("sd", "sizes"), [(1.0, (3,) * 5), (0.3, (4,) * 10), (1.0, (3, 3, 3, 3, 2))])
def test_coverage_of_the_components(sd: float, sizes: tuple[int, ...]) -> None:
    rng, runs = np.random.default_rng(31), 4000
    found = [nested([rng.normal(0, sd) + rng.normal(0, 1, k) for k in sizes]) for _ in range(runs)]
    share = sd**2 / (sd**2 + 1)
    assert np.mean([f.within_low <= 1.0 <= f.within_high for f in found]) == pytest.approx(0.95, abs=0.01)
    assert np.mean([f.share_low <= share <= f.share_high for f in found]) == pytest.approx(0.95, abs=0.01)
    assert np.mean([f.between_low <= sd**2 <= f.between_high for f in found]) == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
def test_the_estimates_are_unbiased() -> None:
    rng, runs = np.random.default_rng(32), 20_000
    y = rng.normal(0, 2.0, (runs, 5, 1)) + rng.normal(0, 1.0, (runs, 5, 3))
    found = [nested(groups) for groups in y[:4000]]
    between = np.array([f.between for f in found])  # truncation at 0 is rare: the seeds' part is large here
    assert np.mean([f.within for f in found]) == pytest.approx(
        1.0, abs=4 * np.std([f.within for f in found]) / 63
    )
    assert between.mean() == pytest.approx(4.0, abs=4 * between.std() / 63)
