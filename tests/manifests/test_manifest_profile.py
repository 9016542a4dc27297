"""The manifests and the simulator's configuration tell of the same service."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from objects import MANIFESTS, ROOT, TRITON, Dict, built, one, triton
from security_lint import quantity

CONF = ROOT / "conf"


def load(path: Path, name: str) -> ModuleType:
    """Import a file that lies in no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@cache
def profile() -> dict[str, float]:
    raw = yaml.safe_load((CONF / "service" / "mobilenetv4-rtx3080.yaml").read_text())
    return {key: value["value"] for key, value in raw.items() if isinstance(value, dict)}


def values(name: str) -> Dict:
    return yaml.safe_load((MANIFESTS / "values" / f"{name}.yaml").read_text())


def conf(name: str) -> Dict:
    return yaml.safe_load((CONF / name).read_text())


def seconds(text: str) -> float:
    """Return a Go duration of one unit in seconds."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[unit]


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in TRITON)])
def test_resources_and_end_of_life(folder: str) -> None:
    _, pod, container = triton(folder)
    resources, service = container["resources"], profile()
    assert quantity(resources["requests"]["cpu"]) == service["cpu_request_cores"]
    assert quantity(resources["limits"]["cpu"]) == service["cpu_limit_cores"]
    assert quantity(resources["requests"]["memory"]) == service["pod_memory_bytes"]
    assert pod["terminationGracePeriodSeconds"] == service["grace_s"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", f"{service['prestop_s']:g}"]
    (drain,) = [a for a in container["args"] if a.startswith("--exit-timeout-secs=")]
    assert service["prestop_s"] + int(drain.partition("=")[2]) < service["grace_s"]
    assert service["prestop_s"] > service["endpoint_max_s"], (
        "connections still come while the endpoint is known"
    )


def overridden(deployment: Dict) -> dict[str, float]:
    """Return the profile with the overrides that a Deployment's annotation tells of."""
    text = deployment["metadata"].get("annotations", {}).get("gpusched.io/service-overrides", "")
    changes = (item.split("=") for item in text.split())
    return profile() | {re.fullmatch(r"service\.(\w+)\.value", k)[1]: float(v) for k, v in changes}  # type: ignore[index]


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in TRITON)])
def test_when_a_pod_becomes_ready(folder: str) -> None:
    """The first probe that decides is the startup probe where there is one, else the readiness probe."""
    deployment, _, container = triton(folder)
    service, first = overridden(deployment), container.get("startupProbe") or container["readinessProbe"]
    assert first.get("initialDelaySeconds", 0) == service["probe_delay_s"]
    assert first["periodSeconds"] == service["probe_period_s"]


def test_the_reported_probes_need_no_override() -> None:
    assert overridden(triton("overlays/reported-probes")[0]) == profile()
    assert "startupProbe" not in triton("overlays/reported-probes")[2]


def test_the_probe_is_not_the_cold_start() -> None:
    """Seen within a tenth of what the server takes, and waited for much longer than it takes."""
    _, _, container = triton("base")
    startup, start_s = container["startupProbe"], profile()["start_s"]
    assert startup["periodSeconds"] <= 0.1 * start_s
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 10 * start_s
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]


def test_rolling_updates_are_those_of_the_simulator() -> None:
    """gpusched/sim/batch.py sets 25 % and 25 %, Kubernetes' defaults."""
    assert triton("base")[0]["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": "25%",
        "maxUnavailable": "25%",
    }


def tickets(strategy: str) -> int:
    config = yaml.safe_load(values("gpu-operator")["devicePlugin"]["config"]["data"][strategy])
    (resource,) = next(iter(config["sharing"].values()))["resources"]
    assert resource["name"] == "nvidia.com/gpu"
    return int(resource["replicas"])


@pytest.mark.parametrize("strategy", ["time-slicing", "mps"])
def test_as_many_tickets_as_replicas_may_be_and_as_fit_into_the_gpu(strategy: str) -> None:
    service, most = profile(), conf("config.yaml")["trial"]["max_replicas"]
    room = service["gpu_vram_bytes"] - service["gpu_reserved_bytes"]
    assert tickets(strategy) == most <= room // service["pod_vram_bytes"] < most + 1


@pytest.mark.parametrize("replicas", range(1, 7))
def test_no_rollout_waits_for_a_ticket_that_never_comes(replicas: int) -> None:
    """A surge pod finds a free ticket, or an old pod may be taken away first."""
    surge, unavailable = math.ceil(0.25 * replicas), math.floor(0.25 * replicas)
    assert unavailable >= 1 or replicas + surge <= tickets("time-slicing")


