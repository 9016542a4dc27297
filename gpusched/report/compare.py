"""The comparison of two policies: every load by every tested measure, with Holm over all of them. Axis S counts seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gpusched.report import statistics
from gpusched.report.dataset import Study, Trial
from gpusched.report.measures import REWARD, TESTED, Measure, measure
from gpusched.report.statistics import Estimate, Paired

ALPHA = 0.05

Array = NDArray[np.float64]


@dataclass(kw_only=True, frozen=True)
class Pairs:
    """Two policies' values of one measure under one load by shared seed [S], and the runs behind them.

    A seed's values are means over the repeats in which both policies have a value; NaN where there is none.
    """

    seeds: tuple[int, ...]
    candidate_S: Array
    baseline_S: Array
    runs: tuple[str, ...]

    @property
    def differences_S(self) -> Array:
        """candidate - baseline of the seeds that have both."""
        d_S: Array = self.candidate_S - self.baseline_S
        return d_S[np.isfinite(d_S)]


@dataclass(kw_only=True, frozen=True)
class Row:
    """Candidate against baseline in one measure under one load, in stored SI units; `differences` are by seed."""

    load: str
    measure: Measure
    baseline: Estimate
    candidate: Estimate
    paired: Paired
    improvement: float
    wins: int
    runs: tuple[str, ...]
    differences: tuple[float, ...] = ()
    improvement_low: float = math.nan
    improvement_high: float = math.nan
    holm_p: float = math.nan
    detectable: float = math.nan
    pairs_needed: int | None = None

    @property
    def pairs(self) -> int:
        return self.paired.difference.n

    @property
    def relative(self) -> float:
        """Mean difference as a share of the baseline's mean over all its seeds; NaN where that is 0.

        The reward has none: where its 0 lies is a choice, and a share of a mean near it says nothing.
        """
        if self.measure.name == REWARD or not self.baseline.mean:
            return math.nan
        return self.paired.difference.mean / abs(self.baseline.mean)

    @property
    def decision(self) -> str:
        """One of better, worse, higher, lower, undecided, equal (in every pair) and untested."""
        mean = self.paired.difference.mean
        if math.isnan(self.paired.p):
            return "equal" if self.paired.equal else "untested"
        if not self.holm_p < ALPHA:
            return "undecided"
        if self.measure.better == 0:
            return "higher" if mean > 0 else "lower"
        return "better" if mean * self.measure.better > 0 else "worse"


@dataclass(kw_only=True, frozen=True)
class Comparison:
    """All rows of a comparison; `alpha` is the level of Holm's first step, 0.05 / number of tests."""

    baseline: str
    candidate: str
    rows: list[Row]

    @property
    def tests(self) -> int:
        return sum(math.isfinite(row.paired.p) for row in self.rows)

    @property
    def alpha(self) -> float:
        return ALPHA / max(self.tests, 1)

    @property
    def loads(self) -> list[str]:
        """The loads both policies have met, in order."""
        return list(dict.fromkeys(row.load for row in self.rows))

    def row(self, load: str, name: str) -> Row | None:
        """Return the row of one load and measure."""
        return next((r for r in self.rows if (r.load, r.measure.name) == (load, name)), None)


def compare(study: Study, baseline: str, candidate: str) -> Comparison:
    """Compare two policies under every load that both have met."""
    rows = _rows(study, baseline, candidate)
    adjusted = statistics.holm([row.paired.p for row in rows])
    plain = Comparison(baseline=baseline, candidate=candidate, rows=rows)
    return replace(
        plain, rows=[_judged(row, float(p), plain.alpha) for row, p in zip(rows, adjusted, strict=True)]
    )


def compare_all(study: Study, policies: Sequence[str]) -> list[Comparison]:
    """Compare every two of the policies, the earlier as the baseline, with Holm over all tests of all pairs."""
    pairs = [(a, b, _rows(study, a, b)) for a, b in combinations(policies, 2)]
    adjusted = iter(statistics.holm([row.paired.p for _, _, rows in pairs for row in rows]))
    return [
        Comparison(baseline=a, candidate=b, rows=[replace(row, holm_p=float(next(adjusted))) for row in rows])
        for a, b, rows in pairs
    ]


def shared_loads(study: Study, baseline: str, candidate: str) -> list[str]:
    """Return the loads that both policies have met, in order."""
    return [load for load in study.loads if study.of(baseline, load) and study.of(candidate, load)]


def pair_up(study: Study, load: str, name: str, baseline: str, candidate: str) -> Pairs:
    """Return the values of a measure by the seeds that both policies have."""
    a, b = study.repeats(candidate, load), study.repeats(baseline, load)
    both = sorted(a.keys() & b.keys())
    own: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for key in both:
        own[key[0]].append((a[key].values[name], b[key].values[name]))
    means = np.array([_mean_pair(values) for values in own.values()]).reshape(-1, 2)
    runs = tuple(side[key].id for side in (b, a) for key in both)
    return Pairs(seeds=tuple(own), candidate_S=means[:, 0], baseline_S=means[:, 1], runs=runs)


def _rows(study: Study, baseline: str, candidate: str) -> list[Row]:
    loads = shared_loads(study, baseline, candidate)
    return [_row(study, load, measure(name), baseline, candidate) for load in loads for name in TESTED]


def _row(study: Study, load: str, what: Measure, baseline: str, candidate: str) -> Row:
    pairs = pair_up(study, load, what.name, baseline, candidate)
    all_a, all_b = ([u.values[what.name] for u in study.units(p, load)] for p in (candidate, baseline))
    share = statistics.improvement(all_a, all_b, what.better)
    finite = [sum(map(math.isfinite, side)) for side in (all_a, all_b)]
    low, high = statistics.improvement_interval(share, *finite)
    return Row(
        load=load,
        measure=what,
        baseline=statistics.interval(all_b),
        candidate=statistics.interval(all_a),
        paired=statistics.paired(pairs.candidate_S, pairs.baseline_S),
        improvement=share,
        improvement_low=low,
        improvement_high=high,
        wins=int(np.sum(what.better * pairs.differences_S > 0)),
        differences=tuple(map(float, pairs.differences_S)),
        runs=_ids(study.of(baseline, load)) + _ids(study.of(candidate, load)),
    )


def _mean_pair(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Average over the repeats in which both sides have a value, so that both average over the same users."""
    kept = [(x, y) for x, y in values if math.isfinite(x - y)]
    if not kept:
        return math.nan, math.nan
    if len(kept) == 1:
        return kept[0]
    return math.fsum(x for x, _ in kept) / len(kept), math.fsum(y for _, y in kept) / len(kept)


def _ids(trials: Sequence[Trial]) -> tuple[str, ...]:
    return tuple(t.id for t in trials)


def _judged(row: Row, holm_p: float, alpha: float) -> Row:
    """Add what the family decides: the adjusted p, and what this many pairs can and how many would be needed."""
    if math.isnan(row.paired.p):
        return row
    sd = row.paired.difference.sd
    return replace(
        row,
        holm_p=holm_p,
        detectable=statistics.detectable(sd, row.pairs, alpha),
        pairs_needed=statistics.pairs_needed(row.paired.difference.mean / sd, alpha),
    )
