"""The Kubernetes adapter on a real API server: whatever $KUBECONFIG names, in a namespace of its own.

    KUBECONFIG=~/.kube/config pytest tests/e2e -m cluster

Works on a control plane without kubelets too: what needs a running pod is skipped there, and says so.
GPUSCHED_E2E_IMAGE    image of the pods (default registry.k8s.io/pause:3.10)
GPUSCHED_E2E_READY_S  how long pods may take to get ready (default 90)
GPUSCHED_E2E_HPA_S    how long the HPA controller may take to act (default 60)
GPUSCHED_E2E_STAY_S   how long to see that it does not act: more than one of its syncs (default 20)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gpusched.cluster.microk8s.actuator import Target
from gpusched.cluster.microk8s.client import Access, Api, Deadline
from gpusched.cluster.microk8s.desired import wanted
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.hold import Hold
from gpusched.cluster.microk8s.hpa import MetricNames, manifest
from gpusched.cluster.microk8s.kinds import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HPAS,
    NODES,
    PODS,
    SCALE,
    Dict,
    Kind,
    dig,
    ours,
)
from gpusched.cluster.microk8s.pods import pods_of
from gpusched.cluster.microk8s.ready import wait_ready
from gpusched.cluster.microk8s.server import look
from gpusched.core.controls import Controls, HPADirection, HPARule, HPASpec, Limits
from gpusched.core.errors import ClusterError

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("GPUSCHED_E2E_IMAGE", "registry.k8s.io/pause:3.10")
READY_S = float(os.environ.get("GPUSCHED_E2E_READY_S", "90"))
HPA_S = float(os.environ.get("GPUSCHED_E2E_HPA_S", "60"))
STAY_S = float(os.environ.get("GPUSCHED_E2E_STAY_S", "20"))
LIMITS = Limits(max_replicas=6)

NAMESPACES = Kind(root="/api/v1", plural="namespaces", kind="Namespace", namespaced=False)
ACCOUNTS = Kind(root="/api/v1", plural="serviceaccounts", kind="ServiceAccount")
TOKENS = Kind(root="/api/v1", plural="serviceaccounts", kind="TokenRequest", sub="token")
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLES = Kind(root=RBAC, plural="roles", kind="Role")
BINDINGS = Kind(root=RBAC, plural="rolebindings", kind="RoleBinding")
RBAC_GROUP = Kind(root="", plural=RBAC[1:], kind="APIResourceList", namespaced=False)


# --- what the tests run on ---


@pytest.fixture(scope="module")
def kubeconfig() -> str:
    path = os.environ.get("KUBECONFIG", "")
    if not path:
        pytest.skip("KUBECONFIG names no cluster")
    return path


@pytest.fixture(scope="module")
def api(kubeconfig: str) -> Api:
    made = Api(Access(kubeconfig=kubeconfig, call_timeout_s=10.0))
    look(made, Deadline(20))
    return made


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    """A namespace of the test's own with a Deployment as manifests/base has it, only smaller."""
    name = f"gpusched-e2e-{uuid.uuid4().hex[:8]}"
    labels = {"app.kubernetes.io/part-of": "gpusched-e2e"}
    create(
        api,
        NAMESPACES,
        "",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
    )
    try:
        as_manager(api, name, deployment())
        yield name
    finally:
        remove(api, name)


@pytest.fixture
def kubelets(api: Api, namespace: str) -> None:
    """Skips where no pod gets ready."""
    ready = [
        node
        for node in api.list(NODES, "", Deadline(10))
        if any(
            c.get("type") == "Ready" and c.get("status") == "True"
            for c in dig(node, "status", "conditions") or []
        )
    ]
    if not ready:
        pytest.skip("the cluster has no Ready node, so no pod runs")
    try:
        wait_ready(api, namespace, "triton", 1, READY_S, lambda: None)
    except ClusterError as error:
        pytest.skip(f"pods do not get ready here: {error}")


