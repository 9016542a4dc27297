"""What an HPA remembers, and how it holds a proposal back: stabilisation, rate limits, min and max.

Compiled; `hpa` has the reconcile that uses it, `hpa_replicas` the units (docs/hpa.md A.6.1, A.6.2, A.7).
The arrays of recommendations and events are preallocated; MEMORY says how many rows are in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.hpa_replicas import (
    INT32_MAX,
    INT32_MIN,
    float_to_int32,
    int_fields,
    jit,
    record_dtype,
    wrapped_int32,
)

RULE_PODS, RULE_PERCENT = range(2)
SELECT_MAX, SELECT_MIN, SELECT_DISABLED = range(3)

# Reasons of the HPA's conditions, which MEMORY holds; 0 = the condition has never been set.
(
    NO_REASON,
    SUCCEEDED_GET_SCALE,
    FAILED_GET_SCALE,
    READY_FOR_NEW_SCALE,
    SCALE_UP_STABILIZED,
    SCALE_DOWN_STABILIZED,
    SUCCEEDED_RESCALE,
    FAILED_UPDATE_SCALE,
    VALID_METRIC_FOUND,
    SCALING_DISABLED,
    INVALID_SELECTOR,
    AMBIGUOUS_SELECTOR,
    DESIRED_WITHIN_RANGE,
    TOO_FEW_REPLICAS,
    TOO_MANY_REPLICAS,
    SCALE_UP_LIMIT,
    SCALE_DOWN_LIMIT,
    SCALED_TO_ZERO,
    NOT_SCALED_TO_ZERO,
    FAILED_METRIC,
) = range(20)
"""FAILED_METRIC + the metric's type: FailedGetResourceMetric and its siblings, InvalidMetricSourceType."""

REASON_NAMES = (
    *("", "SucceededGetScale", "FailedGetScale", "ReadyForNewScale", "ScaleUpStabilized"),
    *("ScaleDownStabilized", "SucceededRescale", "FailedUpdateScale", "ValidMetricFound", "ScalingDisabled"),
    *("InvalidSelector", "AmbiguousSelector", "DesiredWithinRange", "TooFewReplicas", "TooManyReplicas"),
    *("ScaleUpLimit", "ScaleDownLimit", "ScaledToZero", "NotScaledToZero", "FailedGetResourceMetric"),
    *("FailedGetContainerResourceMetric", "FailedGetPodsMetric", "FailedGetObjectMetric"),
    *("FailedGetExternalMetric", "InvalidMetricSourceType"),
)
"""The API's name of each reason code."""

SPEC = record_dtype(
    *int_fields("min_replicas max_replicas has_behavior n_metrics n_up_rules n_down_rules"),
    *int_fields("up_window_ms down_window_ms up_select down_select"),
    ("tolerance_up", np.float64),
    ("tolerance_down", np.float64),
    *int_fields("cpu_initialization_ms initial_readiness_delay_ms downscale_window_ms"),
    ("scale_up_limit_factor", np.float64),
    ("scale_up_limit_min", np.float64),
    *int_fields("gate_scale_to_zero"),
)
"""One HPA after API defaulting, and the controller flags that act on it (`hpa.pack`)."""

RULE = record_dtype(*int_fields("type value period_ms"))
"""One scaling policy: RULE_PODS or RULE_PERCENT, its value and period."""

REC = record_dtype(*int_fields("replicas t_ms"))
"""One recommendation: the raw combined proposal, before stabilisation, rate limits, min and max."""

EVENT = record_dtype(*int_fields("change t_ms outdated"))
"""One rescale: replicas added or removed, when, and whether its row may be reused."""

MEMORY = record_dtype(
    *int_fields("has_recs n_recs n_up n_down able active limited scaled_to_zero last_scale_ms")
)
"""What the controller remembers of one HPA: rows in use, and the reasons of the conditions AbleToScale,
ScalingActive, ScalingLimited, ScaledToZero. `has_recs`: a list of recommendations exists, be it empty."""


@jit
def free_row(t_ms: NDArray[Any], used: int, last_old: int) -> int:
    """Where to write a new row: over the last old one, else behind the last, else over the oldest."""
    if last_old >= 0:
        return last_old
    if used < t_ms.shape[0]:
        return used
    oldest = 0
    for row in range(1, used):
        if t_ms[row] < t_ms[oldest]:
            oldest = row
    return oldest


