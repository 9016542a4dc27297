"""What the load has done so far: counts and quantiles of any interval, the request log, the audit's figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.logs import RequestLog
from gpusched.live.records import BEAT, DONE, NO_ANSWER, REAL, RECORD, SENT, Rows

Floats = NDArray[np.float64]

BUSY_OVER_S = 10.0
"""The client's CPU share is the highest over any stretch this long: a short peak delays requests too."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """The requests that ended in an interval."""

    latency_s_N: Floats
    failed: int
    slow: int

    @property
    def completed(self) -> int:
        return len(self.latency_s_N)

    @property
    def p95_s(self) -> float:
        return float(np.quantile(self.latency_s_N, 0.95)) if self.completed else math.nan

    @property
    def mean_s(self) -> float:
        return float(self.latency_s_N.mean()) if self.completed else math.nan


class Kept:
    """Rows that grow at the end, in one array of twice the room."""

    def __init__(self) -> None:
        self.room, self.n = np.zeros(1024, RECORD), 0

    def add(self, rows: Rows) -> None:
        need = self.n + len(rows)
        if need > len(self.room):
            self.room = np.concatenate([self.rows, np.zeros(2 * need - self.n, RECORD)])
        self.room[self.n : need] = rows
        self.n = need

    @property
    def rows(self) -> Rows:
        return self.room[: self.n]


class Ledger:
    """All rows of the load processes, on a clock that starts with the warm-up."""

    def __init__(self, t0_s: float, slo_s: float) -> None:
        self.t0_s, self.slo_s = t0_s, slo_s
        self.kept = {kind: Kept() for kind in (SENT, DONE, BEAT)}

    def add(self, rows: Rows) -> None:
        rows = rows.copy()
        rows["time_s"] -= self.t0_s
        for kind, kept in self.kept.items():
            kept.add(rows[rows["kind"] == kind])

    def done(self, begin_s: float, end_s: float) -> Done:
        """Return what ended in (begin_s, end_s]."""
        rows = self.kept[DONE].rows
        end_s_N = rows["time_s"] + rows["span_s"]
        rows = rows[(end_s_N > begin_s) & (end_s_N <= end_s)]
        latency_s_N = rows["span_s"][rows["status"] == RequestLog.OK]
        slow = int(np.count_nonzero(latency_s_N > self.slo_s))
        return Done(latency_s_N=latency_s_N, failed=len(rows) - len(latency_s_N), slow=slow)

    def in_flight(self, t_s: float) -> int:
        """Return the requests sent and not answered at a time."""
        done = self.kept[DONE].rows
        ended = np.count_nonzero(done["time_s"] + done["span_s"] <= t_s)
        return int(np.count_nonzero(self.kept[SENT].rows["time_s"] <= t_s) - ended)

    def overdue(self, t_s: float) -> int:
        """Return the requests sent and not answered at a time, and later than the SLO already."""
        sent, done = (
            rows[t_s - rows["time_s"] > self.slo_s] for rows in (self.kept[SENT].rows, self.kept[DONE].rows)
        )
        return len(sent) - int(np.count_nonzero(done["time_s"] + done["span_s"] <= t_s))

    def log(self, end_s: float) -> RequestLog:
        """Return the request log as of `end_s`: in order of completion, then the open ones with their age."""
        done, sent = self.kept[DONE].rows, self.kept[SENT].rows
        done = done[done["time_s"] + done["span_s"] <= end_s]
        done = done[np.argsort(done["time_s"] + done["span_s"], kind="stable")]
        sent = sent[(sent["time_s"] <= end_s) & ~np.isin(_key(sent), _key(done))]
        open_N = np.full(len(sent), RequestLog.UNFINISHED)
        return RequestLog(
            start_s_N=np.concatenate([done["time_s"], sent["time_s"]]),
            latency_s_N=np.concatenate([done["span_s"], end_s - sent["time_s"]]),
            status_N=np.concatenate([done["status"], open_N]).astype(np.int8),
        )

    @property
    def lag_p99_s(self) -> float:
        """99th percentile of how late requests were sent, NaN without any."""
        lag_s_N = self.kept[SENT].rows["lag_s"]
        return float(np.quantile(lag_s_N, 0.99)) if len(lag_s_N) else math.nan

    @property
    def real_share(self) -> float:
        """Share of the answers that were real inferences; 0 where all requests failed, NaN where none has ended."""
        answer_N = self.kept[DONE].rows["answer"]
        answered, real = np.count_nonzero(answer_N != NO_ANSWER), np.count_nonzero(answer_N == REAL)
        return float(real / answered) if answered else (0.0 if len(answer_N) else math.nan)

    @property
    def cpu_share(self) -> float:
        """CPU seconds per second of the busiest load process in its busiest stretch, NaN before two beats."""
        beats = self.kept[BEAT].rows
        shares = [_busiest(beats[beats["process"] == p]) for p in np.unique(beats["process"])]
        return max(shares, default=math.nan)

    @property
    def beaten_s(self) -> float:
        """Time of the last sign of life of the load process that is silent longest, -inf before the first."""
        beats = self.kept[BEAT].rows
        last = [float(beats["time_s"][beats["process"] == p].max()) for p in np.unique(beats["process"])]
        return min(last, default=-math.inf)


def _key(rows: Rows) -> NDArray[np.int64]:
    return np.asarray(rows["process"].astype(np.int64) << 32 | rows["id"], dtype=np.int64)


def _busiest(beats: Rows) -> float:
    """Highest CPU share over stretches of BUSY_OVER_S, or over all there is where that is shorter."""
    t_s, cpu_s = beats["time_s"], beats["span_s"]
    if len(t_s) < 2:
        return math.nan
    later = np.searchsorted(t_s, t_s + BUSY_OVER_S)
    begins = np.flatnonzero(later < len(t_s))
    if len(begins) == 0:
        return float((cpu_s[-1] - cpu_s[0]) / (t_s[-1] - t_s[0]))
    ends = later[begins]
    return float(np.max((cpu_s[ends] - cpu_s[begins]) / (t_s[ends] - t_s[begins])))
