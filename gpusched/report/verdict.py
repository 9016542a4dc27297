"""The verdict in words: per load where the candidate is better, worse or undecided, and whether cost and QoS agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpusched.report.compare import ALPHA, Comparison, Row
from gpusched.report.measures import COST, QOS, REWARD, difference_unit, number, p_equals, signed
from gpusched.report.statistics import least_p_wilcoxon

ORDER = ("better", "worse", "higher", "lower", "equal", "undecided", "untested")
QOS_WORDS = {
    "better": "fewer QoS violations",
    "worse": "more QoS violations",
    "equal": "the same QoS violations in every seed",
    "undecided": "QoS violations undecided",
    "untested": "QoS violations not testable",
}
COST_WORDS = {
    "better": "lower cost",
    "worse": "higher cost",
    "equal": "the same cost in every seed",
    "undecided": "cost undecided",
    "untested": "cost not testable",
}
OUTCOMES = {
    ("better", "better"): "{c} wins on both",
    ("worse", "worse"): "{b} wins on both",
    ("better", "worse"): "a trade-off: which one is best depends on the price of a violation",
    ("worse", "better"): "a trade-off: which one is best depends on the price of a violation",
    ("better", "equal"): "{c} wins",
    ("equal", "better"): "{c} wins",
    ("worse", "equal"): "{b} wins",
    ("equal", "worse"): "{b} wins",
    ("equal", "equal"): "a tie",
}


NOTES = (
    "Differences are {c} − {b}, paired by seed; intervals are 95 % t-intervals, not adjusted.",
    "p: two-sided paired t test, adjusted by Holm over all {tests} tests of the study (loads × headline KPIs and the "
    "reward); decided where the adjusted p is below {alpha:g}.",
    "g: Hedges’ g of the paired differences (mean over their standard deviation, corrected for few pairs), with its "
    "exact 95 % interval. When both policies meet the same users, differences vary little between seeds and g is large "
    "by design; read it together with the difference itself.",
    "Detectable: the true difference that this number of pairs finds with 80 % power at Holm’s first step "
    "({first_step}). Pairs needed: how many would find the observed difference as surely.",
    "g (seeds): the same difference in standard deviations of one policy’s seeds (g_av), which pairing does not make large.",
    "P(improvement): the chance that a seed of {c} beats a seed of {b}, ties half, without pairing; score interval, too wide "
    "where both met the same users.",
)


@dataclass(kw_only=True, frozen=True)
class Finding:
    """One measure under one load, in words."""

    load: str
    name: str
    label: str
    decision: str
    text: str


@dataclass(kw_only=True, frozen=True)
class LoadVerdict:
    """All findings under one load, and the sentence that sums cost and QoS up."""

    load: str
    summary: str
    findings: list[Finding]

    def of(self, decision: str) -> list[Finding]:
        """Return the findings with that decision."""
        return [f for f in self.findings if f.decision == decision]


def verdicts(comparison: Comparison) -> list[LoadVerdict]:
    """Return the verdict of every compared load."""
    return [
        LoadVerdict(
            load=load,
            summary=_summary(comparison, load),
            findings=[finding(row) for row in comparison.rows if row.load == load],
        )
        for load in comparison.loads
    ]


def finding(row: Row) -> Finding:
    """Return one row in words: the difference with interval, its adjusted p and effect, or why there is no decision."""
    m = row.measure
    label = m.label + (" (training signal)" if m.name == REWARD else "")
    return Finding(load=row.load, name=m.name, label=label, decision=row.decision, text=_text(row))


def difference_text(row: Row) -> str:
    """Return "−12.3 [−15.0, −9.6] ms (−21 %)"."""
    d, m = row.paired.difference, row.measure
    half = m.shown((d.high - d.low) / 2)
    numbers = [number(m.shown(v), half) for v in (d.mean, d.low, d.high)]
    text = f"{signed(numbers[0])} [{numbers[1]}, {numbers[2]}] {difference_unit(m)}".strip()
    return text if math.isnan(row.relative) else f"{text} ({relative_text(row)})"


def relative_text(row: Row) -> str:
    """Return the relative difference of the means as "−21 %", "–" where there is none."""
    if math.isnan(row.relative):
        return "–"
    share = 100 * row.relative
    return signed(number(share, 1.0 if abs(share) >= 10 else 0.1)) + " %"


def notes(comparison: Comparison) -> list[str]:
    """Return what the reader must know of the tests."""
    pairs = sorted({row.pairs for row in comparison.rows})
    least = min(pairs, default=0)
    first_step = f"α = {ALPHA:g}/{max(comparison.tests, 1)}"
    text = [note.format(c=comparison.candidate, b=comparison.baseline, tests=comparison.tests, alpha=ALPHA,
                        first_step=first_step) for note in NOTES]  # fmt: skip
    if 2 <= least <= 5:
        text.append(
            f"N = {least}: the signed-rank test (Wilcoxon) cannot give a p below {least_p_wilcoxon(least):g} with "
            f"{least} pairs, whatever the data, so it is no evidence here and is not shown. The t test leans on "
            "normal differences, which so few pairs cannot verify."
        )
    return text


def _summary(comparison: Comparison, load: str) -> str:
    qos, cost = _decision(comparison, load, QOS), _decision(comparison, load, COST)
    outcome = OUTCOMES.get((qos, cost), "no winner is shown")
    outcome = outcome.format(c=comparison.candidate, b=comparison.baseline)
    words = [
        _constant(comparison, load, QOS) or QOS_WORDS[qos],
        _constant(comparison, load, COST) or COST_WORDS[cost],
    ]
    return f"{comparison.candidate} has {', '.join(words)}: {outcome}."


def _constant(comparison: Comparison, load: str, name: str) -> str:
    """Return words for a difference that is the same in every pair, which no t test can judge; "" for any other."""
    row = comparison.row(load, name)
    if row is None or row.decision != "untested" or row.pairs < 2:
        return ""
    word = {QOS: ("more", "fewer", "QoS violations"), COST: ("higher", "lower", "cost")}[name]
    more = word[0] if row.paired.difference.mean > 0 else word[1]
    return f"{more} {word[2]} by the same in all {row.pairs} seeds (no variance, no test)"


def _decision(comparison: Comparison, load: str, name: str) -> str:
    row = comparison.row(load, name)
    return row.decision if row else "untested"


def _text(row: Row) -> str:
    if row.decision == "equal":
        return f"equal in all {row.pairs} pairs"
    if row.decision == "untested":
        shown = f"{difference_text(row)}; " if row.pairs else ""
        return f"{shown}{row.paired.note}"
    evidence = f"Holm p {p_equals(row.holm_p)}, g = {number(row.paired.g, 0.1)}"
    if row.decision != "undecided":
        return f"{difference_text(row)}, {evidence}"
    return f"{difference_text(row)}, {evidence}; {_cannot(row)}"


def _cannot(row: Row) -> str:
    """Say what this many pairs cannot decide, and how many could."""
    d, m = row.paired.difference, row.measure
    needed = f"{row.pairs_needed} pairs" if row.pairs_needed else "more than 10\u2009000 pairs"
    limit = f"differences below {number(m.shown(row.detectable), m.shown(row.detectable))} {difference_unit(m)} escape it"
    if d.low <= 0.0 <= d.high:
        return f"N = {row.pairs} cannot decide ({limit}; {needed} would find the observed one)"
    return f"the interval excludes 0, but not after Holm: N = {row.pairs} cannot decide ({limit}; {needed} would)"