def deployment() -> Dict:
    labels = {"app.kubernetes.io/part-of": "gpusched", "app.kubernetes.io/name": "triton"}
    container = {
        "name": "triton",
        "image": IMAGE,
        "env": [{"name": "TRITON_CONFIG", "value": "instances-1"}, {"name": "OTHER", "value": "x"}],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"cpu": "20m", "memory": "32Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"containers": [container], "securityContext": security, "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "triton", "labels": labels, "annotations": {"note": "by hand"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def create(api: Api, kind: Kind, namespace: str, body: Dict) -> Dict:
    return api.call(
        "create", kind, namespace, body=body, query={"fieldManager": "e2e"}, deadline=Deadline(20)
    )


def as_manager(api: Api, namespace: str, body: Dict) -> None:
    """Set the Deployment up as somebody with kubectl apply --server-side does; a conflict fails."""
    query = {"fieldManager": "e2e", "force": "false"}
    api.call(
        "patch",
        DEPLOYMENTS,
        namespace,
        "triton",
        body=body,
        patch="apply",
        query=query,
        deadline=Deadline(20),
    )


def remove(api: Api, namespace: str) -> None:
    try:
        api.call("delete", NAMESPACES, "", namespace, deadline=Deadline(20))
    except ApiFailure as refused:
        if refused.status not in (404, 409):  # gone, or going
            raise


def hold(kubeconfig: str, namespace: str) -> Hold:
    target = Target(
        namespace=namespace,
        deployment="triton",
        container="triton",
        metrics=MetricNames(queue="gpusched_e2e_no_such_metric", in_flight="gpusched_e2e_no_such_metric"),
    )
    return Hold(Access(kubeconfig=kubeconfig, call_timeout_s=10.0), target, "e2e")


@pytest.fixture
def held(kubeconfig: str, namespace: str) -> Iterator[Hold]:
    one = hold(kubeconfig, namespace)
    one.take(30)
    yield one
    one.give_back(30)


def act(one: Hold, controls: Controls) -> None:
    one.apply(wanted(controls, LIMITS), Deadline(20), 1)


def scale(replicas: int, **more: float) -> Controls:
    controls = Controls.scale([replicas])
    for name, value in more.items():
        setattr(controls, f"{name}_E", np.array([value]))
    return controls


def autoscale(**spec: Any) -> Controls:
    return Controls.autoscale(HPASpec(**spec), 1)


def get(api: Api, kind: Kind, namespace: str, name: str = "triton") -> Dict:
    found = api.get(kind, namespace, name, Deadline(20))
    assert found is not None, f"{kind} {name} is not there"
    return found


def hpa(api: Api, namespace: str) -> Dict:
    return get(api, HPAS, namespace)


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait for it; False where it does not come."""
    deadline = Deadline(seconds)
    while deadline.left_s > 0:
        if true():
            return True
        time.sleep(0.5)
    return False


def picture(api: Api, namespace: str) -> Dict:
    """What a trial could leave behind, without what the server counts."""
    seen: Dict = {}
    for kind in (DEPLOYMENTS, HPAS, CONFIGMAPS):
        for thing in api.list(kind, namespace, Deadline(20)):
            meta = thing["metadata"]
            if not ours(thing):  # every namespace gets a ConfigMap with the cluster's certificate authority
                continue
            managers = [
                {k: v for k, v in entry.items() if k != "time"}
                for entry in meta.get("managedFields") or []
                # The Deployment controller's own notes (revision, status) come and go with its rollouts.
                if entry.get("subresource") != "status" and entry["manager"] != "kube-controller-manager"
            ]
            notes = {
                k: v
                for k, v in (meta.get("annotations") or {}).items()
                if not k.startswith("deployment.kubernetes.io/")
            }
            seen[f"{kind}/{meta['name']}"] = {
                "labels": meta.get("labels"), "annotations": notes, "spec": thing.get("spec"),
                "data": thing.get("data"), "managers": sorted(managers, key=str),
            }  # fmt: skip
    return seen


# --- replicas ---


def test_replicas_are_set_and_seen(api: Api, namespace: str, held: Hold) -> None:
    act(held, scale(3))
    assert get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 3
    assert get(api, SCALE, namespace)["spec"]["replicas"] == 3
    assert held.state(Deadline(10)).spec == 3


def test_repeating_controls_changes_nothing(api: Api, namespace: str, held: Hold) -> None:
    act(held, scale(2, instances=2))
    generation = get(api, DEPLOYMENTS, namespace)["metadata"]["generation"]
    act(held, scale(2, instances=2))
    assert get(api, DEPLOYMENTS, namespace)["metadata"]["generation"] == generation


def test_pods_come_up_and_are_counted(api: Api, namespace: str, kubelets: None, held: Hold) -> None:
    act(held, scale(2))
    held.wait_ready(2, READY_S)
    state = held.state(Deadline(10))
    assert (state.spec, state.ready) == (2, 2)
    assert state.alive >= 2
    assert held.nodes(Deadline(10))


# --- HPA ---


def test_an_hpa_without_behaviour_takes_the_legacy_path(api: Api, namespace: str, held: Hold) -> None:
    act(held, autoscale(target=55, max_replicas=4))
    live = hpa(api, namespace)
    assert "behavior" not in live["spec"]
    assert live["spec"]["metrics"][0]["resource"]["target"] == {
        "type": "Utilization",
        "averageUtilization": 55,
    }
    managers = {
        (e["manager"], e["operation"]) for e in live["metadata"]["managedFields"] if "subresource" not in e
    }
    assert managers == {("gpusched", "Apply")}


def test_any_behaviour_fills_in_both_directions_as_documented(api: Api, namespace: str, held: Hold) -> None:
    rule = HPARule(type="Percent", value=50, period_s=30)
    act(held, autoscale(scale_down=HPADirection(stabilization_s=60, policies=[rule])))
    behavior = hpa(api, namespace)["spec"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleUp"]["selectPolicy"] == "Max"
    assert {(p["type"], p["value"], p["periodSeconds"]) for p in behavior["scaleUp"]["policies"]} == {
        ("Pods", 4, 15),
        ("Percent", 100, 15),
    }
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 60
    assert behavior["scaleDown"]["policies"] == [{"type": "Percent", "value": 50, "periodSeconds": 30}]


def test_going_back_to_the_legacy_path_leaves_no_behaviour(api: Api, namespace: str, held: Hold) -> None:
    act(held, autoscale(scale_down=HPADirection(stabilization_s=60)))
    act(held, autoscale())
    assert "behavior" not in hpa(api, namespace)["spec"]


def test_every_kind_of_metric_is_accepted(api: Api, namespace: str, held: Hold) -> None:
    for metric, kind in (("queue", "External"), ("in_flight", "Pods"), ("cpu", "Resource")):
        act(held, autoscale(metric=metric, target=50.5))
        assert [m["type"] for m in hpa(api, namespace)["spec"]["metrics"]] == [kind]


def test_tolerance_is_kept_or_refused_with_the_reason(api: Api, namespace: str, held: Hold) -> None:
    try:
        act(held, autoscale(scale_up=HPADirection(tolerance=0.05)))
    except ClusterError as refused:
        assert "has no tolerance per HPA" in str(refused)
        assert held.server.version < (1, 35) or "HPAConfigurableTolerance" in str(refused)
    else:
        assert hpa(api, namespace)["spec"]["behavior"]["scaleUp"]["tolerance"] == "50m"


def test_replicas_remove_our_hpa(api: Api, namespace: str, held: Hold) -> None:
    act(held, autoscale())
    act(held, scale(2))
    assert api.get(HPAS, namespace, "triton", Deadline(10)) is None
    assert get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 2


def test_apply_without_force_meets_a_conflict_and_ours_wins_with_it(
    api: Api, namespace: str, held: Hold
) -> None:
    act(held, autoscale(target=60))
    api.call(
        "patch", HPAS, namespace, "triton", body={"spec": {"maxReplicas": 5}},
        query={"fieldManager": "kubectl-edit"}, deadline=Deadline(10),
    )  # fmt: skip
    body = manifest(HPASpec(target=60), held.target.metrics, namespace, "triton", held.owner.token)
    with pytest.raises(ApiFailure) as refused:
        api.call("patch", HPAS, namespace, "triton", body=body, patch="apply", deadline=Deadline(10))
    assert refused.value.status == 409
    assert "FieldManagerConflict" in refused.value.causes
    act(held, autoscale(target=60))
    assert hpa(api, namespace)["spec"]["maxReplicas"] == 6


def needs_hpa_controller(api: Api, namespace: str) -> None:
    if not until(lambda: bool(dig(hpa(api, namespace), "status", "conditions")), HPA_S):
        pytest.skip(f"no HPA controller looked at the HPA within {HPA_S:g} s")


def test_the_hpa_controller_keeps_replicas_inside_the_bounds(api: Api, namespace: str, held: Hold) -> None:
    act(held, scale(5))
    act(held, autoscale(max_replicas=2, metric="in_flight"))
    needs_hpa_controller(api, namespace)
    assert until(lambda: get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 2, HPA_S)


def test_an_hpa_without_its_metric_is_inactive_and_scales_nothing(
    api: Api, namespace: str, held: Hold
) -> None:
    act(held, scale(3))
    act(held, autoscale(metric="in_flight", target=4, min_replicas=1, max_replicas=6))
    needs_hpa_controller(api, namespace)

    def inactive() -> bool:
        conditions = {c["type"]: c for c in hpa(api, namespace)["status"]["conditions"]}
        return conditions.get("ScalingActive", {}).get("status") == "False"

    assert until(inactive, HPA_S)
    time.sleep(STAY_S)
    assert get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 3


# --- CPU, instances ---


def test_instances_change_the_template_once(api: Api, namespace: str, held: Hold) -> None:
    act(held, scale(1, instances=2))
    env = get(api, DEPLOYMENTS, namespace)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "TRITON_CONFIG", "value": "instances-2"} in env
    assert {"name": "OTHER", "value": "x"} in env
    assert held.state(Deadline(10)).instances == 2


def test_cpu_is_resized_in_place_or_rolled_out(api: Api, namespace: str, held: Hold) -> None:
    def pods() -> list[Dict]:
        return pods_of(api, namespace, get(api, DEPLOYMENTS, namespace), Deadline(10))

    if not until(lambda: bool(pods()), 20):
        pytest.skip("no controller makes pods here")
    names = {pod["metadata"]["name"] for pod in pods()}
    act(held, scale(1, cpu_cores=0.04))
    limits = [pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] for pod in pods()]
    template = get(api, DEPLOYMENTS, namespace)["spec"]["template"]["spec"]["containers"][0]["resources"]
    if held.server.resize:
        if limits != ["40m"]:
            pytest.skip(f"the server does not resize a pod that has not started (limits {limits})")
        assert template["limits"]["cpu"] == "20m"
        assert {pod["metadata"]["name"] for pod in pods()} == names
        assert pods()[0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "20m"
    else:
        assert (template["requests"]["cpu"], template["limits"]["cpu"]) == ("20m", "40m")
        assert template["limits"]["memory"] == "32Mi"


def test_a_resize_reaches_the_container(api: Api, namespace: str, kubelets: None, held: Hold) -> None:
    if not held.server.resize:
        pytest.skip("the server has no pods/resize")
    act(held, scale(1, cpu_cores=0.04))
    assert until(lambda: held.state(Deadline(10)).cpu_cores == 0.04, 60)


def test_pods_that_come_later_get_the_size_too(api: Api, namespace: str, kubelets: None, held: Hold) -> None:
    if not held.server.resize:
        pytest.skip("the server has no pods/resize")
    act(held, scale(1, cpu_cores=0.04))
    api.call("patch", SCALE, namespace, "triton", body={"spec": {"replicas": 2}}, deadline=Deadline(10))

    def sized() -> bool:
        held.state(Deadline(10))
        pods = pods_of(api, namespace, get(api, DEPLOYMENTS, namespace), Deadline(10))
        return [p["spec"]["containers"][0]["resources"]["limits"]["cpu"] for p in pods] == ["40m", "40m"]

    assert until(sized, 60)


# --- as it was found ---


def old_hpa() -> Dict:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "triton"}
    labels = {"app.kubernetes.io/part-of": "gpusched"}
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "triton", "labels": labels, "annotations": {"team": "inference"}},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5,
                 "behavior": {"scaleDown": {"stabilizationWindowSeconds": 120}}},
    }  # fmt: skip


def busy(one: Hold) -> None:
    act(one, scale(3, cpu_cores=0.04, instances=2))
    act(one, autoscale(target=40, scale_down=HPADirection(stabilization_s=30)))
    act(one, scale(2))
    act(one, autoscale(metric="queue", target=20))


@pytest.mark.parametrize("with_hpa", [False, True])
def test_everything_is_given_back(api: Api, kubeconfig: str, namespace: str, with_hpa: bool) -> None:
    if with_hpa:
        create(api, HPAS, namespace, old_hpa())
    before = picture(api, namespace)
    one = hold(kubeconfig, namespace)
    one.take(30)
    busy(one)
    assert picture(api, namespace) != before
    one.give_back(60)
    assert picture(api, namespace) == before


def test_a_server_side_applier_meets_no_conflict_afterwards(
    api: Api, kubeconfig: str, namespace: str
) -> None:
    one = hold(kubeconfig, namespace)
    one.take(30)
    act(one, scale(3, instances=2))
    one.give_back(60)
    body = deployment()
    body["spec"]["replicas"] = 2
    as_manager(api, namespace, body)
    assert get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 2


def test_after_sigkill_the_next_trial_restores_first(api: Api, kubeconfig: str, namespace: str) -> None:
    before = picture(api, namespace)
    command = [sys.executable, str(ROOT / "tests" / "cluster" / "victim.py"), kubeconfig, namespace]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "busy\n"
        assert get(api, CONFIGMAPS, namespace, "gpusched-journal")["data"]["found"]
        one = hold(kubeconfig, namespace)
        with pytest.raises(ClusterError, match=f"held by process {victim.pid}"):
            one.take(30)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert picture(api, namespace) != before
    one.take(60)
    assert get(api, DEPLOYMENTS, namespace)["spec"]["replicas"] == 1
    one.give_back(60)
    assert picture(api, namespace) == before


def test_a_deployment_without_our_label_is_not_touched(api: Api, kubeconfig: str, namespace: str) -> None:
    label = {"metadata": {"labels": {"app.kubernetes.io/part-of": None}}}
    api.call("patch", DEPLOYMENTS, namespace, "triton", body=label, deadline=Deadline(10))
    with pytest.raises(ClusterError, match="kubectl label deployment triton"):
        hold(kubeconfig, namespace).take(30)
    assert api.get(CONFIGMAPS, namespace, "gpusched-journal", Deadline(10)) is None


def test_a_namespace_deleted_during_the_trial_is_told(api: Api, kubeconfig: str, namespace: str) -> None:
    one = hold(kubeconfig, namespace)
    one.take(30)
    api.call("delete", NAMESPACES, "", namespace, deadline=Deadline(20))
    with pytest.raises(ClusterError, match=r"is gone|being terminated|no longer ours|not found"):
        for _ in range(60):
            act(one, autoscale())
            act(one, scale(2))
            time.sleep(1)
    one.give_back(30)


# --- rights ---


@pytest.fixture
def account(api: Api, namespace: str, tmp_path: Path) -> Callable[[list[Dict]], str]:
    """Returns what makes a service account with these rules and the path of a kubeconfig for it."""
    try:
        api.call("get", RBAC_GROUP, deadline=Deadline(10))
    except ApiFailure:
        pytest.skip("the server has no RBAC")

    def make(rules: list[Dict]) -> str:
        create(
            api,
            ACCOUNTS,
            namespace,
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trial"}},
        )
        role = {
            "apiVersion": ROLES.api_version,
            "kind": "Role",
            "metadata": {"name": "trial"},
            "rules": rules,
        }
        create(api, ROLES, namespace, role)
        binding = {
            "apiVersion": BINDINGS.api_version, "kind": "RoleBinding", "metadata": {"name": "trial"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "trial"},
            "subjects": [{"kind": "ServiceAccount", "name": "trial", "namespace": namespace}],
        }  # fmt: skip
        create(api, BINDINGS, namespace, binding)
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        answer = api.call("create", TOKENS, namespace, "trial", body=asked, deadline=Deadline(10))
        return str(as_account(api, answer["status"]["token"], tmp_path / "trial-kubeconfig"))

    return make


def as_account(api: Api, token: str, path: Path) -> Path:
    settings: Any = api._client.configuration
    server: Dict = {"server": settings.host}
    if settings.ssl_ca_cert:
        server["certificate-authority"] = str(settings.ssl_ca_cert)
    if not settings.verify_ssl:
        server["insecure-skip-tls-verify"] = True
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": server}], "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


READ = [
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch", "delete"]},
]


def test_a_missing_right_names_verb_resource_namespace_and_cure(
    namespace: str, account: Callable[[list[Dict]], str]
) -> None:
    one = hold(account(READ), namespace)
    until(lambda: may(one, namespace), 10)
    one.take(30)
    try:
        act(one, scale(2))
    except ApiFailure as refused:
        assert refused.status == 403
        assert f"patch deployments.apps/scale 'triton' in namespace {namespace}" in str(refused)
        assert f"kubectl auth can-i patch deployments.apps --subresource=scale -n {namespace}" in str(refused)
    else:
        pytest.skip("the server allows everything to everybody")
    finally:
        one.give_back(30)


def may(one: Hold, namespace: str) -> bool:
    """Return whether the new rights have reached the server."""
    try:
        one.api.list(PODS, namespace, Deadline(5))
        return True
    except ApiFailure:
        return False


def test_the_role_of_the_manifests_has_all_that_is_needed(
    api: Api, namespace: str, account: Callable[[list[Dict]], str]
) -> None:
    path = ROOT / "manifests" / "base" / "rbac.yaml"
    if not path.exists():
        pytest.skip("manifests/base/rbac.yaml is not there")
    roles = [thing for thing in yaml.safe_load_all(path.read_text()) if thing and thing["kind"] == "Role"]
    rules = [rule for role in roles if role["metadata"]["name"] == "gpusched" for rule in role["rules"]]
    before = picture(api, namespace)
    one = hold(account(rules), namespace)
    until(lambda: may(one, namespace), 10)
    one.take(30)
    busy(one)
    one.state(Deadline(10))
    one.give_back(60)
    assert picture(api, namespace) == before
