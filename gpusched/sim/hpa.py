"""The HPA v2 controller of Kubernetes 1.36: one `reconcile` over plain arrays (docs/hpa.md A.5 to A.7).

Compiled; the engine calls it and `hpa_check` drives the very same code. Units and axes: see `hpa_replicas`.
The caller owns all memory; a fresh controller is MEMORY full of zeros. Arguments of `reconcile`:

    spec, memory        one row of SPEC and one of MEMORY (`spec_E[e]`, `memory_E[e]`); memory is written
    metrics_M, rules    METRIC rows in spec order; RULE rows, those of scale-up first
    recs                REC rows, the recommendations; room for longest window / sync period + 2 is ample
    up_events, down_events   EVENT rows, past rescales; room for longest policy period / sync period + 2
                        (these three: a full array loses its oldest row, nothing is written beyond the end)
    pods_P, n_pods      POD rows and how many are in use
    value_MP, sample_ms_MP, window_ms_MP, has_sample_MP
                        per metric and pod: value, its timestamp and window, and whether there is one at all
    request_MP          the pod's request of that resource, REQUEST_MISSING if a container has none
                        (these five: read for Resource, ContainerResource and Pods metrics)
    object_M            value of an Object, sum of an External metric
    object_ok_M         whether the metrics API answered for this metric, of whatever type
    now_ms              evaluation time
    spec_replicas, status_replicas   the scale subresource as read
    faults              bit set of FAULT_*, usually 0
    status_M            STATUS rows, written: error, proposal and reported usage of each metric

It returns `(desired, rescaled, code)`: replica count, whether to write it, OK or the first error (ERR_*).
An error together with `rescaled` is possible: one metric failed while another asks for more replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import HPADirection, HPASpec
from gpusched.sim.hpa_replicas import (
    METRIC,
    NONE_MS,
    OK,
    POD,
    REQUEST_MISSING,
    SKIPPED,
    STATUS,
    TARGET_AVERAGE_VALUE,
    TARGET_UTILIZATION,
    TARGET_VALUE,
    TYPE_EXTERNAL,
    TYPE_OBJECT,
    TYPE_PODS,
    TYPE_RESOURCE,
    clear_status,
    jit,
    propose,
)
from gpusched.sim.hpa_rules import (
    AMBIGUOUS_SELECTOR,
    EVENT,
    FAILED_GET_SCALE,
    FAILED_METRIC,
    FAILED_UPDATE_SCALE,
    INVALID_SELECTOR,
    MEMORY,
    NO_REASON,
    NOT_SCALED_TO_ZERO,
    REC,
    RULE,
    RULE_PERCENT,
    RULE_PODS,
    SCALED_TO_ZERO,
    SCALING_DISABLED,
    SELECT_DISABLED,
    SELECT_MAX,
    SELECT_MIN,
    SPEC,
    SUCCEEDED_GET_SCALE,
    SUCCEEDED_RESCALE,
    VALID_METRIC_FOUND,
    normalize,
    record,
    store_rescale,
)

__all__ = [
    "EVENT", "MEMORY", "METRIC", "NONE_MS", "POD", "REC", "REQUEST_MISSING", "RULE", "SPEC", "STATUS",
    "Behavior", "ControllerFlags", "Packed", "Rules", "default_behavior", "default_rules", "pack",
    "pack_behavior", "pack_flags", "reconcile", "target_units",
]  # fmt: skip

FAULT_GET_SCALE, FAULT_UPDATE_SCALE, FAULT_SELECTOR, FAULT_AMBIGUOUS_SELECTOR = 1, 2, 4, 8
# Codes of a whole reconcile, after those of one metric.
ERR_GET_SCALE, ERR_UPDATE_SCALE, ERR_SELECTOR, ERR_AMBIGUOUS_SELECTOR = range(10, 14)


@jit
def has_object_metric(spec: Any, metrics_M: NDArray[Any]) -> bool:
    """Whether some metric can exist without pods, so that it can lead out of zero."""
    for m in range(spec.n_metrics):
        if metrics_M[m].type == TYPE_OBJECT or metrics_M[m].type == TYPE_EXTERNAL:
            return True
    return False


@jit
def combine(
    spec: Any, metrics_M: NDArray[Any], memory: Any, status_M: NDArray[Any], current: int
) -> tuple[int, int]:
    """Largest proposal and first error (docs/hpa.md A.5, `computeReplicasForMetrics`); replicas -1 = do not scale.

    A failing metric lets the others scale up or stay, never down.
    """
    replicas, failures, code = 0, 0, OK
    for m in range(spec.n_metrics):
        if status_M[m].error != OK:
            if failures == 0:
                code, memory.active = status_M[m].error, FAILED_METRIC + metrics_M[m].type
            failures += 1
        elif replicas == 0 or status_M[m].proposal > replicas:
            replicas = status_M[m].proposal
    if failures == spec.n_metrics or (failures > 0 and replicas < current):
        return -1, code
    memory.active = VALID_METRIC_FOUND
    return max(0, replicas), code


@jit
def selector_error(memory: Any, faults: int) -> int:
    """A selector that is missing, unparsable or shared by two HPAs fails the step before any metric."""
    if faults & FAULT_SELECTOR:
        memory.active = INVALID_SELECTOR
        return ERR_SELECTOR
    if faults & FAULT_AMBIGUOUS_SELECTOR:
        memory.active = AMBIGUOUS_SELECTOR
        return ERR_AMBIGUOUS_SELECTOR
    return OK


@jit
def finish_rescale(
    spec: Any, metrics_M: NDArray[Any], memory: Any, current: int, desired: int, now_ms: int
) -> None:
    """Conditions and scale time after a successful write of the scale subresource."""
    memory.able, memory.last_scale_ms = SUCCEEDED_RESCALE, now_ms
    if spec.gate_scale_to_zero == 0:
        memory.scaled_to_zero = NO_REASON
    elif current > 0 and desired == 0 and spec.min_replicas == 0 and has_object_metric(spec, metrics_M):
        memory.scaled_to_zero = SCALED_TO_ZERO
    else:
        memory.scaled_to_zero = NOT_SCALED_TO_ZERO


@jit
def disabled_at_zero(spec: Any, metrics_M: NDArray[Any], memory: Any) -> bool:
    """Whether zero replicas mean "switched off by hand"; the HPA leaves only its own zero (docs/hpa.md A.6)."""
    was_zero = spec.gate_scale_to_zero != 0 and memory.scaled_to_zero == SCALED_TO_ZERO
    return not (was_zero and (spec.min_replicas != 0 or has_object_metric(spec, metrics_M)))


@jit
def begin(
    spec: Any,
    metrics_M: NDArray[Any],
    memory: Any,
    recs: NDArray[Any],
    current: int,
    now_ms: int,
    faults: int,
    status_M: NDArray[Any],
) -> tuple[bool, int]:
    """Read the scale and seed the recommendations; whether to stop here, and the error (docs/hpa.md A.6)."""
    for m in range(spec.n_metrics):
        clear_status(status_M[m], np.int64(SKIPPED))
    if faults & FAULT_GET_SCALE:
        memory.able = FAILED_GET_SCALE
        return True, ERR_GET_SCALE
    memory.able = SUCCEEDED_GET_SCALE
    if memory.has_recs == 0:
        record(memory, recs, np.int64(-1), current, now_ms)
    if current != 0 or not disabled_at_zero(spec, metrics_M, memory):
        return False, OK
    memory.active = SCALING_DISABLED
    if spec.gate_scale_to_zero == 0:
        memory.scaled_to_zero = NO_REASON
    return True, OK


@jit
def reconcile(
    spec: Any,
    metrics_M: NDArray[Any],
    rules: NDArray[Any],
    memory: Any,
    recs: NDArray[Any],
    up_events: NDArray[Any],
    down_events: NDArray[Any],
    pods_P: NDArray[Any],
    n_pods: int,
    value_MP: NDArray[Any],
    sample_ms_MP: NDArray[Any],
    window_ms_MP: NDArray[Any],
    has_sample_MP: NDArray[Any],
    request_MP: NDArray[Any],
    object_M: NDArray[Any],
    object_ok_M: NDArray[Any],
    now_ms: int,
    spec_replicas: int,
    status_replicas: int,
    faults: int,
    status_M: NDArray[Any],
) -> tuple[int, bool, int]:
    """One reconcile (docs/hpa.md A.6, horizontal.go `reconcileAutoscaler`); arguments: module docstring."""
    current = spec_replicas
    stop, code = begin(spec, metrics_M, memory, recs, current, now_ms, faults, status_M)
    if stop:
        return current, False, code
    if current != 0 and current > spec.max_replicas:
        desired = spec.max_replicas
    elif current != 0 and current < spec.min_replicas:
        desired = spec.min_replicas
    else:
        code = selector_error(memory, faults)
        if code != OK:
            return current, False, code
        for m in range(spec.n_metrics):
            propose(
                spec, metrics_M[m], status_M[m], pods_P, n_pods,
                value_MP[m], sample_ms_MP[m], window_ms_MP[m], has_sample_MP[m], request_MP[m],
                object_M[m], object_ok_M[m], now_ms, current, status_replicas,
            )  # fmt: skip
        desired, code = combine(spec, metrics_M, memory, status_M, current)
        if desired < 0:
            return current, False, code
        desired = normalize(spec, rules, memory, recs, up_events, down_events, current, desired, now_ms)
        if current == 0 and desired < spec.min_replicas:
            desired = spec.min_replicas
        if desired == current:
            return current, False, code
    if faults & FAULT_UPDATE_SCALE:
        memory.able = FAILED_UPDATE_SCALE
        return current, False, ERR_UPDATE_SCALE
    store_rescale(spec, rules, memory, up_events, down_events, current, desired, now_ms)
    finish_rescale(spec, metrics_M, memory, current, desired, now_ms)
    return desired, True, code


@dataclass(kw_only=True)
class ControllerFlags:
    """Flags of kube-controller-manager that act on HPAs, with the defaults of production (docs/hpa.md A.1)."""

    tolerance: float = 0.1
    cpu_initialization_period_s: float = 300.0
    initial_readiness_delay_s: float = 30.0
    downscale_stabilization_s: float = 300.0
    scale_up_limit_factor: float = 2.0
    scale_up_limit_min: float = 4.0
    gate_scale_to_zero: bool = False
    gate_configurable_tolerance: bool = True


class Rules(NamedTuple):
    """HPAScalingRules of one direction; None = not given. A policy is (type, value, period in seconds)."""

    window_s: float | None = None
    select: str | None = None
    policies: list[tuple[str, int, float]] | None = None
    tolerance: float | None = None


class Behavior(NamedTuple):
    """HorizontalPodAutoscalerBehavior."""

    up: Rules | None = None
    down: Rules | None = None


class Packed(NamedTuple):
    """One HPA as arrays: one row of SPEC, METRIC rows, RULE rows."""

    spec: NDArray[Any]
    metrics_M: NDArray[Any]
    rules: NDArray[Any]


DEFAULT_UP = Rules(0.0, "Max", [("Pods", 4, 15.0), ("Percent", 100, 15.0)])
DEFAULT_DOWN = Rules(None, "Max", [("Percent", 100, 15.0)])
SELECTS = {"Max": SELECT_MAX, "Min": SELECT_MIN, "Disabled": SELECT_DISABLED}
RULE_TYPES = {"Pods": RULE_PODS, "Percent": RULE_PERCENT}


def default_rules(given: Rules | None, default: Rules) -> Rules:
    """Fill one direction field by field; a given list of policies replaces the default one (docs/hpa.md A.1)."""
    if given is None:
        return default
    return default._replace(**{name: own for name, own in given._asdict().items() if own is not None})


def default_behavior(given: Behavior | None) -> Behavior | None:
    """API defaulting: no behavior stays none (the legacy path), any behavior gets both directions."""
    if given is None:
        return None
    return Behavior(default_rules(given.up, DEFAULT_UP), default_rules(given.down, DEFAULT_DOWN))


def to_ms(seconds: float) -> int:
    """Seconds to whole milliseconds."""
    return round(seconds * 1000.0)


def as_read(tolerance: float) -> float:
    """The tolerance as the controller reads it from its quantity, not always the nearest number: 0.7 is 700 * 1e-3.

    Source: `Quantity.AsApproximateFloat64`; the API stores whole multiples of 1, 1e-3, 1e-6 or 1e-9, rounded up.
    """
    exact = Decimal(repr(tolerance))
    for exponent in (0, -3, -6):
        if (count := exact.scaleb(-exponent)) == count.to_integral_value():
            return float(count) * float(f"1e{exponent}")
    return math.ceil(exact.scaleb(9)) * 1e-9


def pack_flags(spec: NDArray[Any], flags: ControllerFlags) -> None:
    """Write the controller's flags into SPEC rows, tolerances included: call it before `pack_behavior`."""
    spec["tolerance_up"] = spec["tolerance_down"] = flags.tolerance
    spec["cpu_initialization_ms"] = to_ms(flags.cpu_initialization_period_s)
    spec["initial_readiness_delay_ms"] = to_ms(flags.initial_readiness_delay_s)
    spec["downscale_window_ms"] = to_ms(flags.downscale_stabilization_s)
    spec["down_window_ms"] = 1000 * int(flags.downscale_stabilization_s)  # an int32 of seconds there
    spec["scale_up_limit_factor"] = flags.scale_up_limit_factor
    spec["scale_up_limit_min"] = flags.scale_up_limit_min
    spec["gate_scale_to_zero"] = flags.gate_scale_to_zero


