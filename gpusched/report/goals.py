"""The goals the project set itself for PPO, load by load: reached or not, and what the data say about why.

No claims of a study's own (conf/hypotheses.yaml has those): the tests are those of the comparison and of the rivals. What is
asked of PPO against the rules is a family of its own, so a policy that no goal names costs it nothing.
"Best rule" is read strictly, as every one of them, so that none is picked after its result was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpusched.report.compare import Comparison
from gpusched.report.measures import REWARD, difference_unit, number
from gpusched.report.rivals import Duel, Side, adjusted
from gpusched.report.tables import Table, words
from gpusched.report.verdict import relative_text

CANDIDATE, PLAN, BOUND = "ppo", "hpa", "oracle"
RULES = ("hpa_tuned", "keda", "predictive", "table")
STEADY = ("low", "medium", "high")
REACH = 0.10
"""Mean reward lost to hindsight, as a share of hindsight's own."""
REACHED, MISSED, OPEN, UNTRIED = "reached", "missed", "not shown", "not tried"
KINDS = {REACHED: "better", MISSED: "worse", OPEN: "undecided", UNTRIED: "untested"}
SAME_AS_RULES = f"No worse than {', '.join(RULES)} in cost and violations under steady loads"
BEYOND_RULES = (
    f"Better than {', '.join(RULES)} in cost or violations and no worse in the other, under loads that change"
)
NEAR_BOUND = f"Within {100 * REACH:g} % of the {BOUND}’s mean reward"
BEYOND_PLAN = f"Better than {PLAN} in every headline KPI that has a direction"


@dataclass(kw_only=True, frozen=True)
class Judged:
    """One goal under one load, "" where it was tried under none; `runs` are those the reason comes from."""

    goal: str
    load: str
    status: str
    why: str = ""
    runs: tuple[str, ...] = ()


def goals(c: Comparison, found: Sequence[Duel]) -> list[Judged]:
    """Judge every goal under every load without a fault; nothing where the candidate is not PPO or has no rule to beat."""
    rivals = {_base(duel.rival) for duel in found}
    if _base(c.candidate) != CANDIDATE or not rivals & {*RULES, BOUND}:
        return []
    plain = [duel for duel in found if "+" not in duel.load]
    own = adjusted([duel for duel in plain if _base(duel.rival) in RULES])
    loads = list(dict.fromkeys(duel.load for duel in plain))
    steady = [load for load in loads if _base(load) in STEADY]
    changing = [load for load in loads if _base(load) not in STEADY]
    judged = [
        *_against_rules(SAME_AS_RULES, steady, own, better=False),
        *_against_rules(BEYOND_RULES, changing, own, better=True),
        *_near_bound(plain),
    ]
    if _base(c.baseline) == PLAN:
        judged += [_beyond_plan(c, load) for load in c.loads if "+" not in load]
    return judged


def goals_table(judged: Sequence[Judged]) -> Table:
    """Return a line per goal and load."""
    columns = [("goal", "Goal"), ("load", "Load"), ("status", "Is"), ("why", "Why")]
    rows = [
        [words(j.goal), words(j.load or "any"), words(j.status, KINDS[j.status], j.runs), words(j.why or "–", runs=j.runs)]
        for j in judged
    ]  # fmt: skip
    notes = [
        "Set before PPO was trained, and no registered claims: cost and violations with the margins of the table of rivals, "
        "Holm over the tests against these rules only; the mean reward by its point estimate. “Not shown”: an axis is open, and none is worse."
    ]
    return Table(name="goals", title="The project’s goals for PPO", columns=columns, rows=rows, labels=2, notes=notes)  # fmt: skip


