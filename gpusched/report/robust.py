"""Aggregates over all loads after Agarwal et al. (2021, arXiv:2108.13264). Axes: R resamples, S seeds, N seeds of all loads, T thresholds.

Loads differ in scale, so what is aggregated is a score: the paired improvement over the baseline, by seed, as a share
of the baseline's mean under that load, positive where the policy is better. The bootstrap draws seeds within each load
(strata), a pair at a time, with an explicit generator; the baseline's mean is only a unit and is not drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gpusched.report.compare import Pairs, pair_up, shared_loads
from gpusched.report.dataset import Study
from gpusched.report.measures import Measure, measure
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
    """Return better·(candidate - baseline) / |mean baseline| of the pairs without a missing value.

    Empty where the baseline's mean is 0 or the measure has no direction: no share of it can be formed.
    """
    a_S, b_S = np.asarray(candidate_S, dtype=float), np.asarray(baseline_S, dtype=float)
    both_S = np.isfinite(a_S) & np.isfinite(b_S)
    a_S, b_S = a_S[both_S], b_S[both_S]
    unit = abs(float(b_S.mean())) if len(b_S) else 0.0
    if better == 0 or unit == 0.0:
        return np.empty(0)
    return np.asarray(better * (a_S - b_S) / unit, dtype=float)


def iqm(scores_N: Array) -> Array:
    """Return the interquartile mean over the last axis: the mean without the lowest and the highest quarter."""
    n = scores_N.shape[-1]
    cut = int(TRIM * n)
    return np.asarray(np.sort(scores_N, axis=-1)[..., cut : n - cut].mean(axis=-1), dtype=float)


def iqm_interval(strata: Sequence[Array], rng: np.random.Generator) -> Interval:
    """Return the IQM of the scores of all loads with its stratified-bootstrap interval; NaN bounds for one seed a load."""
    strata = [scores_S for scores_S in strata if len(scores_S)]
    n = sum(map(len, strata))
    if n == 0:
        return Interval(n=0, value=math.nan, low=math.nan, high=math.nan)
    value = float(iqm(np.concatenate(strata)))
    tail = _tail(strata)
    if math.isnan(tail):
        return Interval(n=n, value=value, low=math.nan, high=math.nan)
    drawn_R = iqm(np.concatenate([scores_S[i_RS] for scores_S, i_RS in _drawn(strata, rng)], axis=1))
    low, high = np.quantile(drawn_R, [tail, 1.0 - tail])
    return Interval(n=n, value=value, low=float(low), high=float(high))


def profile(policy: str, strata: Sequence[Array], tau_T: Array, rng: np.random.Generator) -> Profile:
    """Return the performance profile of the scores of all loads at the thresholds, with pointwise bootstrap bands."""
    strata = [scores_S for scores_S in strata if len(scores_S)]
    above = [(scores_S[:, None] > tau_T).astype(float) for scores_S in strata]
    share_T = np.mean([above_ST.mean(axis=0) for above_ST in above], axis=0)
    tail = _tail(strata)
    if math.isnan(tail):
        gap_T = np.full(len(tau_T), math.nan)
        return Profile(policy=policy, tau_T=tau_T, share_T=share_T, low_T=gap_T, high_T=gap_T)
    counted = [_counts(i_RS) @ above_ST / len(above_ST)
               for above_ST, (_, i_RS) in zip(above, _drawn(strata, rng), strict=True)]  # fmt: skip
    low_T, high_T = np.quantile(np.mean(counted, axis=0), [tail, 1.0 - tail], axis=0)
    return Profile(policy=policy, tau_T=tau_T, share_T=share_T, low_T=low_T, high_T=high_T)


def thresholds(strata: Sequence[Array]) -> Array:
    """Return evenly spaced thresholds over all scores, a little beyond both ends, 0 among them."""
    everything_N = np.concatenate([*strata, np.zeros(1)])
    low, high = float(everything_N.min()), float(everything_N.max())
    margin = 0.05 * (high - low) or 0.01
    tau_T = np.append(np.linspace(low - margin, high + margin, THRESHOLDS - 1), 0.0)
    return np.unique(tau_T)


def improvement_over_loads(pairs: Sequence[tuple[Values, Values]], better: int) -> Interval:
    """Return P(improvement) averaged over the loads, each given as (candidate, baseline) values, with its interval.

    The loads' own intervals are combined as in MOVER (Zou & Donner 2008, doi:10.1002/sim.3095).
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
    value, loads = float(share_L.mean()), len(each)
    down, up = (float(np.sqrt(np.sum((share_L - end_L) ** 2))) / loads for end_L in (low_L, high_L))
    return Interval(n=int(n_L.sum()), value=value, low=value - down, high=value + up)


