"""The claims written down before the runs, judged per load: superior, not worse, or equivalent. Their own Holm family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpusched.core.hypotheses import Claim, Hypotheses
from gpusched.report import equivalence, statistics
from gpusched.report.compare import Pairs, pair_up, shared_loads
from gpusched.report.dataset import Study
from gpusched.report.equivalence import Bounded, bounded
from gpusched.report.measures import Measure, difference_unit, measure, number, p_equals
from gpusched.report.registration import registration

DECISIONS = ("supported", "contradicted", "equal", "open", "untested")
SUPERIOR, NOT_WORSE, SAME = "superior", "non_inferior", "equivalent"
TESTS = {
    SUPERIOR: "paired t, two-sided",
    NOT_WORSE: "paired t, one-sided",
    SAME: "TOST",
}
SHORT = {SUPERIOR: "better", NOT_WORSE: "not worse", SAME: "the same"}


@dataclass(kw_only=True, frozen=True)
class Judged:
    """One claim under one load.

    value, low, high  candidate - baseline and its interval (95 % for a superior claim, else 1 - 2·alpha), in the SI
                      unit of the KPI, or as a share of the baseline's mean where `relative`
    margin            in the same unit; NaN for a superior claim
    spread            standard deviation of the differences in the same unit
    decision          one of DECISIONS
    equal             both policies are the same in every pair, so that no test can say more
    """

    load: str
    kind: str
    measure: Measure
    claim: str
    pairs: int
    value: float
    low: float
    high: float
    relative: bool
    margin: float
    spread: float
    p: float
    runs: tuple[str, ...]
    holm_p: float = math.nan
    decision: str = "untested"
    text: str = ""
    note: str = ""
    equal: bool = False


@dataclass(kw_only=True, frozen=True)
class Registered:
    """All judged claims, empty where nothing was written down, and the sentences to show first."""

    results: list[Judged] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    hypotheses: Hypotheses | None = None
    hash: str = ""


def judge(study: Study, file: Path | None = None) -> Registered:
    """Judge the claims that the runs carry, under every load both policies have met."""
    found = registration(study, file)
    h = found.hypotheses
    if h is None:
        return Registered(sentences=found.sentences, hash=found.hash)
    missing = [p for p in (h.candidate, h.baseline) if p not in study.policies]
    loads = shared_loads(study, h.baseline, h.candidate)
    if missing or not loads or not h.claims:
        why = (
            f"no run of {' and '.join(missing)} counts" if missing
            else "they name no claim" if not h.claims
            else f"{h.candidate} and {h.baseline} have no load in common"
        )  # fmt: skip
        return Registered(sentences=[*found.sentences, f"They cannot be judged: {why}."], hypotheses=h, hash=found.hash)  # fmt: skip
    tested = [_tested(study, h, claim, load) for load in loads for claim in h.claims]
    adjusted = statistics.holm([j.p for j in tested])
    family = sum(math.isfinite(j.p) for j in tested)
    results = [
        _decided(replace(j, holm_p=float(p)), h, max(family, 1))
        for j, p in zip(tested, adjusted, strict=True)
    ]
    verdicts = [_sentence(load, [j for j in results if j.load == load]) for load in loads]
    return Registered(results=results, sentences=[*found.sentences, *verdicts], hypotheses=h, hash=found.hash)


def value_text(j: Judged) -> str:
    """Return "+1.2 [−0.4, 2.8] %" or the same in the KPI's unit."""
    return span_text(j.value, j.low, j.high, None if j.relative else j.measure)


def span_text(value: float, low: float, high: float, m: Measure | None) -> str:
    """Return a difference with its interval: in the measure's unit, or in % where it is a share (no measure)."""
    if math.isnan(value):
        return "–"
    shown, unit = (m.shown, difference_unit(m)) if m else (_percent, "%")
    half = shown((high - low) / 2)
    texts = [number(shown(x), half if half > 0 else math.nan) for x in (value, low, high)]
    sign = "+" if value > 0 else ""
    interval = f" [{texts[1]}, {texts[2]}]" if math.isfinite(half) else ""
    return f"{sign}{texts[0]}{interval} {unit}".strip()


def margin_text(j: Judged) -> str:
    """Return the margin as "2 %" of the baseline's mean, or in the KPI's unit; "–" without one."""
    if math.isnan(j.margin):
        return "–"
    if j.relative:
        return f"{_percent(j.margin):g} %"
    return f"{j.measure.shown(j.margin):g} {difference_unit(j.measure)}".strip()


