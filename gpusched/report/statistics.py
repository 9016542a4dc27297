"""The statistics of the report, as pure functions of plain numbers. Axis S counts seeds.

A quantity that the data cannot give (an interval from one value, a p from differences without variance) is
NaN and its `note` says why; nothing is estimated around the gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

LEVEL = 0.95
POWER = 0.8
MOST_N = 10_000
"""Beyond this many pairs "how many would decide" is answered with "more than that"."""
LARGE_T = 1e3
"""Beyond it a noncentral t is its limit to five digits or more."""
FLAT = 1e-12
"""A spread below this share of the values' size is rounding, not variance."""

Values = Sequence[float] | NDArray[np.float64]


@dataclass(kw_only=True, frozen=True)
class Estimate:
    """A mean with its 95 % t-interval and standard deviation over n values."""

    n: int
    mean: float
    low: float
    high: float
    sd: float
    note: str = ""


@dataclass(kw_only=True, frozen=True)
class Paired:
    """Differences by seed: their mean and interval, the paired t test, Hedges' g with interval, and Welch's p.

    `g` is in standard deviations of the differences, `g_av` in those of the seeds of one policy.
    """

    difference: Estimate
    t: float
    p: float
    g: float
    g_low: float
    g_high: float
    welch_p: float
    g_av: float = math.nan
    note: str = ""

    @property
    def equal(self) -> bool:
        """True where both are the same in every pair, of which there are at least two: no test can say more."""
        d = self.difference
        return d.n >= 2 and d.sd == 0.0 and d.mean == 0.0


def interval(values_S: Values) -> Estimate:
    """Return mean ± t(0.975, n-1)·s/√n of the finite values.

    One value has no interval. Values without variance have an interval of no width, and the note says so.
    """
    all_S = np.asarray(values_S, dtype=float)
    x_S = all_S[np.isfinite(all_S)]
    n, lost = len(x_S), len(all_S) - len(x_S)
    notes = [f"{lost} of {len(all_S)} values missing"] if lost else []
    if n < 2:
        notes.append("no value" if n == 0 else "one value: no interval")
        mean = float(x_S[0]) if n else math.nan
        return Estimate(n=n, mean=mean, low=math.nan, high=math.nan, sd=math.nan, note="; ".join(notes))
    mean, sd = float(x_S.mean()), _sd(x_S, x_S)
    if sd == 0.0:
        notes.append("no variance")
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(n)
    return Estimate(n=n, mean=mean, low=mean - half, high=mean + half, sd=sd, note="; ".join(notes))


def paired(candidate_S: Values, baseline_S: Values) -> Paired:
    """Compare two policies by the seeds they share; differences are candidate - baseline.

    The two arrays stand in the same order of seeds. A pair with a missing value is dropped and the note says so.
    Without two pairs or without variance there is no t, no p and no effect size.
    """
    a_S, b_S = np.asarray(candidate_S, dtype=float), np.asarray(baseline_S, dtype=float)
    both_S = np.isfinite(a_S) & np.isfinite(b_S)
    lost = int(np.sum(~both_S))
    notes = [f"{lost} of {len(both_S)} pairs have a missing value"] if lost else []
    a_S, b_S = a_S[both_S], b_S[both_S]
    n, sd = len(a_S), _sd(a_S - b_S, np.concatenate([a_S, b_S]))
    difference = _flattened(interval(a_S - b_S), sd)
    if n < 2 or sd == 0.0:
        notes.append(_why_no_test(n, difference.mean))
        return Paired(difference=difference, t=math.nan, p=math.nan, g=math.nan, g_low=math.nan, g_high=math.nan,
                      welch_p=math.nan, note="; ".join(notes))  # fmt: skip
    t = difference.mean / (sd / math.sqrt(n))
    g, g_low, g_high = hedges_g(t, n)
    p = float(2.0 * special.stdtr(n - 1, -abs(t)))
    return Paired(difference=difference, t=t, p=p, g=g, g_low=g_low, g_high=g_high, welch_p=welch(a_S, b_S),
                  g_av=hedges_g_av(a_S, b_S), note="; ".join(notes))  # fmt: skip


