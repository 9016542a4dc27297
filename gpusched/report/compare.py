"""The comparison of two policies: every load by every tested measure, with Holm over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpusched.report import statistics
from gpusched.report.dataset import Study, Trial
from gpusched.report.measures import TESTED, Measure, measure
from gpusched.report.statistics import Estimate, Paired

ALPHA = 0.05


@dataclass(kw_only=True, frozen=True)
class Row:
    """Candidate against baseline in one measure under one load, in stored SI units."""

    load: str
    measure: Measure
    baseline: Estimate
    candidate: Estimate
    paired: Paired
    improvement: float
    wins: int
    runs: tuple[str, ...]
    holm_p: float = math.nan
    detectable: float = math.nan
    pairs_needed: int | None = None

    @property
    def pairs(self) -> int:
        return self.paired.difference.n

    @property
    def relative(self) -> float:
        """Mean difference as a share of the baseline's mean over all its seeds; NaN where that is 0."""
        return self.paired.difference.mean / abs(self.baseline.mean) if self.baseline.mean else math.nan

    @property
    def decision(self) -> str:
        """One of better, worse, higher, lower, undecided, equal (in every pair) and untested."""
        mean = self.paired.difference.mean
        if math.isnan(self.paired.p):
            same = self.pairs >= 2 and self.paired.difference.sd == 0.0 and mean == 0.0
            return "equal" if same else "untested"
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

    def row(self, load: str, name: str) -> Row | None:
        """Return the row of one load and measure."""
        return next((r for r in self.rows if (r.load, r.measure.name) == (load, name)), None)


def compare(study: Study, baseline: str, candidate: str) -> Comparison:
    """Compare two policies under every load that both have met."""
    shared = [load for load in study.loads if study.of(baseline, load) and study.of(candidate, load)]
    rows = [_row(study, load, measure(name), baseline, candidate) for load in shared for name in TESTED]
    adjusted = statistics.holm([row.paired.p for row in rows])
    plain = Comparison(baseline=baseline, candidate=candidate, rows=rows)
    return replace(
        plain, rows=[_judged(row, float(p), plain.alpha) for row, p in zip(rows, adjusted, strict=True)]
    )


def _row(study: Study, load: str, what: Measure, baseline: str, candidate: str) -> Row:
    a, b = study.of(candidate, load), study.of(baseline, load)
    seeds = sorted({t.seed for t in a} & {t.seed for t in b})
    a_S, b_S = _values(a, what, seeds), _values(b, what, seeds)
    all_a, all_b = _values(a, what), _values(b, what)
    gains = [what.better * (x - y) for x, y in zip(a_S, b_S, strict=True)]
    return Row(
        load=load,
        measure=what,
        baseline=statistics.interval(all_b),
        candidate=statistics.interval(all_a),
        paired=statistics.paired(a_S, b_S),
        improvement=statistics.improvement(all_a, all_b, what.better),
        wins=sum(gain > 0 for gain in gains),
        runs=tuple(t.id for t in (*b, *a)),
    )


def _values(trials: list[Trial], what: Measure, seeds: list[int] | None = None) -> list[float]:
    return [t.values[what.name] for t in trials if seeds is None or t.seed in seeds]


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
