"""The doctor on the emulated cluster: each line tells what is wrong, with the cure, and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import rbac
from contract import service
from emulator import Emulator
from scene import act, cluster, hold, node, old_hpa, picture, scale

from gpusched.cluster.microk8s import checks
from gpusched.core.check import FAIL, OK, WARN, Check
from gpusched.core.errors import ClusterError

METRICS = {
    "/apis/metrics.k8s.io/v1beta1/namespaces/gpusched/pods": {"items": [{}]},
    "/apis/external.metrics.k8s.io/v1beta1/namespaces/gpusched/triton_queue_microseconds": {"items": [{}]},
    "/apis/custom.metrics.k8s.io/v1beta1/namespaces/gpusched/pods/*/triton_in_flight": {"items": [{}]},
}


@pytest.fixture(scope="module")
def triton() -> Iterator[str]:
    """The address of a server that says it is ready."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def gpu_node(count: str, strategy: str = "time-slicing") -> dict[str, Any]:
    made = node(**{"nvidia.com/gpu.sharing-strategy": strategy})
    made["status"]["allocatable"] = {"cpu": "16", "nvidia.com/gpu": count}
    return made


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster(("nodes", gpu_node("6"))) as made:
        made.more.update(METRICS)
        yield made


def looked(emulator: Emulator, folder: Path, url: str) -> dict[str, Check]:
    return {check.name: check for check in checks.run(hold(emulator, folder), "triton", url, most=6)}


def test_a_healthy_cluster_passes_and_stays_as_it_is(emulator: Emulator, tmp_path: Path, triton: str) -> None:
    before = picture(emulator)
    found = looked(emulator, tmp_path, triton)
    assert {name: check.status for name, check in found.items()} == dict.fromkeys(
        ["API server", "rights", "Deployment", "autoscalers", "journal", "GPUs", "Service", "HPA metrics"], OK
    )
    assert picture(emulator) == before
    assert {w.kind for w in emulator.writes()} <= {"selfsubjectaccessreviews.authorization.k8s.io"}


def test_with_the_role_of_manifests_base_nothing_fails(
    emulator: Emulator, tmp_path: Path, triton: str
) -> None:
    emulator.rules = rbac.rules()
    found = {name: check.status for name, check in looked(emulator, tmp_path, triton).items()}
    assert found.pop("GPUs") == WARN, "a Role cannot allow listing nodes"
    assert set(found.values()) == {OK}


def test_without_an_api_server_nothing_else_is_asked(tmp_path: Path, triton: str) -> None:
    with cluster(version=(1, 20)) as emulator:
        (check,) = looked(emulator, tmp_path, triton).values()
    assert (check.name, check.status) == ("API server", FAIL)
    assert "needs 1.28" in check.detail
    assert "Upgrade" in check.cure


def test_missing_and_excessive_rights_are_named(emulator: Emulator, tmp_path: Path, triton: str) -> None:
    emulator.forbid("patch", "deployments/scale")
    check = looked(emulator, tmp_path, triton)["rights"]
    assert (check.status, check.detail) == (FAIL, "missing in gpusched: patch deployments.apps/scale")
    emulator.forbidden.clear()
    emulator.admin = True
    check = looked(emulator, tmp_path, triton)["rights"]
    assert check.status == WARN
    assert "get secrets" in check.detail


def test_the_services_right_is_asked_for_under_its_own_name(
    emulator: Emulator, tmp_path: Path, triton: str
) -> None:
    emulator.rules = [
        {**rule, "resourceNames": ["front"]} if rule["resources"] == ["services"] else rule
        for rule in rbac.rules()
    ]
    for name, status in (("front", OK), ("triton", FAIL)):
        found = {c.name: c for c in checks.run(hold(emulator, tmp_path), name, triton, most=6)}
        assert found["rights"].status == status
    assert found["rights"].detail == "missing in gpusched: get services"


def test_another_autoscaler_fails(emulator: Emulator, tmp_path: Path, triton: str) -> None:
    other = old_hpa()
    other["metadata"]["name"] = "somebody"
    emulator.store.create("horizontalpodautoscalers", "gpusched", other, "kubectl")
    check = looked(emulator, tmp_path, triton)["autoscalers"]
    assert check.status == FAIL
    assert "somebody" in check.detail