def hedges_g(t: float, n: int) -> tuple[float, float, float]:
    """Return Hedges' g of n paired differences with paired t statistic t, and its 95 % interval.

    g = J(n-1)·d with d = mean / s of the differences = t/√n ("d_z"; Cohen 1988, Lakens 2013,
    doi:10.3389/fpsyg.2013.00863) and J(m) = Γ(m/2) / (√(m/2)·Γ((m-1)/2)), which makes it unbiased (Hedges 1981,
    doi:10.3102/10769986006002107). The interval is the exact one under normality: the noncentralities for which
    the observed t is the 97.5 % and the 2.5 % point of the noncentral t (Steiger & Fouladi 1997), over √n and
    times J, so that it excludes 0 exactly when the paired t test has p < 0.05.
    """
    scale = small_sample_factor(n - 1) / math.sqrt(n)
    tail = (1.0 - LEVEL) / 2
    return scale * t, scale * _noncentrality(t, n - 1, 1.0 - tail), scale * _noncentrality(t, n - 1, tail)


def hedges_g_av(a_S: Values, b_S: Values) -> float:
    """Return J(n-1)·(mean a - mean b) over the root of the mean variance of the two policies' seeds ("g_av").

    It says how far apart the policies are on the scale on which one policy's seeds differ (Lakens 2013, equations
    10 and 4, doi:10.3389/fpsyg.2013.00863), whatever the pairing. NaN with fewer than three seeds or without variance.
    """
    a, b = interval(a_S), interval(b_S)
    spread = math.sqrt((a.sd**2 + b.sd**2) / 2) if min(a.n, b.n) >= 2 else math.nan
    return small_sample_factor(min(a.n, b.n) - 1) * (a.mean - b.mean) / spread if spread > 0 else math.nan


def small_sample_factor(m: int) -> float:
    """Return Hedges' J for m degrees of freedom; NaN for m < 2, where it is not defined."""
    if m < 2:
        return math.nan
    return math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2)


def welch(a_S: Values, b_S: Values) -> float:
    """Return the p of Welch's t test, which ignores the pairing; NaN where neither side has variance."""
    a, b = interval(a_S), interval(b_S)
    if min(a.n, b.n) < 2 or a.sd == b.sd == 0.0:
        return math.nan
    return float(stats.ttest_ind_from_stats(a.mean, a.sd, a.n, b.mean, b.sd, b.n, equal_var=False).pvalue)


def holm(p_M: Values) -> NDArray[np.float64]:
    """Return Holm's adjusted p of a family of tests; those without a p (NaN) do not count and stay NaN.

    The k-th smallest of M is multiplied by M - k + 1, never below a smaller one's (Holm 1979, jstor.org/stable/4615733).
    """
    # statsmodels says the same (a test compares), but collects garbage at every call: seconds in a large analysis.
    p_M = np.asarray(p_M, dtype=float)
    adjusted_M = np.full(len(p_M), math.nan)
    tested_M = np.flatnonzero(np.isfinite(p_M))
    order_M = tested_M[np.argsort(p_M[tested_M], kind="stable")]
    factor_M = np.arange(len(order_M), 0, -1)
    adjusted_M[order_M] = np.minimum(np.maximum.accumulate(factor_M * p_M[order_M]), 1.0)
    return adjusted_M


def improvement(candidate_S: Values, baseline_S: Values, better: int) -> float:
    """Return P(a trial of the candidate beats one of the baseline), ties half (Agarwal et al. 2021, arXiv:2108.13264).

    `better` is +1 where higher is better and -1 where lower is; NaN for 0 and where a side is empty.
    """
    a_S, b_S = np.asarray(candidate_S, dtype=float), np.asarray(baseline_S, dtype=float)
    a_S, b_S = a_S[np.isfinite(a_S)], b_S[np.isfinite(b_S)]
    if better == 0 or len(a_S) == 0 or len(b_S) == 0:
        return math.nan
    gain_SS = better * (a_S[:, None] - b_S[None, :])
    return float(np.mean((gain_SS > 0) + 0.5 * (gain_SS == 0)))


@cache
def improvement_interval(share: float, n: int, m: int) -> tuple[float, float]:
    """Return the 95 % interval of P(improvement) seen as `share` with n and m seeds; NaN where there is none.

    The score interval of Newcombe (2006, method 5, doi:10.1002/sim.2324), which stays wide where all seeds of one
    side win; it takes the two sides as independent, so it is too wide where they share the seeds' luck.
    """
    if not 0.0 <= share <= 1.0 or min(n, m) < 2:
        return math.nan, math.nan
    z, more = float(special.ndtri(0.5 + LEVEL / 2)), (n + m) / 2 - 1

    def miss(p: float) -> float:
        variance = p * (1 - p) * (1 + more * ((1 - p) / (2 - p) + p / (1 + p))) / (n * m)
        return z * z * variance - (share - p) ** 2

    edge = 1e-9  # at 0 and 1 the variance is 0 there, and so is `miss`
    low = 0.0 if share == 0.0 else float(optimize.brentq(miss, 0.0, min(share, 1.0 - edge), xtol=1e-13))
    high = 1.0 if share == 1.0 else float(optimize.brentq(miss, max(share, edge), 1.0, xtol=1e-13))
    return low, high


