"""What each metric of an HPA proposes: pod groups, usage ratios, replica counts (docs/hpa.md A.3, A.4).

Compiled; runs inside the engine. Times are int64 milliseconds, values and requests int64 milli-units,
targets int64 (percent for Utilization, milli-units otherwise). Axes: M metrics of the HPA, P pods matched by
the scale target's selector, in any order (surge, old, terminating, completed ones too), `n_pods` in use.
Errors are integer codes. Upstream names are those of `pkg/controller/podautoscaler` in Kubernetes 1.36.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

jit = njit(cache=True, nogil=True, error_model="numpy", _nrt=False, no_cfunc_wrapper=True)

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NONE_MS = INT64_MIN
"""An absent time. Go's zero time ("set, but ages ago") is GO_ZERO_MS instead."""
GO_ZERO_MS = -(10**14)

# Pod phase; PHASE_OTHER is Succeeded, Unknown or empty.
# PHASE_NO_POD marks a row that is no pod: a sample whose pod the controller's pod cache does not hold.
PHASE_RUNNING, PHASE_PENDING, PHASE_FAILED, PHASE_OTHER, PHASE_NO_POD = range(5)
# Status of the pod's Ready condition; READY_NONE = the pod has no such condition.
READY_NONE, READY_TRUE, READY_FALSE, READY_UNKNOWN = range(4)
GROUP_READY, GROUP_UNREADY, GROUP_MISSING, GROUP_IGNORED, GROUP_NO_POD = range(5)
TYPE_RESOURCE, TYPE_CONTAINER_RESOURCE, TYPE_PODS, TYPE_OBJECT, TYPE_EXTERNAL, TYPE_INVALID = range(6)
TARGET_UTILIZATION, TARGET_AVERAGE_VALUE, TARGET_VALUE, TARGET_NONE = range(4)
# In place of a request: a container without one, and a pod without the container the metric names.
REQUEST_MISSING, REQUEST_NO_CONTAINER = -1, -2

# Errors of one metric; SKIPPED = not evaluated in this reconcile.
SKIPPED = -1
(
    OK,
    ERR_API,
    ERR_NO_METRICS,
    ERR_NO_PODS,
    ERR_ALL_UNREADY,
    ERR_MISSING_REQUEST,
    ERR_NO_CONTAINER,
    ERR_NO_MATCH,
    ERR_NO_TARGET,
    ERR_METRIC_TYPE,
) = range(10)


def record_dtype(*fields: tuple[str, type]) -> np.dtype[Any]:
    """A structured dtype whose rows allow attribute access, compiled or not."""
    return np.dtype((np.record, list(fields)))  # type: ignore[no-any-return, unused-ignore]


def int_fields(names: str) -> list[tuple[str, type]]:
    """int64 fields from a space-separated list of names."""
    return [(name, np.int64) for name in names.split()]


POD = record_dtype(*int_fields("phase deleting ready ready_ms start_ms"))
"""One pod: phase, has a deletionTimestamp, Ready, its last transition, status.startTime (NONE_MS: unset)."""

METRIC = record_dtype(*int_fields("type is_cpu target_type target"))
"""One metric of the HPA: source type, whether its resource is cpu, target type, target."""

STATUS = record_dtype(
    *int_fields("error proposal utilization_pct usage_m listed ready unready missing no_pod"),
    *int_fields("value_ready value_no_pod request_ready request_unready request_missing fill_missing"),
    *int_fields("request_error"),
)
"""What one metric led to in the last reconcile (error, proposal, reported usage), and the sums behind it."""


@jit
def truncated_div(a: int, b: int) -> int:
    """Integer division as Go does it, towards zero."""
    quotient = a // b
    if quotient < 0 and quotient * b != a:
        quotient += 1
    return quotient


@jit
def wrapped_int32(value: int) -> int:
    """Two's-complement int32 of an int64, as a Go conversion or int32 sum overflows."""
    return ((value + 2**31) & (2**32 - 1)) - 2**31


@jit
def float_to_int32(value: float) -> int:
    """Go's int32(float64) on amd64: towards zero, INT32_MIN when not representable (NaN included)."""
    if value > INT32_MIN - 1.0 and value < INT32_MAX + 1.0:
        return int(value)
    return INT32_MIN


