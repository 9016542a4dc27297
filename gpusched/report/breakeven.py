"""Break-even: which policies compete at which HPA headroom under which load, and the table of crossing prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpusched.report.dataset import Study
from gpusched.report.measures import number
from gpusched.report.prices import Bill, Crossing, Range, bills, common_seeds, crossing, envelope
from gpusched.report.statistics import Estimate
from gpusched.report.tables import Cell, Table, figures, words


@dataclass(kw_only=True, frozen=True)
class Strip:
    """One row of the map: its label and the bills that compete in it, in the same order of seeds."""

    panel: str
    label: str
    owed: list[Bill]


def headrooms(study: Study) -> dict[str, float]:
    """Return the HPA policies on the CPU metric with their headroom: 1 - target / 100."""
    keys = "policy._target_", "policy.metric", "policy.target"
    found = {}
    for policy in study.policies:
        settings = {tuple(t.params.get(key, "") for key in keys) for t in study.of(policy)}
        kind, metric, target = settings.pop()
        if not settings and kind.endswith(".HPA") and metric == "cpu":
            found[policy] = 1.0 - float(target) / 100.0
    return found


def strips(study: Study, policies: Sequence[str]) -> list[Strip]:
    """Return the rows: one per HPA headroom and load where several were run, else one per load.

    Only rows in which two policies share a seed are there.
    """
    room = headrooms(study)
    levels = sorted(set(room.values()))
    rows = []
    for load in study.loads:
        for level in levels if len(levels) > 1 else [None]:
            compete = [p for p in policies if level is None or room.get(p, level) == level]
            owed = bills(study, load, compete)
            seeds = common_seeds(owed)
            if len(owed) > 1 and seeds:
                panel, label = ("", load) if level is None else (load, f"{100 * level:.0f}")
                rows.append(Strip(panel=panel, label=label, owed=[bill.at(seeds) for bill in owed]))
    return rows


def crossings(study: Study, policies: Sequence[str], pair: tuple[str, str] | None) -> list[Crossing]:
    """Return per load the compared pair, then the neighbours among the policies that are the cheapest at some price."""
    found = []
    for load in study.loads:
        owed = {bill.policy: bill for bill in bills(study, load, policies)}
        seeds = common_seeds(list(owed.values()))
        chain = [b.policy for b in envelope([bill.at(seeds) for bill in owed.values()])] if seeds else []
        seen: set[frozenset[str]] = set()
        for names in ([pair] if pair else []) + list(pairwise(chain)):
            if set(names) <= owed.keys() and frozenset(names) not in seen:
                seen.add(frozenset(names))
                one, other = (owed[name] for name in names)
                found += [crossing(one, other)] if common_seeds([one, other]) else []
    return found


def left_out(study: Study, policies: Sequence[str]) -> list[str]:
    """Return a note on the seeds that are in no comparison, empty where there is none."""
    lost = []
    for load in study.loads:
        counted = {bill.policy: bill.seeds for bill in bills(study, load, policies)}
        for policy in policies:
            seeds = {t.seed for t in study.of(policy, load)} - set(counted.get(policy, ()))
            lost += [f"{policy} under {load}, seed {seed}" for seed in sorted(seeds)]
    if not lost:
        return []
    return [f"Left out, since the KPIs do not tell how many requests were in violation: {'; '.join(lost)}."]


def breakeven_table(found: Sequence[Crossing], more: Sequence[str] = ()) -> Table:
    """Return the crossing prices with the range of prices that is not decided; `more` are further notes."""
    columns = [("load", "Load"), ("cheap", "Fewer replicas"), ("other", "Other"), ("extra", "Extra replica-seconds"),
               ("avoided", "Violations avoided"), ("price", "Break-even price"), ("open", "Prices not decided"),
               ("best", "Cheapest"), ("seeds", "Seeds")]  # fmt: skip
    notes = [
        "Other against the one with fewer replica-seconds, per trial and paired by seed, with 95 % t-intervals. The "
        "break-even price is what a request in violation may cost, in replica-seconds, before the other policy is the "
        "cheaper one: extra replica-seconds over violations avoided.",
        "Not decided: prices at which the 95 % interval of the paired difference of the total costs includes 0 (Fieller), "
        "not adjusted for the number of comparisons. The rows are the compared pair and the neighbours among the "
        "policies that are the cheapest at some price.",
        *more,
    ]
    return Table(name="breakeven", title="Break-even price of a violated request, in replica-seconds",
                 columns=columns, rows=[_row(c) for c in found], labels=3, notes=notes)  # fmt: skip


def _row(c: Crossing) -> list[Cell]:
    price = number(c.price, _half(c))
    ranges = " ".join(f"{low:.12g}..{high:.12g}" for low, high in c.open_ranges)
    return [
        words(c.load),
        words(c.cheap),
        words(c.other),
        figures(_shown(c.extra), _values(c.extra), c.runs),
        figures(_shown(c.avoided), _values(c.avoided), c.runs),
        figures(price, {"": c.price}, c.runs),
        figures(_open(c), {"": ranges}, c.runs),
        figures(_best(c), {"": " | ".join(c.best)}, c.runs),
        figures(str(c.seeds), {"": c.seeds}, c.runs),
    ]


def _shown(e: Estimate) -> str:
    half = (e.high - e.low) / 2
    if not half >= 0.0:
        return number(e.mean)
    return f"{number(e.mean, half)} [{number(e.low, half)}, {number(e.high, half)}]"


def _values(e: Estimate) -> dict[str, float | int | str]:
    return {"mean": e.mean, "low": e.low, "high": e.high}


def _half(c: Crossing) -> float:
    """Return half the width of the undecided prices around the crossing, NaN where they have no end."""
    around = [(low, high) for low, high in c.open_ranges if low <= c.price <= high and math.isfinite(high)]
    return (around[0][1] - around[0][0]) / 2 if around else math.nan


def _open(c: Crossing) -> str:
    if not c.open_ranges:
        return "none"
    return "all" if c.open_ranges == [(0.0, math.inf)] else " ∪ ".join(map(_range, c.open_ranges))


def _range(ends: Range) -> str:
    low, high = ends
    if math.isinf(high):
        return f"[{number(low)}, ∞)"
    half = (high - low) / 2
    return f"[{number(low, half)}, {number(high, half)}]"


def _best(c: Crossing) -> str:
    if not c.best:
        return "equal"
    return f"{c.best[0]} at every price" if len(c.best) == 1 else f"{c.best[0]} below, {c.best[1]} above"
