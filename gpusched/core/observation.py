"""What a policy may see: windows of metrics with their age, as a real cluster would show them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(kw_only=True)
class Observation:
    """One entry per environment, axis E; SI units; NaN where the metric has no value (yet).

    Metrics are windows that end at the last scrape, `age_s_E` ago; GPU readings have an age of their own
    because DCGM samples on its own clock and shows the device, not a pod.

    rate_rps_E           requests answered per second
    failed_share_E       share of requests that failed
    slow_share_E         share of answered requests later than the SLO
    latency_mean_s_E     client latency, mean
    latency_p95_s_E      client latency, 95th percentile
    queue_s_E            Triton queue time per request
    batch_size_E         requests per GPU batch
    in_flight_E          requests at the replicas, waiting or executing, at the last scrape
    cpu_cores_E          CPU used by all replicas, cores
    cpu_utilization_E    CPU used as a share of the CPU requested by ready replicas
    gpu_utilization_E    device utilisation as DCGM shows it, 0..1
    vram_bytes_E         device memory held
    replicas_spec_E      replicas asked for
    replicas_ready_E     replicas in the Service's endpoints
    hpa_target_E         HPA target in force, NaN without an HPA
    cpu_limit_cores_E    CPU limit per replica
    instances_E          Triton instances per replica
    gpu_share_E          GPU share per replica
    age_s_E              age of the last scrape
    gpu_age_s_E          age of the last GPU sample
    """

    rate_rps_E: Floats
    failed_share_E: Floats
    slow_share_E: Floats
    latency_mean_s_E: Floats
    latency_p95_s_E: Floats
    queue_s_E: Floats
    batch_size_E: Floats
    in_flight_E: Floats
    cpu_cores_E: Floats
    cpu_utilization_E: Floats
    gpu_utilization_E: Floats
    vram_bytes_E: Floats
    replicas_spec_E: Floats
    replicas_ready_E: Floats
    hpa_target_E: Floats
    cpu_limit_cores_E: Floats
    instances_E: Floats
    gpu_share_E: Floats
    age_s_E: Floats
    gpu_age_s_E: Floats

    @classmethod
    def columns(cls) -> list[str]:
        """Return the field names in order."""
        return [f.name for f in fields(cls)]

    @classmethod
    def from_table(cls, table_EF: Floats) -> Observation:
        """Build from one array whose columns stand in the order of `columns()`."""
        return cls(**{name: table_EF[:, c] for c, name in enumerate(cls.columns())})

    @property
    def envs(self) -> int:
        return len(self.rate_rps_E)


@dataclass(kw_only=True)
class Outcome:
    """What really happened in the last control interval, axis E: for reward and gates, never for a policy.

    gpu_busy_E          share of time at which a kernel ran, 0..1
    replicas_alive_E    mean replicas that held resources
    cpu_cores_limit_E   mean CPU limit over all replicas that held resources, cores
    completed_E         requests answered well
    failed_E            requests refused or broken
    slow_E              requests answered well but later than the SLO
    latency_p95_s_E     95th percentile of client latency, 0 without a request
    overdue_E           requests without an answer at the end of the interval and later than the SLO already
    replicas_max        most replicas the limits allow
    cpu_cores_max       most CPU the limits allow for all replicas, cores
    slo_s               latency objective
    """

    gpu_busy_E: Floats
    replicas_alive_E: Floats
    cpu_cores_limit_E: Floats
    completed_E: Floats
    failed_E: Floats
    slow_E: Floats
    latency_p95_s_E: Floats
    replicas_max: int
    cpu_cores_max: float
    slo_s: float
    overdue_E: Floats = field(default_factory=lambda: np.zeros(1))

    @property
    def violation_share_E(self) -> Floats:
        """Share of the interval's requests that failed, came later than the SLO, or hang and are later than it."""
        total_E = self.completed_E + self.failed_E + self.overdue_E
        bad_E = self.slow_E + self.failed_E + self.overdue_E
        return np.divide(bad_E, total_E, out=np.zeros_like(bad_E), where=total_E > 0)