def _tested(study: Study, h: Hypotheses, claim: Claim, load: str) -> Judged:
    m = measure(claim.kpi)
    pairs = pair_up(study, load, claim.kpi, h.baseline, h.candidate)
    runs = tuple(t.id for policy in (h.baseline, h.candidate) for t in study.of(policy, load))
    if claim.claim == SUPERIOR:
        return _superior(h, load, m, pairs, runs)
    relative, margin = claim.of == "baseline", h.margin if claim.margin is None else claim.margin
    b = bounded(pairs.candidate_S, pairs.baseline_S, margin, relative=relative, alpha=h.alpha)
    p = b.p if claim.claim == SAME else b.not_worse(m.better)
    return Judged(load=load, kind=claim.claim, measure=m, claim=_words(h, claim, m, b), pairs=b.n, value=b.value,
                  low=b.low, high=b.high, relative=relative, margin=margin, spread=b.spread, p=p, runs=runs,
                  note=b.note, equal=b.equal)  # fmt: skip


def _superior(h: Hypotheses, load: str, m: Measure, pairs: Pairs, runs: tuple[str, ...]) -> Judged:
    q = statistics.paired(pairs.candidate_S, pairs.baseline_S)
    d = q.difference
    return Judged(load=load, kind=SUPERIOR, measure=m, claim=f"{m.label}: {h.candidate} is better than {h.baseline}",
                  pairs=d.n, value=d.mean, low=d.low, high=d.high, relative=False, margin=math.nan, spread=d.sd,
                  p=q.p, runs=runs, note=q.note, equal=q.equal)  # fmt: skip


def _words(h: Hypotheses, claim: Claim, m: Measure, b: Bounded) -> str:
    amount = (
        f"{_percent(b.margin):g} % of its mean" if b.relative
        else f"{m.shown(b.margin):g} {difference_unit(m)}".strip()
    )  # fmt: skip
    if claim.claim == SAME:
        return f"{m.label}: {h.candidate} differs from {h.baseline} by less than {amount}"
    return f"{m.label}: {h.candidate} is not worse than {h.baseline} by {amount} or more"


def _decided(j: Judged, h: Hypotheses, family: int) -> Judged:
    decision = _decision(j, h.alpha)
    evidence = f"{value_text(j)}, Holm p {p_equals(j.holm_p)}"
    if decision == "untested":
        text = j.note
    elif decision == "equal":
        text = "equal in every pair: no test can say more"
    elif decision == "open":
        text = f"{evidence}; {_cannot(j, h.alpha / family)}"
    elif decision == "contradicted" and j.kind != SUPERIOR:
        text = f"{evidence}; the interval (not adjusted) lies wholly beyond the margin"
    else:
        text = evidence
    return replace(j, decision=decision, text=text)


def _decision(j: Judged, alpha: float) -> str:
    if math.isnan(j.p):
        return "equal" if j.equal else "untested"
    good = j.value * j.measure.better
    if j.kind == SUPERIOR:
        return "open" if not j.holm_p < alpha else "supported" if good > 0 else "contradicted"
    if j.holm_p < alpha:
        return "supported"
    worse = j.high < -j.margin if j.measure.better > 0 else j.low > j.margin
    apart = j.high < -j.margin or j.low > j.margin
    return "contradicted" if (apart if j.kind == SAME else worse) else "open"


def _cannot(j: Judged, alpha: float) -> str:
    """Say what this many pairs cannot decide at Holm's first step, and how many could."""
    if j.kind == SUPERIOR:
        least = statistics.detectable(j.spread, j.pairs, alpha)
        needed = statistics.pairs_needed(j.value / j.spread, alpha)
        return (
            f"N = {j.pairs} cannot decide (differences below {_amount(j, least)} escape it; "
            f"{_count(needed)} would find the observed one)"
        )
    both = j.kind == SAME
    needed = equivalence.pairs_needed(j.margin / j.spread, alpha, both=both)
    if needed is not None and needed <= j.pairs:
        return "the difference lies too near the margin to tell"
    least = j.spread * equivalence.least_margin(j.pairs, alpha, both=both)
    return (
        f"N = {j.pairs} cannot decide (even of two policies that are the same it shows no margin below "
        f"{_amount(j, least)}; {_count(needed)} would show this one)"
    )


def _sentence(load: str, results: Sequence[Judged]) -> str:
    parts = [
        f"{decision}: " + ", ".join(f"{j.measure.label} {SHORT[j.kind]}" for j in own)
        for decision in DECISIONS
        if (own := [j for j in results if j.decision == decision])
    ]
    return f"{load}: " + "; ".join(parts) + "."


def _amount(j: Judged, value: float) -> str:
    shown = _percent(value) if j.relative else j.measure.shown(value)
    unit = "% of the baseline’s mean" if j.relative else difference_unit(j.measure)
    return f"{number(shown, shown)} {unit}".strip()


def _count(pairs: int | None) -> str:
    return f"{pairs} pairs" if pairs else "more than 10\u2009000 pairs"


def _percent(value: float) -> float:
    return 100.0 * value
