"""Aggregates over all loads after Agarwal et al. (2021, arXiv:2108.13264). Axes: R resamples, S seeds, L loads, T thresholds.

Loads differ in scale, so what is aggregated is a score: the paired improvement over the baseline, by seed, as a share
of the baseline's mean under that load, positive where the policy is better. NaN where a seed has none.

A seed is one training or search, met under every load, so the loads are no strata of independent seeds, as the tasks of
that paper are: the bootstrap draws a seed with all its loads, a pair at a time, with an explicit generator. The baseline's
mean is only a unit and is not drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gpusched.report.compare import pair_up, shared_loads
from gpusched.report.dataset import Study
from gpusched.report.measures import REWARD, Measure, measure
from gpusched.report.statistics import LEVEL, Values, improvement, improvement_interval

RESAMPLES = 2000
TRIM = 0.25
THRESHOLDS = 101

Array = NDArray[np.float64]


@dataclass(kw_only=True, frozen=True)
class Interval:
    """A value with its 95 % interval over n seeds of all loads."""

    n: int
    value: float
    low: float
    high: float


@dataclass(kw_only=True, frozen=True)
class Profile:
    """Share of the seeds whose score is above each threshold, loads weighing the same, with pointwise 95 % bands [T]."""

    policy: str
    tau_T: Array
    share_T: Array
    low_T: Array
    high_T: Array
    runs: tuple[str, ...] = ()


def scores(candidate_S: Values, baseline_S: Values, better: int) -> Array:
    """Return better·(candidate - baseline) / |mean baseline| of each pair [S], NaN where a value is missing.

    All NaN where the baseline's mean is 0 or the measure has no direction: no share of it can be formed.
    """
    a_S, b_S = np.asarray(candidate_S, dtype=float), np.asarray(baseline_S, dtype=float)
    both_S = np.isfinite(a_S) & np.isfinite(b_S)
    unit = abs(float(b_S[both_S].mean())) if both_S.any() else 0.0
    if better == 0 or unit == 0.0:
        return np.full(len(a_S), math.nan)
    return np.where(both_S, better * (a_S - b_S) / unit, math.nan)


def iqm(scores_N: Array) -> Array:
    """Return the interquartile mean over the last axis, the mean without the lowest and the highest quarter, of what is not NaN."""
    sorted_N = np.sort(scores_N, axis=-1)  # NaN last
    n = np.isfinite(sorted_N).sum(axis=-1, keepdims=True)
    cut, rank_N = (TRIM * n).astype(int), np.arange(sorted_N.shape[-1])
    kept_N = (rank_N >= cut) & (rank_N < n - cut)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(kept_N, sorted_N, 0.0).sum(axis=-1) / kept_N.sum(axis=-1), dtype=float)


def iqm_interval(scores_SL: Array, rng: np.random.Generator) -> Interval:
    """Return the IQM of the scores of all loads with its bootstrap interval; NaN bounds for one seed."""
    scores_SL = _with_any(scores_SL)
    n = int(np.isfinite(scores_SL).sum())
    if n == 0:
        return Interval(n=0, value=math.nan, low=math.nan, high=math.nan)
    value, tail = float(iqm(scores_SL.ravel())), _tail(len(scores_SL))
    if math.isnan(tail):
        return Interval(n=n, value=value, low=math.nan, high=math.nan)
    drawn_R = iqm(scores_SL[_drawn(len(scores_SL), rng)].reshape(RESAMPLES, -1))
    low, high = np.quantile(drawn_R, [tail, 1.0 - tail])
    return Interval(n=n, value=value, low=float(low), high=float(high))


def profile(policy: str, scores_SL: Array, tau_T: Array, rng: np.random.Generator) -> Profile:
    """Return the performance profile of the scores of all loads at the thresholds, with pointwise bootstrap bands."""
    scores_SL = _with_any(scores_SL)
    scores_SL = scores_SL[:, np.isfinite(scores_SL).any(axis=0)]
    there_SL = np.isfinite(scores_SL)
    above_SLT = (scores_SL[:, :, None] > tau_T).astype(float)
    share_T = (above_SLT.sum(axis=0) / there_SL.sum(axis=0)[:, None]).mean(axis=0)
    tail = _tail(len(scores_SL))
    if math.isnan(tail):
        gap_T = np.full(len(tau_T), math.nan)
        return Profile(policy=policy, tau_T=tau_T, share_T=share_T, low_T=gap_T, high_T=gap_T)
    count_RS = _counts(_drawn(len(scores_SL), rng))
    with np.errstate(invalid="ignore"):  # a resample may hold no seed of a load
        share_RLT = np.einsum("rs,slt->rlt", count_RS, above_SLT) / (count_RS @ there_SL)[:, :, None]
    low_T, high_T = np.quantile(np.nanmean(share_RLT, axis=1), [tail, 1.0 - tail], axis=0)
    return Profile(policy=policy, tau_T=tau_T, share_T=share_T, low_T=low_T, high_T=high_T)


def thresholds(everything_N: Array) -> Array:
    """Return evenly spaced thresholds over all scores, a little beyond both ends, 0 among them."""
    found_N = np.append(everything_N[np.isfinite(everything_N)], 0.0)
    low, high = float(found_N.min()), float(found_N.max())
    margin = 0.05 * (high - low) or 0.01
    tau_T = np.append(np.linspace(low - margin, high + margin, THRESHOLDS - 1), 0.0)
    return np.unique(tau_T)


def improvement_over_loads(pairs: Sequence[tuple[Values, Values]], better: int) -> Interval:
    """Return P(improvement) averaged over the loads, each given as (candidate, baseline) values, with its interval.

    Its ends are the means of the loads' own ends: right where a seed's luck is the same under every load, and too wide where
    it is not.
    """
    each = []
    for candidate_S, baseline_S in pairs:
        share = improvement(candidate_S, baseline_S, better)
        n, m = (int(np.isfinite(np.asarray(x, dtype=float)).sum()) for x in (candidate_S, baseline_S))
        if math.isfinite(share):
            each.append((n + m, share, *improvement_interval(share, n, m)))
    if not each:
        return Interval(n=0, value=math.nan, low=math.nan, high=math.nan)
    n_L, share_L, low_L, high_L = np.array(each, dtype=float).T
    return Interval(
        n=int(n_L.sum()), value=float(share_L.mean()), low=float(low_L.mean()), high=float(high_L.mean())
    )


@dataclass(kw_only=True, frozen=True)
class Aggregate:
    """A policy against the baseline in one measure over all loads; `left_out` names loads without a score."""

    policy: str
    measure: Measure
    loads: int
    seeds: int
    iqm: Interval
    improvement: Interval
    left_out: tuple[str, ...]
    runs: tuple[str, ...]


def aggregate(study: Study, policy: str, baseline: str, name: str) -> Aggregate | None:
    """Return the aggregates of a policy over the loads it shares with the baseline, None where there is no score.

    The reward has no score, since a share of it means nothing (compare.Row.relative), but is counted as won or lost.
    """
    m, found = measure(name), _Scores(study, policy, baseline, name)
    loads = list(found.pairs) if name == REWARD else found.loads
    if not loads:
        return None
    sides = [(list(study.by_seed(policy, load, name).values()), list(study.by_seed(baseline, load, name).values()))
             for load in loads]  # fmt: skip
    return Aggregate(
        policy=policy,
        measure=m,
        loads=len(loads),
        seeds=len(found.seeds),
        iqm=iqm_interval(found.scores_SL, _generator(policy, baseline, name)),
        improvement=improvement_over_loads(sides, m.better),
        left_out=tuple(load for load in found.pairs if load not in loads),
        runs=tuple(run for load in loads for run in found.pairs[load].runs),
    )


def profiles(study: Study, policies: Sequence[str], baseline: str, name: str) -> list[Profile]:
    """Return the performance profile of every policy but the baseline, all at the same thresholds."""
    others = {policy: _Scores(study, policy, baseline, name) for policy in policies if policy != baseline}
    found = {policy: each for policy, each in others.items() if each.loads}
    if not found:
        return []
    tau_T = thresholds(np.concatenate([each.scores_SL.ravel() for each in found.values()]))
    return [
        replace(
            profile(policy, each.scores_SL, tau_T, _generator(policy, baseline, name)),
            runs=tuple(run for load in each.loads for run in each.pairs[load].runs),
        )
        for policy, each in found.items()
    ]


class _Scores:
    """A policy's scores by seed and load, `scores_SL`, NaN where there is none; `loads` are those with any."""

    def __init__(self, study: Study, policy: str, baseline: str, name: str) -> None:
        better = 0 if name == REWARD else measure(name).better
        shared = shared_loads(study, baseline, policy)
        self.pairs = {load: pair_up(study, load, name, baseline, policy) for load in shared}
        self.seeds = sorted({seed for p in self.pairs.values() for seed in p.seeds})
        self.scores_SL = np.full((len(self.seeds), len(self.pairs)), math.nan)
        for k, p in enumerate(self.pairs.values()):
            rows = [self.seeds.index(seed) for seed in p.seeds]
            self.scores_SL[rows, k] = scores(p.candidate_S, p.baseline_S, better)
        scored = np.isfinite(self.scores_SL).any(axis=0)
        self.loads = [load for load, has in zip(self.pairs, scored, strict=True) if has]


def _with_any(scores_SL: Array) -> Array:
    """Return the seeds that have a score under any load."""
    return np.asarray(scores_SL[np.isfinite(scores_SL).any(axis=1)], dtype=float)


def _generator(*names: str) -> np.random.Generator:
    """Return the generator of one table cell: the same on every run, whatever else is drawn."""
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])


def _tail(seeds: int) -> float:
    """Return the share of resamples left out at each end, NaN for fewer than two seeds.

    A resample of few seeds varies less than the seeds do: the percentiles are moved outwards as the t interval is
    (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), √(S/(S-1))·t instead of z.
    """
    if seeds < 2:
        return math.nan
    wider = math.sqrt(seeds / (seeds - 1))
    return float(special.ndtr(wider * special.stdtrit(seeds - 1, (1.0 - LEVEL) / 2)))


def _drawn(seeds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, seeds, (RESAMPLES, seeds))


def _counts(i_RS: NDArray[np.int64]) -> Array:
    """Return how often each seed was drawn in each resample, shape [R, S]."""
    resamples, n = i_RS.shape
    flat = (i_RS + n * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * n).reshape(resamples, n).astype(float)
