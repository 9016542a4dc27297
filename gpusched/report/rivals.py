"""The candidate against every other policy in cost and QoS violations: better, no worse, or worse, load by load.

Non-inferiority in cost is tested at a share of the rival's mean, in violations at an absolute share of the requests: a
share of a rate near 0 would ask for more than anyone could notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpusched.report import statistics
from gpusched.report.compare import ALPHA, pair_up
from gpusched.report.dataset import Study
from gpusched.report.equivalence import Bounded, bounded
from gpusched.report.hypotheses import span_text
from gpusched.report.measures import COST, QOS, REWARD, Measure, measure, number, signed
from gpusched.report.statistics import Paired
from gpusched.report.tables import Cell, Table, figures, words

QOS_MARGIN = 0.01
"""One request in a hundred."""


@dataclass(kw_only=True, frozen=True)
class Side:
    """One of the two axes under one load: the difference candidate - rival, both tests, and what they decide."""

    measure: Measure
    paired: Paired
    bounds: Bounded
    superior_p: float = math.nan
    not_worse_p: float = math.nan

    @property
    def p_superior(self) -> float:
        """The paired t test's p; the sign test's where all pairs differ by the same, and no t can be had."""
        d = self.paired.difference
        return 2.0 ** (1 - d.n) if self._constant and d.mean else self.paired.p

    @property
    def p_not_worse(self) -> float:
        """As above, one-sided against the margin."""
        b = self.bounds
        within = b.value * self.measure.better > -b.margin
        return 0.5**b.n if self._constant and within else b.not_worse(self.measure.better)

    @property
    def _constant(self) -> bool:
        return (
            math.isnan(self.paired.p) and self.paired.difference.n >= 2 and self.paired.difference.sd == 0.0
        )

    @property
    def decision(self) -> str:
        """One of better, no worse (within the margin, even where the difference is shown), equal (in every seed), worse, open."""
        good = self.paired.difference.mean * self.measure.better
        if self.superior_p < ALPHA and good > 0:
            return "better"
        if self.not_worse_p < ALPHA:
            return "no worse"
        if self.paired.equal:
            return "equal"
        return "worse" if self.superior_p < ALPHA else "open"


@dataclass(kw_only=True, frozen=True)
class Duel:
    """Candidate against one rival under one load."""

    load: str
    rival: str
    cost: Side
    qos: Side
    reward: Paired
    reward_share: float
    runs: tuple[str, ...]

    @property
    def decisions(self) -> tuple[str, str]:
        """What is decided of cost and of violations."""
        return self.cost.decision, self.qos.decision

    @property
    def outcome(self) -> str:
        """What cost and violations together say, both named where they differ: one that is open hides no other."""
        cost, qos = self.decisions
        if cost == qos:
            return f"{cost} in both"
        trade = "a trade-off: " if {cost, qos} == {"better", "worse"} else ""
        return f"{trade}{cost} in cost, {qos} in violations"

    @property
    def kind(self) -> str:
        """One of better, worse, equal (equal or no worse in both) and undecided: trade-offs, and where an axis is open."""
        found = {"no worse" if decision == "equal" else decision for decision in self.decisions}
        if found == {"no worse"}:
            return "equal"
        if found in ({"better"}, {"better", "no worse"}):
            return "better"
        return "worse" if found in ({"worse"}, {"worse", "no worse"}) else "undecided"


def duels(study: Study, candidate: str, margin: float) -> list[Duel]:
    """Return the candidate against every other policy under every load where both met the same users, Holm over each kind of test."""
    found = [
        _duel(study, load, candidate, rival, margin)
        for load in study.loads
        for rival in study.policies
        if rival != candidate and study.repeats(rival, load).keys() & study.repeats(candidate, load).keys()
    ]
    return adjusted(found)


def adjusted(found: Sequence[Duel]) -> list[Duel]:
    """Return the duels with Holm's p over all tests of "better" and "worse", and apart over all of "no worse", of these duels."""
    sides = [side for duel in found for side in (duel.cost, duel.qos)]
    superior = statistics.holm([side.p_superior for side in sides])
    not_worse = statistics.holm([side.p_not_worse for side in sides])
    judged = [
        replace(side, superior_p=float(p), not_worse_p=float(q))
        for side, p, q in zip(sides, superior, not_worse, strict=True)
    ]
    return [
        replace(duel, cost=cost, qos=qos)
        for duel, cost, qos in zip(found, judged[::2], judged[1::2], strict=True)
    ]


