"""What HPAs scale on: the queries of the metric adapters, evaluated by Prometheus itself on made-up counters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from objects import ROOT, built, one
from promtool import evaluate, needs_promtool

from gpusched.live.queries import OBSERVED, render


def series(
    metric: str, pod: str, per_step: float | None = None, level: float = 0, namespace: str = "gpusched"
) -> dict[str, str]:
    """Return a counter that grows steadily, or a gauge that stands still, over two minutes."""
    labels = f'{{model="mobilenetv4",namespace="{namespace}",pod="{pod}"}}'
    values = f"0+{per_step}x24" if per_step is not None else f"{level}x24"
    return {"series": metric + labels, "values": values}


INPUT = [
    # Pod a: 2 req/s that queue 5 ms each; 2 waiting, half a second of work per second.
    series("nv_inference_queue_duration_us", "triton-a", 50_000),
    series("nv_inference_request_success", "triton-a", 10),
    series("nv_inference_pending_request_count", "triton-a", level=2),
    series("nv_inference_compute_input_duration_us", "triton-a", 250_000),
    series("nv_inference_compute_infer_duration_us", "triton-a", 2_000_000),
    series("nv_inference_compute_output_duration_us", "triton-a", 250_000),
    # Pod b: 6 req/s that queue 1 ms each; nobody waits. (Binary fractions: promtool compares exactly.)
    series("nv_inference_queue_duration_us", "triton-b", 30_000),
    series("nv_inference_request_success", "triton-b", 30),
    series("nv_inference_pending_request_count", "triton-b", level=0),
    series("nv_inference_compute_input_duration_us", "triton-b", 0),
    series("nv_inference_compute_infer_duration_us", "triton-b", 1_250_000),
    series("nv_inference_compute_output_duration_us", "triton-b", 0),
    # One that nobody asks, and somebody else's.
    series("nv_inference_queue_duration_us", "idle", 0, namespace="idle"),
    series("nv_inference_request_success", "idle", 0, namespace="idle"),
    series("nv_inference_queue_duration_us", "other", 9e9, namespace="other"),
    series("nv_inference_request_success", "other", 1, namespace="other"),
    series("nv_inference_pending_request_count", "other", level=99, namespace="other"),
]
QUEUE_US = (2 * 5000 + 6 * 1000) / 8
QUEUE_S = 1e-6 * QUEUE_US
IN_FLIGHT = {"triton-a": 2.5, "triton-b": 0.25}


def adapter() -> dict[str, list[dict[str, object]]]:
    text = one("overlays/prometheus-adapter", "ConfigMap", "prometheus-adapter")["data"]["config.yaml"]
    return yaml.safe_load(text)


def query(kind: str, name: str, matchers: str, group: str = "") -> str:
    """Return a rule's query as the adapter fills it in."""
    (rule,) = [rule for rule in adapter()[kind] if rule["name"] == {"as": name}]
    return str(rule["metricsQuery"]).replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", group)


@needs_promtool
def test_queue_time_is_the_mean_over_requests_in_microseconds(tmp_path: Path) -> None:
    text = query("externalRules", "triton_queue_microseconds", 'namespace="gpusched"')
    evaluate(text, [{"labels": "{}", "value": QUEUE_US}], tmp_path, INPUT)


@needs_promtool
@pytest.mark.parametrize("who", ["adapter", "keda"])
def test_queue_time_of_an_idle_service_is_zero_and_without_series_there_is_none(
    who: str, tmp_path: Path
) -> None:
    text = query("externalRules", "triton_queue_microseconds", 'namespace="gpusched"')
    if who == "keda":
        text = one("overlays/keda", "ScaledObject", "triton")["spec"]["triggers"][0]["metadata"]["query"]
    evaluate(text.replace('"gpusched"', '"idle"'), [{"labels": "{}", "value": 0.0}], tmp_path, INPUT)
    evaluate(text.replace('"gpusched"', '"nobody"'), [], tmp_path, INPUT)


@needs_promtool
def test_in_flight_is_per_pod(tmp_path: Path) -> None:
    matchers = 'namespace="gpusched",pod=~"triton-a|triton-b"'
    expected = [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in IN_FLIGHT.items()]
    evaluate(query("rules", "triton_in_flight", matchers, "pod"), expected, tmp_path, INPUT)


@needs_promtool
def test_keda_scales_on_the_same_queue_time(tmp_path: Path) -> None:
    trigger = one("overlays/keda", "ScaledObject", "triton")["spec"]["triggers"][0]
    evaluate(trigger["metadata"]["query"], [{"labels": "{}", "value": QUEUE_US}], tmp_path, INPUT)


@needs_promtool
@pytest.mark.parametrize(("field", "value"), [("queue_s", QUEUE_S), ("in_flight", sum(IN_FLIGHT.values()))])
def test_a_policy_sees_the_same(field: str, value: float, tmp_path: Path) -> None:
    """The HPA's metrics and the observation's are two queries of one meaning."""
    selectors = {"model": "mobilenetv4", "namespace": "gpusched", "pods": "triton-.*", "node": ""}
    evaluate(
        render(OBSERVED[field], selectors, 30.0, 60.0), [{"labels": "{}", "value": value}], tmp_path, INPUT
    )


@needs_promtool
def test_a_wrong_number_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        evaluate(
            query("externalRules", "triton_queue_microseconds", 'namespace="gpusched"'),
            [{"labels": "{}", "value": 5.0}],
            tmp_path,
            INPUT,
        )


def test_the_adapter_serves_the_two_metrics_that_hpas_name() -> None:
    rules = adapter()
    assert [rule["name"] for rule in rules["rules"]] == [{"as": "triton_in_flight"}]
    assert [rule["name"] for rule in rules["externalRules"]] == [{"as": "triton_queue_microseconds"}]
    services = {
        t["metadata"]["name"] for t in built("overlays/prometheus-adapter") if t["kind"] == "APIService"
    }
    assert services == {"v1beta1.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["master", "workers"])
def test_the_load_program_takes_the_overlays_words(role: str) -> None:
    """In a process of its own: importing locust patches the one it happens in."""
    job = one("overlays/locust", "Job", f"locust-{role}")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "gpusched.live.users"]
    code = "import sys; from gpusched.live.users import command; a = command(sys.argv[1:]); print(a.master, a.worker, a.expect_workers)"
    done = subprocess.run(
        [sys.executable, "-c", code, *container["args"]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(role == "master"), str(role == "workers"), "2"], done.stderr
