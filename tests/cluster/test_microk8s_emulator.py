"""The emulator itself, held against what the Kubernetes documentation says an API server does."""

from __future__ import annotations

from typing import Any

import pytest
from emulated import Refusal, Store, canonical, default_hpa, json_patch, merge_patch
from emulated_control import qos

CM = ("configmaps", "ns", "c")


@pytest.fixture
def store() -> Store:
    made = Store(tolerance=True)
    made.create("namespaces", "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}}, "t")
    return made


def cm(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}


def test_a_stale_version_conflicts(store: Store) -> None:
    first = store.create("configmaps", "ns", cm(a="1"), "me")
    store.update(CM, {**first, "data": {"a": "2"}}, "me")
    with pytest.raises(Refusal) as refused:
        store.update(CM, {**first, "data": {"a": "3"}}, "me")
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")


def test_apply_conflicts_with_another_manager_unless_forced(store: Store) -> None:
    """Documentation, server-side apply, "Conflicts"."""
    store.create("configmaps", "ns", cm(a="1", b="1"), "kubectl")
    with pytest.raises(Refusal) as refused:
        store.apply(CM, cm(a="2"), "me", force=False)
    assert refused.value.causes[0] == {
        "reason": "FieldManagerConflict", "message": 'conflict with "kubectl"', "field": ".data.a",
    }  # fmt: skip
    forced = store.apply(CM, cm(a="2"), "me", force=True)
    assert forced["data"] == {"a": "2", "b": "1"}
    fields = {e["manager"]: set(e["fieldsV1"]["f:data"]) for e in forced["metadata"]["managedFields"]}
    assert fields == {"kubectl": {"f:b"}, "me": {"f:a"}}


def test_the_same_value_is_shared_without_a_conflict(store: Store) -> None:
    store.create("configmaps", "ns", cm(a="1"), "kubectl")
    seen = store.apply(CM, cm(a="1"), "me", force=False)
    assert {e["manager"] for e in seen["metadata"]["managedFields"]} == {"kubectl", "me"}
    assert store.apply(CM, cm(), "me", force=False)["data"] == {"a": "1"}, "shared fields stay"


def test_what_an_applier_no_longer_says_is_removed(store: Store) -> None:
    store.apply(CM, cm(a="1", b="1"), "me", force=False)
    assert store.apply(CM, cm(a="1"), "me", force=False)["data"] == {"a": "1"}


def test_an_update_takes_the_fields_it_changes_from_their_manager(store: Store) -> None:
    made = store.apply(CM, cm(a="1", b="1"), "me", force=False)
    made["data"]["a"] = "2"
    seen = store.update(CM, made, "kubectl-edit")
    fields = {e["manager"]: set(e["fieldsV1"]["f:data"]) for e in seen["metadata"]["managedFields"]}
    assert fields == {"me": {"f:b"}, "kubectl-edit": {"f:a"}}


def test_managed_fields_can_be_replaced_by_their_list(store: Store) -> None:
    """Documentation: managedFields can be overwritten by a patch; an empty list does nothing."""
    made = store.create("configmaps", "ns", cm(a="1"), "first")
    before = made["metadata"]["managedFields"]
    made["data"]["a"] = "2"
    changed = store.update(CM, made, "second")
    assert [e["manager"] for e in changed["metadata"]["managedFields"]] == ["second"]
    changed["metadata"]["managedFields"] = before
    assert store.update(CM, changed, "third")["metadata"]["managedFields"] == before


def test_finalizers_keep_an_object_until_they_are_gone(store: Store) -> None:
    """Documentation, finalizers: deletion sets deletionTimestamp, and the last finalizer takes the object with it."""
    body = cm(a="1")
    body["metadata"]["finalizers"] = ["example.org/x"]
    store.create("configmaps", "ns", body, "me")
    marked = store.delete(CM, {})
    assert marked["metadata"]["deletionTimestamp"] == store.get(CM)["metadata"]["deletionTimestamp"]
    with pytest.raises(Refusal, match="already exists"):
        store.create("configmaps", "ns", cm(), "me")
    unmarked = store.get(CM)
    del unmarked["metadata"]["deletionTimestamp"]
    assert "deletionTimestamp" in store.update(CM, unmarked, "me")["metadata"], "only the server sets it"
    last = store.get(CM)
    last["metadata"]["finalizers"] = []
    store.update(CM, last, "me")
    assert CM not in store.objects


def test_creating_in_a_dying_namespace_is_forbidden(store: Store) -> None:
    store.objects[("namespaces", "", "ns")]["status"]["phase"] = "Terminating"
    with pytest.raises(Refusal) as refused:
        store.create("configmaps", "ns", cm(), "me")
    assert (refused.value.code, refused.value.causes[0]["reason"]) == (403, "NamespaceTerminating")


@pytest.mark.parametrize(
    ("given", "shown"), [("0.05", "50m"), ("1000m", "1"), ("1000", "1k"), ("0.0005", "500u"), ("1Gi", "1Gi")]
)
def test_quantities_are_shown_in_their_canonical_form(given: str, shown: str) -> None:
    assert canonical(given) == shown


def hpa(**spec: Any) -> dict[str, Any]:
    return {"spec": {"maxReplicas": 5, **spec}}


def test_an_hpa_without_behaviour_stays_without() -> None:
    one = hpa()
    default_hpa(one, tolerance=True)
    assert "behavior" not in one["spec"]
    assert one["spec"]["minReplicas"] == 1
    assert one["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80


def test_any_behaviour_fills_in_both_directions() -> None:
    """autoscaling/v2 defaults: scale-down has no window of its own, the controller's flag counts."""
    one = hpa(behavior={"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}})
    default_hpa(one, tolerance=True)
    up, down = one["spec"]["behavior"]["scaleUp"], one["spec"]["behavior"]["scaleDown"]
    assert (up["stabilizationWindowSeconds"], up["selectPolicy"], len(up["policies"])) == (0, "Max", 2)
    assert down == {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}], "selectPolicy": "Max"}


def test_the_four_patches() -> None:
    live = {"a": {"b": 1, "c": 2}, "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}
    assert merge_patch(live, {"a": {"b": None}})["a"] == {"c": 2}
    assert merge_patch(live, {"env": [{"name": "X", "value": "9"}]})["env"] == [{"name": "X", "value": "9"}]
    strategic = {"env": [{"name": "X", "value": "9"}, {"name": "Y", "$patch": "delete"}]}
    assert merge_patch(live, strategic, strategic=True)["env"] == [{"name": "X", "value": "9"}]
    assert json_patch(live, [{"op": "replace", "path": "/a/b", "value": 7}])["a"]["b"] == 7
    with pytest.raises(Refusal):
        json_patch(live, [{"op": "test", "path": "/a/b", "value": 7}])


def test_quality_of_service_classes() -> None:
    def pod(requests: dict[str, str], limits: dict[str, str]) -> dict[str, Any]:
        return {"containers": [{"resources": {"requests": requests, "limits": limits}}]}

    both = {"cpu": "1", "memory": "1Gi"}
    assert qos(pod({}, {})) == "BestEffort"
    assert qos(pod({"cpu": "1000m", "memory": "1Gi"}, both)) == "Guaranteed"
    assert qos(pod({"cpu": "500m", "memory": "1Gi"}, both)) == "Burstable"
