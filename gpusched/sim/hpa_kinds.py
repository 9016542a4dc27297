"""What the HPA model makes of each kind of case of schema hpa-vectors/1, in the schema's own words.

Every function takes a case and returns the fields its `expected` may have (docs/hpa.md names the rules).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpusched.sim import hpa_cases as cases
from gpusched.sim import hpa_replicas as rep
from gpusched.sim import hpa_rules as hold
from gpusched.sim.hpa import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    FAULT_AMBIGUOUS_SELECTOR,
    FAULT_GET_SCALE,
    FAULT_SELECTOR,
    FAULT_UPDATE_SCALE,
    Rules,
    default_behavior,
    default_rules,
    reconcile,
    to_ms,
)
from gpusched.sim.hpa_cases import HPA, Json

FAULTS = {
    ("get_scale", "error"): FAULT_GET_SCALE,
    ("update_scale", "error"): FAULT_UPDATE_SCALE,
    ("update_scale", "conflict_once"): 0,
    ("selector", "missing"): FAULT_SELECTOR,
    ("selector", "unparsable"): FAULT_SELECTOR,
    ("selector", "ambiguous"): FAULT_AMBIGUOUS_SELECTOR,
}
"""A conflict is retried at once and leaves no trace in what the controller decides."""
API_OF_TYPE = {
    "Resource": ("resource", "resource"),
    "ContainerResource": ("resource", "resource"),
    "Pods": ("custom", "custom_pods"),
    "Object": ("custom", "object"),
    "External": ("external", "external"),
}
"""Metric type: the API a fault takes down, the key of its data."""
FALSE_REASONS = {
    *("FailedGetScale", "FailedUpdateScale", "ScalingDisabled", "InvalidSelector", "AmbiguousSelector"),
    *("DesiredWithinRange", "NotScaledToZero", *hold.REASON_NAMES[hold.FAILED_METRIC :]),
}
CONDITIONS = {
    "AbleToScale": "able",
    "ScalingActive": "active",
    "ScalingLimited": "limited",
    "ScaledToZero": "scaled_to_zero",
}


def failed(code: int) -> Json:
    """What a case of an error code looks like."""
    return {"error": cases.CLASSES[code][1], "error_class": cases.CLASSES[code][0]}


# --- one function per kind: what the model makes of a case


def replica_calc(case: Json) -> Json:
    """One metric's proposal, with spec.replicas = status.replicas."""
    given = case["input"]
    hpa = cases.build(case, {"metrics": [given["metric"]]})
    hpa.spec["tolerance_down"], hpa.spec["tolerance_up"] = (
        given["tolerance"]["down"],
        given["tolerance"]["up"],
    )
    arrays, codes = cases.inputs(
        [given["metric"]], given["pods"], [given["samples"]], cases.pod_level(case["controller"])
    )
    current, status = given["current_replicas"], hpa.status_M[0]
    rep.propose(
        hpa.spec[0], hpa.metrics_M[0], status, arrays.pods_P, arrays.n_pods, arrays.value_MP[0],
        arrays.sample_ms_MP[0], arrays.window_ms_MP[0], arrays.has_sample_MP[0], arrays.request_MP[0],
        arrays.object_M[0], arrays.object_ok_M[0], to_ms(case["now_s"]), current, current,
    )  # fmt: skip
    if status.error != rep.OK:
        return failed(codes[0] or int(status.error))
    found = {"replicas": int(status.proposal), "usage_m": int(status.usage_m)}
    if hpa.metrics_M[0].target_type == rep.TARGET_UTILIZATION:
        found["utilization_pct"] = int(status.utilization_pct)
    return found


def get_conditions(hpa: HPA) -> list[Json]:
    """The conditions the memory stands for."""
    found = []
    for kind, field in CONDITIONS.items():
        reason = hold.REASON_NAMES[int(hpa.memory[field][0])]
        if reason:
            found.append(
                {"type": kind, "status": "False" if reason in FALSE_REASONS else "True", "reason": reason}
            )
    return found


def set_conditions(hpa: HPA, conditions: list[Json]) -> None:
    """Put given conditions into the memory; of ScaledToZero only the status counts."""
    for condition in conditions:
        if condition["type"] == "ScaledToZero":
            is_true = condition["status"] == "True"
            hpa.memory["scaled_to_zero"] = hold.SCALED_TO_ZERO if is_true else hold.NOT_SCALED_TO_ZERO
        elif condition["reason"] in hold.REASON_NAMES:
            hpa.memory[CONDITIONS[condition["type"]]] = hold.REASON_NAMES.index(condition["reason"])


