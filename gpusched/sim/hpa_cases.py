"""Case files of schema hpa-vectors/1 as the arrays of `hpa`.

Also the part of the controller the engine does without, because its pods have one container: what the metrics
client makes of API objects (metrics/client.go) and the request of a pod with several (`calculateRequests`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.sim import hpa_replicas as rep
from gpusched.sim import hpa_rules as hold
from gpusched.sim.hpa import Behavior, ControllerFlags, Rules, pack_behavior, pack_flags, to_ms

Json = dict[str, Any]

PHASES = {"Running": rep.PHASE_RUNNING, "Pending": rep.PHASE_PENDING, "Failed": rep.PHASE_FAILED}
READY = {None: rep.READY_NONE, "True": rep.READY_TRUE, "False": rep.READY_FALSE, "Unknown": rep.READY_UNKNOWN}
TYPES = {
    "Resource": rep.TYPE_RESOURCE,
    "ContainerResource": rep.TYPE_CONTAINER_RESOURCE,
    "Pods": rep.TYPE_PODS,
    "Object": rep.TYPE_OBJECT,
    "External": rep.TYPE_EXTERNAL,
}
TARGETS = {
    "Utilization": rep.TARGET_UTILIZATION,
    "AverageValue": rep.TARGET_AVERAGE_VALUE,
    "Value": rep.TARGET_VALUE,
    None: rep.TARGET_NONE,
}
RESOURCE_TYPES = ("Resource", "ContainerResource")
DEFAULT_METRIC = {"type": "Resource", "resource": "cpu", "target_type": "Utilization", "target": 80}
DEFAULT_WINDOW_S = 60.0
"""The window of a custom metric whose API names none (metrics/client.go)."""

CLASSES = {
    rep.ERR_API: ("api_error", ""),
    rep.ERR_NO_METRICS: ("no_metrics", "no metrics returned from"),
    rep.ERR_NO_PODS: ("no_pods", "no pods returned by selector"),
    rep.ERR_ALL_UNREADY: ("all_pods_unready", "did not receive metrics for"),
    rep.ERR_MISSING_REQUEST: ("missing_request", "missing request for"),
    rep.ERR_NO_CONTAINER: ("container_not_found", "not found in Pod"),
    rep.ERR_NO_MATCH: ("no_matching_metrics", "no metrics returned matched known pods"),
    rep.ERR_NO_TARGET: ("no_target", "neither"),
    rep.ERR_METRIC_TYPE: ("invalid_type", "unknown metric source type"),
}
"""Error class of each code, and the part of upstream's message that names it."""


class MetricError(Exception):
    """A metric that failed before the compiled code saw it; `code` is one of hpa_replicas' ERR_*."""

    def __init__(self, code: int) -> None:
        super().__init__(CLASSES[code][0])
        self.code = code


class Sample(NamedTuple):
    """One pod's value of one metric."""

    value_m: int
    t_ms: int
    window_ms: int


class Inputs(NamedTuple):
    """What the controller reads in one reconcile, in the order `reconcile` takes it."""

    pods_P: NDArray[Any]
    n_pods: int
    value_MP: NDArray[np.int64]
    sample_ms_MP: NDArray[np.int64]
    window_ms_MP: NDArray[np.int64]
    has_sample_MP: NDArray[np.bool_]
    request_MP: NDArray[np.int64]
    object_M: NDArray[np.int64]
    object_ok_M: NDArray[np.bool_]


class HPA(NamedTuple):
    """One HPA and its controller's memory, as arrays; spec and memory have one row."""

    spec: NDArray[Any]
    metrics_M: NDArray[Any]
    rules: NDArray[Any]
    memory: NDArray[Any]
    recs: NDArray[Any]
    up_events: NDArray[Any]
    down_events: NDArray[Any]
    status_M: NDArray[Any]


def time_ms(t_s: float | None) -> int:
    """A time of the file in milliseconds; null is Go's zero time."""
    return rep.GO_ZERO_MS if t_s is None else to_ms(t_s)