def pack_behavior(spec: NDArray[Any], given: Behavior | None, flags: ControllerFlags) -> NDArray[Any]:
    """Write a behavior into SPEC rows after defaulting it, and return its RULE rows.

    An unset scale-down window is the controller's flag (`maybeInitScaleDownStabilizationWindow`).
    """
    filled = default_behavior(given)
    spec["has_behavior"] = filled is not None
    if filled is None or filled.up is None or filled.down is None:
        return np.zeros(0, dtype=RULE)
    rows: list[tuple[int, int, int]] = []
    for name, rules in (("up", filled.up), ("down", filled.down)):
        policies = rules.policies or []
        rows += [(RULE_TYPES[kind], value, to_ms(period_s)) for kind, value, period_s in policies]
        spec[f"n_{name}_rules"] = len(policies)
        spec[f"{name}_select"] = SELECTS[rules.select or "Max"]
        if rules.window_s is not None:
            spec[f"{name}_window_ms"] = to_ms(rules.window_s)
        if rules.tolerance is not None and flags.gate_configurable_tolerance:
            spec[f"tolerance_{name}"] = as_read(rules.tolerance)
    return np.array(rows, dtype=RULE)


def target_units(metric: str, target: float) -> int:
    """`HPASpec.target` as an integer: percent for cpu, microseconds for queue, milli-requests for in_flight."""
    return max(1, round(target if metric == "cpu" else target * 1000.0))