def run_reconcile(case: Json, hpa: HPA, metrics: list[Json], step: Json, t_s: float) -> tuple[int, bool, int]:
    """One reconcile of a case or of a step of a trace."""
    faults = dict(step.get("faults") or {})
    down = faults.pop("metrics_api", None) or []
    data = []
    for metric in metrics:
        api, key = API_OF_TYPE.get(metric["type"], ("", ""))
        data.append(None if api in down else (step.get("metrics_data") or {}).get(key, []))
    arrays, _ = cases.inputs(metrics, step["pods"], data, cases.pod_level(case["controller"]))
    bits = sum(FAULTS[name, value] for name, value in faults.items() if value is not None)
    replicas = step["scale"]["spec_replicas"], step["scale"]["status_replicas"]
    desired, rescaled, code = reconcile(
        hpa.spec[0], hpa.metrics_M, hpa.rules, hpa.memory[0], hpa.recs, hpa.up_events, hpa.down_events,
        *arrays, to_ms(t_s), *replicas, bits, hpa.status_M,
    )  # fmt: skip
    return int(desired), bool(rescaled), int(code)


def metric_results(hpa: HPA, metrics: list[Json], current: int) -> Json:
    """What the controller's own metrics say of each metric it evaluated, by metric type."""
    actions: dict[str, str] = {}
    errors: dict[str, str] = {}
    found: Json = {"metric_actions": actions, "metric_errors": errors}
    for metric, status in zip(metrics, hpa.status_M, strict=True):
        if status.error == rep.SKIPPED:
            continue
        kind = metric["type"]
        actions[kind], errors[kind] = "none", "spec" if status.error == rep.ERR_METRIC_TYPE else "internal"
        if status.error == rep.OK:
            errors[kind], actions[kind] = "none", action(current, int(status.proposal))
            if kind == "Resource" and metric["resource"] == "cpu" and metric["target_type"] == "Utilization":
                found.setdefault("cpu_utilization_pct", int(status.utilization_pct))
    return found


def action(current: int, desired: int) -> str:
    """The direction of a move."""
    return "scale_up" if desired > current else "scale_down" if desired < current else "none"


def reconcile_once(case: Json) -> list[Json]:
    """A list: with `repeat`, the same controller reconciles that often and each time must do the same."""
    given, found = case["input"], []
    metrics = given["hpa"].get("metrics") or [cases.DEFAULT_METRIC]
    repeat = case.get("repeat") or 1
    hpa = cases.build(case, given["hpa"], given.get("history"), spare=repeat)
    set_conditions(hpa, given.get("conditions") or [])
    current = given["scale"]["spec_replicas"]
    for _ in range(repeat):
        desired, rescaled, code = run_reconcile(case, hpa, metrics, given, case["now_s"])
        found.append(
            {
                "desired_replicas": desired,
                "rescaled": rescaled,
                "conditions": get_conditions(hpa),
                "action": action(current, desired),
                "error": "none" if code == rep.OK else "internal",
                **metric_results(hpa, metrics, current),
            }
        )
    return found


def reconcile_trace(case: Json) -> Json:
    """Reconciles of one controller in a row; the scale is given at each step."""
    given, steps = case["input"], []
    metrics = given["hpa"].get("metrics") or [cases.DEFAULT_METRIC]
    hpa = cases.build(case, given["hpa"], given.get("history"), spare=len(given["steps"]))
    set_conditions(hpa, given.get("conditions") or [])
    for step in given["steps"]:
        desired, rescaled, code = run_reconcile(case, hpa, metrics, step, step["t_s"])
        found = {"desired_replicas": desired, "rescaled": rescaled, "error": code != rep.OK}
        steps.append({**found, "conditions": get_conditions(hpa)})
    return {"steps": steps}