@jit
def float_to_int64(value: float) -> int:
    """Go's int64(float64) on amd64: towards zero, INT64_MIN when not representable (NaN included)."""
    if value >= -9.223372036854775808e18 and value < 9.223372036854775808e18:
        return int(value)
    return INT64_MIN


@jit
def within(spec: Any, ratio: float) -> bool:
    """Whether the ratio lies inside the tolerances, both ends included (docs/hpa.md A.4, `isWithin`)."""
    return bool(1.0 - spec.tolerance_down <= ratio and ratio <= 1.0 + spec.tolerance_up)


@jit
def cpu_unready(spec: Any, pod: Any, sample_ms: int, window_ms: int, now_ms: int) -> bool:
    """Whether a pod's CPU sample must not count yet (docs/hpa.md A.3, `groupPods`)."""
    if pod.ready == READY_NONE or pod.start_ms == NONE_MS:
        return True
    if pod.start_ms + spec.cpu_initialization_ms > now_ms:
        return bool(pod.ready == READY_FALSE or sample_ms < pod.ready_ms + window_ms)
    never_ready = pod.start_ms + spec.initial_readiness_delay_ms > pod.ready_ms
    return bool(pod.ready == READY_FALSE and never_ready)


@jit
def group_pod(
    spec: Any, pod: Any, is_cpu: int, has_sample: bool, sample_ms: int, window_ms: int, now_ms: int
) -> int:
    """The group of one pod for one metric (docs/hpa.md A.3, replica_calculator.go `groupPods`)."""
    if pod.phase == PHASE_NO_POD:
        return GROUP_NO_POD
    if pod.deleting != 0 or pod.phase == PHASE_FAILED:
        return GROUP_IGNORED
    if pod.phase == PHASE_PENDING:
        return GROUP_UNREADY
    if not has_sample:
        return GROUP_MISSING
    if is_cpu != 0 and cpu_unready(spec, pod, sample_ms, window_ms, now_ms):
        return GROUP_UNREADY
    return GROUP_READY


@jit
def clear_status(status: Any, error: int) -> None:
    """Forget the last reconcile's outcome of one metric."""
    status.error, status.proposal, status.utilization_pct, status.usage_m = error, 0, 0, 0
    status.listed, status.ready, status.unready, status.missing, status.no_pod = 0, 0, 0, 0, 0
    status.value_ready, status.value_no_pod, status.fill_missing = 0, 0, 0
    status.request_ready, status.request_unready, status.request_missing = 0, 0, 0
    status.request_error = OK


@jit
def add_pod(metric: Any, status: Any, group: int, value: int, request: int) -> None:
    """Add one pod to the sums of its group.

    A missing pod is later filled in with `fill_missing`: the larger of 100 % of its request and the target
    for a utilisation, the target itself otherwise.
    """
    if group == GROUP_NO_POD:
        status.no_pod += 1
        status.value_no_pod += value
        return
    status.listed += 1
    if request < 0 and status.request_error == OK:
        status.request_error = ERR_NO_CONTAINER if request == REQUEST_NO_CONTAINER else ERR_MISSING_REQUEST
    if group == GROUP_READY:
        status.ready += 1
        status.value_ready += value
        status.request_ready += request
    elif group == GROUP_UNREADY:
        status.unready += 1
        status.request_unready += request
    elif group == GROUP_MISSING:
        status.missing += 1
        status.request_missing += request
        if metric.target_type == TARGET_UTILIZATION:
            status.fill_missing += truncated_div(request * max(100, metric.target), np.int64(100))
        else:
            status.fill_missing += metric.target