@jit
def record(memory: Any, recs: NDArray[Any], last_old: int, replicas: int, now_ms: int) -> None:
    """Store a recommendation (docs/hpa.md A.7.2)."""
    row = free_row(recs["t_ms"], memory.n_recs, last_old)
    recs[row].replicas = replicas
    recs[row].t_ms = now_ms
    memory.n_recs = max(memory.n_recs, row + 1)
    memory.has_recs = 1


@jit
def stabilize_legacy(spec: Any, memory: Any, recs: NDArray[Any], desired: int, now_ms: int) -> int:
    """Highest recommendation of the window, its edge included (docs/hpa.md A.6.1, `stabilizeRecommendation`)."""
    cutoff_ms = now_ms - spec.downscale_window_ms
    stabilized = desired
    last_old: Any = np.int64(-1)
    for row in range(memory.n_recs):
        if recs[row].t_ms < cutoff_ms:
            last_old = row
        elif recs[row].replicas > stabilized:
            stabilized = recs[row].replicas
    record(memory, recs, last_old, desired, now_ms)
    return stabilized


@jit
def stabilize_behavior(
    spec: Any, memory: Any, recs: NDArray[Any], current: int, desired: int, now_ms: int
) -> int:
    """`current` moved into the range of recent recommendations (docs/hpa.md A.6.2).

    One that is exactly a window old has left it, unlike on the legacy path
    (`stabilizeRecommendationWithBehaviors`).
    """
    up_cutoff_ms, down_cutoff_ms = now_ms - spec.up_window_ms, now_ms - spec.down_window_ms
    lowest, highest = desired, desired
    last_old: Any = np.int64(-1)
    for row in range(memory.n_recs):
        t_ms = recs[row].t_ms
        if t_ms > up_cutoff_ms:
            lowest = min(lowest, recs[row].replicas)
        if t_ms > down_cutoff_ms:
            highest = max(highest, recs[row].replicas)
        if t_ms < up_cutoff_ms and t_ms < down_cutoff_ms:
            last_old = row
    record(memory, recs, last_old, desired, now_ms)
    return min(max(current, lowest), highest)


@jit
def change_in_period(events: NDArray[Any], used: int, period_ms: int, now_ms: int) -> int:
    """Replicas moved within the period (docs/hpa.md A.6.2, `getReplicasChangePerPeriod`); flags do not matter."""
    total = 0
    for row in range(used):
        if events[row].t_ms > now_ms - period_ms:
            total += events[row].change
    return total


@jit
def rule_limit(rule: Any, start: int, up: bool) -> int:
    """How far one policy lets the count go from `start`, the replicas at the beginning of its period."""
    if rule.type == RULE_PODS:
        return wrapped_int32(start + rule.value if up else start - rule.value)
    if up:
        return float_to_int32(np.ceil(start * (1.0 + rule.value / 100.0)))
    return float_to_int32(start * (1.0 - rule.value / 100.0))


@jit
def scale_limit(
    spec: Any,
    rules: NDArray[Any],
    memory: Any,
    up_events: NDArray[Any],
    down_events: NDArray[Any],
    current: int,
    now_ms: int,
    up: bool,
) -> int:
    """The limit all policies of a direction agree on (`calculateScale{Up,Down}Limit…`).

    Select policy Max is the largest change, Min the smallest, whichever the direction.
    """
    select = spec.up_select if up else spec.down_select
    if select == SELECT_DISABLED:
        return current
    take_max = up != (select == SELECT_MIN)
    first = 0 if up else spec.n_up_rules
    last = spec.n_up_rules if up else spec.n_up_rules + spec.n_down_rules
    limit = INT32_MIN if take_max else INT32_MAX
    for r in range(first, last):
        period_ms = rules[r].period_ms
        added = change_in_period(up_events, memory.n_up, period_ms, now_ms)
        removed = change_in_period(down_events, memory.n_down, period_ms, now_ms)
        proposed = rule_limit(rules[r], current - added + removed, up)
        limit = max(limit, proposed) if take_max else min(limit, proposed)
    return limit