def flags(controller: Json) -> ControllerFlags:
    """The controller's flags of a case; gates it leaves out have the defaults of Kubernetes 1.36."""
    gates = controller.get("feature_gates") or {}
    return ControllerFlags(
        tolerance=controller["tolerance"],
        cpu_initialization_period_s=controller["cpu_initialization_period_s"],
        initial_readiness_delay_s=controller["initial_readiness_delay_s"],
        downscale_stabilization_s=controller["downscale_stabilization_s"],
        scale_up_limit_factor=controller["scale_up_limit_factor"],
        scale_up_limit_min=controller["scale_up_limit_min"],
        gate_scale_to_zero=gates.get("HPAScaleToZero", False),
        gate_configurable_tolerance=gates.get("HPAConfigurableTolerance", True),
    )


def pod_level(controller: Json) -> bool:
    """The gate PodLevelResources, on since 1.34."""
    return bool((controller.get("feature_gates") or {}).get("PodLevelResources", True))


# --- the metrics client


def resource_samples(items: list[Json] | None, resource: str, container: str) -> dict[str, Sample]:
    """Samples of a Resource or ContainerResource metric (docs/hpa.md A.4.1, `GetResourceMetric`)."""
    if not items:
        raise MetricError(rep.ERR_API if items is None else rep.ERR_NO_METRICS)
    samples = {}
    for item in items:
        parts = [c for c in item["containers"] if not container or c["name"] == container][
            : 1 if container else None
        ]
        if parts and all(resource in part["usage_m"] for part in parts):
            total = sum(part["usage_m"][resource] for part in parts)
            samples[item["pod"]] = Sample(total, time_ms(item["timestamp_s"]), to_ms(item["window_s"]))
    return samples


def pods_samples(items: list[Json] | None) -> dict[str, Sample]:
    """Samples of a Pods metric (metrics/client.go `GetRawMetric`)."""
    if not items:
        raise MetricError(rep.ERR_API if items is None else rep.ERR_NO_METRICS)
    samples = {}
    for item in items:
        window_s = item.get("window_s")
        window_ms = to_ms(DEFAULT_WINDOW_S if window_s is None else window_s)
        samples[item["pod"]] = Sample(item["value_m"], time_ms(item.get("timestamp_s")), window_ms)
    return samples


def values(items: list[Json] | Json | None) -> list[int]:
    """Values of an Object (one) or External (any number) metric."""
    if not items:
        raise MetricError(rep.ERR_API if items is None else rep.ERR_NO_METRICS)
    return [item["value_m"] for item in ([items] if isinstance(items, dict) else items)]


def external_sum(values_m: Iterable[int], average: bool) -> int:
    """Sum of the series, saturating at MaxInt64 (`GetExternalMetricReplicas`).

    Upstream finds an overflow of the per-pod variant by the sum turning negative, so any negative sum counts.
    """
    total = 0
    for value_m in values_m:
        total += value_m
        if total > rep.INT64_MAX or (average and total < 0):
            return rep.INT64_MAX
        if total < rep.INT64_MIN:
            total += 2**64  # int64 wraps around
    return total


# --- requests


POD_LEVEL, HUGEPAGES = ("cpu", "memory"), "hugepages-"
"""Resources that count at pod level (component-helpers, `IsPodLevelRequestsSet`)."""


def _sum_requests(containers: list[Json], resource: str) -> int:
    return sum(c["requests_m"].get(resource, 0) for c in containers)


def _aggregate_request(pod: Json, resource: str) -> int:
    """Effective request over all containers, for a pod-level spec that names other resources only."""
    inits = pod.get("init_containers") or []
    if not any(resource in c["requests_m"] for c in [*pod["containers"], *inits]):
        raise MetricError(rep.ERR_MISSING_REQUEST)
    sidecars, peak = 0, 0
    for container in inits:
        own = container["requests_m"].get(resource, 0)
        sidecars += own if container.get("restart_policy") == "Always" else 0
        peak = max(peak, sidecars if container.get("restart_policy") == "Always" else sidecars + own)
    return max(_sum_requests(pod["containers"], resource) + sidecars, peak)


