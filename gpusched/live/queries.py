"""Every PromQL query, named by the field it fills; units are converted here, to SI.

Which latency a policy sees: the clients', from the load generator's own record, wherever that runs (a client knows
what Triton cannot: connection, network, refusals). Without one, Triton's request duration, which leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from gpusched.core.errors import InputError, refuse

SELECTORS = ("model", "namespace", "pods", "node")
"""What a cluster tells of itself.

model      Triton's model name, matched exactly
namespace  the pods' namespace, matched exactly; "" = series without that label
pods       regular expression of the replicas' `pod` label
node       regular expression of the nodes DCGM tells of; "" = any
"""

_TRITON = '{model="$model",namespace="$namespace",pod=~"$pods"}'
_PODS = '{namespace="$namespace",pod=~"$pods"}'
_CONTAINERS = '{namespace="$namespace",pod=~"$pods",container!="",container!="POD"}'
# One GPU, or one instance of it under MIG (dcgm-exporter #544); `uuid` is the label of --use-old-namespace.
_DEVICE = "max by (UUID, uuid, GPU_I_ID)"

_ANSWERED = f"sum(rate(nv_inference_request_success{_TRITON}[$window]))"
_FAILED = f"(sum(rate(nv_inference_request_failure{_TRITON}[$window])) or vector(0))"


def _rate(metric: str) -> str:
    return f"sum(rate({metric}{_TRITON}[$window]))"


def _dcgm(reading: tuple[str, str], of: str = "{}") -> str:
    """Return the GPUs' series of a metric with its further matchers, `of` around each selector: timestamp() needs a bare one.

    The node's label is `hostname` since dcgm-exporter #655 (2026-05), `Hostname` before; without NODE_NAME it holds the exporter's
    pod instead (#78, #129).
    """
    (metric, more), node = reading, '=~"$node|.*dcgm-exporter-.*"'
    return " or ".join(of.format(f"{metric}{{{label}{node}{more}}}") for label in ("Hostname", "hostname"))


# MIG instances have no such reading (#105, #430), or one that is always 0 (#216): the share of time their engine works.
_BUSY, _BUSY_MIG, _HELD = (
    ("DCGM_FI_DEV_GPU_UTIL", ',GPU_I_ID=""'),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", ""),
    ("DCGM_FI_DEV_FB_USED", ""),
)


def _containers(reading: str) -> str:
    """Return one series per container: the kubelet's /metrics/resource repeats what its cAdvisor tells."""
    return f"max by (namespace, pod, container) ({reading})"


_CORES = _containers(f"rate(container_cpu_usage_seconds_total{_CONTAINERS}[$cpu_window])")
_MEMORY = _containers(f"container_memory_working_set_bytes{_CONTAINERS}")

OBSERVED = {
    "rate_rps": _ANSWERED,
    "failed_share": f"{_FAILED} / ({_FAILED} + {_ANSWERED})",
    "latency_mean_s": f"1e-6 * {_rate('nv_inference_request_duration_us')} / {_ANSWERED}",
    # Quantiles of replicas cannot be added up: the slowest replica's. Triton's own warm-up stands in the summary for the
    # 60 s it covers, so only replicas that are older count.
    "latency_p95_s": f'1e-6 * max(nv_inference_request_summary_us{_TRITON[:-1]},quantile="0.95"}}'
    f" and on (namespace, pod) nv_inference_request_success{_TRITON} offset 1m)",
    "queue_s": f"1e-6 * {_rate('nv_inference_queue_duration_us')} / {_ANSWERED}",
    "batch_size": f"{_rate('nv_inference_count')} / {_rate('nv_inference_exec_count')}",
    # Those waiting are counted, those executing follow from Little's law.
    "in_flight": f"sum(nv_inference_pending_request_count{_TRITON}) + 1e-6 * ("
    + " + ".join(_rate(f"nv_inference_compute_{phase}_duration_us") for phase in ("input", "infer", "output"))
    + ")",
    "cpu_cores": f"sum({_CORES})",
    "memory_bytes": f"sum({_MEMORY})",
    # dcgm-exporter repeats a shared device for each pod on it. Triton itself knows the device where there is no DCGM.
    "gpu_utilization": f"avg({_DEVICE} ({_dcgm(_BUSY)})) / 100 or avg({_DEVICE} ({_dcgm(_BUSY_MIG)}))"
    f" or avg(max by (gpu_uuid) (nv_gpu_utilization{_PODS}))",
    "vram_bytes": f"sum({_DEVICE} ({_dcgm(_HELD)})) * 1048576"
    f" or sum(max by (gpu_uuid) (nv_gpu_memory_used_bytes{_PODS}))",
    "replicas_ready": f'sum(kube_pod_status_ready{_PODS[:-1]},condition="true"}})',
}
"""Levels and window means by Observation field; `memory_bytes` is the tick log's, `replicas_ready` a cross-check."""

NODE = {
    "node_cpu_share": '1 - avg(rate(node_cpu_seconds_total{mode="idle"}[$cpu_window]))',
    "node_memory_share": "1 - sum(node_memory_MemAvailable_bytes) / sum(node_memory_MemTotal_bytes)",
}
"""The machine as the node exporter sees it: shares of all cores and of all memory in use."""

SCRAPED = {
    "scraped_s": f"max(timestamp(nv_inference_request_success{_TRITON}))",
    "gpu_scraped_s": " or ".join(
        [f"max({_dcgm(reading, of='timestamp({})')})" for reading in (_BUSY, _BUSY_MIG, _HELD)]
        + [f"max(timestamp(nv_gpu_utilization{_PODS}))"]
    ),
}
"""Time of the newest sample by Prometheus' clock. dcgm-exporter says nothing of when it looked at the device."""

COUNTED = {
    "queue_sum_s": f"1e-6 * sum by (pod) (nv_inference_queue_duration_us{_TRITON})",
    "batches": f"sum by (pod) (nv_inference_exec_count{_TRITON})",
    "cpu_s": f"sum by (pod) ({_containers(f'container_cpu_usage_seconds_total{_CONTAINERS}')})",
}
"""Counters of each replica, whose growth fills the tick log: sums over a trial stay exact, whatever a rate's window."""

BY_POD = {
    "cpu_cores": f"sum by (pod) ({_CORES})",
    "memory_bytes": f"sum by (pod) ({_MEMORY})",
    "rate_rps": f"sum by (pod) (rate(nv_inference_request_success{_TRITON}[$window]))",
    "queue_s": f"1e-6 * sum by (pod) (rate(nv_inference_queue_duration_us{_TRITON}[$window]))"
    f" / sum by (pod) (rate(nv_inference_request_success{_TRITON}[$window]))",
}
"""Readings of each replica."""
OF_THE_DEVICE = ("gpu_utilization", "vram_bytes")


def render(template: str, selectors: Mapping[str, str], window_s: float, cpu_window_s: float) -> str:
    """Return the query with the cluster's names in it."""
    if absent := [name for name in SELECTORS if name not in selectors]:
        raise ValueError(f"selectors lack {', '.join(absent)}")
    names = {name: _quoted(selectors[name]) for name in SELECTORS}
    names["node"] = names["node"] or ".*"
    return Template(template).substitute(names, window=_range(window_s), cpu_window=_range(cpu_window_s))


def by_pod(field: str) -> str:
    """Return the template of one reading per replica.

    Raises InputError for a GPU reading: DCGM measures the device. Of pods that share one it shows every one the same
    number or names an arbitrary one (dcgm-exporter, transformation/kubernetes.go), and without honorLabels `pod` is
    the exporter's own.
    """
    if field in OF_THE_DEVICE:
        raise InputError(f"{field} by pod: DCGM measures the device, not a pod. Read it per device.")
    if field not in BY_POD:
        raise refuse("field", field, f"must be one of {', '.join(BY_POD)}")
    return BY_POD[field]


def combined(queries: Mapping[str, str]) -> str:
    """Return one query whose series carry the name of theirs in the label `field`: all are read at one instant."""
    return " or ".join(
        f'label_replace({query}, "field", "{name}", "", "")' for name, query in queries.items()
    )


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _range(time_s: float) -> str:
    return f"{round(time_s * 1000)}ms"
