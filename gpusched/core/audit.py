"""What a real cluster and its load generator tell of themselves, for the gates."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True)
class Audit:
    """Every default means "nothing to tell", as in a simulation.

    client_cpu_share       busiest load process, CPU seconds per second (1 = a whole core)
    schedule_lag_p99_s     99th percentile of how late requests were sent
    real_share             share of answered requests whose answer was checked to be a real inference
    telemetry_lost_s       longest time without fresh metrics
    fell_back              the policy was replaced by the configured HPA because metrics were lost
    foreign_gpu_processes  processes on the GPU that are not the service's
    throttled              the GPU lowered its clocks for heat or power
    """

    client_cpu_share: float = math.nan
    schedule_lag_p99_s: float = math.nan
    real_share: float = math.nan
    telemetry_lost_s: float = 0.0
    fell_back: bool = False
    foreign_gpu_processes: int = 0
    throttled: bool = False