def group_pods(case: Json) -> Json:
    """The group of each pod, by name."""
    given = case["input"]
    hpa = cases.build(case, {})
    metric = {"type": "Resource", "resource": given["resource"], "target_type": "AverageValue", "target_m": 1}
    samples = cases.pods_samples(given["metrics"]) if given["metrics"] else {}
    now_ms, is_cpu, groups = to_ms(case["now_s"]), cases.metric_row(metric)[1], {}
    pods_P = np.array([cases.pod_row(pod) for pod in given["pods"]], dtype=rep.POD)
    for row, pod in zip(pods_P, given["pods"], strict=True):
        sample = samples.get(pod["name"])
        _, t_ms, window_ms = sample or (0, 0, 0)
        groups[pod["name"]] = rep.group_pod(
            hpa.spec[0], row, is_cpu, sample is not None, t_ms, window_ms, now_ms
        )
    wanted = (("unready", rep.GROUP_UNREADY), ("missing", rep.GROUP_MISSING), ("ignored", rep.GROUP_IGNORED))
    found: Json = {
        key: sorted(name for name, group in groups.items() if group == code) for key, code in wanted
    }
    return {"ready_count": list(groups.values()).count(rep.GROUP_READY), **found}


def pod_requests(case: Json) -> Json:
    """Requests by pod; raises MetricError."""
    given, gate = case["input"], cases.pod_level(case["controller"])
    args = given["resource"], given.get("container") or "", gate
    return {"requests_m": {pod["name"]: cases.pod_request(pod, *args) for pod in given["pods"]}}


def metrics_client(case: Json) -> Json:
    """What the metrics client makes of an API's answer; raises MetricError."""
    given = case["input"]
    if given["api"] in ("object", "external"):
        return {"values_m": cases.values(given["samples"])}
    if given["api"] == "resource":
        samples = cases.resource_samples(given["pods"], given["resource"], given.get("container") or "")
    else:
        samples = cases.pods_samples(given["samples"])
    pods = {
        name: {"value_m": s.value_m, "timestamp_s": s.t_ms / 1000, "window_s": s.window_ms / 1000}
        for name, s in samples.items()
    }
    return {"pods": pods}


def ratio(case: Json) -> Json:
    """utilization_ratio and usage_ratio: a metric without a request belongs to no listed pod."""
    given, utilization = case["input"], case["kind"] == "utilization_ratio"
    kind = {"target_type": "Utilization", "target": given["target"]} if utilization else {}
    metric = {"type": "Resource", "target_type": "AverageValue", "target_m": given.get("target_m"), **kind}
    requests = given["requests_m"] if utilization else given["metrics_m"]
    n_pods = len({**requests, **given["metrics_m"]})
    pods_P, request_P = np.zeros(n_pods, dtype=rep.POD), np.zeros(n_pods, dtype=np.int64)
    value_P, has_sample_P = np.zeros(n_pods, dtype=np.int64), np.zeros(n_pods, dtype=np.bool_)
    for p, name in enumerate({**requests, **given["metrics_m"]}):
        pods_P[p].phase = rep.PHASE_RUNNING if name in requests else rep.PHASE_NO_POD
        request_P[p], value_P[p] = requests.get(name, 0), given["metrics_m"].get(name, 0)
        has_sample_P[p] = name in given["metrics_m"]
    hpa = cases.build(case, {"metrics": [metric]})
    status, zero_P = hpa.status_M[0], np.zeros(n_pods, dtype=np.int64)
    rep.sum_pods(
        hpa.spec[0], hpa.metrics_M[0], status, pods_P, n_pods,
        value_P, zero_P, zero_P, has_sample_P, request_P, 0,
    )  # fmt: skip
    if utilization and status.request_ready == 0:
        return failed(rep.ERR_NO_MATCH)
    found = {"ratio": rep.first_ratio(hpa.metrics_M[0], status), "usage_m": int(status.usage_m)}
    return {**found, "utilization_pct": int(status.utilization_pct)} if utilization else found


def stabilize_legacy(case: Json) -> Json:
    """Stabilisation without behavior."""
    given = case["input"]
    hpa = cases.build(case, {}, given)
    replicas = hold.stabilize_legacy(
        hpa.spec[0], hpa.memory[0], hpa.recs, given["desired"], to_ms(case["now_s"])
    )
    return {"replicas": int(replicas), "log_length": int(hpa.memory["n_recs"][0])}


def convert_legacy(case: Json) -> Json:
    """Limits without behavior."""
    given = case["input"]
    hpa = cases.build(case, given)
    replicas, reason = hold.limit_legacy(hpa.spec[0], given["current_replicas"], given["desired"])
    return {"replicas": int(replicas), "reason": hold.REASON_NAMES[reason]}


