"""What the paired t test assumes, looked at. These checks are shown and never pick a test: choosing by them after the
fact would change its error rates, and few pairs cannot verify anything anyway. Axis S counts seeds."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from gpusched.report.compare import Comparison, Row
from gpusched.report.measures import Measure
from gpusched.report.statistics import Values

LEAST = 3
"""Fewest values Shapiro and Wilk's test is defined for."""

Array = NDArray[np.float64]


@dataclass(kw_only=True, frozen=True)
class Check:
    """A test's statistic and p; NaN where it cannot be done, and why."""

    statistic: float
    p: float
    note: str = ""


@dataclass(kw_only=True, frozen=True)
class QQ:
    """Standardised paired differences of one row in order [S], and the normal quantiles they would have."""

    load: str
    measure: Measure
    theory_S: Array
    observed_S: Array
    runs: tuple[str, ...]


def normality(differences_S: Values) -> Check:
    """Return Shapiro and Wilk's W (1965, doi:10.1093/biomet/52.3-4.591) of the differences; small p: not normal."""
    x_S = np.asarray(differences_S, dtype=float)
    if len(x_S) < LEAST:
        return Check(statistic=math.nan, p=math.nan, note=f"fewer than {LEAST} pairs")
    if not np.ptp(x_S) > 0:
        return Check(statistic=math.nan, p=math.nan, note="no variance")
    found = stats.shapiro(x_S)
    return Check(statistic=float(found.statistic), p=float(found.pvalue))


def equal_variance(a_S: Values, b_S: Values) -> Check:
    """Return Brown and Forsythe's F (1974, doi:10.1080/01621459.1974.10482955): Levene's test around the medians."""
    a_S, b_S = np.asarray(a_S, dtype=float), np.asarray(b_S, dtype=float)
    if min(len(a_S), len(b_S)) < LEAST:
        return Check(statistic=math.nan, p=math.nan, note=f"fewer than {LEAST} seeds")
    if not (np.ptp(a_S) > 0 or np.ptp(b_S) > 0):
        return Check(statistic=math.nan, p=math.nan, note="no variance")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # equal spreads around the medians: 0 / 0
        found = stats.levene(a_S, b_S, center="median")
    return Check(statistic=float(found.statistic), p=float(found.pvalue))


def qq(comparison: Comparison) -> list[QQ]:
    """Return the points of a normal Q-Q plot of every row with at least three different pairs."""
    return [_points(row) for row in comparison.rows if row.pairs >= LEAST and row.paired.difference.sd > 0]


def _points(row: Row) -> QQ:
    d = row.paired.difference
    ordered_S = np.sort(np.array(row.differences))
    n = len(ordered_S)
    theory_S = special.ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25))  # Blom 1958
    return QQ(
        load=row.load,
        measure=row.measure,
        theory_S=theory_S,
        observed_S=(ordered_S - d.mean) / d.sd,
        runs=row.runs,
    )