def pod_request(pod: Json, resource: str, container: str, gate: bool) -> int:
    """A pod's request in milli-units (docs/hpa.md A.4.1, `calculateRequests`); raises MetricError."""
    given = pod.get("pod_requests_m") or {}
    at_pod_level = {
        key: value for key, value in given.items() if key in POD_LEVEL or key.startswith(HUGEPAGES)
    }
    if gate and at_pod_level and not container:
        return int(at_pod_level[resource]) if resource in at_pod_level else _aggregate_request(pod, resource)
    inits = pod.get("init_containers") or []
    running = [*pod["containers"], *(c for c in inits if c.get("restart_policy") == "Always")]
    if container:
        running = [c for c in running if c["name"] == container][:1]
        if not running:
            raise MetricError(rep.ERR_NO_CONTAINER)
    if any(resource not in c["requests_m"] for c in running):
        raise MetricError(rep.ERR_MISSING_REQUEST)
    return _sum_requests(running, resource)


def request_code(pod: Json, resource: str, container: str, gate: bool) -> int:
    """A pod's request, or the code that stands for its absence."""
    try:
        return pod_request(pod, resource, container, gate)
    except MetricError as error:
        missing = error.code == rep.ERR_MISSING_REQUEST
        return rep.REQUEST_MISSING if missing else rep.REQUEST_NO_CONTAINER


# --- arrays


def pod_row(pod: Json) -> tuple[int, int, int, int, int]:
    """One POD row."""
    start_s = pod["start_s"]
    return (
        PHASES.get(pod["phase"], rep.PHASE_OTHER),
        int(pod["deleting"]),
        READY[pod["ready"]],
        time_ms(pod["ready_transition_s"]),
        rep.NONE_MS if start_s is None else to_ms(start_s),
    )


def metric_row(metric: Json) -> tuple[int, int, int, int]:
    """One METRIC row; averageValue wins over averageUtilization on a Resource metric."""
    kind, target_type = metric["type"], metric.get("target_type")
    is_resource = kind in RESOURCE_TYPES
    if is_resource and target_type == "Value":
        target_type = None  # a resource is read for its two averages only
    elif is_resource and target_type is not None and metric.get("target_m") is not None:
        target_type = "AverageValue"
    target = metric.get("target" if target_type == "Utilization" else "target_m") or 0
    is_cpu = is_resource and metric.get("resource") == "cpu"
    return TYPES.get(kind, rep.TYPE_INVALID), int(is_cpu), TARGETS[target_type], target


def metric_samples(metric: Json, data: Any) -> tuple[dict[str, Sample], int]:
    """The samples by pod, or the single value, of one metric; raises MetricError."""
    kind = metric["type"]
    if kind in RESOURCE_TYPES:
        container = metric.get("container") or "" if kind == "ContainerResource" else ""
        return resource_samples(data, metric["resource"], container), 0
    if kind == "Pods":
        return pods_samples(data), 0
    if kind == "Object":
        return {}, values(data)[0]
    if kind == "External":
        return {}, external_sum(values(data), metric.get("target_type") == "AverageValue")
    return {}, 0


