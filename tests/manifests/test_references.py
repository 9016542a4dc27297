"""What objects say of one another is true: selectors meet pods, ports have names, verbs are the least."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kustomize_subset import pod_spec
from objects import OVERLAYS, ROOT, TRITON, Dict, built, everything, one, triton

from gpusched import __version__

ADDITIONS = sorted({path.name for path in OVERLAYS.iterdir()} - set(TRITON))
FOREIGN = ("kube-system", "observability")
OURS = {"app.kubernetes.io/part-of": "gpusched"}
SERVICE = OURS | {"app.kubernetes.io/name": "triton"}


def with_service(folder: str) -> list[Dict]:
    """Return an overlay's objects, an addition's beside the service that it is applied to."""
    alone = folder.removeprefix("overlays/") in TRITON
    return [*([] if alone else built("overlays/time-slicing")), *built(folder)]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def pods(things: list[Dict], namespace: str) -> list[tuple[str, dict[str, str], set[str]]]:
    """Return name, labels and port names of each workload's pods."""
    found = []
    for thing in things:
        spec = pod_spec(thing)
        if spec and thing["metadata"]["namespace"] == namespace:
            labels = thing["spec"].get("template", thing)["metadata"]["labels"]
            ports = {port["name"] for c in spec["containers"] for port in c.get("ports", [])}
            found.append((thing["metadata"]["name"], labels, ports))
    return found


SETS = ["overlays/" + name for name in (*TRITON, *ADDITIONS)] + ["monitoring"]


@pytest.mark.parametrize("folder", SETS)
def test_everything_is_labelled_ours_and_lies_in_our_namespaces(folder: str) -> None:
    for thing in built(folder):
        metadata = thing["metadata"]
        assert metadata["labels"].items() >= OURS.items(), metadata["name"]
        assert metadata.get("namespace") in (None, "gpusched", "gpusched-metrics", *FOREIGN)


def test_in_foreign_namespaces_and_in_none_there_is_only_what_must_be() -> None:
    things = [t for t in everything().values() if t["metadata"].get("namespace") in (None, *FOREIGN)]
    assert sorted({(t["kind"], t["metadata"]["name"]) for t in things}) == [
        ("APIService", "v1beta1.custom.metrics.k8s.io"),
        ("APIService", "v1beta1.external.metrics.k8s.io"),
        ("ClusterRole", "gpusched-nodes"),
        ("ClusterRoleBinding", "gpusched-nodes"),
        ("ClusterRoleBinding", "gpusched-prometheus-adapter-auth-delegator"),
        ("Namespace", "gpusched"),
        ("Namespace", "gpusched-metrics"),
        ("PersistentVolume", "gpusched-models"),
        ("Role", "gpusched-prometheus"),
        ("RoleBinding", "gpusched-prometheus"),
        ("RoleBinding", "gpusched-prometheus-adapter-auth-reader"),
    ]


@pytest.mark.parametrize("folder", SETS)
def test_services_and_budgets_meet_pods_and_their_ports(folder: str) -> None:
    things = with_service(folder)
    for thing in things:
        if thing["kind"] == "Service":
            wanted = {port["targetPort"] for port in thing["spec"]["ports"]}
            met = [
                p
                for p in pods(things, thing["metadata"]["namespace"])
                if matches(thing["spec"]["selector"], p[1])
            ]
            assert met and all(wanted <= ports for _, _, ports in met), thing["metadata"]["name"]
        if thing["kind"] == "PodDisruptionBudget":
            selector = thing["spec"]["selector"]["matchLabels"]
            assert [p[0] for p in pods(things, "gpusched") if matches(selector, p[1])] == ["triton"]


@pytest.mark.parametrize("folder", SETS)
def test_every_pod_is_under_a_policy_that_names_it_beside_the_default_deny(folder: str) -> None:
    things = with_service(folder)
    policies = [t for t in things if t["kind"] == "NetworkPolicy"]
    for namespace in {t["metadata"].get("namespace") for t in things if pod_spec(t)}:
        own = [p["spec"] for p in policies if p["metadata"]["namespace"] == namespace]
        deny = [p for p in own if not p["podSelector"] and not p.get("ingress") and not p.get("egress")]
        assert deny and set(deny[0]["policyTypes"]) == {"Ingress", "Egress"}, namespace
        for name, labels, ports in pods(things, namespace):
            mine = [p for p in own if p["podSelector"] and matches(p["podSelector"]["matchLabels"], labels)]
            assert mine, name
            named = {
                port["port"] for p in mine for rule in p.get("ingress", []) for port in rule.get("ports", [])
            }
            assert {port for port in named if isinstance(port, str)} <= ports, name


