"""The tables behind the verdict: registered claims, equivalence, aggregates over loads, variance, assumptions, all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpusched.report import equivalence, statistics
from gpusched.report.checks import equal_variance, normality
from gpusched.report.compare import ALPHA, Comparison, Row, compare_all, pair_up
from gpusched.report.dataset import Study, Trial
from gpusched.report.equivalence import Bounded, bounded
from gpusched.report.hypotheses import TESTS, Judged, Registered, margin_text, span_text, value_text
from gpusched.report.measures import TESTED, Measure, measure, number, p_text
from gpusched.report.nested import Nested, nested
from gpusched.report.robust import Aggregate, Interval, aggregate
from gpusched.report.tables import Cell, Table, figures, words
from gpusched.report.verdict import difference_text

KINDS = {
    "supported": "better",
    "contradicted": "worse",
    "open": "undecided",
    "equal": "equal",
    "untested": "untested",
}
"""How a claim's decision is coloured."""


def hypotheses_table(registered: Registered) -> Table:
    """Return the claims written down before the runs, with their tests and results."""
    h = registered.hypotheses
    columns = [("load", "Load"), ("claim", "Claim"), ("test", "Test"), ("pairs", "Pairs"),
               ("value", "Difference [interval]"), ("margin", "Margin"), ("p", "p"), ("holm_p", "p (Holm)"),
               ("decision", "Result"), ("text", "What it rests on")]  # fmt: skip
    level = f"{h.alpha:g}" if h else ""
    notes = [
        f"Holm over these claims and loads only, α = {level}. Intervals: 95 % for “better”, else {100 * (1 - 2 * h.alpha):g} %: "
        "the one that lies within the margin exactly when the test alone is significant.",
        "A margin that is a share of the baseline’s mean is tested seed by seed on candidate − (1 ± margin) · baseline, "
        "so that the uncertainty of that mean counts; its interval is Fieller’s.",
    ] if h else []  # fmt: skip
    rows = [_claim(j) for j in registered.results]
    return Table(name="hypotheses", title="Claims written down before the runs", columns=columns, rows=rows,
                 labels=3, notes=notes)  # fmt: skip


def equivalence_table(study: Study, c: Comparison, margin: float) -> Table:
    """Return TOST and non-inferiority of every load and measure at one margin: exploratory."""
    pairs = [pair_up(study, row.load, row.measure.name, c.baseline, c.candidate) for row in c.rows]
    found = [bounded(p.candidate_S, p.baseline_S, margin, relative=True, alpha=ALPHA) for p in pairs]
    adjusted = statistics.holm([b.p for b in found])
    family = max(sum(math.isfinite(b.p) for b in found), 1)
    columns = [("load", "Load"), ("metric", "Measure"), ("pairs", "Pairs"), ("relative", "Relative difference [90 %]"),
               ("p_not_worse", "p (not worse)"), ("p", "p (TOST)"), ("holm_p", "p (TOST, Holm)"),
               ("decision", "Equivalent?"), ("least", "Least margin"), ("pairs_needed", "Pairs needed"),
               ("note", "Note")]  # fmt: skip
    share = f"{100 * margin:g} %"
    notes = [
        f"Exploratory. Margin: {share} of {c.baseline}’s mean. TOST: two one-sided paired t tests at 0.05; “equivalent” is "
        "decided by Holm over this table. “Not worse” is its one-sided half and is not adjusted.",
        "Least margin: the smallest one these pairs would show with 80 % power at Holm’s first step if the policies were the "
        f"same. Pairs needed: how many would show {share} as surely. A p above 0.05 is no evidence of a difference.",
    ]
    rows = [
        _same(row, b, float(p), ALPHA / family) for row, b, p in zip(c.rows, found, adjusted, strict=True)
    ]
    return Table(name="equivalence", title=f"Equivalence of {c.candidate} and {c.baseline} within {share}",
                 columns=columns, rows=rows, labels=2, notes=notes)  # fmt: skip