def _rules(direction: HPADirection | None) -> Rules | None:
    """The config's direction as API rules."""
    if direction is None:
        return None
    given = direction.policies
    policies = None if given is None else [(r.type, r.value, float(r.period_s)) for r in given]
    return Rules(direction.stabilization_s, direction.select, policies, direction.tolerance)


def pack(hpa: HPASpec, flags: ControllerFlags | None = None) -> Packed:
    """An HPA spec and the controller's flags as the arrays `reconcile` reads, API defaults filled in.

    `cpu` is a Resource metric with averageUtilization, `queue` an External one with Value (mean queue time in
    microseconds; AverageValue where the spec says per replica), `in_flight` a Pods one with AverageValue (milli-requests per pod).
    """
    flags = flags or ControllerFlags()
    kinds = {
        "cpu": (TYPE_RESOURCE, True, TARGET_UTILIZATION),
        "queue": (TYPE_EXTERNAL, False, TARGET_AVERAGE_VALUE if hpa.per_replica else TARGET_VALUE),
        "in_flight": (TYPE_PODS, False, TARGET_AVERAGE_VALUE),
    }
    metrics_M = np.array([(*kinds[hpa.metric], target_units(hpa.metric, hpa.target))], dtype=METRIC)
    spec = np.zeros(1, dtype=SPEC)
    spec["min_replicas"], spec["max_replicas"], spec["n_metrics"] = hpa.min_replicas, hpa.max_replicas, 1
    pack_flags(spec, flags)
    given = None
    if hpa.scale_up is not None or hpa.scale_down is not None:
        given = Behavior(_rules(hpa.scale_up), _rules(hpa.scale_down))
    return Packed(spec, metrics_M, pack_behavior(spec, given, flags))