@jit
def limit_behavior(
    spec: Any,
    rules: NDArray[Any],
    memory: Any,
    up_events: NDArray[Any],
    down_events: NDArray[Any],
    current: int,
    desired: int,
    now_ms: int,
) -> tuple[int, int]:
    """Replicas after rate limit, min and max, with the reason (`convertDesiredReplicasWithBehaviorRate`)."""
    if desired > current:
        limit = scale_limit(spec, rules, memory, up_events, down_events, current, now_ms, desired > current)
        limit = max(limit, current)
        cap = min(spec.max_replicas, limit)
        if desired > cap:
            return cap, SCALE_UP_LIMIT if spec.max_replicas > limit else TOO_MANY_REPLICAS
    elif desired < current:
        limit = scale_limit(spec, rules, memory, up_events, down_events, current, now_ms, desired > current)
        limit = min(limit, current)
        floor = max(spec.min_replicas, limit)
        if desired < floor:
            return floor, SCALE_DOWN_LIMIT if spec.min_replicas < limit else TOO_FEW_REPLICAS
    return desired, DESIRED_WITHIN_RANGE


@jit
def limit_legacy(spec: Any, current: int, desired: int) -> tuple[int, int]:
    """Replicas after min, max and the scale-up cap, with the reason (`convertDesiredReplicasWithRules`)."""
    limit = float_to_int32(max(spec.scale_up_limit_factor * current, spec.scale_up_limit_min))
    if desired < spec.min_replicas:
        return spec.min_replicas, TOO_FEW_REPLICAS
    if desired > min(spec.max_replicas, limit):
        if spec.max_replicas > limit:
            return limit, SCALE_UP_LIMIT
        return spec.max_replicas, TOO_MANY_REPLICAS
    return desired, DESIRED_WITHIN_RANGE


@jit
def store_event(events: NDArray[Any], used: int, longest_ms: int, change: int, now_ms: int) -> int:
    """Store one rescale and return the rows now in use (docs/hpa.md A.7.3, `storeScaleEvent`).

    Rows older than the longest policy period are flagged, and the last flagged one is written over.
    """
    last_old: Any = np.int64(-1)
    for row in range(used):
        if events[row].t_ms < now_ms - longest_ms:
            events[row].outdated = 1
        if events[row].outdated != 0:
            last_old = row
    row = free_row(events["t_ms"], used, last_old)
    events[row].change = change
    events[row].t_ms = now_ms
    events[row].outdated = 0
    return max(used, row + 1)


@jit
def longest_period(rules: NDArray[Any], first: int, last: int) -> int:
    """The longest period of a direction's policies (`getLongestPolicyPeriod`)."""
    longest_ms = 0
    for r in range(first, last):
        longest_ms = max(longest_ms, rules[r].period_ms)
    return longest_ms


@jit
def store_rescale(
    spec: Any,
    rules: NDArray[Any],
    memory: Any,
    up_events: NDArray[Any],
    down_events: NDArray[Any],
    current: int,
    desired: int,
    now_ms: int,
) -> None:
    """Remember a successful rescale; without behavior nothing would read it (`storeScaleEvent`)."""
    if spec.has_behavior == 0:
        return
    n_up = spec.n_up_rules
    if desired > current:
        longest_ms = longest_period(rules, np.int64(0), n_up)
        memory.n_up = store_event(up_events, memory.n_up, longest_ms, desired - current, now_ms)
    else:
        longest_ms = longest_period(rules, n_up, n_up + spec.n_down_rules)
        memory.n_down = store_event(down_events, memory.n_down, longest_ms, current - desired, now_ms)


@jit
def normalize(
    spec: Any,
    rules: NDArray[Any],
    memory: Any,
    recs: NDArray[Any],
    up_events: NDArray[Any],
    down_events: NDArray[Any],
    current: int,
    desired: int,
    now_ms: int,
) -> int:
    """Stabilise, then limit (docs/hpa.md A.6.1 and A.6.2, `normalizeDesiredReplicas…`)."""
    if spec.has_behavior == 0:
        stabilized = stabilize_legacy(spec, memory, recs, desired, now_ms)
        replicas, memory.limited = limit_legacy(spec, current, stabilized)
    else:
        stabilized = stabilize_behavior(spec, memory, recs, current, desired, now_ms)
        replicas, memory.limited = limit_behavior(
            spec, rules, memory, up_events, down_events, current, stabilized, now_ms
        )
    if stabilized == desired:
        memory.able = READY_FOR_NEW_SCALE
    elif spec.has_behavior != 0 and desired >= current:
        memory.able = SCALE_UP_STABILIZED
    else:
        memory.able = SCALE_DOWN_STABILIZED
    return replicas
