"""What the page and the Markdown show, and their rendering."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpusched.report import goals, verdict
from gpusched.report.analysis import Analysis
from gpusched.report.compare import Row
from gpusched.report.dataset import Study
from gpusched.report.drawings import Drawings
from gpusched.report.measures import REWARD, TESTED, Measure, difference_unit, number, p_equals, signed
from gpusched.report.statistics import Estimate
from gpusched.report.tables import Table, to_markdown

PLACED = (
    "hypotheses",
    "comparison",
    "tests",
    "breakeven",
    "means",
    "trainings",
    "fidelity",
    "runs",
    "excluded",
    "kpis",
)
"""Tables the page shows at a place of their own; the others follow the tests in their order."""
LINE = 40
"""Columns with more characters than this are broken into lines."""


def render(template: str, analysis: Analysis, drawings: Drawings) -> str:
    """Return the page ("index.html") or the Markdown ("report.md")."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=template.endswith("html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{template}.j2").render(_context(analysis, drawings))


def overview(study: Study) -> str:
    """Return in a line what the study holds and what kind of numbers they are."""
    seeds = sorted({t.seed for t in study.trials})
    episodes = len({t.episode for t in study.trials})
    factors = f"{len(study.policies)} policies × {len(study.loads)} loads × {len(seeds)} seeds"
    what = f"{len(study.trials)} trials: {factors}{f' × {episodes} episodes' if episodes > 1 else ''}."
    values = {
        tag: sorted({t.tags[tag] for t in study.trials if tag in t.tags}) for tag in ("service", "cluster")
    }
    where = " ".join(f"{tag.capitalize()}: {', '.join(names)}." for tag, names in values.items() if names)
    simulated = study.clusters == ["sim"]
    basis = (
        f" {len(study.assumed)} of its service constants are assumed, not measured." if study.assumed else ""
    )
    real = f"Simulated, not measured.{basis}" if simulated and study.trials else basis
    chosen = f"Only the runs that match the filter {study.query}." if study.query else ""
    return " ".join(part for part in (what, where, real.strip(), chosen) if part)


def _context(analysis: Analysis, drawings: Drawings) -> Mapping[str, Any]:
    study, comparison, tables = analysis.study, analysis.comparison, analysis.tables
    title = f"Study {study.name}"
    if comparison:
        title += f": {comparison.candidate} against {comparison.baseline}"
    return {
        "title": title,
        "overview": overview(study),
        "study": study,
        "comparison": comparison,
        "registered": analysis.registered,
        "verdicts": analysis.verdicts,
        "order": verdict.ORDER,
        "no_comparison": analysis.no_comparison,
        "caveats": analysis.caveats,
        "fidelity": analysis.fidelity.sentence,
        "notes": analysis.notes,
        "drawn": drawings,
        "tables": tables,
        "further": [t for t in tables.values() if t.name not in PLACED],
        "matrix": _matrix(analysis),
        "rivals": rivals(analysis),
        "missed": goals.missed(tables["goals"]) if "goals" in tables else [],
        "matrix_runs": tables["comparison"].runs if "comparison" in tables else [],
        "assumed": study.assumed,
        "markdown": to_markdown,
        "wrapped": _wrapped,
    }


def _wrapped(table: Table) -> set[int]:
    """Return the columns that hold sentences."""
    return {
        i for row in table.rows for i, cell in enumerate(row) if len(cell.text) > LINE and cell.kind != "id"
    }


def _matrix(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the first screen's table: one line per measure, one cell per load."""
    comparison = analysis.comparison
    if not comparison or not comparison.rows:
        return []
    hints = {1: ", higher is better", -1: ", lower is better", 0: ""}
    lines = []
    for name in TESTED:
        rows = [row for v in analysis.verdicts if (row := comparison.row(v.load, name))]
        m = rows[0].measure
        label = m.label + (" (training signal)" if name == REWARD else "")
        lines.append(
            {"label": label, "hint": m.unit + hints[m.better], "cells": [_matrix_cell(row) for row in rows]}
        )
    return lines


def rivals(analysis: Analysis) -> dict[str, Any]:
    """Return the first page's table of rivals: a line per rival, a cell per load; {} where there is no such table."""
    table = analysis.tables.get("rivals")
    if table is None or analysis.comparison is None:
        return {}
    outcomes = {(row[1].text, row[0].text): row[-1] for row in table.rows}
    loads = list(dict.fromkeys(row[0].text for row in table.rows))
    lines = {
        name: [outcomes.get((name, load)) for load in loads]
        for name in analysis.policies
        if any((name, load) in outcomes for load in loads)
    }
    return {"candidate": analysis.comparison.candidate, "loads": loads, "lines": lines}


def _matrix_cell(row: Row) -> dict[str, str]:
    m = row.measure
    a, b = (number(m.shown(e.mean), _half(m, e)) for e in (row.baseline, row.candidate))
    p = "" if math.isnan(row.holm_p) else f", p {p_equals(row.holm_p)}"
    return {"decision": row.decision, "main": _main(row), "detail": f"{a} → {b}{p}"}


def _main(row: Row) -> str:
    """Return the difference as a share of the baseline, and as it is where there is no share."""
    if not math.isnan(row.relative):
        return verdict.relative_text(row)
    d, m = row.paired.difference, row.measure
    if math.isnan(d.mean):
        return "–"
    return f"{signed(number(m.shown(d.mean), _half(m, d)))} {difference_unit(m)}".strip()


def _half(m: Measure, e: Estimate) -> float:
    return m.shown((e.high - e.low) / 2)