@jit
def sum_pods(
    spec: Any,
    metric: Any,
    status: Any,
    pods_P: NDArray[Any],
    n_pods: int,
    value_P: NDArray[Any],
    sample_ms_P: NDArray[Any],
    window_ms_P: NDArray[Any],
    has_sample_P: NDArray[Any],
    request_P: NDArray[Any],
    now_ms: int,
) -> None:
    """Sum one metric over the groups of its pods into `status`.

    Requests are looked at for every matching pod, ignored and pending ones too: one pod without a request
    fails a utilisation metric (`calculateRequests`).
    """
    clear_status(status, np.int64(OK))
    for p in range(n_pods):
        pod = pods_P[p]
        group = group_pod(spec, pod, metric.is_cpu, has_sample_P[p], sample_ms_P[p], window_ms_P[p], now_ms)
        if group != GROUP_NO_POD or has_sample_P[p]:
            add_pod(metric, status, group, value_P[p], request_P[p])


@jit
def utilization_ratio(value: int, request: int, entries: int, target: int) -> tuple[float, int, int]:
    """Ratio to target, truncated percent, mean value (utilization.go `GetResourceUtilizationRatio`).

    `entries` pods have both a value and a request; `request`, their sum, is not zero.
    """
    percent = wrapped_int32(truncated_div(value * 100, request))
    return percent / target, percent, truncated_div(value, entries)


@jit
def usage_ratio(value: int, entries: int, target: int) -> tuple[float, int]:
    """Ratio of the truncated mean to the target, and that mean (utilization.go `GetMetricUsageRatio`)."""
    usage_m = truncated_div(value, entries)
    return usage_m / target, usage_m


@jit
def per_pod_error(metric: Any, status: Any) -> int:
    """The first error of a metric summed over pods, in upstream's order."""
    if status.listed == 0:
        return ERR_NO_PODS
    if status.ready + status.no_pod == 0:
        return ERR_ALL_UNREADY
    if metric.target_type == TARGET_UTILIZATION:
        if status.request_error != OK:
            return int(status.request_error)
        if status.request_ready == 0:
            return ERR_NO_MATCH
    return OK


@jit
def first_ratio(metric: Any, status: Any) -> float:
    """The ratio over pods that have a usable sample; it is also what the HPA reports."""
    if metric.target_type == TARGET_UTILIZATION:
        ratio, status.utilization_pct, status.usage_m = utilization_ratio(
            status.value_ready, status.request_ready, status.ready, metric.target
        )
        return ratio
    ratio, status.usage_m = usage_ratio(
        status.value_ready + status.value_no_pod, status.ready + status.no_pod, metric.target
    )
    return ratio


@jit
def filled_ratio(metric: Any, status: Any, ratio: float) -> tuple[float, int]:
    """The ratio with missing and unready pods filled in, and how many entries it has (docs/hpa.md A.4.3).

    A sample whose pod is unknown counts as an entry, but has no request to enter a utilisation with.
    """
    value, request, known = status.value_ready, status.request_ready, status.ready
    if status.missing > 0 and (ratio < 1.0 or ratio > 1.0):
        known += status.missing
        request += status.request_missing
        if ratio < 1.0:
            value += status.fill_missing
    if status.unready > 0 and ratio > 1.0:
        known += status.unready
        request += status.request_unready
    entries = known + status.no_pod
    if metric.target_type == TARGET_UTILIZATION:
        return utilization_ratio(value, request, known, metric.target)[0], entries
    return usage_ratio(value + status.value_no_pod, entries, metric.target)[0], entries


@jit
def per_pod_replicas(spec: Any, metric: Any, status: Any, current: int) -> int:
    """Proposal of a summed metric (docs/hpa.md A.4.3; `GetResourceReplicas`, `calcPlainMetricReplicas`)."""
    ratio = first_ratio(metric, status)
    if status.missing == 0 and not (status.unready > 0 and ratio > 1.0):
        return current if within(spec, ratio) else float_to_int32(np.ceil(ratio * status.ready))
    filled, entries = filled_ratio(metric, status, ratio)
    turned = (ratio < 1.0 and filled > 1.0) or (ratio > 1.0 and filled < 1.0)
    if within(spec, filled) or turned:
        return current
    replicas = float_to_int32(np.ceil(filled * entries))
    if (filled < 1.0 and replicas > current) or (filled > 1.0 and replicas < current):
        return current
    return replicas


