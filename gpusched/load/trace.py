"""Open-loop arrivals from a file of timestamps, as production logs give them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import InputError, did_you_mean, refuse
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Load

MOST_ARRIVALS = 50_000_000
"""What a trial can hold in memory; a typing slip in the scale is likelier."""


class Trace(Load):
    """Arrivals at the times in one column of a CSV file: seconds, or ISO 8601 timestamps; a header is optional.

    The trace is laid in a ring, closed by one mean gap, and run through from a start drawn per seed (from its
    first row where `random_start` is off): a longer trial repeats it, a shorter one sees a part of it.
    `scale` multiplies the rate: 2 halves every gap.
    """

    @dataclass(kw_only=True)
    class Config:
        path: str
        column: str
        scale: float
        random_start: bool

        def __post_init__(self) -> None:
            if not 1e-9 <= self.scale < math.inf:
                raise refuse("scale", self.scale, "must be at least 1e-9, a factor of the rate")

    config: Config

    @cached_property
    def times_s_N(self) -> NDArray[np.float64]:
        """The file's times in seconds from its first, sorted, at least two different ones."""
        return read_times(Path(self.config.path).expanduser(), self.config.column)

    def source(self) -> bytes:
        """Return the whole file's times: a plan shows a part of them."""
        return self.times_s_N.astype("<f8").tobytes()

    def plan(self, duration_s: float, rng: np.random.Generator) -> LoadPlan:
        times_s_N = self.times_s_N / self.config.scale
        ring_s = times_s_N[-1] * len(times_s_N) / (len(times_s_N) - 1)
        rounds = math.ceil(duration_s / ring_s) + 1
        if rounds * len(times_s_N) > max(MOST_ARRIVALS, 3 * len(times_s_N)):
            raise refuse("scale", self.config.scale, f"would make more than {MOST_ARRIVALS:,} arrivals")
        begin_s = rng.uniform(0.0, ring_s) if self.config.random_start else 0.0
        all_s = (times_s_N + ring_s * np.arange(rounds)[:, None]).ravel() - begin_s
        return LoadPlan(
            from_s_K=np.zeros(1),
            users_K=np.zeros(1, dtype=np.int64),
            arrivals_s_N=all_s[(all_s >= 0) & (all_s < duration_s)],
        )


def read_times(path: Path, column: str) -> NDArray[np.float64]:
    """Return the times of one column in seconds from the first, shape [N].

    Raises InputError for a file that is missing, empty, unsorted, or holds something that is no time.
    """
    key, times_s = f"path = {str(path)!r}", list[float]()
    rows = _rows(path, key)
    line, first = next(rows, (0, list[str]()))
    if not first:
        raise InputError(f"{key}: the file is empty. It must hold one time per row.")
    c = _column(first, column)
    cells: Iterator[tuple[int, str]] = ((line, row[c].strip() if c < len(row) else "") for line, row in rows)
    if _is_time(first[c]):
        cells = chain([(line, first[c].strip())], cells)
    for line, time_s in _seconds(cells, key):
        if times_s and time_s < times_s[-1]:
            raise InputError(f"{key}: line {line} is earlier than the line before. Sort the file by time.")
        times_s.append(time_s)
    if not times_s or times_s[-1] == 0:
        raise InputError(f"{key}: holds no two different times. At least two are needed.")
    return np.asarray(times_s)


def _seconds(cells: Iterable[tuple[int, str]], key: str) -> Iterator[tuple[int, float]]:
    """Yield line number and seconds since the first time."""
    origin: Any = None
    read: Callable[[str], Any] = float
    for line, cell in cells:
        try:
            if origin is None:
                read = _reader(cell)
                origin = read(cell)
            since = read(cell) - origin
        except (ValueError, TypeError):
            since = math.nan
        time_s = since.total_seconds() if isinstance(since, timedelta) else since
        if not math.isfinite(time_s):
            raise InputError(
                f"{key}: line {line} holds {cell!r}, which is no time like the first. "
                "Every row must hold seconds, or every row an ISO 8601 timestamp."
            )
        yield line, time_s


def _rows(path: Path, key: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except FileNotFoundError:
        raise InputError(
            f"{key}: no such file. Give a CSV file with one time per row; where those of azure_* come from stands in conf/load."
        ) from None
    except OSError as error:
        raise InputError(f"{key}: cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{key}: is no CSV text file.") from None


def _column(first: list[str], column: str) -> int:
    """Return the index of the column that is named, or counted from 0, in the first row."""
    names = [cell.strip() for cell in first]
    if column in names and not _is_time(column):
        return names.index(column)
    if column.isdecimal() and int(column) < len(names):
        return int(column)
    allowed = f"must be one of the file's columns: {', '.join(names)}; or 0..{len(names) - 1}"
    raise refuse("column", column, allowed, did_you_mean(column, names).strip())


def _reader(cell: str) -> Callable[[str], Any]:
    """Return what reads the cell: seconds, or an ISO timestamp."""
    try:
        float(cell)
    except ValueError:
        return datetime.fromisoformat
    return float


def _is_time(cell: str) -> bool:
    try:
        _reader(cell.strip())(cell.strip())
    except ValueError:
        return False
    return True