@dataclass(kw_only=True, frozen=True)
class Aggregate:
    """A policy against the baseline in one measure over all loads; `left_out` names loads without a score."""

    policy: str
    measure: Measure
    loads: int
    iqm: Interval
    improvement: Interval
    left_out: tuple[str, ...]
    runs: tuple[str, ...]


def aggregate(study: Study, policy: str, baseline: str, name: str) -> Aggregate | None:
    """Return the aggregates of a policy over the loads it shares with the baseline, None where there is no score."""
    m, pairs = measure(name), _by_load(study, policy, baseline, name)
    strata = {load: scores(p.candidate_S, p.baseline_S, m.better) for load, p in pairs.items()}
    found = {load: scores_S for load, scores_S in strata.items() if len(scores_S)}
    if not found:
        return None
    sides = [(list(study.by_seed(policy, load, name).values()), list(study.by_seed(baseline, load, name).values()))
             for load in found]  # fmt: skip
    return Aggregate(
        policy=policy,
        measure=m,
        loads=len(found),
        iqm=iqm_interval(list(found.values()), _generator(policy, baseline, name)),
        improvement=improvement_over_loads(sides, m.better),
        left_out=tuple(load for load in pairs if load not in found),
        runs=tuple(run for load in found for run in pairs[load].runs),
    )


def profiles(study: Study, policies: Sequence[str], baseline: str, name: str) -> list[Profile]:
    """Return the performance profile of every policy but the baseline, all at the same thresholds."""
    better, found = measure(name).better, {}
    for policy in policies:
        pairs = _by_load(study, policy, baseline, name) if policy != baseline else {}
        strata = [scores(p.candidate_S, p.baseline_S, better) for p in pairs.values()]
        runs = tuple(run for p, s in zip(pairs.values(), strata, strict=True) if len(s) for run in p.runs)
        if runs:
            found[policy] = ([s for s in strata if len(s)], runs)
    tau_T = thresholds([scores_S for strata, _ in found.values() for scores_S in strata])
    return [
        replace(profile(policy, strata, tau_T, _generator(policy, baseline, name)), runs=runs)
        for policy, (strata, runs) in found.items()
    ]


def _by_load(study: Study, policy: str, baseline: str, name: str) -> dict[str, Pairs]:
    return {
        load: pair_up(study, load, name, baseline, policy) for load in shared_loads(study, baseline, policy)
    }


def _generator(*names: str) -> np.random.Generator:
    """Return the generator of one table cell: the same on every run, whatever else is drawn."""
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])


def _tail(strata: Sequence[Array]) -> float:
    """Return the share of resamples left out at each end, NaN where no load has two seeds.

    A resample of few seeds varies less than the seeds do: the percentiles are moved outwards as the t interval is
    (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), √(S/(S-1))·t instead of z.
    """
    freedom = sum(len(scores_S) - 1 for scores_S in strata)
    if freedom < 1:
        return math.nan
    wider = math.sqrt((freedom + len(strata)) / freedom)
    return float(special.ndtr(wider * special.stdtrit(freedom, (1.0 - LEVEL) / 2)))


def _drawn(strata: Sequence[Array], rng: np.random.Generator) -> list[tuple[Array, NDArray[np.int64]]]:
    return [(scores_S, rng.integers(0, len(scores_S), (RESAMPLES, len(scores_S)))) for scores_S in strata]


def _counts(i_RS: NDArray[np.int64]) -> Array:
    """Return how often each seed was drawn in each resample, shape [R, S]."""
    resamples, n = i_RS.shape
    flat = (i_RS + n * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * n).reshape(resamples, n).astype(float)
