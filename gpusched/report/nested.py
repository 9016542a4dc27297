"""Two sources of variance, kept apart: between seeds (what was learnt) and between the repeats of a seed (episodes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from gpusched.report.statistics import FLAT, LEVEL, Values


@dataclass(kw_only=True, frozen=True)
class Nested:
    """Variance components of a measure, each with its 95 % interval; NaN where the design cannot give it.

    repeats     harmonic mean of the repeats per seed
    between     variance between seeds, beyond what repeats alone would give; 0 where the estimate falls below it
    within      variance between the repeats of one seed
    share       between / (between + within)
    repeat_part share of the variance of the mean over all runs that more repeats per seed could take away
    """

    seeds: int
    runs: int
    repeats: float
    between: float = math.nan
    between_low: float = math.nan
    between_high: float = math.nan
    within: float = math.nan
    within_low: float = math.nan
    within_high: float = math.nan
    share: float = math.nan
    share_low: float = math.nan
    share_high: float = math.nan
    note: str = ""

    @property
    def repeat_part(self) -> float:
        of_mean = self.within / self.repeats
        return of_mean / (self.between + of_mean) if self.between + of_mean > 0 else math.nan


def nested(groups: Sequence[Values]) -> Nested:
    """Return the variance components of values grouped by seed: method of moments with one random factor.

    The between part is the variance of the seeds' means less its share of the repeats' variance, which is the textbook
    ANOVA estimate where all seeds have equally many repeats. Intervals under normality: exact for `within`, exact in
    that case for `share` (Searle 1971), the modified large-sample one for `between` (Burdick & Graybill 1992,
    Confidence Intervals on Variance Components). With unequal repeats both take their harmonic mean (Thomas
    & Hultquist 1978, doi:10.1214/aos/1176344202).
    """
    cells = [x[np.isfinite(x)] for x in (np.asarray(g, dtype=float) for g in groups)]
    cells = [x for x in cells if len(x)]
    a, n = len(cells), sum(map(len, cells))
    if a == 0:
        return Nested(seeds=0, runs=0, repeats=math.nan, note="no value")
    k = a / sum(1.0 / len(x) for x in cells)
    if a < 2:
        return Nested(seeds=a, runs=n, repeats=k, note="one seed: nothing to tell apart")
    if n == a:
        return Nested(seeds=a, runs=n, repeats=k, note="one repeat per seed: the two cannot be told apart")
    ms_within = float(sum(((x - x.mean()) ** 2).sum() for x in cells)) / (n - a)
    ms_between = k * float(np.var([x.mean() for x in cells], ddof=1))
    size = max(float(np.abs(x).max()) for x in cells)
    if not max(ms_within, ms_between) > (FLAT * size) ** 2:
        return Nested(seeds=a, runs=n, repeats=k, between=0.0, within=0.0, note="no variance")
    return _components(a, n, k, ms_between, ms_within)


def _components(a: int, n: int, k: float, ms_between: float, ms_within: float) -> Nested:
    m1, m2, tail = a - 1, n - a, (1.0 - LEVEL) / 2
    between = (ms_between - ms_within) / k
    low, high = _between_ends(m1, m2, k, ms_between, ms_within)
    ratio = ms_between / ms_within if ms_within > 0 else math.inf
    ends = [(ratio / float(special.fdtri(m1, m2, p)) - 1.0) / k for p in (1.0 - tail, tail)]
    share, share_low, share_high = (_share(x) for x in ((ratio - 1.0) / k, *ends))
    return Nested(
        seeds=a, runs=n, repeats=k,
        between=max(between, 0.0), between_low=max(low, 0.0), between_high=max(high, 0.0),
        within=ms_within,
        within_low=m2 * ms_within / float(special.chdtri(m2, tail)),
        within_high=m2 * ms_within / float(special.chdtri(m2, 1.0 - tail)),
        share=share, share_low=share_low, share_high=share_high,
        note="" if between >= 0 else "between seeds: the estimate fell below 0 and is shown as 0",
    )  # fmt: skip


def _between_ends(m1: int, m2: int, k: float, ms_between: float, ms_within: float) -> tuple[float, float]:
    """Return the modified large-sample interval of (ms_between - ms_within) / k."""
    tail = (1.0 - LEVEL) / 2
    g1, g2 = (1.0 - m / float(special.chdtri(m, tail)) for m in (m1, m2))
    h1, h2 = (m / float(special.chdtri(m, 1.0 - tail)) - 1.0 for m in (m1, m2))
    f_high, f_low = (float(special.fdtri(m1, m2, p)) for p in (1.0 - tail, tail))
    g12 = ((f_high - 1) ** 2 - g1**2 * f_high**2 - h2**2) / f_high
    h12 = ((1 - f_low) ** 2 - h1**2 * f_low**2 - g2**2) / f_low
    down = g1**2 * ms_between**2 + h2**2 * ms_within**2 + g12 * ms_between * ms_within
    up = h1**2 * ms_between**2 + g2**2 * ms_within**2 + h12 * ms_between * ms_within
    middle = ms_between - ms_within
    return (middle - math.sqrt(max(down, 0.0))) / k, (middle + math.sqrt(max(up, 0.0))) / k


def _share(ratio: float) -> float:
    """Turn between / within into between / (between + within)."""
    return 1.0 if math.isinf(ratio) else max(ratio, 0.0) / (1.0 + max(ratio, 0.0))
