"""The tables of the report, made from a study and, where two policies are compared, from the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpusched.core.kpi import KPIS
from gpusched.report import evidence, statistics
from gpusched.report.compare import ALPHA, Comparison, Row
from gpusched.report.dataset import Record, Study, Trial, Unit
from gpusched.report.fidelity import Evidence, fidelity_table
from gpusched.report.goals import goals, goals_table
from gpusched.report.hypotheses import Registered
from gpusched.report.ledger import ledger
from gpusched.report.measures import REWARD, TESTED, Measure, difference_unit, measure, number, p_text
from gpusched.report.rivals import duels, rivals_table
from gpusched.report.robustness import faults_table, shift_table
from gpusched.report.statistics import Estimate
from gpusched.report.tables import Cell, Table, figures, words
from gpusched.report.verdict import difference_text

MARGIN = 0.02
"""Margin of the exploratory TOST where neither --margin nor the hypotheses name one."""
DECISIONS = {"better": "better", "worse": "worse", "higher": "higher", "lower": "lower", "equal": "equal",
             "undecided": "undecided", "untested": "no test"}  # fmt: skip


def tables(
    study: Study,
    comparison: Comparison | None,
    policies: list[str],
    registered: Registered | None = None,
    evidenced: Sequence[Evidence] = (),
    *,
    margin: float = MARGIN,
    all_pairs: bool = False,
) -> dict[str, Table]:
    """Return every table that has rows, by name, in the order to be read.

    `evidenced` are the comparisons of the simulator with a real cluster; `margin` is the exploratory TOST's, as a share of the baseline's mean; `all_pairs` compares every two policies.
    """
    made = [evidence.hypotheses_table(registered)] if registered and registered.results else []
    c = comparison if comparison and comparison.rows else None
    if c:
        found = duels(study, c.candidate, margin)
        made += [
            comparison_table(c, bool(made)),
            rivals_table(found, c.candidate, margin),
            goals_table(goals(c, found)),
        ]
        made.append(tests(c))
        made.append(evidence.equivalence_table(study, c, margin))
    made.append(means(study, policies))
    if c:
        made += [evidence.aggregate_table(study, c.baseline, policies), evidence.assumptions_table(study, c)]
    made += [evidence.variance_table(study, policies, c), faults_table(study), shift_table(study)]
    made.append(fidelity_table(evidenced))
    if all_pairs:
        made.append(evidence.pairs_table(study, policies))
    made += [all_kpis(study, policies), ledger(study), trainings(study), runs(study), excluded(study)]
    return {table.name: table for table in made if table.rows}


def means(study: Study, policies: list[str]) -> Table:
    """Return mean and interval of the headline KPIs and the reward per load and policy."""
    cells = [
        [words(load), words(policy), _count(units), *(_mean(units, measure(name)) for name in TESTED)]
        for load in study.loads
        for policy in policies
        if (units := study.units(policy, load))
    ]
    columns = [("load", "Load"), ("policy", "Policy"), ("n", "Seeds")]
    columns += [(name, measure(name).heading) for name in TESTED]
    notes = ["Mean and 95 % t-interval over the seeds. † one or more seeds have no value.", *_repeats(study),
             *_assumed(study)]  # fmt: skip
    title = f"Headline KPIs and mean reward of study {study.name}"
    return Table(name="means", title=title, columns=columns, rows=cells, labels=2, notes=notes)


def comparison_table(c: Comparison, registered: bool = False) -> Table:
    """Return the comparison: both means, the paired difference, Holm's p, g and the decision."""
    kind = (
        "Exploratory: what was claimed before the runs is judged in its own table."
        if registered else "Exploratory: no claim was written down before the runs."
    )  # fmt: skip
    columns = [("load", "Load"), ("metric", "Measure"), ("pairs", "Pairs"), ("baseline", c.baseline),
               ("candidate", c.candidate), ("difference", "Difference"), ("holm_p", "p (Holm)"), ("g", "g"),
               ("decision", f"{c.candidate} is")]  # fmt: skip
    return Table(
        name="comparison",
        title=f"{c.candidate} against {c.baseline}, paired by seed",
        columns=columns,
        rows=[_compared(row) for row in c.rows],
        labels=2,
        notes=[kind],
    )