def rivals_table(found: Sequence[Duel], candidate: str, margin: float) -> Table:
    """Return every duel; no rows where there is only one rival, whom the comparison already tells of."""
    if len({duel.rival for duel in found}) < 2:
        found = []
    columns = [("load", "Load"), ("rival", "Against"), ("pairs", "Pairs"), ("cost", "Cost [90 %]"),
               ("cost_decision", "Cost is"), ("qos", "QoS violations [90 %]"), ("qos_decision", "Violations are"),
               ("reward", "Mean reward, difference as a share of the rival’s"), ("outcome", f"{candidate} is")]  # fmt: skip
    notes = [
        f"Differences {candidate} − rival, paired by seed. “No worse”: by less than {100 * margin:g} % of the rival’s cost, "
        f"by less than {100 * QOS_MARGIN:g} percentage point of all requests. “Better” and “worse”: two-sided paired t, or the sign test where every pair differs by the same. "
        f"Holm over the {_counted(found, 'superior_p')} tests of “better” and “worse” and, apart, over the {_counted(found, 'not_worse_p')} of “no worse”, "
        f"α = {ALPHA:g}. “Equal”: the same in every seed, with too few seeds for a test. Intervals are not adjusted.",
        "The oracle knows the future and is a bound, no competitor. Mean reward: described, not tested here.",
    ]
    return Table(name="rivals", title=f"{candidate} against every other policy: cost and violations", columns=columns,
                 rows=[_row(duel) for duel in found], labels=2, notes=notes)  # fmt: skip


def _counted(found: Sequence[Duel], name: str) -> int:
    return sum(math.isfinite(getattr(side, name)) for duel in found for side in (duel.cost, duel.qos))


def _duel(study: Study, load: str, candidate: str, rival: str, margin: float) -> Duel:
    reward = pair_up(study, load, REWARD, rival, candidate)
    paired = statistics.paired(reward.candidate_S, reward.baseline_S)
    mean = statistics.interval(reward.baseline_S).mean
    return Duel(
        load=load,
        rival=rival,
        cost=_side(study, load, COST, candidate, rival, margin, True),
        qos=_side(study, load, QOS, candidate, rival, QOS_MARGIN, False),
        reward=paired,
        reward_share=paired.difference.mean / abs(mean) if mean else math.nan,
        runs=reward.runs,
    )


def _side(
    study: Study, load: str, name: str, candidate: str, rival: str, margin: float, relative: bool
) -> Side:
    pairs = pair_up(study, load, name, rival, candidate)
    return Side(
        measure=measure(name),
        paired=statistics.paired(pairs.candidate_S, pairs.baseline_S),
        bounds=bounded(pairs.candidate_S, pairs.baseline_S, margin, relative=relative, alpha=ALPHA),
    )


def _row(duel: Duel) -> list[Cell]:
    share = "–" if math.isnan(duel.reward_share) else f"{signed(number(100 * duel.reward_share, 1.0))} %"
    return [
        words(duel.load),
        words(duel.rival),
        figures(str(duel.cost.paired.difference.n), {"": duel.cost.paired.difference.n}, duel.runs),
        *_cells(duel.cost, None, duel.runs),
        *_cells(duel.qos, duel.qos.measure, duel.runs),
        figures(share, {"": duel.reward_share, "difference": duel.reward.difference.mean}, duel.runs),
        words(duel.outcome, duel.kind, runs=duel.runs),
    ]


def _cells(side: Side, unit: Measure | None, runs: Sequence[str]) -> list[Cell]:
    b = side.bounds
    values = {"": b.value, "low": b.low, "high": b.high, "p": side.superior_p, "p_no_worse": side.not_worse_p}
    return [
        figures(span_text(b.value, b.low, b.high, unit), values, runs),
        words(side.decision, {"open": "undecided", "no worse": "equal"}.get(side.decision, side.decision), runs=runs),
    ]  # fmt: skip