def stabilize_behavior(case: Json) -> Json:
    """Stabilisation with behavior, and the log after it."""
    given = case["input"]
    hpa = cases.build(case, {}, given)
    hpa.spec["up_window_ms"], hpa.spec["down_window_ms"] = (
        to_ms(given["up_window_s"]),
        to_ms(given["down_window_s"]),
    )
    replicas = hold.stabilize_behavior(
        hpa.spec[0],
        hpa.memory[0],
        hpa.recs,
        given["current_replicas"],
        given["desired"],
        to_ms(case["now_s"]),
    )
    return {"replicas": int(replicas), "log": hpa.recs["replicas"][: hpa.memory["n_recs"][0]].tolist()}


def rate_limit(case: Json) -> Json:
    """Limits with behavior, of an already stabilised count."""
    given = case["input"]
    hpa = cases.build(case, {**given, "behavior": given["behavior"] or {}}, given)
    replicas, reason = hold.limit_behavior(
        hpa.spec[0], hpa.rules, hpa.memory[0], hpa.up_events, hpa.down_events,
        given["current_replicas"], given["desired"], to_ms(case["now_s"]),
    )  # fmt: skip
    return {"replicas": int(replicas), "reason": hold.REASON_NAMES[reason]}


def scale_limit(case: Json) -> Json:
    """The limit of one direction's policies."""
    given = case["input"]
    hpa = cases.build(case, {"behavior": {f"scale_{given['direction']}": given["rules"]}}, given)
    limit = hold.scale_limit(
        hpa.spec[0], hpa.rules, hpa.memory[0], hpa.up_events, hpa.down_events,
        given["current_replicas"], to_ms(case["now_s"]), given["direction"] == "up",
    )  # fmt: skip
    return {"limit": int(limit)}


def store_event(case: Json) -> Json:
    """Change within a period, then one rescale stored."""
    given, now_ms = case["input"], to_ms(case["now_s"])
    up = given["direction"] == "up"
    behavior = None if given["rules"] is None else {f"scale_{given['direction']}": given["rules"]}
    hpa = cases.build(case, {"behavior": behavior}, {f"scale_{given['direction']}_events": given["events"]})
    events, count = (hpa.up_events, "n_up") if up else (hpa.down_events, "n_down")
    before = hold.change_in_period(events, hpa.memory[count][0], to_ms(given["period_s"]), now_ms)
    hold.store_rescale(
        hpa.spec[0], hpa.rules, hpa.memory[0], hpa.up_events, hpa.down_events,
        given["prev_replicas"], given["new_replicas"], now_ms,
    )  # fmt: skip
    kept = events[: hpa.memory[count][0]]
    after = [{"change": int(row["change"]), "outdated": bool(row["outdated"])} for row in kept]
    return {"change_in_period_before": int(before), "events": after}


def rules_json(rules: Rules) -> Json:
    """One direction as the schema writes it."""
    policies = [
        {"type": kind, "value": value, "period_s": period_s} for kind, value, period_s in rules.policies or []
    ]
    given = {
        "stabilization_window_s": rules.window_s,
        "select_policy": rules.select,
        "tolerance": rules.tolerance,
    }
    return {**given, "policies": policies}


def behavior_defaults(case: Json) -> Json:
    """API defaulting of one direction."""
    given = case["input"]
    default = DEFAULT_UP if given["direction"] == "up" else DEFAULT_DOWN
    return rules_json(default_rules(cases.rules(given["rules"]), default))


def behavior_defaults_full(case: Json) -> Json:
    """API defaulting of a behavior."""
    filled = default_behavior(cases.behavior(case["input"]["behavior"]))
    if filled is None or filled.up is None or filled.down is None:
        return {"behavior": None}
    return {"behavior": {"scale_up": rules_json(filled.up), "scale_down": rules_json(filled.down)}}


def usage_quantity(case: Json) -> Json:
    """How the status prints a usage; the value itself is passed through."""
    memory = case["input"]["resource"] == "memory"
    return {"value_m": case["input"]["raw_m"], "format": "BinarySI" if memory else "DecimalSI"}


KINDS: dict[str, Callable[[Json], Json | list[Json]]] = {
    "replica_calc": replica_calc,
    "reconcile": reconcile_once,
    "utilization_ratio": ratio,
    "usage_ratio": ratio,
    **{
        run.__name__: run
        for run in (
            *(reconcile_trace, group_pods, pod_requests, metrics_client, stabilize_legacy, convert_legacy),
            *(stabilize_behavior, rate_limit, scale_limit, store_event, behavior_defaults),
            *(behavior_defaults_full, usage_quantity),
        )
    },
}
