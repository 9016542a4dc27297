"""keda: what a KEDA ScaledObject on queue time does, with threshold and bounds found by a search."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.core.controls import HPASpec, Limits
from gpusched.policy.hpa_tuned import bounds
from gpusched.policy.tuned import HandOver, Picker, Tuned, Value, check_span


@dataclass(kw_only=True)
class Space:
    """What the search may choose: the trigger's threshold, ms of queue time, lowest and highest."""

    threshold: list[float]

    def __post_init__(self) -> None:
        check_span("space.threshold", self.threshold, 1e-3)


class KEDA(Tuned):
    """Hands the replica count to the HPA that KEDA would create for a ScaledObject.

    Above zero replicas KEDA only creates and feeds an HPA: an External metric of type AverageValue (KEDA's
    default, so replicas = queue time / threshold), no `behavior` unless `advanced` is set (the legacy path, 300 s
    downscale window), at least max(1, minReplicaCount) replicas. pollingInterval and cooldownPeriod concern
    0 ↔ 1 alone, which a trial never reaches: it has at least one replica.
    Source: keda.sh/docs, ScaledObject specification; docs/hpa.md A.4 for AverageValue.
    """

    @dataclass(kw_only=True)
    class Config(Tuned.Config):
        space: Space

    config: Config

    def rule(self, pick: Picker, limits: Limits) -> HandOver:
        low, high = bounds(pick, limits)
        return HandOver(
            HPASpec(
                metric="queue",
                per_replica=True,
                target=pick.real("threshold", self.config.space.threshold, log=True),
                min_replicas=max(1, low),
                max_replicas=high,
            )
        )

    def first(self, limits: Limits) -> dict[str, Value]:
        return {
            "threshold": 20.0,
            "min_replicas": limits.min_replicas,
            "span": limits.max_replicas - limits.min_replicas,
        }
