"""Robustness: what a fault costs each policy, and what a policy is worth under loads it was not trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gpusched.report import statistics
from gpusched.report.dataset import Study, Unit, units_of
from gpusched.report.measures import COST, QOS, REWARD, difference_unit, measure, number
from gpusched.report.statistics import Estimate
from gpusched.report.tables import Cell, Table, figures, words

RECOVERY, LATENCY = "fault_recovery_s", "latency_p95_s"
SHOWN = (LATENCY, QOS, COST, REWARD)
TRAINED = re.compile(r"^(?P<policy>[^\[]+)\[train_load=(?P<load>[^\],]+)\]$")
"""How a policy is labelled whose training load was chosen on the command line."""


def faults_table(study: Study) -> Table:
    """Return each policy under each fault against itself without it, paired by seed."""
    columns = [("fault", "Load and fault"), ("policy", "Policy"), ("n", "Seeds"), ("p95_ratio", "p95, times"),
               *[(name, f"{measure(name).label}, change") for name in SHOWN[1:]],
               ("recovery", "Recovery, s")]  # fmt: skip
    rows = [
        _degraded(study, load, policy)
        for load in study.loads
        if (plain := load.partition("+")[0]) != load and plain in study.loads
        for policy in study.policies
        if _both(study, policy, plain, load)
    ]
    notes = [
        "A fault makes another load of it (load+fault). Each seed under the fault is paired with the same seed, and so the same "
        "users, without it. p95, times: geometric mean of the ratios. 95 % t-intervals; described, not tested.",
        "Recovery: from the fault’s onset until p95 meets the SLO for 30 s; a seed that does not recover counts with all the time "
        "that is left. † one or more seeds have no value.",
    ]  # fmt: skip
    return Table(name="faults", title="What a fault costs each policy", columns=columns, rows=rows, labels=2, notes=notes)  # fmt: skip


def shift_table(study: Study) -> Table:
    """Return the mean reward of policies by the load they were trained on (rows) and the load they met (columns)."""
    trained = [(m["policy"], m["load"], p) for p in study.policies if (m := TRAINED.match(p))]
    columns = [("policy", "Policy"), ("trained_on", "Trained on"), *((load, load) for load in study.loads)]
    rows = [
        [words(policy), words(load), *[_met(study, load, own, label) for own in study.loads]]
        for policy, load, label in sorted(trained)
    ]
    notes = [
        "Mean reward per step with its 95 % t-interval over the seeds, each a training of its own. Test episodes are never "
        "training episodes; where the load is the one trained on, only the draw differs.",
    ]
    return Table(name="shift", title="Trained on one load, tested on all", columns=columns, rows=rows, labels=2,
                 notes=notes)  # fmt: skip


def _both(study: Study, policy: str, plain: str, faulty: str) -> bool:
    """Return whether the same users were met with and without the fault."""
    return bool(study.repeats(policy, plain).keys() & study.repeats(policy, faulty).keys())


def _degraded(study: Study, load: str, policy: str) -> list[Cell]:
    plain, faulty = study.repeats(policy, load.partition("+")[0]), study.repeats(policy, load)
    both = sorted(plain.keys() & faulty.keys())
    pairs = list(zip(*(units_of([side[key] for key in both]) for side in (plain, faulty)), strict=True))
    runs = [run for pair in pairs for u in pair for run in u.runs]
    ratio = statistics.interval([_log_ratio(a, b, LATENCY) for a, b in pairs])
    recovery = statistics.interval([b.values[RECOVERY] for _, b in pairs])
    return [
        words(load),
        words(policy),
        figures(str(len(pairs)), {"": len(pairs)}, runs),
        _times(ratio, len(pairs), runs),
        *[_change(pairs, name, runs) for name in SHOWN[1:]],
        _span(recovery, len(pairs), runs),
    ]


def _log_ratio(plain: Unit, faulty: Unit, name: str) -> float:
    a, b = plain.values[name], faulty.values[name]
    return math.log(b / a) if a > 0 and b > 0 else math.nan


def _times(logs: Estimate, n: int, runs: Sequence[str]) -> Cell:
    mean, low, high = (math.exp(x) for x in (logs.mean, logs.low, logs.high))
    half = (high - low) / 2
    text = "–" if math.isnan(mean) else number(mean, half) + _between(low, high, half)
    return figures(text + _dagger(logs, n), {"": mean, "low": low, "high": high}, runs)


def _change(pairs: Sequence[tuple[Unit, Unit]], name: str, runs: Sequence[str]) -> Cell:
    m = measure(name)
    e = statistics.interval([b.values[name] - a.values[name] for a, b in pairs])
    return _span(e, len(pairs), runs, m.scale, difference_unit(m))


def _span(e: Estimate, n: int, runs: Sequence[str], scale: float = 1.0, unit: str = "") -> Cell:
    mean, low, high = (scale * x for x in (e.mean, e.low, e.high))
    half = (high - low) / 2
    text = "–" if math.isnan(mean) else f"{number(mean, half)}{_between(low, high, half)} {unit}".strip()
    return figures(text + _dagger(e, n), {"": e.mean, "low": e.low, "high": e.high}, runs)


def _between(low: float, high: float, half: float) -> str:
    return f" [{number(low, half)}, {number(high, half)}]" if half > 0 else ""


def _dagger(e: Estimate, n: int) -> str:
    return " †" if 0 < e.n < n else ""


def _met(study: Study, trained_on: str, load: str, label: str) -> Cell:
    units = study.units(label, load)
    if not units:
        return words("–")
    e = statistics.interval([u.values[REWARD] for u in units])
    half = (e.high - e.low) / 2
    text = number(e.mean, half) + (f" ± {number(half, half)}" if half > 0 else "")
    runs = [run for u in units for run in u.runs]
    return figures(
        text, {"": e.mean, "low": e.low, "high": e.high}, runs, kind="equal" if load == trained_on else ""
    )
