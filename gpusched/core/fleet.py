"""A fleet: services that share nodes and GPUs. What each of them is, and the KPIs of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from gpusched.core.errors import refuse
from gpusched.core.kpi import Window, kpis
from gpusched.core.logs import Floats, RequestLog, TickLog
from gpusched.core.service import Service

OF_NODES = ("gpu_seconds", "goodput_per_gpu_s", "memory_utilization", "vram_utilization")
"""KPIs of nodes and GPUs, which a service among others has none of."""
JUDGED_EACH = ("slo_attainment", "responsive_share", "recovery_s", "fault_recovery_s")
"""KPIs that need one objective per tick: the fleet's is the mean over its services."""
SUMMED = (
    "users_T", "replicas_spec_T", "replicas_ready_T", "replicas_alive_T", "cpu_cores_used_T", "cpu_cores_limit_T",
    "vram_bytes_T", "memory_bytes_T", "in_flight_T", "completed_T", "failed_T", "slow_T", "latency_sum_s_T",
    "queue_sum_s_T", "batches_T",
)  # fmt: skip
"""Columns of the tick log that add up over services."""
NODE_CONSTANTS = (
    "gpus", "gpu_vram_bytes", "gpu_reserved_bytes", "gpu_slice_s", "gpu_switch_s", "mps_interference", "node_cpu_cores",
    "node_memory_bytes", "cfs_period_s",
)  # fmt: skip
"""Constants that belong to the nodes, which all services share."""


MOST = 10_000
"""Services alike in one fleet; more would not fit into memory."""


@dataclass(kw_only=True)
class Tenant:
    """`count` services of a fleet that are alike; their users are not, each has streams of its own.

    load            its load, an option of conf/load
    slo_s           its latency objective, seconds; null = the reward's
    start_replicas  replicas ready when the warm-up begins; null = the trial's
    service         constants of the service profile that are different here, in the profile's units
    policy          an option that need not be trained, of its own; null = the trial's
    """

    name: str
    load: Any
    count: int = 1
    slo_s: float | None = None
    start_replicas: int | None = None
    service: dict[str, float] = field(default_factory=dict)
    policy: Any = None

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum():
            raise refuse("name", self.name, "must consist of letters, digits and _")
        if not 1 <= self.count <= MOST:
            raise refuse("count", self.count, f"must lie in 1..{MOST}")
        if self.slo_s is not None and not self.slo_s > 0:
            raise refuse("slo_s", self.slo_s, "must be greater than 0 s")
        if self.start_replicas is not None and self.start_replicas < 1:
            raise refuse("start_replicas", self.start_replicas, "must be at least 1")

    def profile(self, base: Service) -> Service:
        """Return the service as this tenant runs it; InputError for a constant that is not the service's own."""
        constants = base.constants()
        for name in self.service:
            if name not in constants or name in NODE_CONSTANTS:
                own = ", ".join(key for key in constants if key not in NODE_CONSTANTS)
                raise refuse("service", name, f"must be one of {own}")
        changed: dict[str, Any] = {
            name: replace(
                constants[name], value=float(value), status="assumed", source=f"chosen for {self.name}"
            )
            for name, value in self.service.items()
        }
        return replace(base, **changed)


@dataclass(kw_only=True)
class Fleet:
    """Services that share nodes. The order decides nothing but their names."""

    name: str
    services: list[Tenant]

    def __post_init__(self) -> None:
        if not self.services:
            raise refuse("services", "[]", "must name at least one service")
        counts = Counter(name for name, _ in self.members())
        if twice := [name for name, count in counts.items() if count > 1]:
            raise refuse("services", twice[0], "is the name of two services")

    def members(self) -> list[tuple[str, Tenant]]:
        """Return every single service with a name of its own."""
        return [
            (tenant.name if tenant.count == 1 else f"{tenant.name}_{k:02d}", tenant)
            for tenant in self.services
            for k in range(1, tenant.count + 1)
        ]


@dataclass(kw_only=True)
class FleetWindow(Window):
    """All requests and ticks of a fleet; each request was judged by the objective of its own service."""

    good_requests: int
    overdue_requests: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.overdue = self.overdue_requests

    @property
    def good(self) -> int:
        return self.good_requests


def fleet_kpis(window: FleetWindow, services: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the KPIs of a fleet from its pooled logs and from those of its services, by name."""
    values = kpis(window, without=JUDGED_EACH)
    values |= {name: float(np.mean([of[name] for of in services])) for name in JUDGED_EACH}
    values["scale_events"] = float(sum(of["scale_events"] for of in services))
    return values


def service_kpis(window: Window) -> dict[str, float]:
    """Return the KPIs that a service among others has, by name."""
    return kpis(window, without=OF_NODES)


def summed(ticks: Sequence[TickLog], gpu_busy_T: Floats) -> TickLog:
    """Return a fleet's tick log: columns that add up, the GPUs' own, and NaN where services have no common value."""
    nothing_T = np.full(len(gpu_busy_T), np.nan)
    columns = dict.fromkeys(TickLog.columns(), nothing_T)
    columns |= {name: np.sum([getattr(of, name) for of in ticks], axis=0) for name in SUMMED}
    columns |= {"t_s_T": ticks[0].t_s_T, "gpu_busy_T": gpu_busy_T}
    return TickLog(**columns)


def pooled(logs: list[RequestLog]) -> RequestLog:
    """Return all requests in one log, and empty the list: a large fleet's requests are not held twice."""
    sizes = [len(log.status_N) for log in logs]
    begins = np.concatenate([[0], np.cumsum(sizes)])
    whole = {f.name: np.empty(begins[-1], getattr(logs[0], f.name).dtype) for f in fields(RequestLog)}
    for k in reversed(range(len(sizes))):
        log = logs.pop()
        for name, column in whole.items():
            column[begins[k] : begins[k + 1]] = getattr(log, name)
    return RequestLog(**whole)