@jit
def ready_pods(pods_P: NDArray[Any], n_pods: int) -> tuple[int, int]:
    """Pods listed; those Running and Ready, terminating ones too (docs/hpa.md A.4.4, `getReadyPodsCount`)."""
    listed, ready = 0, 0
    for p in range(n_pods):
        listed += pods_P[p].phase != PHASE_NO_POD
        ready += pods_P[p].phase == PHASE_RUNNING and pods_P[p].ready == READY_TRUE
    return listed, ready


@jit
def value_replicas(
    spec: Any, metric: Any, status: Any, usage_m: int, pods_P: NDArray[Any], n_pods: int, current: int
) -> int:
    """Proposal for a Value target (docs/hpa.md A.4.4, `getUsageRatioReplicaCount`); sets `status.error`."""
    status.usage_m = usage_m
    ratio = np.float64(usage_m) / np.float64(metric.target)
    if current == 0:
        return float_to_int32(np.ceil(ratio))
    if within(spec, ratio):
        return current
    listed, ready = ready_pods(pods_P, n_pods)
    if listed == 0:
        status.error = ERR_NO_PODS
        return 0
    replicas = ratio * ready
    return INT32_MAX if replicas > INT32_MAX else float_to_int32(np.ceil(replicas))


@jit
def average_value_replicas(spec: Any, metric: Any, status: Any, usage_m: int, status_replicas: int) -> int:
    """Proposal for AverageValue of an object or external metric (docs/hpa.md A.4.5, `Get…PerPodMetricReplicas`).

    Within tolerance it is status.replicas, not spec.replicas (issue #138505). Only External guards overflows.
    """
    usage, external = np.float64(usage_m), metric.type == TYPE_EXTERNAL
    status.usage_m = float_to_int64(np.ceil(usage / np.float64(status_replicas)))
    if external and usage >= float(INT64_MAX):
        status.usage_m = INT64_MAX
    if within(spec, usage / (np.float64(metric.target) * status_replicas)):
        return status_replicas
    replicas = np.ceil(usage / np.float64(metric.target))
    return INT32_MAX if external and replicas > INT32_MAX else float_to_int32(replicas)


@jit
def target_error(metric: Any) -> int:
    """Whether the source type exists and carries a target it can use (`computeReplicasForMetric`)."""
    if metric.type == TYPE_INVALID:
        return ERR_METRIC_TYPE
    if metric.type == TYPE_OBJECT or metric.type == TYPE_EXTERNAL:
        usable = metric.target_type == TARGET_VALUE or metric.target_type == TARGET_AVERAGE_VALUE
    elif metric.type == TYPE_PODS:
        usable = metric.target_type == TARGET_AVERAGE_VALUE
    else:
        usable = metric.target_type == TARGET_UTILIZATION or metric.target_type == TARGET_AVERAGE_VALUE
    return OK if usable else ERR_NO_TARGET


@jit
def propose(
    spec: Any,
    metric: Any,
    status: Any,
    pods_P: NDArray[Any],
    n_pods: int,
    value_P: NDArray[Any],
    sample_ms_P: NDArray[Any],
    window_ms_P: NDArray[Any],
    has_sample_P: NDArray[Any],
    request_P: NDArray[Any],
    object_value: int,
    api_ok: bool,
    now_ms: int,
    spec_replicas: int,
    status_replicas: int,
) -> None:
    """One metric's proposal, usage and error into `status` (docs/hpa.md A.4, `computeReplicasForMetric`)."""
    clear_status(status, target_error(metric))
    if status.error == OK and not api_ok:
        status.error = ERR_API
    if status.error != OK:
        return
    if metric.type == TYPE_OBJECT or metric.type == TYPE_EXTERNAL:
        if metric.target_type == TARGET_VALUE:
            status.proposal = value_replicas(
                spec, metric, status, object_value, pods_P, n_pods, spec_replicas
            )
        else:
            status.proposal = average_value_replicas(spec, metric, status, object_value, status_replicas)
        return
    sum_pods(
        spec,
        metric,
        status,
        pods_P,
        n_pods,
        value_P,
        sample_ms_P,
        window_ms_P,
        has_sample_P,
        request_P,
        now_ms,
    )
    status.error = per_pod_error(metric, status)
    if status.error == OK:
        status.proposal = per_pod_replicas(spec, metric, status, spec_replicas)
