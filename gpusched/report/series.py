"""Tick logs of many trials on one grid of times. Axes: T ticks, R runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import StoreError
from gpusched.report.dataset import Source, Trial

Floats = NDArray[np.float64]
TIME = "t_s"


@dataclass(kw_only=True, frozen=True)
class Series:
    """Columns of the tick logs of the trials of one policy under one load: t_s_T, and by name [R, T] with gaps as NaN."""

    t_s_T: Floats
    columns: dict[str, Floats]
    runs: tuple[str, ...]


def read(source: Source, trials: Sequence[Trial], names: Sequence[str]) -> tuple[Series | None, list[str]]:
    """Read the named columns from the end of the warm-up on; return with them the runs that have no tick log."""
    found = {t.id: table for t in trials if (table := _table(source, t, names)) is not None}
    lost = [t.id for t in trials if t.id not in found]
    if not found:
        return None, lost
    t_s_T = np.unique(np.concatenate([table[:, 0] for table in found.values()]))
    filled_RTC = np.full((len(found), len(t_s_T), len(names)), np.nan)
    for filled_TC, table in zip(filled_RTC, found.values(), strict=True):
        filled_TC[np.searchsorted(t_s_T, table[:, 0])] = table[:, 1:]
    columns = {name: filled_RTC[:, :, i] for i, name in enumerate(names)}
    return Series(t_s_T=t_s_T, columns=columns, runs=tuple(found)), lost


def running_mean(values_RT: Floats, window: int) -> Floats:
    """Return the mean over the last `window` ticks of each row, gaps left out; NaN where all are gaps."""
    known_RT = np.isfinite(values_RT)
    sum_RT = _last(np.where(known_RT, values_RT, 0.0), window)
    count_RT = _last(known_RT.astype(float), window)
    return np.divide(sum_RT, count_RT, out=np.full_like(sum_RT, np.nan), where=count_RT > 0.5)


def _last(values_RT: Floats, window: int) -> Floats:
    """Return the sum over the last `window` ticks."""
    total_RT = np.cumsum(values_RT, axis=1)
    total_RT[:, window:] = total_RT[:, window:] - total_RT[:, :-window].copy()
    return total_RT


def _table(source: Source, trial: Trial, names: Sequence[str]) -> Floats | None:
    """Return time and the named columns [T, 1 + names], None where they were not stored."""
    try:
        path = source.download(trial.id, "ticks.csv")
        with open(path) as file:
            header = file.readline().strip().split(",")
            places = [header.index(name) for name in (TIME, *names)]
            table = np.loadtxt(file, delimiter=",", usecols=places, ndmin=2)
    except (StoreError, OSError, ValueError):
        return None
    table = table[table[:, 0] > 0.0]
    table[:, 0] = table[:, 0].round(3)
    return table if len(table) else None
