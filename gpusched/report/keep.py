"""Keeps the small part of a report beside the code: tables, figures and where they came from, without lists of runs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpusched.core.errors import StoreError, refuse

LARGE_BYTES = 60_000
"""What is above this size stays with the report: a repository keeps every version of it for ever."""
KEPT = {"tables", "figures", "provenance.json"}
"""What lies in a folder of kept results."""
RUN_IDS = "run_ids"
TRACED = (
    "git_commit",
    "git_dirty",
    "config_hash",
    "lock_hash",
    "service_hash",
    "hypotheses_hash",
    "gpusched_version",
)


def check_place(folder: Path) -> None:
    """Raise InputError unless `folder` is new, empty, or what was kept before: all that is in it will be replaced."""
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise refuse(
            "--keep", str(folder), "must be a folder that can be read", f"{error.strerror}."
        ) from error
    if folder.name in ("", "..") or (there and not {"provenance.json"} <= set(there) <= KEPT):
        cure = f"It holds {', '.join(there[:3])}{' and more' if len(there) > 3 else ''}." if there else ""
        raise refuse("--keep", str(folder), "must be a folder of its own: what is in it is replaced", cure)


def keep(report: Path, folder: Path, command: str) -> list[Path]:
    """Copy the small tables and figures of a written report into `folder`, replacing what was kept there; return the files.

    provenance.json becomes a summary: how many runs came from which commit, lock file and configuration.
    Raises InputError for a folder that holds anything else, StoreError where it cannot be written.
    """
    check_place(folder)
    place = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(place, ignore_errors=True)
        for path, content in _small(report):
            target = place / path.relative_to(report)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        stored = json.loads((report / "provenance.json").read_text())
        (place / "provenance.json").write_text(json.dumps(summary(stored, command), indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(place, folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be written ({error.strerror}). Name another folder with --keep."
        ) from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def summary(stored: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return what a report's provenance says without naming every run."""
    runs: Mapping[str, Mapping[str, str]] = stored["runs"]
    counted = {tag: dict(Counter(run[tag] for run in runs.values() if tag in run)) for tag in TRACED}
    return {
        "command": command,
        "study": stored["study"],
        "filter": stored["filter"],
        "analysis": stored["analysis"],
        "assumed": stored["assumed"],
        "runs": len(runs),
        **{
            tag: counts if len(counts) <= 5 else f"{len(counts)} different" for tag, counts in counted.items()
        },
    }


def _without_runs(path: Path) -> bytes:
    """Return a table without its column of run IDs, most of its size; the report itself has them."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    keep = [k for k, name in enumerate(rows[0]) if name != RUN_IDS]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row[k] for k in keep] for row in rows)
    return text.getvalue().encode()


def _small(report: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield what is small as it will be kept: a table's run IDs, which it loses, do not count."""
    for pattern in ("tables/*.csv", "figures/*.pdf"):
        for path in sorted(report.glob(pattern)):
            content = _without_runs(path) if path.suffix == ".csv" else path.read_bytes()
            if len(content) <= LARGE_BYTES:
                yield path, content
