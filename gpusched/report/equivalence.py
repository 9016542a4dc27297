"""Is one policy no worse than another, or the same, within a margin? Paired one-sided t tests. Axis S counts seeds.

A margin is absolute, in the measure's SI unit, or a share of the baseline's mean. A share is not taken as known:
the tests are on candidate - (1 ± margin)·baseline, seed by seed, and the interval of the ratio is Fieller's
(1954, doi:10.1111/j.2517-6161.1954.tb00159.x; Berger & Hsu 1996, doi:10.1214/ss/1032280304).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special

from gpusched.report.statistics import FLAT, MOST_N, POWER, Values

Array = NDArray[np.float64]


@dataclass(kw_only=True, frozen=True)
class Bounded:
    """Two one-sided paired t tests of candidate - baseline against ± margin.

    value, low, high  the difference and its 1 - 2·alpha interval (90 % at 0.05), as a share of the baseline's mean
                      where `relative`
    p_above           of "the difference is at most -margin": small where the candidate is above the lower margin
    p_below           of "the difference is at least margin": small where it is below the upper margin
    spread            standard deviation of the differences in the unit of `margin`
    equal             both are the same in every pair, of which there are at least two, so that no test can say more
    """

    n: int
    margin: float
    relative: bool
    value: float
    low: float
    high: float
    p_above: float
    p_below: float
    spread: float
    note: str = ""
    equal: bool = False

    @property
    def p(self) -> float:
        """The p of TOST: both bounds must be refuted (Schuirmann 1987, doi:10.1007/BF01068419)."""
        return max(self.p_above, self.p_below)  # both are NaN or none

    def not_worse(self, better: int) -> float:
        """Return the p of non-inferiority for a measure of that direction, NaN without one."""
        return {1: self.p_above, -1: self.p_below}.get(better, math.nan)


def bounded(
    candidate_S: Values, baseline_S: Values, margin: float, *, relative: bool, alpha: float = 0.05
) -> Bounded:
    """Test whether candidate - baseline lies above -margin and below margin.

    The two arrays stand in the same order of seeds; a pair with a missing value is dropped. Without two pairs, without
    variance, or where the baseline's mean cannot be told from 0 and the margin is a share of it, there is no p.
    """
    a_S, b_S = np.asarray(candidate_S, dtype=float), np.asarray(baseline_S, dtype=float)
    both_S = np.isfinite(a_S) & np.isfinite(b_S)
    a_S, b_S = a_S[both_S], b_S[both_S]
    n, d_S = len(a_S), a_S - b_S
    unit = 0.0 if not n else abs(float(b_S.mean())) if relative else 1.0
    value = float(d_S.mean()) / unit if unit else math.nan
    if n < 2:
        return _none(n, margin, relative, value, f"{n} pair{'' if n == 1 else 's'}: no test")
    sd = float(d_S.std(ddof=1))
    if not sd > FLAT * float(max(np.abs(a_S).max(), np.abs(b_S).max())):
        equal = value == 0.0 or not d_S.any()
        same = "equal in every pair" if equal else "the same difference in every pair"
        return _none(n, margin, relative, value, f"{same}: no test", equal)
    ends = _fieller(a_S, b_S, alpha) if relative else _plain(d_S, alpha)
    if ends is None:
        why = "the baseline’s mean cannot be told from 0, so no share of it is tested"
        return _none(n, margin, relative, value, why)
    shift_S = margin * (np.sign(b_S.mean()) * b_S if relative else np.ones(n))
    return Bounded(n=n, margin=margin, relative=relative, value=value, low=ends[0], high=ends[1],
                   p_above=_upper(d_S + shift_S), p_below=_upper(shift_S - d_S), spread=sd / unit)  # fmt: skip


def power(
    margin: float, n: int, alpha: float, *, both: bool, shift: float = 0.0, m: int | None = None
) -> float:
    """Return the power of n pairs to show a difference within the margin (`both`) or above -margin.

    Margin and true difference (`shift`) are in standard deviations of the differences; m degrees of freedom, n - 1 by
    default. Exact: given the sample's variance, the mean is normal (Phillips 1990, doi:10.1007/BF01063556).
    """
    m = n - 1 if m is None else m
    critical, low, high = (
        -float(special.stdtrit(m, alpha)),
        (margin + shift) * math.sqrt(n),
        (margin - shift) * math.sqrt(n),
    )

    def shown(u: float) -> float:
        bound = critical * math.sqrt(special.chdtri(m, 1.0 - u) / m)
        above = float(special.ndtr(low - bound))
        return max(above + float(special.ndtr(high - bound)) - 1.0, 0.0) if both else above

    # Beyond this quantile of the variance the two bounds leave no room: a kink the integration must know.
    kink = float(special.chdtr(m, m * (min(low + high, 2e8) / 2 / critical) ** 2)) if both else 1.0
    return float(integrate.quad(shown, 0.0, kink, limit=200, epsabs=1e-11)[0])


def pairs_needed(margin: float, alpha: float, *, both: bool) -> int | None:
    """Return the fewest pairs that show a margin (in standard deviations) with 80 % power where the truth is no difference."""
    return _fewest(lambda n: power(margin, n, alpha, both=both))


@cache
def least_margin(n: int, alpha: float, *, both: bool) -> float:
    """Return the margin in standard deviations that n pairs show with 80 % power where the truth is no difference."""
    if n < 2:
        return math.nan
    high = 1.0
    while power(high, n, alpha, both=both) < POWER:
        high *= 2.0
    return float(optimize.brentq(lambda x: power(x, n, alpha, both=both) - POWER, 0.0, high, xtol=1e-10))


def _fewest(power_of: Callable[[int], float]) -> int | None:
    if power_of(MOST_N) < POWER:
        return None
    low, high = 1, MOST_N
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def _upper(x_S: Array) -> float:
    """Return the p of the one-sided t test that the mean is at most 0."""
    n, sd = len(x_S), float(x_S.std(ddof=1))
    return float(special.stdtr(n - 1, -float(x_S.mean()) / (sd / math.sqrt(n)))) if sd > 0 else math.nan


def _plain(d_S: Array, alpha: float) -> tuple[float, float]:
    n, mean = len(d_S), float(d_S.mean())
    half = -float(special.stdtrit(n - 1, alpha)) * float(d_S.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def _fieller(a_S: Array, b_S: Array, alpha: float) -> tuple[float, float] | None:
    """Return Fieller's interval of (mean a - mean b) / |mean b|, None where it is unbounded."""
    n, a, b = len(a_S), float(a_S.mean()), float(b_S.mean())
    q = float(special.stdtrit(n - 1, alpha)) ** 2 / n
    cov = np.cov(a_S, b_S)
    first, second, third = b * b - q * cov[1, 1], a * b - q * cov[0, 1], a * a - q * cov[0, 0]
    if not first > 0:
        return None
    root = math.sqrt(max(second * second - first * third, 0.0))
    ends = [math.copysign(1.0, b) * ((second + sign * root) / first - 1.0) for sign in (-1, 1)]
    return float(min(ends)), float(max(ends))


def _none(n: int, margin: float, relative: bool, value: float, note: str, equal: bool = False) -> Bounded:
    gap = math.nan
    return Bounded(n=n, margin=margin, relative=relative, value=value, low=gap, high=gap, p_above=gap, p_below=gap,
                   spread=gap, note=note, equal=equal)  # fmt: skip