def tests(c: Comparison) -> Table:
    """Return the details behind each decision."""
    columns = [("load", "Load"), ("metric", "Measure"), ("t", "t"), ("p", "p"), ("welch_p", "p (Welch)"),
               ("g", "g [95 %]"), ("g_av", "g (seeds)"), ("improvement", "P(improvement) [95 %]"), ("wins", "Seeds won"),
               ("detectable", "Detectable"), ("pairs_needed", "Pairs needed"), ("note", "Note")]  # fmt: skip
    title = f"Tests of {c.candidate} against {c.baseline} (α = {ALPHA:g}/{max(c.tests, 1)})"
    return Table(name="tests", title=title, columns=columns, rows=[_tested(row) for row in c.rows], labels=2)


def all_kpis(study: Study, policies: list[str]) -> Table:
    """Return every KPI of every policy and load: described, not tested."""
    cells = [
        [words(load), words(policy), words(name), words(measure(name).unit), _count(units),
         _mean(units, measure(name)), _spread(study.of(policy, load), measure(name))]
        for load in study.loads for policy in policies if (units := study.units(policy, load)) for name in KPIS
    ]  # fmt: skip
    columns = [("load", "Load"), ("policy", "Policy"), ("kpi", "KPI"), ("unit", "Unit"), ("n", "Seeds"),
               ("value", "Mean [95 %]"), ("range", "Range of the runs")]  # fmt: skip
    notes = ["Described only: KPIs outside the headline are not tested, so no p is printed for them."]
    return Table(name="kpis", title="All KPIs", columns=columns, rows=cells, labels=4, notes=notes)


def trainings(study: Study) -> Table:
    """Return the trainings with their convergence verdict."""
    columns = [("policy", "Policy"), ("seed", "Seed"), ("converged", "Converged"), ("verdict", "Verdict"),
               ("reward", "Last validation reward [95 %]"), ("run", "Run")]  # fmt: skip
    return Table(name="trainings", title="Trainings", columns=columns, labels=2,
                 rows=[_training(record) for record in study.trainings])  # fmt: skip


def runs(study: Study) -> Table:
    """Return the trials that count, with what they were run from."""
    columns = [("run", "Run"), ("policy", "Policy"), ("load", "Load"), ("seed", "Seed"), ("episode", "Episode"),
               ("commit", "Commit"),
               ("dirty", "Uncommitted changes"), ("config_hash", "Config"), ("lock_hash", "Lock file"),
               ("marks", "Marks")]  # fmt: skip
    return Table(name="runs", title="Runs behind the report", columns=columns, labels=10,
                 rows=[_run(t) for t in study.trials])  # fmt: skip


def excluded(study: Study) -> Table:
    """Return the runs that do not count, and why."""
    columns = [("run", "Run"), ("name", "Name"), ("status", "Status"), ("why", "Why it does not count")]
    rows = [[_id(e.id), words(e.name), words(e.status), words(e.why)] for e in study.excluded]
    return Table(name="excluded", title="Excluded runs", columns=columns, rows=rows, labels=4)


def estimate_text(e: Estimate, m: Measure) -> str:
    """Return "12.3 [11.0, 13.6]" in the unit shown."""
    half = m.shown((e.high - e.low) / 2)
    if not half >= 0:
        return number(m.shown(e.mean))
    return (
        f"{number(m.shown(e.mean), half)} [{number(m.shown(e.low), half)}, {number(m.shown(e.high), half)}]"
    )


def _compared(row: Row) -> list[Cell]:
    m, d = row.measure, row.paired.difference
    values = {"mean": d.mean, "low": d.low, "high": d.high, "relative": row.relative}
    return [
        words(row.load),
        Cell(text=m.heading, values={"": m.name}),
        figures(str(row.pairs), {"": row.pairs}, row.runs),
        figures(estimate_text(row.baseline, m), _values(row.baseline), row.runs),
        figures(estimate_text(row.candidate, m), _values(row.candidate), row.runs),
        figures(difference_text(row), values, row.runs),
        figures(p_text(row.holm_p), {"": row.holm_p}, row.runs),
        figures(number(row.paired.g, 0.1), {"": row.paired.g}, row.runs),
        figures(DECISIONS[row.decision], {"": row.decision}, row.runs, kind=row.decision),
    ]


