"""Latencies of raw requests, counted run by run on one fixed grid, so that any number of runs fits in memory."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import StoreError
from gpusched.core.logs import RequestLog
from gpusched.report.dataset import Source, Trial

LOWEST_S, DECADES, PER_DECADE = 1e-4, 7, 160
"""0.1 ms to 1000 s in steps of 1.4 %; what lies outside counts in the outermost bins."""
BINS = DECADES * PER_DECADE
EDGE_B = LOWEST_S * 10.0 ** (np.arange(1, BINS + 1) / PER_DECADE)
"""Upper edge of each bin, s; the share of requests up to an edge is exact. Axis B."""

Counts = NDArray[np.int64]


@dataclass(kw_only=True, frozen=True)
class Latencies:
    """The answered requests of the trials of one policy under one load, counted per run [R] and bin [B]."""

    count_RB: Counts
    runs: tuple[str, ...]

    @property
    def pooled_B(self) -> Counts:
        """All requests of all runs together."""
        return np.asarray(self.count_RB.sum(axis=0))

    @property
    def shown(self) -> slice:
        """The bins from the last one that no request has reached to the first one that none exceeds."""
        filled = np.flatnonzero(self.pooled_B)
        return slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 1) if len(filled) else slice(0, 0)


def slower(count_XB: Counts) -> NDArray[np.float64]:
    """Return the share of requests slower than each edge, per row."""
    until_XB = np.cumsum(count_XB, axis=-1)
    return 1.0 - until_XB / np.maximum(until_XB[..., -1:], 1)


def latencies(source: Source, trials: list[Trial]) -> tuple[Latencies, list[str]]:
    """Count the requests of every trial; return with them the runs that have no request log."""
    counts = {t.id: _counted(source, t) for t in trials}
    kept = {run: count_B for run, count_B in counts.items() if count_B is not None and count_B.any()}
    table_RB = np.array(list(kept.values()), dtype=np.int64).reshape(-1, BINS)
    return Latencies(count_RB=table_RB, runs=tuple(kept)), [run for run in counts if counts[run] is None]


def count(latency_s_N: NDArray[np.floating]) -> Counts:
    """Return how many latencies fall into each bin of the grid."""
    with np.errstate(divide="ignore"):
        place_N = np.ceil((np.log10(latency_s_N) - math.log10(LOWEST_S)) * PER_DECADE) - 1
    return np.bincount(np.clip(place_N, 0, BINS - 1).astype(np.int64), minlength=BINS)


def _counted(source: Source, trial: Trial) -> Counts | None:
    """Return the counts of the requests answered within the episode, None where the run has no request log."""
    try:
        with np.load(source.download(trial.id, "requests.npz")) as log:
            start_s_N, latency_s_N, status_N = log["start_s"], log["latency_s"], log["status"]
    except (StoreError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    end_s_N = start_s_N + latency_s_N
    until_s = float(trial.params.get("trial.duration_s", "inf"))
    inside_N = (end_s_N > 0.0) & (end_s_N <= until_s) & (status_N == RequestLog.OK)
    return count(latency_s_N[inside_N])
