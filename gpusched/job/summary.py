"""Tables for people: one trial, one sweep."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpusched.core.check import Check
from gpusched.core.kpi import HEADLINE, KPIS
from gpusched.job.setup import Result

LEFT = ("", "KPI", "unit", "meaning", "load", "policy", "check", "found", "cure")
"""Columns of words."""
PLAIN_WIDTH = 200
"""Columns where nobody looks through a window: a log file must not wrap."""


def show_job(result: Result) -> None:
    """Print what a single job found."""
    title = f"{result.names['policy']} on {result.names['load']}, seed {result.seed} ({result.status}, run {result.run_id})"
    table = _table(escape(title), ["KPI", "value", "unit", "meaning"])
    for name, value in result.values.items():
        kpi = KPIS.get(name)
        table.add_row(name, number(value), kpi.unit if kpi else "", kpi.meaning if kpi else "")
    _console().print(table)


def show_sweep(results: Sequence[Result]) -> None:
    """Print the mean headline KPIs of a sweep's trials, policy by load."""
    done = [r for r in results if r.values and r.status in ("finished", "skipped")]
    console = _console()
    names = ["reward_mean", *HEADLINE][
        : max(3, (console.width - 24) // 10)
    ]  # what fits; the store has the rest
    cells = list(dict.fromkeys((r.names["load"], r.names["policy"]) for r in done))
    table = _table("means over the seeds", ["load", "policy", "n", *names])
    for load, policy in sorted(cells, key=lambda cell: [c[0] for c in cells].index(cell[0])):
        here = [r for r in done if (r.names["load"], r.names["policy"]) == (load, policy)]
        means = [number(mean([r.values.get(name, math.nan) for r in here])) for name in names]
        table.add_row(escape(load), escape(policy), str(len(here)), *means)
    if cells:
        console.print(table)


def show_checks(checks: Sequence[Check]) -> None:
    """Print the doctor's report, one line per check."""
    table = _table("doctor", ["", "check", "found", "cure"])
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, escape(check.detail), escape(check.cure))
    _console().print(table)


def line(result: Result) -> str:
    """Return a job's outcome in one line."""
    shown = [
        f"{name} {number(result.values[name])}"
        for name in ("reward_mean", *HEADLINE[:2])
        if name in result.values
    ]
    return ", ".join([result.status, *shown, *([result.error] if result.error else [])])


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def number(value: float) -> str:
    """Return a number with four digits, a dash where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD if sys.stdout.isatty() else ASCII)
    for column in columns:
        table.add_column(
            column,
            overflow="fold",
            justify="right" if column not in LEFT else "left",
        )
    return table
