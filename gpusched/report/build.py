"""Builds the report of a study: analyses, draws, and writes a folder that appears only when it is complete."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpusched.core.errors import StoreError
from gpusched.report.analysis import Analysis, Choice, analyse
from gpusched.report.breakeven import breakeven_table, crossings, left_out
from gpusched.report.compare import Comparison
from gpusched.report.dataset import Source, Study
from gpusched.report.hypotheses import Registered
from gpusched.report.latex import to_latex
from gpusched.report.names import file_name
from gpusched.report.tables import Table, provenance, to_csv
from gpusched.report.verdict import LoadVerdict

if TYPE_CHECKING:
    from gpusched.report.drawings import Drawings

NO_LATEX = ("kpis", "runs", "excluded")
"""Tables too long for print."""
LAST = ("kpis", "trainings", "runs", "excluded")
TAGS = ("policy", "load", "seed", "episode", "git_commit", "git_dirty", "config_hash", "lock_hash", "gpusched_version",
        "trial_key", "service_hash", "hypotheses_hash", "machine", "emulated")  # fmt: skip
"""What provenance.json tells of each run, where the run has it."""


@dataclass(kw_only=True)
class Report:
    """A written report: its folder, what it says, and the runs it rests on; `fidelity` is what is known of the simulator."""

    folder: Path
    study: Study
    comparison: Comparison | None
    registered: Registered
    verdicts: list[LoadVerdict]
    tables: dict[str, Table]
    caveats: list[str]
    no_comparison: str
    fidelity: str

    @property
    def digest(self) -> str:
        """SHA-256 over the CSV tables: equal for equal stores."""
        text = "".join(to_csv(table) for table in self.tables.values())
        return hashlib.sha256(text.encode()).hexdigest()


def build(
    source: Source,
    *,
    out: Path,
    choice: Choice | None = None,
    provenance_tags: Mapping[str, str] | None = None,
) -> Report:
    """Write the report of a study (the newest by default) to out/<study>/ and return it.

    `provenance_tags` tell the commit and lock file of the analysis itself. Raises what `analyse` raises, and
    StoreError where the folder cannot be written.
    """
    choice = choice or Choice()
    with _uncollected():
        analysis = analyse(source, choice)
    add_breakeven(analysis)
    study = analysis.study
    report = Report(
        folder=out / folder_name(study.name, choice.query),
        study=study,
        comparison=analysis.comparison,
        registered=analysis.registered,
        verdicts=analysis.verdicts,
        tables=analysis.tables,
        caveats=analysis.caveats,
        no_comparison=analysis.no_comparison,
        fidelity=analysis.fidelity.sentence,
    )
    with _whole(report.folder) as place:
        _write(analysis, source, place, dict(provenance_tags or {}))
    return report


@contextmanager
def _uncollected() -> Iterator[None]:
    """Hold the garbage collector off: it takes half of the time in which a thousand runs are read, and finds nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def folder_name(study: str, query: str = "") -> str:
    """Return the folder's name: the study's, and another one for a part of it that a filter chose."""
    part = f"-{hashlib.sha256(query.encode()).hexdigest()[:6]}" if query else ""
    return file_name(study) + part


def add_breakeven(analysis: Analysis) -> None:
    """Put the table of break-even prices, where it has rows, before the long lists at the end."""
    c, tables = analysis.comparison, analysis.tables
    study, pair = analysis.study, (c.baseline, c.candidate) if c else None
    table = breakeven_table(crossings(study, analysis.policies, pair), left_out(study, analysis.policies))
    if table.rows:
        last = {name: tables.pop(name) for name in LAST if name in tables}
        tables |= {table.name: table} | last


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """Hand out a folder to write into that takes its final name, in place of a report there, only when the block ends well."""
    there = {path.name for path in final.iterdir()} if final.is_dir() else set()
    if there and not {"index.html", "provenance.json"} <= there:
        raise StoreError(f"{final} holds something else than a report. Name another folder with --out.")
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


def _write(analysis: Analysis, source: Source, place: Path, tags: dict[str, str]) -> None:
    # matplotlib takes half a second to import: only when a figure is due.
    from gpusched.report.drawings import draw
    from gpusched.report.page import render

    drawings, lost = draw(analysis, source)
    analysis.caveats.extend(lost)
    stored = _provenance(analysis, drawings, tags)
    (place / "figures").mkdir()
    for drawing in drawings.all:
        (place / "figures" / f"{drawing.name}.pdf").write_bytes(drawing.pdf)
    (place / "tables").mkdir()
    for table in analysis.tables.values():
        (place / "tables" / f"{table.name}.csv").write_text(to_csv(table))
        if table.name not in NO_LATEX:
            (place / "tables" / f"{table.name}.tex").write_text(to_latex(table))
    (place / "provenance.json").write_text(_lines(stored, 3) + "\n")
    for name in ("index.html", "report.md"):
        (place / name).write_text(render(name, analysis, drawings))


def _lines(value: Any, depth: int) -> str:
    """Return JSON with a line per entry down to `depth`: to be read by people, and quickly written."""
    text = partial(json.dumps, ensure_ascii=False)
    if depth == 0 or not value or not isinstance(value, (dict, list)):
        return text(value)
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{text(k)}: {_lines(v, depth - 1)}" for k, v in value.items()) + "\n}"
    return "[\n" + ",\n".join(_lines(v, depth - 1) for v in value) + "\n]"


def _provenance(analysis: Analysis, drawings: Drawings, tags: dict[str, str]) -> dict[str, Any]:
    """Return every number with its runs, and what each run came from. Raises ValueError for a run nobody read."""
    study = analysis.study
    compared = [one.record for one in analysis.fidelity.evidence]
    tags_of = {t.id: t.tags for t in study.trials} | {r.id: r.tags for r in [*study.learnt, *compared]}
    runs = {run: {key: own[key] for key in TAGS if key in own} for run, own in tags_of.items()}
    runs |= {e.id: {"status": e.status, "excluded": e.why} for e in study.excluded if e.id not in runs}
    tables, figures = list(analysis.tables.values()), drawings.all
    for name, behind in [(t.name, t.runs) for t in tables] + [(f.name, list(f.runs)) for f in figures]:
        _known(name, behind, runs)
    return {
        "study": study.name,
        "filter": study.query,
        "analysis": tags,
        "assumed": study.assumed,
        "hypotheses_hash": analysis.registered.hash,
        "runs": runs,
        "tables": {table.name: provenance(table) for table in tables},
        "figures": {figure.name: list(figure.runs) for figure in figures},
        "verdicts": [{"load": v.load, "text": v.summary, "runs": _behind(analysis, v.load)} for v in analysis.verdicts],
    }  # fmt: skip


def _behind(analysis: Analysis, load: str) -> list[str]:
    rows = analysis.comparison.rows if analysis.comparison else []
    return list(dict.fromkeys(run for row in rows if row.load == load for run in row.runs))


def _known(name: str, behind: Iterable[str], runs: Mapping[str, object]) -> None:
    if unknown := [run for run in behind if run not in runs]:
        raise ValueError(f"{name} rests on run {unknown[0]}, which study and store do not have")
