"""Every lever on the emulated cluster: what is asked for is what the API server holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_control import Times, World
from emulator import Emulator
from scene import act, cluster, deployment, hold, node, scale

from gpusched.cluster.microk8s.client import Deadline
from gpusched.cluster.microk8s.hold import Hold
from gpusched.core.controls import UNSET, Controls, HPADirection, HPARule, HPASpec
from gpusched.core.errors import ClusterError

HPA = ("horizontalpodautoscalers", "gpusched", "triton")
DEPLOYMENT = ("deployments", "gpusched", "triton")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster() as made:
        yield made


@pytest.fixture
def held(emulator: Emulator, tmp_path: Path) -> Hold:
    one = hold(emulator, tmp_path)
    one.take(5)
    return one


def taken(emulator: Emulator, folder: Path) -> Hold:
    one = hold(emulator, folder)
    one.take(5)
    return one


def autoscale(**spec: Any) -> Controls:
    return Controls.autoscale(HPASpec(**spec), 1)


def template(emulator: Emulator) -> dict[str, Any]:
    return dict(emulator.store.get(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0])


def cpus(emulator: Emulator) -> list[tuple[str, str]]:
    pods = [p for p in emulator.store.list("pods", "gpusched") if "deletionTimestamp" not in p["metadata"]]
    sizes = [p["spec"]["containers"][0]["resources"] for p in pods]
    return [(s["requests"]["cpu"], s["limits"]["cpu"]) for s in sizes]


# --- replicas ---


def test_replicas_go_through_the_scale_subresource(emulator: Emulator, held: Hold) -> None:
    act(held, scale(4))
    assert emulator.store.get(DEPLOYMENT)["spec"]["replicas"] == 4
    assert [(w.verb, w.kind) for w in emulator.writes()] == [("patch", "deployments/scale")]


def test_repeating_controls_writes_nothing(emulator: Emulator, held: Hold) -> None:
    controls = scale(3, cpu_cores=2.0, instances=2)
    act(held, controls)
    held.wait_ready(3, 5)
    writes = len(emulator.writes())
    for _ in range(3):
        act(held, controls)
    assert len(emulator.writes()) == writes


def test_nothing_asked_for_changes_nothing(emulator: Emulator, held: Hold) -> None:
    act(held, Controls.scale([UNSET]))
    assert emulator.writes() == []


# --- HPA ---


def test_an_hpa_is_applied_under_our_manager_and_never_scaled_beside(emulator: Emulator, held: Hold) -> None:
    act(held, autoscale(target=60, max_replicas=5))
    live = emulator.store.get(HPA)
    assert live["spec"]["maxReplicas"] == 5
    assert "behavior" not in live["spec"]
    assert [(e["manager"], e["operation"]) for e in live["metadata"]["managedFields"]] == [
        ("gpusched", "Apply")
    ]
    for target in (50, 70):
        act(held, autoscale(target=target))
    assert emulator.count("patch", "deployments/scale") == 0


def test_replicas_remove_the_hpa_first(emulator: Emulator, held: Hold) -> None:
    act(held, autoscale())
    act(held, scale(3))
    assert HPA not in emulator.store.objects
    kinds = [(w.verb, w.kind) for w in emulator.writes()][-2:]
    assert kinds == [("delete", "horizontalpodautoscalers"), ("patch", "deployments/scale")]


def test_going_back_to_the_legacy_path_leaves_no_behaviour(emulator: Emulator, held: Hold) -> None:
    """Defaults the server filled in belong to nobody: apply alone would leave them, and with them the other path."""
    act(held, autoscale(scale_down=HPADirection(stabilization_s=30)))
    assert "scaleUp" in emulator.store.get(HPA)["spec"]["behavior"]
    act(held, autoscale())
    assert "behavior" not in emulator.store.get(HPA)["spec"]


def test_a_changed_behaviour_replaces_the_old_one(emulator: Emulator, held: Hold) -> None:
    rule = HPARule(type="Pods", value=2, period_s=30)
    act(held, autoscale(scale_up=HPADirection(stabilization_s=60, policies=[rule])))
    act(held, autoscale(scale_up=HPADirection(select="Min")))
    up = emulator.store.get(HPA)["spec"]["behavior"]["scaleUp"]
    assert up["selectPolicy"] == "Min"
    assert up["stabilizationWindowSeconds"] == 0, "the API's default again"
    assert len(up["policies"]) == 2


def test_a_behaviour_that_the_new_spec_says_less_of_goes(emulator: Emulator, held: Hold) -> None:
    """All that is wanted is there already; what is there beyond it is not wanted any more."""
    up = HPADirection(stabilization_s=60)
    act(held, autoscale(scale_up=up, scale_down=HPADirection(stabilization_s=60)))
    act(held, autoscale(scale_up=up))
    down = emulator.store.get(HPA)["spec"]["behavior"].get("scaleDown", {})
    assert down.get("stabilizationWindowSeconds") != 60


def test_fields_somebody_changed_in_our_hpa_are_taken_back(emulator: Emulator, held: Hold) -> None:
    act(held, autoscale(target=60))
    edited = emulator.store.get(HPA)
    edited["spec"]["maxReplicas"] = 99
    emulator.store.update(HPA, edited, "kubectl-edit")
    act(held, autoscale(target=60))
    assert emulator.store.get(HPA)["spec"]["maxReplicas"] == 6


def test_an_hpa_somebody_else_made_meanwhile_is_not_touched(emulator: Emulator, held: Hold) -> None:
    from scene import old_hpa

    emulator.store.create("horizontalpodautoscalers", "gpusched", old_hpa(), "kubectl")
    with pytest.raises(
        ClusterError, match=r"appeared during the trial.*kubectl delete hpa triton -n gpusched"
    ):
        act(held, autoscale())
    assert emulator.store.get(HPA)["spec"]["maxReplicas"] == 5


def test_a_lost_answer_to_the_first_apply_is_no_foreign_hpa(emulator: Emulator, held: Hold) -> None:
    emulator.fault("patch", "horizontalpodautoscalers", drop=True, after=True)
    act(held, autoscale(target=40))
    act(held, scale(2))
    assert HPA not in emulator.store.objects


def test_the_target_in_force_is_shown(emulator: Emulator, held: Hold) -> None:
    controls = autoscale(target=80)
    controls.hpa_target_E = np.array([35.0])
    act(held, controls)
    assert emulator.store.get(HPA)["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 35
    assert held.state(Deadline(1)).hpa_target == 35.0
    act(held, scale(2))
    assert np.isnan(held.state(Deadline(1)).hpa_target)


def test_tolerance_is_set_where_the_server_has_it(emulator: Emulator, held: Hold) -> None:
    act(held, autoscale(scale_down=HPADirection(tolerance=0.2)))
    assert emulator.store.get(HPA)["spec"]["behavior"]["scaleDown"]["tolerance"] == "200m"


@pytest.mark.parametrize(("version", "gate"), [((1, 32), False), ((1, 34), False), ((1, 36), False)])
def test_tolerance_is_refused_where_the_server_would_drop_it(
    tmp_path: Path, version: tuple[int, int], gate: bool
) -> None:
    with cluster(version=version, tolerance=gate) as emulator:
        held = taken(emulator, tmp_path)
        with pytest.raises(ClusterError, match=rf"Kubernetes 1\.{version[1]} has no tolerance per HPA"):
            act(held, autoscale(scale_up=HPADirection(tolerance=0.05)))
        held.give_back(5)
        assert HPA not in emulator.store.objects


# --- CPU ---


def test_cpu_is_resized_in_place_and_the_template_is_left_alone(emulator: Emulator, held: Hold) -> None:
    act(held, scale(3))
    held.wait_ready(3, 5)
    names = {p["metadata"]["name"] for p in emulator.store.list("pods", "gpusched")}
    act(held, scale(3, cpu_cores=2.0))
    emulator.settle()
    assert cpus(emulator) == [("1", "2")] * 3
    assert {p["metadata"]["name"] for p in emulator.store.list("pods", "gpusched")} == names, (
        "no pod was replaced"
    )
    assert template(emulator)["resources"]["limits"]["cpu"] == "1"
    assert held.state(Deadline(1)).cpu_cores == 2.0


def test_pods_that_come_later_are_resized_when_they_are_seen(emulator: Emulator, held: Hold) -> None:
    act(held, scale(1, cpu_cores=2.0))
    emulator.settle()
    scaled = emulator.store.get(DEPLOYMENT)
    scaled["spec"]["replicas"] = 3
    emulator.store.update(DEPLOYMENT, scaled, "kube-controller-manager")  # as the HPA does between two steps
    emulator.settle()
    assert sorted(cpus(emulator)) == [("1", "2"), ("500m", "1"), ("500m", "1")]
    assert held.state(Deadline(1)).cpu_cores == pytest.approx(4 / 3)
    emulator.settle()
    assert cpus(emulator) == [("1", "2")] * 3


def test_a_size_finer_than_the_api_keeps_is_sent_once(emulator: Emulator, held: Hold) -> None:
    for _ in range(3):
        act(held, scale(1, cpu_cores=1 / 3))
    assert cpus(emulator) == [("167m", "334m")]
    assert emulator.count("patch", "pods/resize") == 1


def test_a_pod_by_hand_with_the_same_labels_is_none_of_ours(emulator: Emulator, held: Hold) -> None:
    made = emulator.store.list("pods", "gpusched")[0]
    debug = {"apiVersion": "v1", "kind": "Pod", "spec": made["spec"], "status": {"phase": "Running"},
             "metadata": {"name": "debug", "labels": made["metadata"]["labels"]}}  # fmt: skip
    emulator.store.create("pods", "gpusched", debug, "kubectl-run")
    act(held, scale(1, cpu_cores=2.0))
    emulator.settle()
    assert held.state(Deadline(1)).alive == 1
    seen = emulator.store.get(("pods", "gpusched", "debug"))
    assert seen["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1"


def test_a_pending_pod_that_admission_refuses_to_resize_is_tried_again(
    emulator: Emulator, held: Hold
) -> None:
    """A LimitRange answers 403 as a missing right does, which no waiting cures."""
    act(held, scale(1, cpu_cores=2.0))
    emulator.settle()
    emulator.world.kubelets = False
    said = 'pods "triton" is forbidden: maximum cpu usage per Container is 1, but limit is 2'
    refusal = emulator.fault("patch", "pods/resize", status=403, reason="Forbidden", message=said, times=100)
    act(held, scale(2, cpu_cores=2.0))
    time.sleep(0.1)
    act(held, scale(2, cpu_cores=2.0))
    assert refusal.times < 100
    refusal.times = 0
    emulator.forbid("patch", "pods/resize")
    with pytest.raises(ClusterError, match="can-i patch pods"):
        act(held, scale(2, cpu_cores=2.0))


def test_a_size_no_node_can_give_is_refused(emulator: Emulator, held: Hold) -> None:
    emulator.world.node_cores = 1.5
    act(held, scale(1, cpu_cores=2.0))
    time.sleep(0.1)
    with pytest.raises(ClusterError, match=r"can never give it 2 CPU cores.*action\.cpu_cores"):
        act(held, scale(1, cpu_cores=2.0))


def test_without_in_place_resize_the_template_is_rolled_out(tmp_path: Path) -> None:
    with cluster(version=(1, 30), resize=False) as emulator:
        held = taken(emulator, tmp_path)
        act(held, scale(2, cpu_cores=2.0))
        held.wait_ready(2, 5)
        assert cpus(emulator) == [("1", "2")] * 2
        assert template(emulator)["resources"] == {
            "requests": {"cpu": "1", "memory": "1Gi"},
            "limits": {"cpu": "2", "memory": "2Gi"},
        }
        assert emulator.count("patch", "pods/resize") == 0


@pytest.mark.parametrize("part", ["requests", "limits"])
def test_a_container_without_cpu_is_refused_before_anything_changes(tmp_path: Path, part: str) -> None:
    resources = {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}
    resources[part] = {"memory": "1Gi"}
    with cluster(("deployments", deployment(resources=resources))) as emulator:
        with pytest.raises(ClusterError, match=rf"no resources\.{part}\.cpu"):
            taken(emulator, tmp_path)
        assert emulator.count("create", "configmaps") == 0


# --- instances and GPU share ---


def test_instances_roll_the_pods_out_anew(emulator: Emulator, held: Hold) -> None:
    names = {p["metadata"]["name"] for p in emulator.store.list("pods", "gpusched")}
    act(held, scale(1, instances=2))
    held.wait_ready(1, 5)
    emulator.settle()
    assert {"name": "TRITON_CONFIG", "value": "instances-2"} in template(emulator)["env"]
    assert not names & {p["metadata"]["name"] for p in emulator.store.list("pods", "gpusched")}
    assert held.state(Deadline(1)).instances == 2


def test_a_rollout_without_room_keeps_the_old_pods(tmp_path: Path) -> None:
    """Surge 1, unavailable 0: with no room for another pod the old one goes on serving."""
    with cluster(world=World(times=Times(ready_s=0.03))) as emulator:
        held = taken(emulator, tmp_path)
        emulator.world.never_ready = True
        began_s = time.monotonic()
        act(held, scale(1, instances=2))
        assert time.monotonic() - began_s < 1.0, "setting does not wait for the rollout"
        time.sleep(0.2)
        state = held.state(Deadline(1))
        assert (state.spec, state.ready, state.alive) == (1, 1, 2)


def test_instances_without_a_lever_are_refused(tmp_path: Path) -> None:
    with cluster(("deployments", deployment(env=[{"name": "OTHER", "value": "1"}]))) as emulator:
        held = taken(emulator, tmp_path)
        act(held, scale(1, instances=1))  # what it runs anyway
        with pytest.raises(ClusterError, match=r"reads no variable TRITON_CONFIG.*cluster\.instances_env"):
            act(held, scale(1, instances=2))


def test_a_gpu_share_is_refused_without_mps(emulator: Emulator, held: Hold) -> None:
    with pytest.raises(ClusterError, match="does not share its GPU by MPS"):
        act(held, scale(1, gpu_share=0.25))
    assert emulator.writes() == []


MPS = {"nvidia.com/gpu.sharing-strategy": "mps", "nvidia.com/gpu.replicas": "4"}


def test_a_gpu_share_is_set_where_the_node_has_mps(tmp_path: Path) -> None:
    with cluster(("nodes", node(**MPS))) as emulator:
        held = taken(emulator, tmp_path)
        act(held, scale(1, gpu_share=0.25))
        held.wait_ready(1, 5)
        assert {"name": "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "value": "25"} in template(emulator)["env"]
        assert held.state(Deadline(1)).gpu_share == 0.25
        act(held, scale(2, gpu_share=0.25))
        assert emulator.count("get", "nodes") == 1, "asked once per share, not at every step"
        with pytest.raises(ClusterError, match=r"at most 0\.25"):
            act(held, scale(1, gpu_share=0.5))


def test_without_the_right_to_read_nodes_the_templates_own_choice_counts(tmp_path: Path) -> None:
    chosen = deployment()
    chosen["spec"]["template"]["spec"]["nodeSelector"] = {"nvidia.com/gpu.sharing-strategy": "mps"}
    for things, allowed in (((("deployments", chosen),), True), ((), False)):
        with cluster(*things) as emulator:
            held = taken(emulator, tmp_path)
            emulator.forbid("get", "nodes")
            if allowed:
                act(held, scale(1, gpu_share=0.25))
            else:
                with pytest.raises(ClusterError, match="kubectl auth can-i get nodes"):
                    act(held, scale(1, gpu_share=0.25))


def test_several_levers_make_one_rollout(tmp_path: Path) -> None:
    with cluster(("nodes", node(**MPS)), version=(1, 30), resize=False) as emulator:
        held = taken(emulator, tmp_path)
        act(held, scale(1, gpu_share=0.25, instances=2, cpu_cores=2.0))
        assert emulator.count("patch", "deployments") == 1


# --- state ---


def test_terminating_pods_hold_resources_but_are_not_ready(emulator: Emulator, held: Hold) -> None:
    act(held, scale(3))
    held.wait_ready(3, 5)
    emulator.world.times.terminate_s = 0.5
    act(held, scale(1))
    time.sleep(0.1)
    state = held.state(Deadline(1))
    assert (state.spec, state.ready, state.alive) == (1, 1, 3)


def test_a_silent_api_server_shows_the_last_known_state(emulator: Emulator, held: Hold) -> None:
    act(held, scale(2))
    held.wait_ready(2, 5)
    known = held.state(Deadline(1))
    emulator.fault(hang_s=5, times=50)
    began_s = time.monotonic()
    assert held.state(Deadline(0.4)) == known
    assert time.monotonic() - began_s < 0.6


# --- a service that goes away ---


def test_a_deployment_deleted_during_the_trial_is_told(emulator: Emulator, held: Hold) -> None:
    emulator.remove(DEPLOYMENT, {})
    with pytest.raises(ClusterError, match=r"is gone; somebody deleted it or its namespace"):
        act(held, scale(2))


def test_a_namespace_that_is_being_deleted_is_told(emulator: Emulator, held: Hold) -> None:
    emulator.store.objects[("namespaces", "", "gpusched")]["status"]["phase"] = "Terminating"
    with pytest.raises(ClusterError, match=r"being terminated.*Wait until the namespace is gone"):
        act(held, autoscale())


def test_a_right_taken_away_is_told(emulator: Emulator, held: Hold) -> None:
    emulator.forbid("patch", "pods/resize")
    with pytest.raises(ClusterError, match=r"kubectl auth can-i patch pods --subresource=resize -n gpusched"):
        act(held, scale(1, cpu_cores=2.0))
