"""KPIs: pure functions of the request log and the tick log, the same for every cluster.

Each KPI declares its unit, its direction and its definition here; `docs/metrics.md` is printed from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog

QUANTILES = (0.5, 0.95, 0.99)
RECOVERY_HOLD_S = 30.0
"""A service has recovered once every tick of this long met the objective."""


@dataclass(kw_only=True)
class Window:
    """What the KPIs are computed from: the logs between the end of the warm-up and the end of the trial.

    faults  from when to when something was wrong, in order (FaultPlan.spans)
    """

    requests: RequestLog
    ticks: TickLog
    plan: LoadPlan
    begin_s: float
    end_s: float
    slo_s: float
    gpus: int
    gpu_vram_bytes: float
    node_memory_bytes: float
    faults: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        before = self.ticks.between(-1.0, self.begin_s).replicas_spec_T
        self.replicas_at_begin = before[-1:]  # empty without a warm-up
        self.ticks = self.ticks.between(self.begin_s, self.end_s)
        r = self.requests
        finished_N = r.status_N != RequestLog.UNFINISHED
        inside_N = (r.end_s_N > self.begin_s) & (r.end_s_N <= self.end_s + 1e-9)
        self.latency_s_N: NDArray[np.float64] = r.latency_s_N[inside_N & (r.status_N == RequestLog.OK)]
        self.failed = int(np.sum(inside_N & (r.status_N == RequestLog.FAILED)))
        # A request still open at the end but already too late is a certain violation; dropping it would
        # reward a service that hangs.
        self.overdue = int(np.sum(~finished_N & (r.latency_s_N > self.slo_s)))
        self.dt_s_T = np.diff(self.ticks.t_s_T, prepend=self.begin_s)

    @property
    def duration_s(self) -> float:
        return self.end_s - self.begin_s

    @cached_property
    def quantiles(self) -> dict[float, float]:
        """Latency quantiles that KPIs ask for, taken together: sorting the requests is what takes time."""
        if not len(self.latency_s_N):
            return dict.fromkeys(QUANTILES, float("nan"))
        return dict(zip(QUANTILES, np.quantile(self.latency_s_N, QUANTILES).tolist(), strict=True))

    @property
    def good(self) -> int:
        return int(np.sum(self.latency_s_N <= self.slo_s))

    @property
    def judged(self) -> int:
        """Requests the objective judges: answered, failed, or open and overdue."""
        return len(self.latency_s_N) + self.failed + self.overdue

    def mean(self, column_T: NDArray[np.float64]) -> float:
        """Return the time average of a tick column."""
        return ratio(float(np.sum(column_T * self.dt_s_T)), float(np.sum(self.dt_s_T)))

    def integral(self, column_T: NDArray[np.float64]) -> float:
        """Return the time integral of a tick column."""
        return float(np.sum(column_T * self.dt_s_T))


def ratio(above: float, below: float) -> float:
    """Return above / below, NaN where below is 0."""
    return above / below if below else float("nan")


def quantile(w: Window, q: float) -> float:
    return w.quantiles[q]


def scale_events(w: Window) -> float:
    return float(np.count_nonzero(np.diff(np.concatenate([w.replicas_at_begin, w.ticks.replicas_spec_T]))))


def slo_attainment(w: Window) -> float:
    p95_s_T = w.ticks.latency_p95_s_T
    judged_T = np.isfinite(p95_s_T)
    return ratio(float(np.sum(p95_s_T[judged_T] <= w.slo_s)), float(np.sum(judged_T)))


def load_steps(w: Window) -> list[float]:
    """Return the start of the episode and every time at which the number of users rises within it."""
    if w.plan.is_open:
        return [w.begin_s]
    rises = w.plan.from_s_K[1:][np.diff(w.plan.users_K) > 0]
    return [w.begin_s, *[float(t) for t in rises if w.begin_s < t < w.end_s]]


def recovery_s(w: Window) -> float:
    """Mean time from a step until the p95 of every tick of RECOVERY_HOLD_S meets the objective.

    A step that is not recovered from before the next one (or the end) counts with all of that time.
    """
    steps = load_steps(w)
    ends = [*steps[1:], w.end_s]
    return float(np.mean([_recover(w, a, b) for a, b in zip(steps, ends, strict=True)]))


def fault_recovery_s(w: Window) -> float:
    """Mean time from a fault's onset until the p95 of every tick of RECOVERY_HOLD_S meets the objective, NaN without one.

    A fault that is not recovered from before the next one (or the end) counts with all of that time.
    """
    onsets = [begin_s for begin_s, _ in w.faults]
    times_s = [_recover(w, a, b) for a, b in zip(onsets, [*onsets, w.end_s][1:], strict=True)]
    return float(np.mean(times_s)) if times_s else float("nan")


def _recover(w: Window, begin_s: float, end_s: float) -> float:
    inside_T = (w.ticks.t_s_T > begin_s + 5e-4) & (w.ticks.t_s_T <= end_s + 5e-4)
    t_s = w.ticks.t_s_T[inside_T]
    # A tick without requests is not late.
    late = ((w.ticks.latency_p95_s_T > w.slo_s) | _unanswered(w))[inside_T]
    since_s = begin_s
    for t, is_late in zip(t_s, late, strict=True):
        if is_late:
            since_s = float(t)
        elif t - since_s >= RECOVERY_HOLD_S - 5e-4:
            return since_s - begin_s
    return end_s - begin_s


def _unanswered(w: Window) -> NDArray[np.bool_]:
    """Return the ticks in which nothing was answered though requests failed or had been open from the begin on, shape [T]."""
    ticks = w.ticks
    open_before_T = np.concatenate([[0.0], ticks.in_flight_T[:-1]])
    span_s_T = np.diff(ticks.t_s_T, prepend=0.0)
    waited_T = (np.nan_to_num(open_before_T) > 0) & (span_s_T >= w.slo_s)
    return np.asarray((ticks.completed_T == 0) & ((ticks.failed_T > 0) | waited_T))


def responsive_share(w: Window) -> float:
    """Share of the seconds in which anything was sent that had at least one request answered within the SLO.

    A second whose only hope is still open at the end, and not overdue, is left out.
    """
    r = w.requests
    inside_N = (r.start_s_N >= w.begin_s) & (r.start_s_N < w.end_s)
    second_N = (r.start_s_N - w.begin_s).astype(np.int64)
    in_time_N = inside_N & (r.latency_s_N <= w.slo_s)

    def seconds(chosen_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.bincount(second_N[chosen_N], minlength=int(w.duration_s) + 1) > 0

    good_S = seconds(in_time_N & (r.status_N == RequestLog.OK))
    may_be_S = seconds(in_time_N & (r.status_N == RequestLog.UNFINISHED)) & ~good_S
    return ratio(float(good_S.sum()), float(seconds(inside_N).sum() - may_be_S.sum()))


@dataclass(frozen=True)
class KPI:
    """One KPI: unit, direction (+1 higher is better, -1 lower, 0 neither), definition and function."""

    unit: str
    better: int
    meaning: str
    of: Callable[[Window], float]


KPIS: dict[str, KPI] = {
    "latency_mean_s": KPI("s", -1, "mean client latency of answered requests",
                          lambda w: ratio(float(w.latency_s_N.sum()), len(w.latency_s_N))),
    "latency_p50_s": KPI("s", -1, "median client latency, from raw requests", lambda w: quantile(w, 0.50)),
    "latency_p95_s": KPI("s", -1, "95th percentile of client latency, from raw requests", lambda w: quantile(w, 0.95)),
    "latency_p99_s": KPI("s", -1, "99th percentile of client latency, from raw requests", lambda w: quantile(w, 0.99)),
    "throughput_rps": KPI("req/s", 1, "requests answered per second", lambda w: len(w.latency_s_N) / w.duration_s),
    "goodput_rps": KPI("req/s", 1, "requests answered within the SLO per second", lambda w: w.good / w.duration_s),
    "success_rate": KPI("1", 1, "answered / (answered + failed)",
                        lambda w: ratio(len(w.latency_s_N), len(w.latency_s_N) + w.failed)),
    "qos_violation_rate": KPI("1", -1, "requests late, failed, or open and overdue at the end / all of these and the good",
                              lambda w: ratio(w.judged - w.good, w.judged)),
    "slo_attainment": KPI("1", 1, "share of ticks whose p95 meets the SLO", slo_attainment),
    "responsive_share": KPI("1", 1, "share of seconds with requests in which at least one was answered within the SLO",
                            responsive_share),
    "cpu_utilization": KPI("1", 1, "CPU used / CPU limit of the replicas that hold resources",
                           lambda w: ratio(w.integral(w.ticks.cpu_cores_used_T), w.integral(w.ticks.cpu_cores_limit_T))),
    "memory_utilization": KPI("1", 0, "host memory held / host memory of the node",
                              lambda w: w.mean(w.ticks.memory_bytes_T) / w.node_memory_bytes),
    "gpu_utilization": KPI("1", 0, "share of time at which a kernel ran, averaged over the GPUs (device level)",
                           lambda w: w.mean(w.ticks.gpu_busy_T)),
    "vram_utilization": KPI("1", 0, "GPU memory held / GPU memory",
                            lambda w: w.mean(w.ticks.vram_bytes_T) / (w.gpus * w.gpu_vram_bytes)),
    "goodput_per_gpu_s": KPI("req/s", 1, "requests answered within the SLO per GPU-second used",
                             lambda w: ratio(w.good, w.gpus * w.integral(w.ticks.gpu_busy_T))),
    "goodput_per_replica_s": KPI("req/s", 1, "requests answered within the SLO per replica-second held",
                                 lambda w: ratio(w.good, w.integral(w.ticks.replicas_alive_T))),
    "replicas_mean": KPI("1", -1, "mean replicas that hold resources", lambda w: w.mean(w.ticks.replicas_alive_T)),
    "replica_seconds": KPI("s", -1, "replicas that hold resources, integrated over the episode",
                           lambda w: w.integral(w.ticks.replicas_alive_T)),
    "gpu_seconds": KPI("s", -1, "GPU time used", lambda w: w.gpus * w.integral(w.ticks.gpu_busy_T)),
    "scale_events": KPI("1", -1, "changes of the replicas asked for, tick to tick", scale_events),
    "recovery_s": KPI("s", -1, "mean time from the start and from each rise of the load until p95 meets the SLO for 30 s",
                      recovery_s),
    "fault_recovery_s": KPI("s", -1, "mean time from each fault's onset until p95 meets the SLO for 30 s; no value without a fault",
                            fault_recovery_s),
}  # fmt: skip

HEADLINE = (
    "latency_p95_s",
    "qos_violation_rate",
    "throughput_rps",
    "goodput_rps",
    "gpu_utilization",
    "goodput_per_gpu_s",
    "replica_seconds",
)
"""The KPIs the study's question names: latency, QoS, throughput, GPU utilisation and efficiency, cost."""


def kpis(window: Window, without: Collection[str] = ()) -> dict[str, float]:
    """Return every KPI of a trial by name."""
    return {name: float(kpi.of(window)) for name, kpi in KPIS.items() if name not in without}
