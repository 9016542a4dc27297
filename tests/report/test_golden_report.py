"""Every number of the report of a stored study, against the tables that were accepted.

Where a change is meant, read the difference and accept it:

    ACCEPT=1 python -m pytest tests/report/test_golden_report.py
"""

import csv
import difflib
import io
import os
from pathlib import Path

import pytest
from golden_study import PLACE, STUDY, golden_store

from gpusched.report.analysis import Analysis, Choice, analyse
from gpusched.report.build import add_breakeven
from gpusched.report.tables import to_csv

HOW = "\n\nIf this is meant: ACCEPT=1 python -m pytest tests/report/test_golden_report.py"
SAME = 1e-7
"""Relative difference of two numbers that are the same: libraries may sum in another order."""


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    found = analyse(golden_store(), Choice(study=STUDY))
    add_breakeven(found)
    return found


def sentences(analysis: Analysis) -> str:
    """Return what the report says in words, a line per sentence."""
    lines = [*analysis.registered.sentences, *analysis.caveats]
    for verdict in analysis.verdicts:
        lines += [f"{verdict.load}: {verdict.summary}"]
        lines += [f"{verdict.load}, {f.label}: {f.decision}: {f.text}" for f in verdict.findings]
    return "\n".join(lines) + "\n"


def same(one: str, other: str) -> bool:
    """Whether two CSV cells hold the same number or the same text."""
    try:
        a, b = float(one), float(other)
    except ValueError:
        return one == other
    return a == b or abs(a - b) <= SAME * max(abs(a), abs(b))


def like(found: str, accepted: str) -> bool:
    """Whether two CSV tables are the same, numbers up to rounding."""
    rows, others = (list(csv.reader(io.StringIO(text))) for text in (found, accepted))
    return len(rows) == len(others) and all(
        len(row) == len(other) and all(map(same, row, other)) for row, other in zip(rows, others, strict=True)
    )


def check(name: str, found: str) -> str:
    """Return how a file differs from the accepted one, empty where it does not; or accept it."""
    path = PLACE / name
    if os.environ.get("ACCEPT"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    accepted = path.read_text() if path.exists() else ""
    equal = like(found, accepted) if name.endswith(".csv") else found == accepted
    if equal:
        return ""
    lines = difflib.unified_diff(accepted.splitlines(), found.splitlines(), f"{name}, accepted", f"{name}, now", lineterm="")  # fmt: skip
    return "\n".join(lines)


def test_every_table_is_as_accepted(analysis: Analysis) -> None:
    changes = [check(f"tables/{name}.csv", to_csv(table)) for name, table in analysis.tables.items()]
    changes = [change for change in changes if change]
    assert not changes, "\n".join(changes) + HOW
    accepted = {path.stem for path in (PLACE / "tables").glob("*.csv")}
    assert accepted == set(analysis.tables), f"other tables than accepted: {accepted ^ set(analysis.tables)}"


def test_every_sentence_is_as_accepted(analysis: Analysis) -> None:
    change = check("words.txt", sentences(analysis))
    assert not change, change + HOW


def test_a_changed_number_is_seen(analysis: Analysis) -> None:
    text = to_csv(analysis.tables["means"])
    number = next(cell for row in csv.reader(io.StringIO(text)) for cell in row if cell.startswith("0."))
    assert like(text, text)
    assert like(text, text.replace(number, repr(float(number) * (1 + 1e-10)), 1))
    assert not like(text, text.replace(number, repr(float(number) * (1 + 1e-5)), 1))


def test_two_runs_give_the_same_bytes(analysis: Analysis) -> None:
    again = analyse(golden_store(), Choice(study=STUDY))
    add_breakeven(again)
    assert {n: to_csv(t) for n, t in again.tables.items()} == {
        n: to_csv(t) for n, t in analysis.tables.items()
    }


def test_the_stored_study_is_not_made_up() -> None:
    assert all(run.tags.get("synthetic") != "true" for run in golden_store().runs.values())
    assert Path(PLACE / "runs.json").stat().st_size < 200_000
