"""The raw record of the load: fixed-size rows appended to a file, one system call each, so a crash loses nothing."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import ClusterError

Rows = NDArray[Any]
"""Array of RECORD."""

SENT, DONE, BEAT = 1, 2, 3
"""Kinds of a row: a request was sent; it ended; the load process lives (once a second)."""

NO_ANSWER, NOT_REAL, REAL = 0, 1, 2
"""What came back: nothing good, an answer that is no inference (empty, not finite, wrong shape), a real one."""

RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("status", "i1"),
        ("answer", "u1"),
        ("process", "u1"),
        ("id", "<u4"),
        ("time_s", "<f8"),
        ("span_s", "<f8"),
        ("lag_s", "<f4"),
        ("spare", "<u4"),
    ]
)
"""One row. process and id name the request; times are seconds of CLOCK_MONOTONIC, one clock for all processes of a host.

SENT  time_s sent, lag_s later than it should have been
DONE  time_s sent, span_s client latency, status of core.logs.RequestLog, answer
BEAT  time_s now, span_s CPU time of the process so far, lag_s lateness of the beat
"""

_PACK = struct.Struct("<BbBBIddfI").pack


class Writer:
    """Appends rows to a file. `offset_s` is added to every time, where clocks of hosts must be made one."""

    def __init__(self, path: Path, process: int, offset_s: float = 0.0) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.process, self.offset_s = process, offset_s

    def sent(self, request: int, time_s: float, lag_s: float) -> None:
        self._put(SENT, 0, 0, request, time_s, 0.0, lag_s)

    def done(self, request: int, time_s: float, latency_s: float, status: int, answer: int) -> None:
        self._put(DONE, status, answer, request, time_s, latency_s, 0.0)

    def beat(self, time_s: float, cpu_s: float, lag_s: float) -> None:
        self._put(BEAT, 0, 0, 0, time_s, cpu_s, lag_s)

    def _put(
        self, kind: int, status: int, answer: int, request: int, time_s: float, span_s: float, lag_s: float
    ) -> None:
        at_s = time_s + self.offset_s
        self.write(_PACK(kind, status, answer, self.process, request, at_s, span_s, lag_s, 0))

    def write(self, data: bytes) -> None:
        """Append; raises OSError where only a part fits on the disk."""
        if os.write(self.file, data) != len(data):
            raise OSError("the disk is full: a record was cut off")


class Buffer(Writer):
    """Keeps rows until they are taken: a worker of a distributed load sends them to its master."""

    def __init__(self, process: int, offset_s: float) -> None:
        self.process, self.offset_s = process, offset_s
        self.kept: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.kept.append(data)

    def take(self) -> bytes:
        taken, self.kept = b"".join(self.kept), []
        return taken


class Tail:
    """Reads what has been appended since the last time; a torn row at the end waits for its rest."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read(self) -> Rows:
        """Return the new rows [n]; ClusterError where the file holds something else."""
        if not self.path.exists():
            return np.zeros(0, RECORD)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = len(data) - len(data) % RECORD.itemsize
        self.offset += whole
        rows = np.frombuffer(data[:whole], RECORD)
        if len(rows) and not np.isin(rows["kind"], (SENT, DONE, BEAT)).all():
            raise ClusterError(f"{self.path}: no record of a load; it is damaged.")
        return rows