def aggregate_table(study: Study, baseline: str, policies: Sequence[str]) -> Table:
    """Return each policy against the baseline over all loads: IQM and probability of improvement."""
    found = [a for name in TESTED for policy in policies if policy != baseline
             and (a := aggregate(study, policy, baseline, name))]  # fmt: skip
    columns = [("metric", "Measure"), ("policy", "Policy"), ("loads", "Loads"), ("seeds", "Seeds"),
               ("iqm", "IQM of the improvement [95 %]"), ("improvement", "P(improvement) [95 %]"), ("note", "Note")]  # fmt: skip
    notes = [
        f"Loads differ in scale, so they are put together as scores: the improvement over {baseline} by seed, as a share of "
        f"{baseline}’s mean under that load, positive where the policy is better. A load where that mean is 0 has no score; a "
        "measure without a direction and the reward, whose zero is a choice, have none at all.",
        "IQM: mean of the middle half of the scores of all loads (Agarwal et al. 2021); with few, unlike loads that is mostly the "
        "load in the middle, so read it with the rows per load. Interval: bootstrap of the seeds, each with all its loads, since a "
        "seed is one training or search that meets them all; 2000 resamples from a fixed generator, percentiles moved outwards "
        "for few seeds (Hesterberg 2015).",
        "P(improvement): the chance that a seed of the policy beats one of the baseline, ties half, averaged over the loads; "
        "mean of the loads’ score intervals (Newcombe 2006), too wide where a seed’s luck differs from load to load and where "
        "policies share it.",
    ]  # fmt: skip
    return Table(name="aggregate", title=f"All loads together, against {baseline}", columns=columns,
                 rows=[_together(a) for a in found], labels=2, notes=notes)  # fmt: skip


def assumptions_table(study: Study, c: Comparison) -> Table:
    """Return the checks of normality and equal variance."""
    columns = [("load", "Load"), ("metric", "Measure"), ("pairs", "Pairs"), ("w", "W (Shapiro–Wilk)"), ("p_normal", "p"),
               ("sd_baseline", f"SD {c.baseline}"), ("sd_candidate", f"SD {c.candidate}"),
               ("f", "F (Brown–Forsythe)"), ("p_variance", "p"), ("note", "Note")]  # fmt: skip
    notes = [
        "Shown, and not used to pick a test: choosing a test after a look at the data changes its error rates. Shapiro–Wilk is on "
        "the paired differences, on which the paired t test rests; the pairing needs no equal variances, and Welch’s test "
        "(table of tests) does without them, too.",
        "With few pairs a large p is no evidence of normality: the test can hardly find anything.",
    ]  # fmt: skip
    return Table(name="assumptions", title="Checks of the tests’ assumptions", columns=columns,
                 rows=[_checked(study, c, row) for row in c.rows], labels=2, notes=notes)  # fmt: skip


def variance_table(study: Study, policies: Sequence[str], c: Comparison | None) -> Table:
    """Return the variance between seeds and between the repeats of a seed, where any seed has repeats."""
    columns = [("load", "Load"), ("metric", "Measure"), ("of", "Of"), ("seeds", "Seeds"), ("runs", "Runs"),
               ("between", "SD between seeds [95 %]"), ("within", "SD between repeats [95 %]"),
               ("share", "Share of the seeds [95 %]"), ("repeat_part", "Repeats’ part in the mean’s variance"),
               ("note", "Note")]  # fmt: skip
    notes = [
        "Nested: repeats (trial.episodes) within seeds. Between seeds: what training (or whatever else a seed fixes) makes of a "
        "policy; between repeats: what the same policy makes of other users. All tests pair seeds, whose repeats are averaged first: "
        "repeats are no seeds.",
        "“Repeats’ part”: how much of the variance of a policy’s mean more repeats could take away; the rest only more seeds can. "
        "Method of moments; intervals assume normality (Burdick & Graybill 1992) and are wide with few seeds.",
    ]  # fmt: skip
    rows = []
    if study.repeated:
        for load in study.loads:
            for name in TESTED:
                rows += [_varied(load, measure(name), policy, *_repeats(study.of(policy, load), name))
                         for policy in policies if study.of(policy, load)]  # fmt: skip
                if c and (groups := _repeated_differences(study, load, name, c))[0]:
                    rows.append(_varied(load, measure(name), f"{c.candidate} − {c.baseline}", *groups))
    return Table(name="variance", title="Training variance and repeat variance", columns=columns, rows=rows,
                 labels=3, notes=notes)  # fmt: skip