def test_pods_set_up_otherwise_than_the_profile_says_are_told(emulator: Emulator, tmp_path: Path) -> None:
    one, profile = hold(emulator, tmp_path), service()
    assert checks.profile(one, profile).status == OK
    words = "service.probe_delay_s.value=0 service.probe_period_s.value=10"
    key = ("deployments", "gpusched", "triton")
    edited = emulator.store.get(key)
    edited["metadata"]["annotations"] = {checks.OVERRIDES: words}
    emulator.store.update(key, edited, "kubectl-edit")
    told = checks.profile(one, profile)
    assert (told.status, told.cure) == (WARN, "Add to every command: service.probe_delay_s.value=0")


def test_a_sentence_within_brackets_is_no_cure() -> None:
    def look() -> Check:
        raise ClusterError(
            "kubeconfig x: cannot be used (Invalid file. No configuration found.). Name another (cluster.kubeconfig)."
        )

    found = checks._guarded("API server", look)
    assert found.detail == "kubeconfig x: cannot be used (Invalid file. No configuration found.)."
    assert found.cure == "Name another (cluster.kubeconfig)."


def test_a_dead_trial_is_told(emulator: Emulator, tmp_path: Path, triton: str) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, scale(2))
    check = looked(emulator, tmp_path, triton)["journal"]
    assert check.status == WARN
    assert "job=restore" in check.cure


@pytest.mark.parametrize(
    ("made", "status", "said"),
    [
        (node(), FAIL, "no node offers nvidia.com/gpu"),
        (gpu_node("1", "none"), FAIL, "trial.max_replicas is 6"),
        (gpu_node("8", "mps"), OK, "node-1: 8 (mps)"),
    ],
)
def test_gpus_are_counted(tmp_path: Path, triton: str, made: dict[str, Any], status: str, said: str) -> None:
    with cluster(("nodes", made)) as emulator:
        check = looked(emulator, tmp_path, triton)["GPUs"]
    assert check.status == status
    assert said in check.detail


def test_nodes_that_may_not_be_seen_are_a_warning(emulator: Emulator, tmp_path: Path, triton: str) -> None:
    emulator.forbid("list", "nodes")
    assert looked(emulator, tmp_path, triton)["GPUs"].status == WARN


def test_a_service_nobody_answers_at_fails(emulator: Emulator, tmp_path: Path) -> None:
    check = looked(emulator, tmp_path, "127.0.0.1:9")["Service"]
    assert check.status == FAIL
    assert "cluster.url=HOST:PORT" in check.cure


@pytest.mark.parametrize(("lack", "status"), [("metrics.k8s.io", FAIL), ("external", WARN), ("custom", WARN)])
def test_metrics_the_hpa_cannot_see_are_named(
    emulator: Emulator, tmp_path: Path, triton: str, lack: str, status: str
) -> None:
    emulator.more = {path: value for path, value in METRICS.items() if not path.startswith(f"/apis/{lack}")}
    check = looked(emulator, tmp_path, triton)["HPA metrics"]
    assert check.status == status
    unknown = {"metrics.k8s.io": "cpu", "external": "queue", "custom": "in_flight"}[lack]
    assert f"unknown: {unknown}" in check.detail


@pytest.mark.parametrize("hidden", ["metrics", "external.metrics", "custom.metrics"])
def test_metrics_that_may_not_be_looked_at_are_a_warning(
    emulator: Emulator, tmp_path: Path, triton: str, hidden: str
) -> None:
    group = f"{hidden}.k8s.io"
    emulator.rules = [rule for rule in rbac.rules() if rule["apiGroups"] != [group]]
    check = looked(emulator, tmp_path, triton)["HPA metrics"]
    assert check.status == WARN
    name = {"metrics": "cpu", "external.metrics": "queue", "custom.metrics": "in_flight"}[hidden]
    assert f"may not be looked at: {name}" in check.detail
    assert "Role of manifests/base" in check.cure