def detectable(sd: float, n: int, alpha: float) -> float:
    """Return the smallest true mean difference that n pairs detect with 80 % power (two-sided paired t, level alpha).

    `sd` is the standard deviation of the differences. NaN with fewer than two pairs or without variance.
    """
    return sd * _detectable(n, alpha) if n >= 2 and sd > 0 else math.nan


@cache
def _detectable(n: int, alpha: float) -> float:
    """Return the detectable difference in standard deviations of the differences."""
    high = 1.0
    while _power(high, n, alpha) < POWER and high < 1e6:
        high *= 2.0
    if high >= 1e6:
        return math.nan
    return float(optimize.brentq(lambda d: _power(d, n, alpha) - POWER, 1e-9, high, xtol=1e-12))


def pairs_needed(effect: float, alpha: float) -> int | None:
    """Return the fewest pairs that detect a true d_z of `effect` with 80 % power, None beyond MOST_N or for 0."""
    if not abs(effect) > 0 or _power(abs(effect), MOST_N, alpha) < POWER:
        return None
    low, high = 1, MOST_N  # power grows with n: bisect
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(abs(effect), middle, alpha) >= POWER else (middle, high)
    return high


def least_p_wilcoxon(n: int) -> float:
    """Return the smallest two-sided p the signed-rank test can give n pairs: 2/2^n, 0.0625 for five."""
    return min(1.0, 2.0 / 2.0**n)


def _power(effect: float, n: int, alpha: float) -> float:
    """Return the power of the two-sided paired t test of n pairs for a true d_z of `effect`."""
    m = n - 1
    critical, shift = -float(special.stdtrit(m, alpha / 2)), abs(effect) * math.sqrt(n)

    def rejected(u: float) -> float:
        # Given the sample's variance (its u-quantile) the mean is normal. The noncentral t that libraries offer
        # says the same but is NaN far in its tails, where few pairs and a strict level lead.
        bound = critical * math.sqrt(special.chdtri(m, 1.0 - u) / m)
        return float(special.ndtr(shift - bound) + special.ndtr(-shift - bound))

    return float(integrate.quad(rejected, 0.0, 1.0, limit=200)[0])


def _sd(x_S: NDArray[np.float64], scale_S: NDArray[np.float64]) -> float:
    """Return the standard deviation, exactly 0 where it is only the rounding of values as large as `scale_S`."""
    if len(x_S) < 2:
        return math.nan
    sd = float(x_S.std(ddof=1))
    return sd if sd > FLAT * float(np.abs(scale_S).max()) else 0.0


def _flattened(estimate: Estimate, sd: float) -> Estimate:
    """Return the estimate without the spread that rounding gave it."""
    if sd != 0.0 or estimate.sd == 0.0:
        return estimate
    mean = estimate.mean
    return Estimate(n=estimate.n, mean=mean, low=mean, high=mean, sd=0.0, note="no variance")


def _why_no_test(n: int, mean: float) -> str:
    if n < 2:
        return f"{n} pair{'' if n == 1 else 's'}: no test"
    return (
        "equal in every pair: no test"
        if mean == 0.0
        else "the same difference in every pair: no variance, no test"
    )


def _noncentrality(t: float, m: int, p: float) -> float:
    """Return δ with P(T <= t) = p for a noncentral t of m degrees of freedom and noncentrality δ.

    Where |t| is large, T is δ over the root of χ²/m: the normal part no longer counts, and scipy's inverse does not end.
    """
    if abs(t) > LARGE_T:
        return t * math.sqrt(float(special.chdtri(m, p if t > 0 else 1.0 - p)) / m)
    guess = float(special.nctdtrinc(m, p, t))
    near = 1e-3 * (1.0 + abs(guess))  # scipy's inverse is good to some 1e-6: polish it

    def miss(delta: float) -> float:
        return float(special.nctdtr(m, delta, t)) - p

    ends = miss(guess - near), miss(guess + near)
    if not all(map(math.isfinite, ends)) or ends[0] * ends[1] > 0:
        return guess
    return float(optimize.brentq(miss, guess - near, guess + near, xtol=1e-13, rtol=1e-14))
