"""The cluster is left as it was found, whatever a trial did to it and however that went."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulator import Emulator
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import LIMITS, act, cluster, deployment, hold, node, old_hpa, picture, scale

from gpusched.cluster.microk8s.hold import Hold
from gpusched.core.controls import Controls, HPADirection, HPASpec
from gpusched.core.errors import ClusterError

pytestmark = pytest.mark.slow

DEPLOYMENT = ("deployments", "gpusched", "triton")
HPA = ("horizontalpodautoscalers", "gpusched", "triton")
JOURNAL = ("configmaps", "gpusched", "gpusched-journal")
MPS = {"nvidia.com/gpu.sharing-strategy": "mps", "nvidia.com/gpu.replicas": "2"}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster(("horizontalpodautoscalers", old_hpa()), ("deployments", deployment(2))) as made:
        yield made


def busy(one: Hold) -> None:
    """Use every lever once."""
    act(one, scale(3, cpu_cores=2.0, instances=2))
    act(one, Controls.autoscale(HPASpec(target=40, scale_down=HPADirection(stabilization_s=30)), 1))


# --- the property ---

SPECS = st.builds(
    HPASpec,
    metric=st.sampled_from(["cpu", "queue", "in_flight"]),
    target=st.integers(5, 90).map(float),
    scale_down=st.none() | st.builds(HPADirection, stabilization_s=st.integers(0, 300)),
)


@st.composite
def controls(draw: st.DrawFn) -> Controls:
    made = draw(
        st.builds(Controls.autoscale, SPECS, st.just(1)) | st.builds(scale, st.sampled_from([-1, 1, 2, 3, 4]))
    )
    for name, values in (
        ("cpu_cores", LIMITS.cpu_cores),
        ("instances", LIMITS.instances),
        ("gpu_share", LIMITS.gpu_shares),
    ):
        value = draw(st.none() | st.sampled_from(values))
        if value is not None:
            setattr(made, f"{name}_E", np.array([value]))
    return made


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(controls(), min_size=1, max_size=5),
    resize=st.booleans(),
    with_hpa=st.booleans(),
    troubles=st.lists(st.sampled_from([409, 429, 500, 503]), max_size=4),
)
def test_any_sequence_of_controls_is_undone(
    steps: list[Controls], resize: bool, with_hpa: bool, troubles: list[int]
) -> None:
    things = [("nodes", node(**MPS)), ("deployments", deployment(2))]
    things += [("horizontalpodautoscalers", old_hpa())] if with_hpa else []
    with tempfile.TemporaryDirectory() as folder, cluster(*things, resize=resize) as emulator:
        before = picture(emulator)
        one = hold(emulator, Path(folder))
        one.take(5)
        for step in steps:
            act(one, step)
        for status in troubles:
            emulator.fault("patch", status=status, reason="Conflict" if status == 409 else "")
        one.give_back(10)
        emulator.settle()
        assert picture(emulator) == before


# --- known cases ---


def test_everything_is_as_found_after_every_lever(emulator: Emulator, tmp_path: Path) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    assert picture(emulator) != before
    one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_giving_back_twice_is_giving_back_once(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    one.give_back(5)
    requests = len(emulator.seen)
    one.give_back(5)
    assert len(emulator.seen) == requests


def test_giving_back_what_was_never_taken_asks_nobody(emulator: Emulator, tmp_path: Path) -> None:
    hold(emulator, tmp_path).give_back(5)
    assert emulator.seen == []


def test_one_hold_lives_through_several_trials(emulator: Emulator, tmp_path: Path) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    for _ in range(3):
        one.take(5)
        busy(one)
        one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_a_server_side_applier_keeps_its_fields(tmp_path: Path) -> None:
    """Who set the service up with kubectl apply --server-side must not meet a conflict with us afterwards."""
    with cluster() as emulator:
        emulator.store.remove(DEPLOYMENT)
        made = deployment(2)
        emulator.store.apply(DEPLOYMENT, made, "kubectl", force=False)
        emulator.settle()
        one = hold(emulator, tmp_path)
        one.take(5)
        act(one, scale(4, instances=2))
        one.give_back(5)
        emulator.settle()
        made["spec"]["replicas"] = 3
        emulator.store.apply(DEPLOYMENT, made, "kubectl", force=False)


def test_what_others_changed_meanwhile_stays(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    edited = emulator.store.get(DEPLOYMENT)
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "triton:2"
    edited["metadata"]["labels"]["release"] = "new"
    edited["metadata"].pop("resourceVersion")
    emulator.store.update(DEPLOYMENT, edited, "kubectl-edit")
    one.give_back(5)
    live = emulator.store.get(DEPLOYMENT)
    one_container = live["spec"]["template"]["spec"]["containers"][0]
    assert one_container["image"] == "triton:2"
    assert live["metadata"]["labels"]["release"] == "new"
    assert one_container["env"][0]["value"] == "instances-1"
    assert live["spec"]["replicas"] == 2


def test_levers_are_put_back_under_the_names_they_had(tmp_path: Path) -> None:
    """Whoever restores may call them otherwise, or know no name at all."""
    env = [{"name": "CONF2", "value": "instances-1"}]
    with cluster(("deployments", deployment(1, env=env))) as emulator:
        before = picture(emulator)
        dead = hold(emulator, tmp_path, instances_env="CONF2")
        dead.take(5)
        act(dead, scale(1, instances=2))
        assert picture(emulator) != before
        hold(emulator, tmp_path).restore(5)
        emulator.settle()
        assert picture(emulator) == before


def test_a_journal_somebody_deleted_is_remembered(emulator: Emulator, tmp_path: Path) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.remove(JOURNAL, {})
    one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


@pytest.mark.parametrize("key", [DEPLOYMENT, HPA])
def test_what_is_gone_is_not_missed(emulator: Emulator, tmp_path: Path, key: tuple[str, str, str]) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.remove(key, {})
    one.give_back(5)
    assert JOURNAL not in emulator.store.objects


def test_a_namespace_that_is_gone_is_not_missed(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.store.delete(("namespaces", "", "gpusched"), {})
    one.give_back(5)


def test_what_goes_while_it_is_restored_is_not_missed(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.fault("patch", "deployments", status=404, reason="NotFound")
    emulator.fault("patch", "deployments/scale", status=404, reason="NotFound")
    one.give_back(5)
    assert JOURNAL not in emulator.store.objects


def test_a_namespace_that_is_going_is_not_missed(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.store.objects[("namespaces", "", "gpusched")]["status"]["phase"] = "Terminating"
    one.give_back(5)


def test_replicas_the_hpa_changed_go_back_to_who_had_them(emulator: Emulator, tmp_path: Path) -> None:
    """The HPA's controller manages the replicas while it scales; afterwards they are the first manager's again."""
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    emulator.world.hpa_controller = True
    act(one, Controls.autoscale(HPASpec(min_replicas=4), 1))
    emulator.settle()
    for _ in range(200):
        if emulator.store.get(DEPLOYMENT)["spec"]["replicas"] == 4:
            break
        time.sleep(0.01)
    managers = {
        (e["manager"], e.get("subresource"))
        for e in emulator.store.get(DEPLOYMENT)["metadata"]["managedFields"]
    }
    assert ("kube-controller-manager", "scale") in managers
    emulator.world.hpa_controller = False
    one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_a_deployment_made_anew_is_not_ours_to_change(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.remove(DEPLOYMENT, {})
    emulator.store.create("deployments", "gpusched", deployment(5), "kubectl")
    one.give_back(5)
    assert emulator.store.get(DEPLOYMENT)["spec"]["replicas"] == 5


def test_what_cannot_be_undone_is_said_kept_and_undone_later(emulator: Emulator, tmp_path: Path) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    emulator.forbid("patch", "deployments/scale")
    with pytest.raises(
        ClusterError, match=r"(?s)not everything is as it was found:\nreplicas:.*can-i patch.*job=restore"
    ):
        one.give_back(5)
    left = emulator.store.get(JOURNAL)["data"]["left"]
    assert left.startswith("replicas: ")
    live = emulator.store.get(DEPLOYMENT)
    assert live["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] == "instances-1", (
        "the rest is done"
    )
    emulator.forbidden.clear()
    assert hold(emulator, tmp_path).restore(5) == [
        f"Deployment triton in namespace gpusched: given back as {one.owner} had found it"
    ]
    emulator.settle()
    assert picture(emulator) == before


def test_giving_back_to_a_silent_server_ends_in_time_and_keeps_the_journal(
    emulator: Emulator, tmp_path: Path
) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    silence = emulator.fault(hang_s=5, times=10**6)
    with pytest.raises(ClusterError, match="could not"):
        one.give_back(1.0)
    silence.times = 0
    hold(emulator, tmp_path).restore(5)
    emulator.settle()
    assert picture(emulator) == before


def test_a_failed_take_gives_back_what_it_changed(emulator: Emulator, tmp_path: Path) -> None:
    before, one = picture(emulator), hold(emulator, tmp_path)
    emulator.fault("delete", "horizontalpodautoscalers", status=400, reason="BadRequest")
    with pytest.raises(ClusterError, match="delete horizontalpodautoscalers"):
        one.take(5)
    one.give_back(5)
    assert picture(emulator) == before


# --- what is refused before anything is changed ---


def unchanged(emulator: Emulator, folder: Path, said: str) -> None:
    before = picture(emulator)
    one = hold(emulator, folder)
    with pytest.raises(ClusterError, match=said):
        one.take(5)
    one.give_back(5)
    assert picture(emulator) == before
    assert emulator.writes() == []


def test_a_deployment_without_our_label_is_not_touched(tmp_path: Path) -> None:
    foreign = deployment()
    foreign["metadata"]["labels"] = {"app": "triton"}
    with cluster(("deployments", foreign)) as emulator:
        unchanged(
            emulator,
            tmp_path,
            r"kubectl label deployment triton -n gpusched app\.kubernetes\.io/part-of=gpusched",
        )


def test_no_deployment_is_told_with_the_cure(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path, deployment="other")
    with pytest.raises(ClusterError, match=r"cluster\.deployment=NAME"):
        one.take(5)


def test_another_autoscaler_of_the_deployment_is_refused(emulator: Emulator, tmp_path: Path) -> None:
    other = old_hpa()
    other["metadata"]["name"] = "somebody"
    emulator.store.create("horizontalpodautoscalers", "gpusched", other, "kubectl")
    unchanged(
        emulator, tmp_path, r"somebody in namespace gpusched: scales triton too.*kubectl delete hpa somebody"
    )


def test_an_hpa_that_a_controller_makes_is_refused(emulator: Emulator, tmp_path: Path) -> None:
    live = emulator.store.get(HPA)
    live["metadata"]["ownerReferences"] = [{"kind": "ScaledObject", "name": "triton", "uid": "u"}]
    emulator.store.update(HPA, live, "keda")
    unchanged(emulator, tmp_path, "ScaledObject triton makes it again")


def test_an_hpa_of_another_deployment_is_no_business_of_ours(emulator: Emulator, tmp_path: Path) -> None:
    other = old_hpa()
    other["metadata"] = {"name": "web"}
    other["spec"]["scaleTargetRef"]["name"] = "web"
    emulator.store.create("horizontalpodautoscalers", "gpusched", other, "kubectl")
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    busy(one)
    one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_a_paused_rollout_is_refused(tmp_path: Path) -> None:
    paused = deployment()
    paused["spec"]["paused"] = True
    with cluster(("deployments", paused)) as emulator:
        unchanged(emulator, tmp_path, "kubectl rollout resume deployment triton -n gpusched")


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        ("get", "deployments"),
        ("list", "horizontalpodautoscalers"),
        ("list", "pods"),
        ("create", "configmaps"),
    ],
)
def test_a_missing_right_is_told_before_anything_is_changed(
    emulator: Emulator, tmp_path: Path, verb: str, kind: str
) -> None:
    emulator.forbid(verb, kind)
    before, one = picture(emulator), hold(emulator, tmp_path)
    with pytest.raises(ClusterError, match=f"kubectl auth can-i {verb} {kind}"):
        one.take(5)
    emulator.forbidden.clear()
    one.give_back(5)
    assert picture(emulator) == before