def test_scrapes_come_as_often_as_the_simulator_says() -> None:
    sim = conf("cluster/sim.yaml")
    (endpoint,) = one("monitoring", "ServiceMonitor", "triton")["spec"]["endpoints"]
    assert seconds(endpoint["interval"]) == sim["scrape_s"] > seconds(endpoint["scrapeTimeout"])
    (dcgm,) = one("monitoring/dcgm", "ServiceMonitor", "dcgm")["spec"]["endpoints"]
    exporter = values("gpu-operator")["dcgmExporter"]
    env = {entry["name"]: entry["value"] for entry in exporter["env"]}
    assert seconds(dcgm["interval"]) == seconds(exporter["serviceMonitor"]["interval"]) == sim["dcgm_s"]
    assert float(env["DCGM_EXPORTER_INTERVAL"]) / 1e3 == sim["dcgm_s"]


def test_the_addon_keeps_its_own_toolkit_environment() -> None:
    """Helm replaces lists: a toolkit.env of ours would take MicroK8s' containerd paths away."""
    assert "toolkit" not in values("gpu-operator") and "driver" not in values("gpu-operator")


def test_prometheus_looks_at_our_monitors() -> None:
    assert (
        values("observability")["prometheus"]["prometheusSpec"]["serviceMonitorSelectorNilUsesHelmValues"]
        is False
    )


def test_windows_are_those_a_policy_sees() -> None:
    window = f"[{conf('cluster/sim.yaml')['window_s']:.0f}s]"
    config = one("overlays/prometheus-adapter", "ConfigMap", "prometheus-adapter")["data"]["config.yaml"]
    query = one("overlays/keda", "ScaledObject", "triton")["spec"]["triggers"][0]["metadata"]["query"]
    for text in (config, query):
        assert set(re.findall(r"\[\w+\]", text)) == {window}


def test_keda_may_do_what_a_policy_may() -> None:
    spec, trial = one("overlays/keda", "ScaledObject", "triton")["spec"], conf("config.yaml")["trial"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (
        trial["min_replicas"],
        trial["max_replicas"],
    )


def model_config(text: str) -> Any:
    """Parse config.pbtxt as Triton does; raises where a field is unknown."""
    import tritonclient

    # By its path: the package around it wants grpcio, which nothing else here needs.
    pb2 = load(Path(tritonclient.__file__).parent / "grpc" / "model_config_pb2.py", "model_config_pb2")
    return text_format.Parse(text, pb2.ModelConfig())


@pytest.mark.parametrize("instances", [1, 2, 4])
def test_triton_serves_as_the_profile_says(instances: int) -> None:
    export, service = load(MANIFESTS / "model" / "export.py", "model_export"), profile()
    config = model_config(export.ModelConfig().pbtxt(instances))
    batching = config.dynamic_batching
    assert config.max_batch_size == service["max_batch"]
    assert batching.max_queue_delay_microseconds == 1e6 * service["queue_delay_s"]
    limited = service["queue_size"] > 0 or service["queue_timeout_s"] > 0
    assert batching.HasField("default_queue_policy") == limited, "a policy without limits makes Triton stall"
    assert batching.default_queue_policy.max_queue_size == service["queue_size"]
    assert batching.default_queue_policy.default_timeout_microseconds == 1e6 * service["queue_timeout_s"]
    assert (
        list(batching.preferred_batch_size) == conf("service/mobilenetv4-rtx3080.yaml")["preferred_batches"]
    )
    assert [group.count for group in config.instance_group] == [instances]
    assert export.ModelConfig().instances == service["instances"]
    # A Ready pod has met every batch size.
    assert [warmup.batch_size for warmup in config.model_warmup] == list(range(1, config.max_batch_size + 1))


def test_preferred_batch_sizes_are_written_as_triton_reads_them() -> None:
    export = load(MANIFESTS / "model" / "export.py", "model_export")
    config = model_config(export.ModelConfig(preferred=[4, 8], queue_delay_us=5000).pbtxt())
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000


def test_a_field_that_triton_does_not_know_is_caught() -> None:
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        model_config('name: "m"\nmax_batchsize: 8\n')


def test_the_load_calls_the_model_that_is_served(tmp_path: Path) -> None:
    from gpusched.live.plan import UsersPlan

    (config_map,) = [t for t in built("overlays/locust") if t["kind"] == "ConfigMap"]
    (tmp_path / "plan.json").write_text(config_map["data"]["plan.json"])
    plan = UsersPlan.read(tmp_path / "plan.json")
    served = load(MANIFESTS / "model" / "export.py", "model_export").ModelConfig()
    assert (plan.model, plan.input, plan.output) == (served.name, served.input, served.output)
    assert tuple(plan.shape) == served.shape and plan.dtype == "UINT8"
    assert list(plan.urls) == ["triton:8000"]


def test_workers_and_master_expect_each_other() -> None:
    master, workers = (one("overlays/locust", "Job", f"locust-{role}") for role in ("master", "workers"))
    number = str(workers["spec"]["parallelism"])
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"]
    for job in (master, workers):
        args = job["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args[args.index("--expect-workers") + 1] == number