def _tested(row: Row) -> list[Cell]:
    q, m = row.paired, row.measure
    g = f"{number(q.g, 0.1)} [{number(q.g_low, 0.1)}, {number(q.g_high, 0.1)}]"
    needed = str(row.pairs_needed or "> 10\u2009000")
    chance = f"{number(row.improvement, 0.1)} [{number(row.improvement_low, 0.1)}, {number(row.improvement_high, 0.1)}]"
    chances = {"": row.improvement, "low": row.improvement_low, "high": row.improvement_high}
    detectable = f"{number(m.shown(row.detectable), m.shown(row.detectable))} {difference_unit(m)}"
    return [
        words(row.load),
        Cell(text=m.label, values={"": m.name}),
        figures(number(q.t, 0.1), {"": q.t}, row.runs),
        figures(p_text(q.p), {"": q.p}, row.runs),
        figures(p_text(q.welch_p), {"": q.welch_p}, row.runs),
        figures("–" if math.isnan(q.g) else g, {"": q.g, "low": q.g_low, "high": q.g_high}, row.runs),
        figures(number(q.g_av, 0.1), {"": q.g_av}, row.runs),
        figures("–" if math.isnan(row.improvement) else chance, chances, row.runs),
        figures(f"{row.wins} of {row.pairs}" if m.better else "–", {"": row.wins, "of": row.pairs}, row.runs),
        figures("–" if math.isnan(row.detectable) else detectable, {"": row.detectable}, row.runs),
        figures("–" if math.isnan(q.p) else needed, {"": row.pairs_needed or ""}, row.runs),
        words(q.note, runs=row.runs),
    ]


def _mean(units: list[Unit], m: Measure) -> Cell:
    e = statistics.interval([u.values[m.name] for u in units])
    mark = " †" if e.n < len(units) else ""
    return figures(estimate_text(e, m) + mark, {"n": e.n, **_values(e)}, _ids(units))


def _spread(trials: list[Trial], m: Measure) -> Cell:
    finite = sorted(v for t in trials if math.isfinite(v := t.values[m.name]))
    text = f"{number(m.shown(finite[0]))} … {number(m.shown(finite[-1]))}" if finite else "–"
    values = {"min": finite[0], "max": finite[-1]} if finite else {}
    return figures(text, values, [t.id for t in trials])


def _count(units: list[Unit]) -> Cell:
    return figures(str(len(units)), {"": len(units)}, _ids(units))


def _ids(units: list[Unit]) -> list[str]:
    return [run for u in units for run in u.runs]


def _training(record: Record) -> list[Cell]:
    m, get = measure(REWARD), record.metrics.get
    e = Estimate(n=1, mean=get("train/reward", math.nan), low=get("train/reward_low", math.nan),
                 high=get("train/reward_high", math.nan), sd=math.nan)  # fmt: skip
    tags = record.tags
    converged = {"true": "yes", "false": "no"}.get(tags.get("converged", "").lower(), "unknown")
    return [
        words(tags.get("policy", "?")),
        words(tags.get("seed", "?")),
        words(converged, "better" if converged == "yes" else "worse", runs=[record.id]),
        words(tags.get("verdict", ""), runs=[record.id]),
        figures(estimate_text(e, m), {"": e.mean, "low": e.low, "high": e.high}, [record.id]),
        _id(record.id),
    ]


def _run(t: Trial) -> list[Cell]:
    tags = t.tags
    return [
        _id(t.id),
        words(t.policy),
        words(t.load),
        words(str(t.seed)),
        words(str(t.episode)),
        words(tags.get("git_commit", "unknown")[:12]),
        words(tags.get("git_dirty", "unknown")),
        words(tags.get("config_hash", "unknown")[:12]),
        words(tags.get("lock_hash", "unknown")[:12]),
        words("; ".join(t.marks)),
    ]


def _id(run: str) -> Cell:
    return Cell(text=run, values={"": run}, runs=(run,), kind="id")


def _values(e: Estimate) -> dict[str, float | int | str]:
    return {"mean": e.mean, "low": e.low, "high": e.high, "sd": e.sd}


def _repeats(study: Study) -> list[str]:
    return (
        ["Seeds with several repeats count once, with the mean of their repeats."] if study.repeated else []
    )


def _assumed(study: Study) -> list[str]:
    """Return the note on the assumed constants, which touch every simulated number."""
    names = study.assumed
    return (
        [f"Every number rests on {len(names)} assumed service constants: {', '.join(names)}."]
        if names
        else []
    )