def missed(table: Table) -> list[str]:
    """Return a sentence on each goal that is not reached everywhere: where it is, where not, and why."""
    told = []
    for goal in dict.fromkeys(row[0].text for row in table.rows):
        rows = [row for row in table.rows if row[0].text == goal]
        reached = [row[1].text for row in rows if row[2].text == REACHED]
        short = [f"{row[1].text}: {row[2].text}, {row[3].text}" for row in rows if row[2].text != REACHED]
        if short:
            where = f"reached under {', '.join(reached)}; " if reached else "reached nowhere; "
            told.append(f"{goal}: {where}{'; '.join(short)}.")
    return told


def _against_rules(goal: str, loads: Sequence[str], own: Sequence[Duel], *, better: bool) -> list[Judged]:
    """Judge a goal against every rule, load by load."""
    return [_rules(goal, load, [duel for duel in own if duel.load == load], better) for load in loads]


def _rules(goal: str, load: str, duels: Sequence[Duel], better: bool) -> Judged:
    absent = [name for name in RULES if name not in {_base(duel.rival) for duel in duels}]
    short = [duel for duel in duels if not _reached(duel, better)]
    why = [_why(duel) for duel in short] + [f"{name}: no run" for name in absent]
    worse = any("worse" in duel.decisions for duel in short)
    status = MISSED if worse else OPEN if short else UNTRIED if absent else REACHED
    runs = tuple(dict.fromkeys(run for duel in duels for run in duel.runs))
    return Judged(goal=goal, load=load, status=status, why="; ".join(why), runs=runs)


def _reached(duel: Duel, better: bool) -> bool:
    fine = set(duel.decisions) <= {"better", "no worse"}
    return fine and (not better or "better" in duel.decisions)


def _why(duel: Duel) -> str:
    """Return what keeps one rule from being matched: the axes in question; their intervals are in the table of rivals."""
    sides = {"cost": duel.cost, "violations": duel.qos}
    shown = {
        name: side for name, side in sides.items() if side.decision in ("open", "worse", "equal")
    } or sides
    axes = ", ".join(f"{name} {_difference(side)} {side.decision}" for name, side in shown.items())
    return f"{duel.rival} ({axes}, N = {duel.cost.paired.difference.n})"


def _difference(side: Side) -> str:
    """Return the difference as "+21 %" or "−0.6 pp"."""
    value, m = side.bounds.value, side.measure
    shown, unit = (100 * value, "%") if side.bounds.relative else (m.shown(value), difference_unit(m))
    return f"{'+' if shown > 0 else ''}{number(shown, 1.0 if abs(shown) < 10 else 10.0)} {unit}"


def _near_bound(duels: Sequence[Duel]) -> list[Judged]:
    own = [duel for duel in duels if _base(duel.rival) == BOUND]
    if not own:
        return [Judged(goal=NEAR_BOUND, load="", status=UNTRIED, why=f"no run of {BOUND}")]
    return [
        Judged(
            goal=NEAR_BOUND, load=duel.load, status=_near(duel), runs=duel.runs,
            why="no share of a mean reward of 0" if math.isnan(duel.reward_share) else f"{number(100 * duel.reward_share, 1.0)} %",
        )
        for duel in own
    ]  # fmt: skip


def _near(duel: Duel) -> str:
    if duel.reward.equal:
        return REACHED
    return OPEN if math.isnan(duel.reward_share) else REACHED if duel.reward_share >= -REACH else MISSED


def _beyond_plan(c: Comparison, load: str) -> Judged:
    rows = [row for row in c.rows if row.load == load and row.measure.better and row.measure.name != REWARD]
    short = [row for row in rows if row.decision != "better"]
    status = MISSED if any(row.decision == "worse" for row in short) else OPEN if short else REACHED
    runs = tuple(dict.fromkeys(run for row in rows for run in row.runs))
    why = "; ".join(f"{row.measure.label} {relative_text(row)} {row.decision}" for row in short)
    return Judged(goal=BEYOND_PLAN, load=load, status=status, why=why, runs=runs)


def _base(label: str) -> str:
    """Return an option's name without what was set in it: "ppo" for "ppo[history=2]"."""
    return label.partition("[")[0]
