"""HPASpec → an autoscaling/v2 HorizontalPodAutoscaler, and whether the server kept all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpusched.cluster.microk8s.kinds import DEPLOYMENTS, HOLDER, HPAS, MANAGER, OURS, PART_OF, Dict, dig
from gpusched.cluster.microk8s.quantities import milli, number
from gpusched.core.controls import HPADirection, HPASpec
from gpusched.sim.hpa import target_units

QUANTITIES = ("value", "averageValue", "tolerance")
"""Fields the server may spell in another way than it was told."""


@dataclass(kw_only=True)
class MetricNames:
    """What the custom and external metrics APIs call the two metrics that are not resources.

    queue      External: mean Triton queue time per request, microseconds: the controller computes in thousandths of
               the metric's unit, and in seconds it would know whole milliseconds only
    in_flight  Pods: requests waiting or executing in the pod
    """

    queue: str = "triton_queue_microseconds"
    in_flight: str = "triton_in_flight"


def with_target(spec: HPASpec, target: float | None) -> HPASpec:
    """Return the spec with another target; None leaves it."""
    return spec if target is None else replace(spec, target=target)


def manifest(spec: HPASpec, names: MetricNames, namespace: str, deployment: str, holder: str) -> Dict:
    """Return the object to apply, marked with who made it; without a behaviour it has no such key, which is the API's legacy path."""
    labels = {
        PART_OF: OURS,
        "app.kubernetes.io/name": deployment,
        "app.kubernetes.io/managed-by": MANAGER,
    }
    body: Dict = {
        "scaleTargetRef": {
            "apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind, "name": deployment,
        },
        "minReplicas": spec.min_replicas,
        "maxReplicas": spec.max_replicas,
        "metrics": [metric(spec, names)],
    }  # fmt: skip
    given = {"scaleUp": spec.scale_up, "scaleDown": spec.scale_down}
    if any(given.values()):
        body["behavior"] = {key: _direction(rules) for key, rules in given.items() if rules is not None}
    metadata = {
        "name": deployment, "namespace": namespace, "labels": labels, "annotations": {HOLDER: holder},
    }  # fmt: skip
    return {"apiVersion": HPAS.api_version, "kind": HPAS.kind, "metadata": metadata, "spec": body}


def metric(spec: HPASpec, names: MetricNames) -> Dict:
    """Return the one metric of a spec; a CPU target is a whole percent, as the API's field is an integer."""
    if spec.metric == "cpu":
        target: Dict = {"type": "Utilization", "averageUtilization": max(1, round(spec.target))}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    if spec.metric == "queue":
        microseconds = str(target_units("queue", spec.target))
        target = (
            {"type": "AverageValue", "averageValue": microseconds}
            if spec.per_replica
            else {"type": "Value", "value": microseconds}
        )
        return {"type": "External", "external": {"metric": {"name": names.queue}, "target": target}}
    target = {"type": "AverageValue", "averageValue": milli(spec.target)}
    return {"type": "Pods", "pods": {"metric": {"name": names.in_flight}, "target": target}}


def _direction(rules: HPADirection) -> Dict:
    """Return only what was given; the API fills in the rest, field by field."""
    given = {
        "stabilizationWindowSeconds": rules.stabilization_s,
        "selectPolicy": rules.select,
        "policies": None
        if rules.policies is None
        else [{"type": r.type, "value": r.value, "periodSeconds": r.period_s} for r in rules.policies],
        "tolerance": None if rules.tolerance is None else milli(rules.tolerance),
    }
    return {key: value for key, value in given.items() if value is not None}


def lost(wanted: object, found: object, path: str = "") -> Iterator[str]:
    """Yield the paths of what was asked for and is not there; more than was asked for (defaults) is fine."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            inner = found.get(key) if isinstance(found, dict) else None
            yield from lost(value, inner, f"{path}.{key}".lstrip("."))
    elif isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            yield path
        else:
            for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
                yield from lost(one, other, f"{path}[{i}]")
    elif found is None or not _same(path, wanted, found):
        yield path


def _same(path: str, wanted: object, found: object) -> bool:
    if path.rpartition(".")[2] in QUANTITIES:
        return number(wanted) == number(found)
    return wanted == found


def holds(wanted: Dict, live: Dict) -> bool:
    """Return whether the live object already is what the manifest asks for, behaviour's absence included."""
    extra = dig(live, "spec", "behavior") is not None and "behavior" not in wanted["spec"]
    return not extra and not any(lost(wanted["spec"], live.get("spec")))
