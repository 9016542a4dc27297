"""What a policy sees of GPUs and containers, whatever exporter tells it: known answers, evaluated by Prometheus itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from promtool import END_S, evaluate, needs_promtool

from gpusched.live.queries import COUNTED, OBSERVED, SCRAPED, combined, render

pytestmark = needs_promtool

UTIL, ACTIVE, USED = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_FB_USED"
GPU = {name: {**OBSERVED, **SCRAPED}[name] for name in ("gpu_utilization", "vram_bytes", "gpu_scraped_s")}
MIB = 2**20


def gauge(metric: str, value: float, **labels: str) -> dict[str, str]:
    """Return a gauge that stands still until END_S."""
    return {"series": metric + braced(labels), "values": f"{value}x24"}


def braced(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def check(
    queries: dict[str, str],
    given: list[dict[str, str]],
    expected: dict[str, float],
    folder: Path,
    node: str = "n1",
) -> None:
    """Compare the values of queries asked at once, as telemetry asks them; those not expected must have none."""
    selectors = {"model": "m", "namespace": "lab", "pods": "triton-.*", "node": node}
    samples: list[dict[str, object]] = [
        {"labels": f'{{field="{name}"}}', "value": value} for name, value in expected.items()
    ]
    evaluate(render(combined(queries), selectors, 30.0, 60.0), samples, folder, given)


def seen(utilization: float, vram_mib: float) -> dict[str, float]:
    return {"gpu_utilization": utilization, "vram_bytes": vram_mib * MIB, "gpu_scraped_s": END_S}


@pytest.mark.parametrize(
    ("label", "host"),
    [
        ("Hostname", "n1"),
        ("hostname", "n1"),
        ("Hostname", "nvidia-dcgm-exporter-x7"),
        ("Hostname", "dcgm-exporter-lcxpl"),
        ("hostname", "mine-dcgm-exporter-lcxpl"),
    ],
)
@pytest.mark.parametrize("node", ["n1", ""])
def test_a_gpu_is_found_by_either_label_and_by_its_exporters_pod(
    label: str, host: str, node: str, tmp_path: Path
) -> None:
    given = [gauge(UTIL, 25, UUID="a", **{label: host}), gauge(USED, 1000, UUID="a", **{label: host})]
    check(GPU, given, seen(0.25, 1000), tmp_path, node)


def test_exporters_of_both_kinds_add_up_and_other_nodes_do_not_count(tmp_path: Path) -> None:
    hosts = [
        {"UUID": "a", "Hostname": "n1"},
        {"UUID": "b", "hostname": "n1"},
        {"UUID": "c", "hostname": "n2"},
    ]
    given = [gauge(UTIL, 25 * k, **host) for k, host in enumerate(hosts, 1)]
    given += [gauge(USED, 1000 * k, **host) for k, host in enumerate(hosts, 1)]
    check(GPU, given, seen(0.375, 3000), tmp_path)


def test_without_gpus_of_the_nodes_there_is_no_reading(tmp_path: Path) -> None:
    check(GPU, [gauge(UTIL, 25, UUID="a", hostname="n2")], {}, tmp_path)


def test_under_mig_the_engines_activity_is_the_utilisation_and_instances_add_up(tmp_path: Path) -> None:
    """Each instance carries its GPU's UUID; one of the two is shared and named once for each pod."""
    a, b = ({"UUID": "a", "hostname": "n1", "GPU_I_ID": id} for id in ("7", "8"))
    given = [gauge(ACTIVE, 0.75, **a), gauge(ACTIVE, 0.25, **b), gauge(USED, 3000, **b)]
    given += [gauge(USED, 1000, **a, pod=pod) for pod in ("x", "y")]
    check(GPU, given, seen(0.5, 4000), tmp_path)
    given += [gauge(UTIL, 0, **a), gauge(UTIL, 0, **b)]  # dcgm-exporter #216
    check(GPU, given, seen(0.5, 4000), tmp_path)


def test_memory_alone_has_a_time_too(tmp_path: Path) -> None:
    given = [gauge(USED, 1000, UUID="a", hostname="n1")]
    check(GPU, given, {"vram_bytes": 1000 * MIB, "gpu_scraped_s": END_S}, tmp_path)


def test_gpus_of_the_old_namespace_are_told_apart(tmp_path: Path) -> None:
    given = [gauge(USED, 1000 * k, uuid=f"g{k}", Hostname="n1") for k in (1, 3)]
    given += [gauge(UTIL, 25 * k, uuid=f"g{k}", Hostname="n1") for k in (1, 3)]
    check(GPU, given, seen(0.5, 4000), tmp_path)


def test_a_container_that_the_kubelet_tells_of_twice_counts_once(tmp_path: Path) -> None:
    """/metrics/cadvisor and /metrics/resource; two containers, one of them with a sidecar."""
    given = []
    for path in ("/metrics/cadvisor", "/metrics/resource"):
        for pod, container in (("triton-a", "triton"), ("triton-a", "side"), ("triton-b", "triton")):
            labels = {"namespace": "lab", "pod": pod, "container": container, "metrics_path": path}
            given.append(gauge("container_memory_working_set_bytes", 1e8, **labels))
            counter = "container_cpu_usage_seconds_total" + braced(labels)
            given.append({"series": counter, "values": "100+2.5x24"})
    queries = {name: OBSERVED[name] for name in ("cpu_cores", "memory_bytes")}
    check(queries, given, {"cpu_cores": 1.5, "memory_bytes": 3e8}, tmp_path)
    selectors = {"model": "m", "namespace": "lab", "pods": "triton-.*", "node": ""}
    expected: list[dict[str, object]] = [
        {"labels": '{pod="triton-a"}', "value": 320.0},
        {"labels": '{pod="triton-b"}', "value": 160.0},
    ]
    evaluate(render(COUNTED["cpu_s"], selectors, 30.0, 60.0), expected, tmp_path, given)


def test_a_new_replica_s_own_warm_up_is_no_latency_of_the_service(tmp_path: Path) -> None:
    """Triton 2.51 counts its warm-up: with batches 1 to 8 warmed, the slowest replica has not been asked by anybody."""
    summary, success = "nv_inference_request_summary_us", "nv_inference_request_success"
    old, young = ({"model": "m", "namespace": "lab", "pod": f"triton-{age}"} for age in ("old", "young"))
    given = [
        {"series": summary + braced({**old, "quantile": "0.95"}), "values": "1000000x24"},
        {"series": success + braced(old), "values": "0+50x24"},
        {"series": summary + braced({**young, "quantile": "0.95"}), "values": "_x19 5000000x4"},
        {"series": success + braced(young), "values": "_x19 36x4"},
    ]
    latency = {"latency_p95_s": OBSERVED["latency_p95_s"]}
    check(latency, given, {"latency_p95_s": 1.0}, tmp_path)
    check(latency, given[2:], {}, tmp_path)