def pairs_table(study: Study, policies: Sequence[str]) -> Table:
    """Return every two policies compared in every tested measure, with Holm over all of it: exploratory."""
    columns = [("candidate", "Policy"), ("baseline", "Against"), ("load", "Load"), ("metric", "Measure"),
               ("pairs", "Pairs"), ("difference", "Difference"), ("p", "p"), ("holm_p", "p (Holm)"), ("g", "g"),
               ("decision", "Policy is")]  # fmt: skip
    found = compare_all(study, policies)
    tests = sum(c.tests for c in found)
    notes = [f"Exploratory: paired t tests, Holm over all {tests} tests of this table, apart from those of the comparison."]  # fmt: skip
    return Table(name="pairs", title="Every two policies", columns=columns, labels=4, notes=notes,
                 rows=[_pair(c, row) for c in found for row in c.rows if row.pairs])  # fmt: skip


def _claim(j: Judged) -> list[Cell]:
    value = {"": j.value, "low": j.low, "high": j.high, "of": "baseline mean" if j.relative else "SI unit"}
    return [
        words(j.load),
        Cell(text=j.claim, values={"": j.claim, "kpi": j.measure.name, "kind": j.kind}),
        words(TESTS[j.kind]),
        figures(str(j.pairs), {"": j.pairs}, j.runs),
        figures(value_text(j), value, j.runs),
        figures(margin_text(j), {"": j.margin}, j.runs),
        figures(p_text(j.p), {"": j.p}, j.runs),
        figures(p_text(j.holm_p), {"": j.holm_p}, j.runs),
        figures(j.decision, {"": j.decision}, j.runs, kind=KINDS[j.decision]),
        words(j.text, runs=j.runs),
    ]


def _same(row: Row, b: Bounded, holm_p: float, alpha: float) -> list[Cell]:
    least, needed = math.nan, None
    if math.isfinite(b.p):
        least = b.spread * equivalence.least_margin(b.n, alpha, both=True)
        needed = equivalence.pairs_needed(b.margin / b.spread, alpha, both=True)
    decided = "untested" if math.isnan(b.p) else "equivalent" if holm_p < ALPHA else "not shown"
    p_not_worse = b.not_worse(row.measure.better)
    return [
        words(row.load),
        Cell(text=row.measure.label, values={"": row.measure.name}),
        figures(str(b.n), {"": b.n}, row.runs),
        figures(span_text(b.value, b.low, b.high, None),
                {"": b.value, "low": b.low, "high": b.high}, row.runs),
        figures(p_text(p_not_worse), {"": p_not_worse}, row.runs),
        figures(p_text(b.p), {"": b.p}, row.runs),
        figures(p_text(holm_p), {"": holm_p}, row.runs),
        figures(decided, {"": decided}, row.runs, kind={"equivalent": "better"}.get(decided, "undecided")),
        figures("–" if math.isnan(least) else f"{number(100 * least, 100 * least)} %", {"": least}, row.runs),
        figures("–" if math.isnan(b.p) else str(needed or "> 10\u2009000"), {"": needed or ""}, row.runs),
        words(b.note, runs=row.runs),
    ]  # fmt: skip


def _together(a: Aggregate) -> list[Cell]:
    note = (
        f"no score under {', '.join(a.left_out)}: no pair has both values, or the baseline’s mean is 0"
        if a.left_out
        else ""
    )
    return [
        Cell(text=a.measure.label, values={"": a.measure.name}),
        words(a.policy),
        figures(str(a.loads), {"": a.loads}, a.runs),
        figures(str(a.seeds), {"": a.seeds}, a.runs),
        figures(span_text(a.iqm.value, a.iqm.low, a.iqm.high, None), _ends(a.iqm), a.runs),
        figures(_probability(a.improvement), _ends(a.improvement), a.runs),
        words(note, runs=a.runs),
    ]


def _checked(study: Study, c: Comparison, row: Row) -> list[Cell]:
    m, name = row.measure, row.measure.name
    normal = normality(row.differences)
    a, b = (list(study.by_seed(policy, row.load, name).values()) for policy in (c.candidate, c.baseline))
    spread = equal_variance(a, b)
    sds = [(row.baseline.sd, row.baseline.sd), (row.candidate.sd, row.candidate.sd)]
    note = "; ".join(dict.fromkeys(x for x in (normal.note, spread.note) if x))
    return [
        words(row.load),
        Cell(text=m.heading, values={"": name}),
        figures(str(row.pairs), {"": row.pairs}, row.runs),
        figures(number(normal.statistic, 0.01), {"": normal.statistic}, row.runs),
        figures(p_text(normal.p), {"": normal.p}, row.runs),
        *[figures(number(m.shown(sd), m.shown(sd)), {"": value}, row.runs) for sd, value in sds],
        figures(number(spread.statistic, 0.1), {"": spread.statistic}, row.runs),
        figures(p_text(spread.p), {"": spread.p}, row.runs),
        words(note, runs=row.runs),
    ]


