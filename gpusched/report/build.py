"""Builds the report of a study: reads, compares, draws, and writes a folder that appears only when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusched.core.errors import InputError, StoreError, did_you_mean
from gpusched.report import contents, verdict
from gpusched.report.caveats import caveats
from gpusched.report.compare import Comparison, Row, compare
from gpusched.report.dataset import Source, Study, load, newest_study
from gpusched.report.measures import REWARD, TESTED, Measure, number, p_text
from gpusched.report.statistics import Estimate
from gpusched.report.tables import Table, provenance, to_csv, to_latex, to_markdown
from gpusched.report.verdict import LoadVerdict

LATEX_TABLES = ("comparison", "tests", "means", "trainings")


@dataclass(kw_only=True)
class Report:
    """A written report: its folder, what it says, and the runs it rests on."""

    folder: Path
    study: Study
    comparison: Comparison | None
    verdicts: list[LoadVerdict]
    tables: dict[str, Table]
    caveats: list[str]
    no_comparison: str

    @property
    def digest(self) -> str:
        """SHA-256 over the CSV tables: equal for equal stores."""
        text = "".join(to_csv(table) for table in self.tables.values())
        return hashlib.sha256(text.encode()).hexdigest()


def build(
    source: Source,
    *,
    out: Path,
    study: str | None = None,
    baseline: str = "hpa",
    candidate: str = "ppo",
    provenance_tags: Mapping[str, str] | None = None,
    allow_synthetic: bool = False,
) -> Report:
    """Write the report of a study (the newest by default) to out/<study>/ and return it.

    Raises InputError for an unknown study or policy, or a store without trials; StoreError where the folder cannot
    be written. `provenance_tags` tell the commit and lock file of the analysis itself.
    """
    name = study or newest_study(source)
    data = load(source, name, allow_synthetic=allow_synthetic)
    reason = _no_comparison(data, baseline, candidate)
    compared = None if reason else compare(data, baseline, candidate)
    policies = _ordered(data, baseline, candidate)
    report = Report(
        folder=out / folder_name(name),
        study=data,
        comparison=compared,
        verdicts=verdict.verdicts(compared) if compared else [],
        tables=contents.tables(data, compared, policies),
        caveats=caveats(data),
        no_comparison=reason,
    )
    with _whole(report.folder) as place:
        _write(report, source, policies, place, dict(provenance_tags or {}))
    return report


def folder_name(study: str) -> str:
    """Return the study's name as a folder name; where characters must go, a hash keeps two studies apart."""
    plain = re.sub(r"[^\w.\-]+", "_", study).strip(".") or "study"
    return plain if plain == study else f"{plain}-{hashlib.sha256(study.encode()).hexdigest()[:6]}"


def _no_comparison(study: Study, baseline: str, candidate: str) -> str:
    """Return why nothing is compared, empty where it is. Raises InputError for a policy the study does not have."""
    have = study.policies
    if len(have) < 2:
        only = f"Only {have[0]} has runs that count" if have else "No run counts"
        return f"{only}, so there is nothing to compare; the page describes what was measured."
    for option, policy in (("baseline", baseline), ("candidate", candidate)):
        if policy not in have:
            raise InputError(
                f"--{option} {policy}: study {study.name!r} has no run of it that counts. "
                f"Policies: {', '.join(have)}.{did_you_mean(policy, have)}"
            )
    if baseline == candidate:
        raise InputError(f"--baseline and --candidate are both {baseline!r}. Policies: {', '.join(have)}.")
    if not any(study.of(baseline, x) and study.of(candidate, x) for x in study.loads):
        return f"{candidate} and {baseline} have no load in common, so they are not compared."
    return ""


