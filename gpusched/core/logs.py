"""What a cluster remembers of a trial: every request, and the state of the service tick by tick."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(kw_only=True)
class RequestLog:
    """One row per request, axis N, in order of completion; the unfinished ones come last.

    start_s_N    when the client sent it, seconds from the start of the warm-up
    latency_s_N  client latency; for an unfinished request its age at the end
    status_N     one of OK, FAILED, UNFINISHED
    """

    start_s_N: Floats
    latency_s_N: Floats
    status_N: NDArray[np.int8]

    OK = 0
    FAILED = 1
    UNFINISHED = 2

    @property
    def end_s_N(self) -> Floats:
        return self.start_s_N + self.latency_s_N


@dataclass(kw_only=True)
class TickLog:
    """One row per tick, axis T. Levels are time averages over the tick unless said otherwise.

    t_s_T                 end of the tick, seconds from the start of the warm-up
    users_T               active users at the end of the tick (closed loop), 0 for open loads
    replicas_spec_T       replicas asked of the Deployment, at the end of the tick
    replicas_ready_T      replicas in the Service's endpoints
    replicas_alive_T      replicas that hold resources: scheduled, starting, ready or terminating
    cpu_cores_used_T      CPU used by all replicas, cores
    cpu_cores_limit_T     CPU limit of all replicas that hold resources, cores
    gpu_busy_T            share of time at which a kernel ran, averaged over the GPUs, 0..1 (device level)
    vram_bytes_T          GPU memory held
    memory_bytes_T        host memory held
    in_flight_T           requests sent and not answered, at the end of the tick
    completed_T           requests answered well in the tick
    failed_T              requests refused or broken in the tick
    slow_T                requests answered well but later than the SLO
    latency_sum_s_T       sum of the client latencies of the completed
    latency_p95_s_T       95th percentile of the tick's completed requests, NaN without any
    queue_sum_s_T         sum of Triton queue times of the completed
    batches_T             GPU batches executed
    hpa_target_T          HPA target in force, NaN without an HPA
    cpu_cores_T           CPU limit per replica
    instances_T           Triton instances per replica
    gpu_share_T           GPU share per replica
    """

    t_s_T: Floats
    users_T: Floats
    replicas_spec_T: Floats
    replicas_ready_T: Floats
    replicas_alive_T: Floats
    cpu_cores_used_T: Floats
    cpu_cores_limit_T: Floats
    gpu_busy_T: Floats
    vram_bytes_T: Floats
    memory_bytes_T: Floats
    in_flight_T: Floats
    completed_T: Floats
    failed_T: Floats
    slow_T: Floats
    latency_sum_s_T: Floats
    latency_p95_s_T: Floats
    queue_sum_s_T: Floats
    batches_T: Floats
    hpa_target_T: Floats
    cpu_cores_T: Floats
    instances_T: Floats
    gpu_share_T: Floats

    @classmethod
    def columns(cls) -> list[str]:
        """Return the column names in order."""
        return [f.name for f in fields(cls)]

    @classmethod
    def from_table(cls, table_TC: Floats) -> TickLog:
        """Build from one array whose columns stand in the order of `columns()`."""
        return cls(**{name: table_TC[:, c].copy() for c, name in enumerate(cls.columns())})

    def between(self, begin_s: float, end_s: float) -> TickLog:
        """Return the ticks that end in (begin_s, end_s]."""
        # A tick's end is a sum of floats: half a millisecond keeps the tick at a border on its side.
        keep_T = (self.t_s_T > begin_s + 5e-4) & (self.t_s_T <= end_s + 5e-4)
        return TickLog(**{name: getattr(self, name)[keep_T] for name in self.columns()})
