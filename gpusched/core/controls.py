"""Controls: everything a policy may set. Absolute and idempotent, so repeating one is harmless."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import refuse

UNSET = -1
"""In an integer control: leave this lever as it is."""

METRICS = ("cpu", "queue", "in_flight")
"""What an HPA can scale on: CPU utilisation (Resource), queue time per request (External), requests in flight per pod (Pods)."""


@dataclass(kw_only=True)
class HPARule:
    """One scaling policy of a direction (autoscaling/v2 HPAScalingPolicy)."""

    type: str
    value: int
    period_s: int

    def __post_init__(self) -> None:
        if self.type not in ("Pods", "Percent"):
            raise refuse("type", self.type, "must be Pods or Percent")
        if self.value < 1:
            raise refuse("value", self.value, "must be at least 1")
        if not 1 <= self.period_s <= 1800:
            raise refuse("period_s", self.period_s, "must lie in 1..1800 s")


@dataclass(kw_only=True)
class HPADirection:
    """Behaviour of one direction; None means "not given", which the API defaults field by field."""

    stabilization_s: int | None = None
    select: str = "Max"
    policies: list[HPARule] | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.stabilization_s is not None and not 0 <= self.stabilization_s <= 3600:
            raise refuse("stabilization_s", self.stabilization_s, "must lie in 0..3600 s")
        if self.select not in ("Max", "Min", "Disabled"):
            raise refuse("select", self.select, "must be Max, Min or Disabled")
        if self.tolerance is not None and self.tolerance < 0:
            raise refuse("tolerance", self.tolerance, "must be at least 0")
        if self.policies is not None and not self.policies:
            raise refuse(
                "policies", "[]", "must name at least one policy", "Leave it out for the API's default."
            )


@dataclass(kw_only=True)
class HPASpec:
    """An autoscaling/v2 HorizontalPodAutoscaler for the service's Deployment.

    `target` is percent of the CPU request for `cpu`, milliseconds of mean queue time for `queue`
    (external, type Value), requests per pod for `in_flight` (Pods, AverageValue). `per_replica` makes the external
    target an AverageValue, as KEDA's default is: the metric is divided by the replicas before it is compared.
    Both behaviours None = the legacy path that `kubectl autoscale` produces.
    """

    metric: str = "cpu"
    target: float = 80.0
    min_replicas: int = 1
    max_replicas: int = 6
    scale_up: HPADirection | None = None
    scale_down: HPADirection | None = None
    per_replica: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise refuse("metric", self.metric, f"must be one of {', '.join(METRICS)}")
        if self.per_replica and self.metric != "queue":
            raise refuse("per_replica", self.per_replica, "needs metric=queue, the only external one")
        if not self.target > 0:
            raise refuse("target", self.target, "must be greater than 0")
        if self.min_replicas < 1:
            raise refuse("min_replicas", self.min_replicas, "must be at least 1")
        if self.max_replicas < self.min_replicas:
            raise refuse(
                "max_replicas", self.max_replicas, f"must be at least min_replicas ({self.min_replicas})"
            )


@dataclass(kw_only=True)
class Controls:
    """What a policy asks for, one entry per environment (axis E).

    With `hpa` given, the control plane's HPA owns the replica count and `replicas_E` must be UNSET;
    `hpa_target_E` overrides the spec's target. `gpu_share_E` is the MPS active-thread share of one pod.
    """

    replicas_E: NDArray[np.int64]
    hpa: HPASpec | None = None
    hpa_target_E: NDArray[np.float64] | None = None
    cpu_cores_E: NDArray[np.float64] | None = None
    instances_E: NDArray[np.int64] | None = None
    gpu_share_E: NDArray[np.float64] | None = None

    @classmethod
    def scale(cls, replicas_E: Any) -> Controls:
        """Set the replica count and nothing else."""
        return cls(replicas_E=np.asarray(replicas_E, dtype=np.int64))

    @classmethod
    def autoscale(cls, spec: HPASpec, envs: int) -> Controls:
        """Hand the replica count of `envs` environments to the control plane's HPA."""
        return cls(replicas_E=np.full(envs, UNSET, dtype=np.int64), hpa=spec)


@dataclass(kw_only=True)
class Limits:
    """What the cluster lets a policy set."""

    min_replicas: int = 1
    max_replicas: int = 6
    cpu_cores: list[float] = field(default_factory=lambda: [1.0])
    instances: list[int] = field(default_factory=lambda: [1])
    gpu_shares: list[float] = field(default_factory=lambda: [1.0])