def _ordered(study: Study, baseline: str, candidate: str) -> list[str]:
    first = [p for p in (baseline, candidate) if p in study.policies]
    return first + [p for p in study.policies if p not in first]


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """Hand out a folder to write into that takes its final name only when the block ends well."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise StoreError(
            f"The report cannot be written to {final}: {error.strerror}. "
            "Give write permission, or name another folder with --out."
        ) from error
    try:
        yield place
        place.chmod(0o755)
        _swap(place, final)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _swap(place: Path, final: Path) -> None:
    """Give `place` the name `final`, whose old content goes."""
    old = place.with_name(place.name + "-old")
    if final.exists():
        os.replace(final, old)
    os.replace(place, final)
    shutil.rmtree(old, ignore_errors=True)


def _write(report: Report, source: Source, policies: list[str], place: Path, tags: dict[str, str]) -> None:
    # matplotlib takes half a second to import: only when a figure is due.
    from gpusched.report import curves, figures, style

    study = report.study
    (place / "tables").mkdir()
    (place / "figures").mkdir()
    with style.styled():
        pareto = figures.pareto_figure(study, policies)
        kpi = figures.kpi_figures(study, policies)
        time, lost = curves.time_figures(study, source, policies)
        convergence = curves.convergence_figure(study, source)
    report.caveats += lost
    drawings = [d for d in (pareto, *kpi, *time, convergence) if d]
    for drawing in drawings:
        style.write_pdf(drawing, place / "figures")
    for table in report.tables.values():
        (place / "tables" / f"{table.name}.csv").write_text(to_csv(table))
        if table.name in LATEX_TABLES:
            (place / "tables" / f"{table.name}.tex").write_text(to_latex(table))
    sources = {d.name: list(d.runs) for d in drawings}
    (place / "provenance.json").write_text(
        json.dumps(_provenance(report, sources, tags), indent=1, ensure_ascii=False)
    )
    page = {**_context(report), "figures": drawings, "pareto": pareto, "kpi_figures": kpi, "time_figures": time,
            "convergence": convergence}  # fmt: skip
    for name in ("index.html", "report.md"):
        (place / name).write_text(_render(f"{name}.j2", page))


def _provenance(report: Report, drawings: dict[str, list[str]], tags: dict[str, str]) -> dict[str, Any]:
    keys = (
        "policy",
        "load",
        "seed",
        "git_commit",
        "git_dirty",
        "config_hash",
        "lock_hash",
        "gpusched_version",
        "trial_key",
    )
    tags_of = {t.id: t.tags for t in report.study.trials} | {r.id: r.tags for r in report.study.trainings}
    return {
        "study": report.study.name,
        "analysis": tags,
        "assumed": report.study.assumed,
        "runs": {run: {key: own[key] for key in keys if key in own} for run, own in tags_of.items()},
        "tables": {table.name: provenance(table) for table in report.tables.values()},
        "figures": drawings,
    }


def _context(report: Report) -> dict[str, Any]:
    study, comparison = report.study, report.comparison
    title = f"Study {study.name}"
    if comparison:
        title += f": {comparison.candidate} against {comparison.baseline}"
    return {
        "title": title,
        "overview": _overview(study),
        "study": study,
        "comparison": comparison,
        "verdicts": report.verdicts,
        "order": verdict.ORDER,
        "no_comparison": report.no_comparison,
        "caveats": report.caveats,
        "notes": verdict.notes(comparison) if comparison else [],
        "tables": [t for t in report.tables.values() if t.name != "kpis"],
        "by_name": report.tables,
        "means": report.tables.get("means"),
        "matrix": _matrix(report),
        "matrix_runs": report.tables["comparison"].runs if "comparison" in report.tables else [],
        "assumed": study.assumed,
        "markdown": to_markdown,
    }


def _overview(study: Study) -> str:
    seeds = sorted({t.seed for t in study.trials})
    what = f"{len(study.trials)} trials: {len(study.policies)} policies × {len(study.loads)} loads × {len(seeds)} seeds."
    values = {
        tag: sorted({t.tags[tag] for t in study.trials if tag in t.tags}) for tag in ("service", "cluster")
    }
    where = " ".join(f"{tag.capitalize()}: {', '.join(names)}." for tag, names in values.items() if names)
    simulated = all(t.tags.get("cluster") == "sim" for t in study.trials)
    basis = (
        f" {len(study.assumed)} of its service constants are assumed, not measured." if study.assumed else ""
    )
    real = f"Simulated, not measured.{basis}" if simulated and study.trials else basis
    return " ".join(part for part in (what, where, real.strip()) if part)


def _matrix(report: Report) -> list[dict[str, Any]]:
    """Return the first screen's table: one line per measure, one cell per load."""
    comparison = report.comparison
    if not comparison or not comparison.rows:
        return []
    hints = {1: ", higher is better", -1: ", lower is better", 0: ""}
    lines = []
    for name in TESTED:
        rows = [row for v in report.verdicts if (row := comparison.row(v.load, name))]
        m = rows[0].measure
        label = m.label + (" (training signal)" if name == REWARD else "")
        lines.append(
            {"label": label, "hint": m.unit + hints[m.better], "cells": [_matrix_cell(row) for row in rows]}
        )
    return lines


def _matrix_cell(row: Row) -> dict[str, str]:
    m = row.measure
    a, b = (number(m.shown(e.mean), _half(m, e)) for e in (row.baseline, row.candidate))
    p = p_text(row.holm_p)
    p = "" if p == "–" else f", p {p if p.startswith('<') else '= ' + p}"
    return {"decision": row.decision, "main": verdict.relative_text(row), "detail": f"{a} → {b}{p}"}


def _half(m: Measure, e: Estimate) -> float:
    return m.shown((e.high - e.low) / 2)


def _render(template: str, page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=template.endswith("html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(page)
