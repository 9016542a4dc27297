"""Tables as data: a number without a run behind it cannot be made. Written as CSV (SI units) and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MANY = 100
"""More runs than this are only counted under a table in Markdown; provenance.json names them."""


@dataclass(kw_only=True, frozen=True)
class Cell:
    """One cell: the text shown, the values stored (CSV columns by suffix), and the runs they come from.

    Raises ValueError for a number without runs: what nobody measured is not printed.
    """

    text: str
    values: dict[str, float | int | str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.runs and not all(isinstance(value, str) for value in self.values.values()):
            raise ValueError(f"no run stands behind {self.text!r}")


def words(text: str, kind: str = "", runs: Iterable[str] = ()) -> Cell:
    """Return a cell of words. Where they hold a number, name its runs: only what names a row goes without."""
    return Cell(text=text, values={"": text}, runs=tuple(runs), kind=kind)


def figures(text: str, values: Mapping[str, float | int | str], runs: Iterable[str], kind: str = "") -> Cell:
    """Return a cell with numbers. Raises ValueError without runs."""
    behind = tuple(runs)
    if not behind:
        raise ValueError(f"no run stands behind {text!r}")
    return Cell(text=text, values=dict(values), runs=behind, kind=kind)


@dataclass(kw_only=True)
class Table:
    """A table: columns as (key, title), rows of as many cells, the first `labels` of which name the row.

    Raises ValueError for a row of another length, and for a cell beside the labels that shows a digit and
    names no run.
    """

    name: str
    title: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    labels: int = 1
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: a row has another number of cells than there are columns"
                )
            for (key, _), cell in zip(self.columns[self.labels :], row[self.labels :], strict=True):
                if not cell.runs and any(c.isdigit() for c in cell.text):
                    raise ValueError(f"table {self.name}, column {key}: no run stands behind {cell.text!r}")

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


def to_markdown(table: Table) -> str:
    """Return a pipe table with its notes and runs."""
    align = [":--"] * table.labels + ["--:"] * (len(table.columns) - table.labels)
    lines = [
        [title for _, title in table.columns],
        align,
        *[[cell.text for cell in row] for row in table.rows],
    ]
    text = "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split("\n")) for cell in line) + " |"
        for line in lines
    )
    notes = "".join(f"\n\n{note}" for note in table.notes)
    named = ", ".join(f"`{run}`" for run in table.runs)
    runs = named if len(table.runs) <= MANY else f"{len(table.runs)}, named in provenance.json"
    return f"{text}{notes}\n" + (f"\nRuns: {runs}\n" if table.runs else "")


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