def inputs(metrics: list[Json], pods: list[Json], data: list[Any], gate: bool) -> tuple[Inputs, list[int]]:
    """Arrays for one reconcile, and per metric OK or the metrics client's error code.

    `data` holds the API's answer for each metric. Samples of unknown pods get rows behind the pods.
    """
    found: list[tuple[dict[str, Sample], int]] = []
    codes = [rep.OK] * len(metrics)
    for m, metric in enumerate(metrics):
        try:
            found.append(metric_samples(metric, data[m]))
        except MetricError as error:
            found.append(({}, 0))
            codes[m] = error.code
    names = dict.fromkeys([pod["name"] for pod in pods])
    names.update(dict.fromkeys(name for samples, _ in found for name in samples))
    index = {name: p for p, name in enumerate(names)}
    pods_P = np.zeros(len(index), dtype=rep.POD)
    pods_P["phase"] = rep.PHASE_NO_POD
    for pod in pods:
        pods_P[index[pod["name"]]] = pod_row(pod)
    value_MP, sample_ms_MP, window_ms_MP, request_MP = np.zeros((4, len(metrics), len(index)), dtype=np.int64)
    has_sample_MP = np.zeros((len(metrics), len(index)), dtype=np.bool_)
    for m, metric in enumerate(metrics):
        for name, sample in found[m][0].items():
            p = index[name]
            value_MP[m, p], sample_ms_MP[m, p], window_ms_MP[m, p] = sample
            has_sample_MP[m, p] = True
        if metric["type"] in RESOURCE_TYPES:
            container = metric.get("container") or "" if metric["type"] == "ContainerResource" else ""
            for pod in pods:
                request_MP[m, index[pod["name"]]] = request_code(pod, metric["resource"], container, gate)
    object_M = np.array([value for _, value in found], dtype=np.int64)
    ok_M = np.array([code == rep.OK for code in codes], dtype=np.bool_)
    arrays = Inputs(
        pods_P, len(index), value_MP, sample_ms_MP, window_ms_MP, has_sample_MP, request_MP, object_M, ok_M
    )
    return arrays, codes


def rules(given: Json | None) -> Rules | None:
    """One direction of a behavior before API defaulting."""
    if given is None:
        return None
    policies = given.get("policies")
    return Rules(
        given.get("stabilization_window_s"),
        given.get("select_policy"),
        [(p["type"], p["value"], p["period_s"]) for p in policies] if policies is not None else None,
        given.get("tolerance"),
    )


def behavior(given: Json | None) -> Behavior | None:
    """A behavior before API defaulting."""
    return None if given is None else Behavior(rules(given.get("scale_up")), rules(given.get("scale_down")))


def rec_rows(recommendations: list[Json] | None, spare: int) -> NDArray[Any]:
    """REC rows and `spare` free ones."""
    rows = np.zeros(len(recommendations or []) + spare, dtype=hold.REC)
    for row, given in enumerate(recommendations or []):
        rows[row] = (given["replicas"], to_ms(given["t_s"]))
    return rows


def event_rows(events: list[Json] | None, spare: int) -> NDArray[Any]:
    """EVENT rows and `spare` free ones."""
    rows = np.zeros(len(events or []) + spare, dtype=hold.EVENT)
    for row, given in enumerate(events or []):
        rows[row] = (given["change"], to_ms(given["t_s"]), int(given.get("outdated") or False))
    return rows


def build(case: Json, hpa: Json, history: Json | None = None, spare: int = 1) -> HPA:
    """The HPA of a case: min and max, metrics, behavior, history; `spare` more rows of memory."""
    metrics = [metric_row(metric) for metric in hpa.get("metrics") or [DEFAULT_METRIC]]
    spec, memory = np.zeros(1, dtype=hold.SPEC), np.zeros(1, dtype=hold.MEMORY)
    minimum = hpa.get("min_replicas")
    spec["min_replicas"] = 1 if minimum is None else minimum
    spec["max_replicas"], spec["n_metrics"] = hpa.get("max_replicas") or rep.INT32_MAX, len(metrics)
    controller = flags(case["controller"])
    pack_flags(spec, controller)
    packed_rules = pack_behavior(spec, behavior(hpa.get("behavior")), controller)
    past = history or {}
    recs, ups, downs = past.get("recommendations"), past.get("scale_up_events"), past.get("scale_down_events")
    memory["has_recs"], memory["n_recs"] = recs is not None, len(recs or [])
    memory["n_up"], memory["n_down"] = len(ups or []), len(downs or [])
    return HPA(
        spec,
        np.array(metrics, dtype=rep.METRIC),
        packed_rules,
        memory,
        rec_rows(recs, spare + 1),
        event_rows(ups, spare),
        event_rows(downs, spare),
        np.zeros(len(metrics), dtype=rep.STATUS),
    )
