"""The trial's record in wall time: tick rows, observations and outcomes, defined as the simulator's are."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from gpusched.core.controls import Limits
from gpusched.core.load import LoadPlan
from gpusched.core.logs import TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.service import Service
from gpusched.live.ledger import Ledger
from gpusched.live.state import ReplicaState
from gpusched.live.telemetry import Telemetry

log = logging.getLogger(__name__)


class Mean:
    """Time averages of the replicas over a tick, straight lines between the times they were asked about."""

    def __init__(self, state: ReplicaState, t_s: float) -> None:
        self.state, self.t_s = state, t_s
        self.begin()

    def begin(self) -> None:
        self.over_s = self.ready_s = self.alive_s = 0.0

    def add(self, state: ReplicaState, t_s: float) -> None:
        span_s = max(t_s - self.t_s, 0.0)
        self.over_s += span_s
        self.ready_s += 0.5 * span_s * (self.state.ready + state.ready)
        self.alive_s += 0.5 * span_s * (self.state.alive + state.alive)
        self.state, self.t_s = state, t_s

    @property
    def ready(self) -> float:
        return self.ready_s / self.over_s if self.over_s else float(self.state.ready)

    @property
    def alive(self) -> float:
        return self.alive_s / self.over_s if self.over_s else float(self.state.alive)


@dataclass(kw_only=True)
class Book:
    """Times are seconds from the start of the warm-up.

    Client latencies, counts and requests in flight come from the load's own record; where no load of ours runs, from
    Triton. What comes from Prometheus is as of its last sample.
    """

    service: Service
    limits: Limits
    slo_s: float
    plan: LoadPlan
    window_s: float
    ledger: Ledger
    telemetry: Telemetry
    mean: Mean
    loaded: bool

    def __post_init__(self) -> None:
        self.rows: list[list[float]] = []
        self.agreed_s = 0.0
        self.counted = dict.fromkeys(("queue_sum_s", "batches", "cpu_s"), math.nan)

    @property
    def state(self) -> ReplicaState:
        return self.mean.state

    def cross_check(self, now_s: float, patience_s: float) -> None:
        """Warn once where kube-state-metrics counts other ready replicas than the control plane for long."""
        counted = self.telemetry.levels["replicas_ready"]
        if math.isnan(counted) or counted == self.state.ready:
            self.agreed_s = now_s
        elif now_s - self.agreed_s > patience_s:
            self.agreed_s = math.inf
            log.warning(
                "kube-state-metrics counts %g ready replicas, the control plane %d", counted, self.state.ready
            )

    @property
    def scraped_s(self) -> float:
        """When Triton's newest sample was taken, -inf without one."""
        return self.telemetry.scraped_s - self.ledger.t0_s

    def age_s(self, now_s: float) -> float:
        """Return the age of the newest sample, inf without one."""
        # A sample may be taken a moment after the tick it is read in.
        return max(now_s - self.scraped_s, 0.0)

    def cpu_cores(self) -> float:
        """Return the CPU limit of one replica."""
        return _or(self.state.cpu_cores, self.service.cpu_limit_cores.value)

    # --- ticks ---

    def tick(self, begin_s: float, end_s: float) -> None:
        """Write the row of the tick that has just ended."""
        seen, state, alive = self.telemetry.levels, self.state, self.mean.alive
        row = {
            "t_s_T": end_s,
            "users_T": float(self.plan.users_at(np.array([end_s]))[0]),
            "replicas_spec_T": state.spec,
            "replicas_ready_T": self.mean.ready,
            "replicas_alive_T": alive,
            "cpu_cores_used_T": self._grown("cpu_s") / (end_s - begin_s),
            "cpu_cores_limit_T": alive * self.cpu_cores(),
            "gpu_busy_T": seen["gpu_utilization"],
            "vram_bytes_T": seen["vram_bytes"],
            "memory_bytes_T": seen["memory_bytes"],
            "in_flight_T": seen["in_flight"],
            **self._requests(begin_s, end_s),
            "queue_sum_s_T": self._grown("queue_sum_s"),
            "batches_T": self._grown("batches"),
            "hpa_target_T": state.hpa_target,
            "cpu_cores_T": self.cpu_cores(),
            "instances_T": _or(state.instances, self.service.instances.value),
            "gpu_share_T": _or(state.gpu_share, 1.0),
        }
        self.rows.append([float(row[name]) for name in TickLog.columns()])
        self.mean.begin()

    def _requests(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Return the columns that come from the load's own record."""
        done = self.ledger.done(begin_s, end_s)
        own = {
            "completed_T": done.completed,
            "failed_T": done.failed,
            "slow_T": done.slow,
            "latency_sum_s_T": float(done.latency_s_N.sum()),
            "latency_p95_s_T": done.p95_s,
        }
        return own | ({"in_flight_T": self.ledger.in_flight(end_s)} if self.loaded else {})

    def _grown(self, name: str) -> float:
        """Return how far a counter has grown since the last tick, NaN before its first reading."""
        now, before = self.telemetry.growth.of(name), self.counted[name]
        self.counted[name] = now
        return now - before if math.isfinite(before) else now

    def ticks(self) -> TickLog:
        """Return all rows as they were written."""
        return TickLog.from_table(np.array(self.rows).reshape(len(self.rows), len(TickLog.columns())))

    def final_ticks(self) -> TickLog:
        """Return all rows with their requests counted anew: a row of the load may have come late to its tick."""
        ticks = self.ticks()
        for k, end_s in enumerate(ticks.t_s_T):
            begin_s = ticks.t_s_T[k - 1] if k else 0.0
            for name, value in self._requests(float(begin_s), float(end_s)).items():
                getattr(ticks, name)[k] = value
        return ticks

    # --- what a policy sees, and what it is judged by ---

    def observation(self, now_s: float) -> Observation:
        """Return what is known now: windows that end at Prometheus' last sample, and the state of the control plane."""
        seen, state = self.telemetry.levels, self.state
        cpu_request = state.ready * self.cpu_cores() * self._request_per_limit()
        values = {
            **(self._by_clients() if self.loaded else self._by_triton()),
            "queue_s_E": seen["queue_s"],
            "batch_size_E": seen["batch_size"],
            "cpu_cores_E": seen["cpu_cores"],
            "cpu_utilization_E": seen["cpu_cores"] / cpu_request if cpu_request else math.nan,
            "gpu_utilization_E": seen["gpu_utilization"],
            "vram_bytes_E": seen["vram_bytes"],
            "replicas_spec_E": state.spec,
            "replicas_ready_E": state.ready,
            "hpa_target_E": state.hpa_target,
            "cpu_limit_cores_E": self.cpu_cores(),
            "instances_E": _or(state.instances, self.service.instances.value),
            "gpu_share_E": _or(state.gpu_share, 1.0),
            "age_s_E": self.age_s(now_s),
            "gpu_age_s_E": max(now_s - (self.telemetry.gpu_scraped_s - self.ledger.t0_s), 0.0),
        }
        return Observation(**{name: np.array([values[name]], dtype=float) for name in Observation.columns()})

    def _by_clients(self) -> dict[str, float]:
        """The clients' window that ends at the last sample; nothing before the first."""
        end_s = self.scraped_s
        begin_s = max(end_s - self.window_s, 0.0)
        span_s = end_s - begin_s
        names = ("rate_rps", "failed_share", "slow_share", "latency_mean_s", "latency_p95_s", "in_flight")
        if not span_s > 0:
            return {f"{name}_E": math.nan for name in names}
        done = self.ledger.done(begin_s, end_s)
        ended = done.completed + done.failed
        values = (
            done.completed / span_s,
            done.failed / ended if ended else math.nan,
            done.slow / done.completed if done.completed else math.nan,
            done.mean_s,
            done.p95_s,
            float(self.ledger.in_flight(end_s)),
        )
        return {f"{name}_E": value for name, value in zip(names, values, strict=True)}

    def _by_triton(self) -> dict[str, float]:
        """Somebody else's users: what Triton tells. It has no count of answers later than the SLO."""
        seen = self.telemetry.levels
        names = ("rate_rps", "failed_share", "latency_mean_s", "latency_p95_s", "in_flight")
        return {"slow_share_E": math.nan, **{f"{name}_E": seen[name] for name in names}}

    def _request_per_limit(self) -> float:
        return self.service.cpu_request_cores.value / self.service.cpu_limit_cores.value

    def outcome(self, begin_s: float, end_s: float) -> Outcome:
        """Return what happened in (begin_s, end_s]. Where no GPU is seen, none was used."""
        ticks, done = self.ticks().between(begin_s, end_s), self.ledger.done(begin_s, end_s)

        def one(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return np.array([value], dtype=np.float64)

        return Outcome(
            gpu_busy_E=one(float(np.nan_to_num(ticks.gpu_busy_T).mean())),
            replicas_alive_E=one(float(ticks.replicas_alive_T.mean())),
            cpu_cores_limit_E=one(float(ticks.cpu_cores_limit_T.mean())),
            completed_E=one(done.completed),
            failed_E=one(done.failed),
            slow_E=one(done.slow),
            latency_p95_s_E=np.nan_to_num(one(done.p95_s)),
            overdue_E=one(self.ledger.overdue(end_s)),
            replicas_max=self.limits.max_replicas,
            cpu_cores_max=self.limits.max_replicas * max(self.limits.cpu_cores),
            slo_s=self.slo_s,
        )


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
