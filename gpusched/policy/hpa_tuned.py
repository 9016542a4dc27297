"""hpa_tuned: the Kubernetes HPA at its best: metric, target, bounds and behaviour found by a search."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.core.controls import METRICS, HPADirection, HPARule, HPASpec, Limits
from gpusched.core.errors import refuse
from gpusched.policy.tuned import HandOver, Picker, Tuned, Value, check_span

PATHS = ("legacy", "behavior")
"""An HPA without `behavior`, which `kubectl autoscale` makes, or with both directions given."""


@dataclass(kw_only=True)
class Space:
    """What the search may choose: names, or lowest and highest.

    metrics                   what is scaled on
    cpu, queue, in_flight     target of each metric: % of the CPU request, ms in the queue, requests per replica
    paths                     legacy or behavior
    up_stabilization_s        of scale-up; down_stabilization_s of scale-down, s
    up_pods                   most replicas added within 15 s
    down_pods, down_period_s  most replicas removed within a period
    tolerance                 share by which the metric may miss its target unnoticed, each direction its own

    Bounds of the replicas are searched within the trial's.
    """

    metrics: list[str]
    cpu: list[int]
    queue: list[float]
    in_flight: list[float]
    paths: list[str]
    up_stabilization_s: list[int]
    down_stabilization_s: list[int]
    up_pods: list[int]
    down_pods: list[int]
    down_period_s: list[int]
    tolerance: list[float]

    def __post_init__(self) -> None:
        for key, allowed in (("metrics", METRICS), ("paths", PATHS)):
            names = getattr(self, key)
            if not names or any(name not in allowed for name in names):
                raise refuse(f"space.{key}", names, f"must list some of {', '.join(allowed)}")
        for key in ("cpu", "queue", "in_flight"):
            check_span(f"space.{key}", getattr(self, key), 1e-3)
        for key in ("up_stabilization_s", "down_stabilization_s"):
            check_span(f"space.{key}", getattr(self, key), 0, 3600)
        for key in ("up_pods", "down_pods"):
            check_span(f"space.{key}", getattr(self, key), 1)
        check_span("space.down_period_s", self.down_period_s, 1, 1800)
        check_span("space.tolerance", self.tolerance, 0)


class HPATuned(Tuned):
    """Hands the replica count to the control plane's HPA, with the spec a search found best."""

    @dataclass(kw_only=True)
    class Config(Tuned.Config):
        space: Space

    config: Config

    def rule(self, pick: Picker, limits: Limits) -> HandOver:
        space = self.config.space
        metric = pick.one_of("metric", space.metrics)
        low, high = bounds(pick, limits)
        behavior = pick.one_of("path", space.paths) == "behavior"
        return HandOver(
            HPASpec(
                metric=metric,
                # averageUtilization is an integer
                target=pick.whole("cpu", space.cpu) if metric == "cpu"
                else pick.real(metric, getattr(space, metric), log=True),
                min_replicas=low,
                max_replicas=high,
                scale_up=self._up(pick) if behavior else None,
                scale_down=self._down(pick) if behavior else None,
            )
        )  # fmt: skip

    def first(self, limits: Limits) -> dict[str, Value]:
        most = limits.max_replicas - limits.min_replicas
        return {
            "metric": "cpu",
            "cpu": 70,
            "min_replicas": limits.min_replicas,
            "span": most,
            "path": "legacy",
        }

    def _up(self, pick: Picker) -> HPADirection:
        space = self.config.space
        return HPADirection(
            stabilization_s=pick.whole("up_stabilization_s", space.up_stabilization_s),
            policies=[HPARule(type="Pods", value=pick.whole("up_pods", space.up_pods), period_s=15)],
            tolerance=pick.real("up_tolerance", space.tolerance),
        )

    def _down(self, pick: Picker) -> HPADirection:
        space = self.config.space
        pods = pick.whole("down_pods", space.down_pods)
        period_s = pick.whole("down_period_s", space.down_period_s)
        return HPADirection(
            stabilization_s=pick.whole("down_stabilization_s", space.down_stabilization_s),
            policies=[HPARule(type="Pods", value=pods, period_s=period_s)],
            tolerance=pick.real("down_tolerance", space.tolerance),
        )


def bounds(pick: Picker, limits: Limits) -> tuple[int, int]:
    """Return the least and most replicas; `span` beyond the least, cut at the limits."""
    low = pick.whole("min_replicas", [limits.min_replicas, limits.max_replicas])
    span = pick.whole("span", [0, limits.max_replicas - limits.min_replicas])
    return low, min(low + span, limits.max_replicas)