def _varied(
    load: str, m: Measure, of: str, groups: Sequence[Sequence[float]], runs: Sequence[str]
) -> list[Cell]:
    v = nested(groups)
    share, part = (_share(v.share, v.share_low, v.share_high), v.repeat_part)
    return [
        words(load),
        Cell(text=m.heading, values={"": m.name}),
        words(of),
        figures(str(v.seeds), {"": v.seeds}, runs),
        figures(str(v.runs), {"": v.runs}, runs),
        figures(_sd_text(m, v.between, v.between_low, v.between_high), _roots(v, "between"), runs),
        figures(_sd_text(m, v.within, v.within_low, v.within_high), _roots(v, "within"), runs),
        figures(share, {"": v.share, "low": v.share_low, "high": v.share_high}, runs),
        figures("–" if math.isnan(part) else f"{100 * part:.0f} %", {"": part}, runs),
        words(v.note, runs=runs),
    ]


def _pair(c: Comparison, row: Row) -> list[Cell]:
    d, q = row.paired.difference, row.paired
    values = {"mean": d.mean, "low": d.low, "high": d.high, "relative": row.relative}
    return [
        words(c.candidate),
        words(c.baseline),
        words(row.load),
        Cell(text=row.measure.label, values={"": row.measure.name}),
        figures(str(row.pairs), {"": row.pairs}, row.runs),
        figures(difference_text(row), values, row.runs),
        figures(p_text(q.p), {"": q.p}, row.runs),
        figures(p_text(row.holm_p), {"": row.holm_p}, row.runs),
        figures(number(q.g, 0.1), {"": q.g}, row.runs),
        figures(row.decision, {"": row.decision}, row.runs, kind=row.decision),
    ]


def _repeats(trials: Sequence[Trial], name: str) -> tuple[list[list[float]], list[str]]:
    groups: dict[int, list[float]] = {}
    for t in trials:
        groups.setdefault(t.seed, []).append(t.values[name])
    return list(groups.values()), [t.id for t in trials]


def _repeated_differences(
    study: Study, load: str, name: str, c: Comparison
) -> tuple[list[list[float]], list[str]]:
    a, b = study.repeats(c.candidate, load), study.repeats(c.baseline, load)
    groups: dict[int, list[float]] = {}
    both = sorted(a.keys() & b.keys())
    for key in both:
        groups.setdefault(key[0], []).append(a[key].values[name] - b[key].values[name])
    return list(groups.values()), [side[key].id for side in (b, a) for key in both]


def _ends(e: Interval) -> dict[str, float | int | str]:
    return {"": e.value, "low": e.low, "high": e.high}


def _probability(e: Interval) -> str:
    if math.isnan(e.value):
        return "–"
    return f"{number(e.value, 0.1)} [{number(e.low, 0.1)}, {number(e.high, 0.1)}]"


def _sd_text(m: Measure, variance: float, low: float, high: float) -> str:
    """Return "1.2 [0.5, 4.3]" in the unit shown: standard deviations, made from variances."""
    if math.isnan(variance):
        return "–"
    sd, *ends = (m.shown(math.sqrt(x)) for x in (variance, low, high))
    size = sd or ends[1]
    if math.isnan(low):
        return number(sd, size)
    return f"{number(sd, size)} [{number(ends[0], size)}, {number(ends[1], size)}]"


def _roots(v: Nested, part: str) -> dict[str, float | int | str]:
    values = {"": getattr(v, part), "low": getattr(v, f"{part}_low"), "high": getattr(v, f"{part}_high")}
    return {key: math.sqrt(value) for key, value in values.items()}


def _share(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    text = f"{100 * value:.0f}"
    return f"{text} %" if math.isnan(low) else f"{text} [{100 * low:.0f}, {100 * high:.0f}] %"