@pytest.mark.parametrize("folder", SETS)
def test_volumes_accounts_and_config_maps_exist(folder: str) -> None:
    things = with_service(folder)
    known = {(t["kind"], t["metadata"].get("namespace"), t["metadata"]["name"]) for t in things}
    for thing in things:
        spec, namespace = pod_spec(thing), thing["metadata"].get("namespace")
        if spec is None:
            continue
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in known
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", namespace, volume["configMap"]["name"]) in known
            if "persistentVolumeClaim" in volume:
                assert (
                    "PersistentVolumeClaim",
                    namespace,
                    volume["persistentVolumeClaim"]["claimName"],
                ) in known


def rules(role: Dict) -> set[tuple[str, str, str, str]]:
    """Return (group, resource, name or "", verb) of each thing a role allows."""
    return {
        (group, resource, name, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def allowed(group: str, resource: str, name: str, verbs: str) -> set[tuple[str, str, str, str]]:
    return {(group, resource, name, verb) for verb in verbs.split()}


def test_the_role_is_the_least() -> None:
    """Written down a second time: a verb more or less is a decision, not an accident."""
    assert rules(one("base", "Role", "gpusched")) == (
        allowed("apps", "deployments", "", "get list watch")
        | allowed("apps", "deployments", "triton", "patch")
        | allowed("apps", "deployments/scale", "triton", "patch")
        | allowed("autoscaling", "horizontalpodautoscalers", "", "get list create")
        | allowed("autoscaling", "horizontalpodautoscalers", "triton", "patch delete")
        | allowed("", "pods", "", "list")
        | allowed("", "pods/resize", "", "patch")
        | allowed("", "configmaps", "", "create")
        | allowed("", "configmaps", "gpusched-journal", "get patch delete")
        | allowed("", "services", "triton", "get")
        | allowed("metrics.k8s.io", "pods", "", "list")
        | allowed("external.metrics.k8s.io", "triton_queue_microseconds", "", "list")
        | allowed("custom.metrics.k8s.io", "pods/triton_in_flight", "", "get")
    )


def test_the_role_suffices_for_what_the_adapter_asks() -> None:
    """Read from its source: every call of a verb on a kind; nodes are the mps overlay's, Prometheus' Service monitoring's."""
    resources = {
        "DEPLOYMENTS": ("apps", "deployments"),
        "SCALE": ("apps", "deployments/scale"),
        "HPAS": ("autoscaling", "horizontalpodautoscalers"),
        "PODS": ("", "pods"),
        "RESIZE": ("", "pods/resize"),
        "CONFIGMAPS": ("", "configmaps"),
        "SERVICES": ("", "services"),
    }
    source = "\n".join(path.read_text() for path in (ROOT / "gpusched" / "cluster" / "microk8s").glob("*.py"))
    asked = {
        (verb, kind)
        for pattern in (r'\.call\(\s*"(\w+)",\s*([A-Z]+)\b', r"api\.(get|list)\(\s*([A-Z]+)\b")
        for verb, kind in re.findall(pattern, source)
    }
    assert {("patch", "SCALE"), ("create", "CONFIGMAPS"), ("delete", "HPAS"), ("get", "SERVICES")} <= asked
    granted = {(group, resource, verb) for group, resource, _, verb in rules(one("base", "Role", "gpusched"))}
    granted |= {("", "services", "list")} & {
        (g, r, v) for g, r, _, v in rules(one("monitoring", "Role", "gpusched-prometheus"))
    }
    assert {(*resources[kind], verb) for verb, kind in asked if kind in resources} <= granted


def test_no_role_has_a_wildcard_or_reaches_secrets() -> None:
    for where, thing in everything().items():
        if thing["kind"] in ("Role", "ClusterRole"):
            for group, resource, _, verb in rules(thing):
                assert "*" not in (group, resource, verb), where
                assert resource != "secrets", where
                assert verb not in ("escalate", "bind", "impersonate", "deletecollection"), where


def test_bindings_bind_existing_roles_to_existing_accounts() -> None:
    for folder in ("base", "monitoring", "overlays/mps", "overlays/prometheus-adapter"):
        things = with_service(folder)
        accounts = {
            (t["metadata"]["name"], t["metadata"]["namespace"])
            for t in things
            if t["kind"] == "ServiceAccount"
        }
        roles = {t["metadata"]["name"] for t in things if t["kind"] in ("Role", "ClusterRole")}
        system = {"system:auth-delegator", "extension-apiserver-authentication-reader"}
        for thing in things:
            if thing["kind"].endswith("RoleBinding"):
                assert thing["roleRef"]["name"] in roles | system
                assert {(s["name"], s["namespace"]) for s in thing["subjects"]} <= accounts


@pytest.mark.parametrize("folder", ["base", *("overlays/" + name for name in TRITON)])
def test_names_that_the_adapter_relies_on(folder: str) -> None:
    deployment, _, container = triton(folder)
    assert deployment["metadata"]["namespace"] == "gpusched"
    assert container["name"] == "triton"
    assert "replicas" not in deployment["spec"], "applying the manifests again would undo a policy's scaling"
    assert deployment["metadata"]["labels"].items() >= SERVICE.items()
    assert one(folder, "Service", "triton")["spec"]["selector"] == SERVICE
    ports = {port["name"]: port["port"] for port in one(folder, "Service", "triton")["spec"]["ports"]}
    assert ports == {"http": 8000, "metrics": 8002}


def test_gpu_and_runtime_of_each_overlay() -> None:
    gpu = {
        name: triton(f"overlays/{name}")[2]["resources"]["limits"].get("nvidia.com/gpu") for name in TRITON
    }
    runtime = {name: triton(f"overlays/{name}")[1].get("runtimeClassName") for name in TRITON}
    strategy = {
        name: triton(f"overlays/{name}")[1].get("nodeSelector", {}).get("nvidia.com/gpu.sharing-strategy")
        for name in TRITON
    }
    assert gpu == {"microk8s": 1, "time-slicing": 1, "mps": 1, "cpu": None, "reported-probes": 1}
    assert runtime == dict.fromkeys(TRITON, "nvidia") | {"cpu": None}
    assert strategy == {
        "microk8s": None,
        "time-slicing": "time-slicing",
        "mps": "mps",
        "cpu": None,
        "reported-probes": "time-slicing",
    }


def test_mps_leaves_shared_memory_to_the_device_plugin() -> None:
    def paths(folder: str) -> set[str]:
        return {mount["mountPath"] for mount in triton(folder)[2]["volumeMounts"]}

    assert paths("overlays/time-slicing") - paths("overlays/mps") == {"/dev/shm"}
    assert "shm" not in {volume["name"] for volume in triton("overlays/mps")[1]["volumes"]}


def test_our_image_carries_our_version() -> None:
    images = {
        container["image"]
        for folder in ("overlays/locust", "overlays/controller")
        for thing in built(folder)
        for container in (pod_spec(thing) or {}).get("containers", [])
    }
    assert images == {f"localhost:32000/gpusched:{__version__}"}
    containerfile = (OVERLAYS.parent / "image" / "Containerfile").read_text()
    assert f"localhost:32000/gpusched:{__version__}" in containerfile


def test_prometheus_is_the_same_everywhere() -> None:
    """kube-prometheus-stack cuts its full name after 26 characters; the addon's release is called kube-prom-stack."""
    url = "http://" + "kube-prom-stack-kube-prometheus-stack"[:26] + "-prometheus.observability.svc:9090"
    adapter = one("overlays/prometheus-adapter", "Deployment", "prometheus-adapter")
    args = adapter["spec"]["template"]["spec"]["containers"][0]["args"]
    scaled: Any = one("overlays/keda", "ScaledObject", "triton")
    assert f"--prometheus-url={url}/" in args
    assert scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] == url
