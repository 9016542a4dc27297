"""Tables as data: every number names the runs behind it. Written as CSV (SI units), LaTeX (booktabs) and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "–": "--", "—": "---",
    "<": "$<$", ">": "$>$", "×": r"$\times$", "∞": r"$\infty$", "≥": r"$\geq$", "α": r"$\alpha$", "·": r"$\cdot$",
    "†": r"\dag{}", "\u2009": r"\,", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}",
}  # fmt: skip


@dataclass(kw_only=True, frozen=True)
class Cell:
    """One cell: the text shown, the values stored (CSV columns by suffix), and the runs they come from."""

    text: str
    values: dict[str, float | int | str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    kind: str = ""


def words(text: str, kind: str = "") -> Cell:
    """Return a cell without numbers: a name, a label."""
    return Cell(text=text, values={"": text}, kind=kind)


def figures(text: str, values: Mapping[str, float | int | str], runs: Iterable[str], kind: str = "") -> Cell:
    """Return a cell with numbers. Raises ValueError without runs: a number nobody measured is not printed."""
    behind = tuple(runs)
    if not behind:
        raise ValueError(f"no run stands behind {text!r}")
    return Cell(text=text, values=dict(values), runs=behind, kind=kind)


@dataclass(kw_only=True)
class Table:
    """A table: columns as (key, title), rows of as many cells, the first `labels` of which name the row."""

    name: str
    title: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    labels: int = 1
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name}: a row has another number of cells than there are columns")

    @property
    def runs(self) -> list[str]:
        """Every run behind the table, once each, in order of appearance."""
        return list(dict.fromkeys(run for row in self.rows for cell in row for run in cell.runs))


def to_csv(table: Table) -> str:
    """Return the stored values, one row per row, the runs behind it in the last column."""
    records = [_record(table, row) for row in table.rows]
    names = list(dict.fromkeys(key for record in records for key in record))
    names = [n for n in names if n != "run_ids"] + ["run_ids"]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def to_latex(table: Table) -> str:
    """Return a booktabs tabular with caption, notes and the runs, ready to be \\input."""
    align = "l" * table.labels + "r" * (len(table.columns) - table.labels)
    head = " & ".join(latex(title) for _, title in table.columns)
    body = "\n".join(" & ".join(latex(cell.text) for cell in row) + r" \\" for row in table.rows)
    notes = "".join(f"\n\\par\\footnotesize {latex(note)}" for note in table.notes)
    return (
        f"% Needs \\usepackage{{booktabs}}. Runs: {' '.join(table.runs)}\n"
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{latex(table.title)}}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}"
        f"{notes}\n\\par\\footnotesize Runs: {', '.join(run[:8] for run in table.runs)}.\n\\end{{table}}\n"
    )


def to_markdown(table: Table) -> str:
    """Return a pipe table with its notes and runs."""
    align = [":--"] * table.labels + ["--:"] * (len(table.columns) - table.labels)
    lines = [
        [title for _, title in table.columns],
        align,
        *[[cell.text for cell in row] for row in table.rows],
    ]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "".join(f"\n\n{note}" for note in table.notes)
    return f"{text}{notes}\n\nRuns: {', '.join(f'`{run}`' for run in table.runs)}\n"


def provenance(table: Table) -> list[dict[str, Any]]:
    """Return one entry per cell that holds numbers: row, column, values and the runs behind it."""
    return [
        {
            "row": [label.text for label in row[: table.labels]],
            "column": key,
            "values": {name: value for name, value in cell.values.items() if not _is_nan(value)},
            "runs": list(cell.runs),
        }
        for row in table.rows
        for (key, _), cell in zip(table.columns, row, strict=True)
        if cell.runs
    ]


def latex(text: str) -> str:
    """Return the text with everything LaTeX reads as a command escaped."""
    return "".join(LATEX.get(c, c) for c in text)


def _record(table: Table, row: list[Cell]) -> dict[str, str]:
    record = {
        f"{key}_{name}" if name else key: _stored(value)
        for (key, _), cell in zip(table.columns, row, strict=True)
        for name, value in cell.values.items()
    }
    record["run_ids"] = " ".join(dict.fromkeys(run for cell in row for run in cell.runs))
    return record


def _stored(value: float | str) -> str:
    if _is_nan(value):
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
