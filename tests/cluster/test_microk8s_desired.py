"""Controls → objects: pure functions with known answers."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from emulated import default_hpa
from emulated_control import qos
from hypothesis import given
from hypothesis import strategies as st

from gpusched.cluster.microk8s.actuator import Target
from gpusched.cluster.microk8s.desired import Cpu, container, cpu_of, env_of, wanted
from gpusched.cluster.microk8s.gpu import check_share
from gpusched.cluster.microk8s.hpa import MetricNames, holds, lost, manifest, metric
from gpusched.cluster.microk8s.kinds import selector
from gpusched.cluster.microk8s.quantities import milli, number
from gpusched.core.controls import UNSET, Controls, HPADirection, HPARule, HPASpec, Limits
from gpusched.core.errors import ClusterError
from gpusched.sim.hpa import pack

LIMITS = Limits(min_replicas=1, max_replicas=6)


def spec_of(spec: HPASpec) -> dict:
    return manifest(spec, MetricNames(), "ns", "triton", "me")["spec"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), ("1k", "1000"), ("1Gi", "1073741824"), ("100u", "0.0001")],
)
def test_quantities_are_read_as_the_api_writes_them(text: str, value: str) -> None:
    assert number(text) == Decimal(value)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "500m"), (2.0, "2"), (0.0005, "1m"), (1.5, "1500m"), (0.1, "100m")]
)
def test_numbers_become_quantities_rounded_up_to_thousandths(value: float, text: str) -> None:
    assert milli(value) == text


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ClusterError, match="'half' is no quantity"):
        number("half")


def test_no_behaviour_means_no_such_key() -> None:
    assert "behavior" not in spec_of(HPASpec())


def test_a_behaviour_holds_only_what_was_given() -> None:
    spec = HPASpec(
        scale_down=HPADirection(
            stabilization_s=60, policies=[HPARule(type="Percent", value=50, period_s=15)]
        ),
        scale_up=HPADirection(tolerance=0.05),
    )
    assert spec_of(spec)["behavior"] == {
        "scaleUp": {"selectPolicy": "Max", "tolerance": "50m"},
        "scaleDown": {
            "stabilizationWindowSeconds": 60,
            "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 15}],
        },
    }


def test_metrics_have_the_types_the_controls_promise() -> None:
    names = MetricNames()
    assert metric(HPASpec(target=72.6), names) == {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 73}},
    }
    assert metric(HPASpec(metric="queue", target=50), names) == {
        "type": "External",
        "external": {
            "metric": {"name": "triton_queue_microseconds"},
            "target": {"type": "Value", "value": "50000"},
        },
    }
    keda = metric(HPASpec(metric="queue", target=0.5, per_replica=True), names)
    assert keda["external"]["target"] == {"type": "AverageValue", "averageValue": "500"}
    assert metric(HPASpec(metric="in_flight", target=4.5), names) == {
        "type": "Pods",
        "pods": {
            "metric": {"name": "triton_in_flight"},
            "target": {"type": "AverageValue", "averageValue": "4500m"},
        },
    }


@given(st.floats(1e-3, 1e4), st.booleans())
def test_the_real_controller_gets_the_target_that_the_modelled_one_gets(target: float, keda: bool) -> None:
    spec = HPASpec(metric="queue", target=target, per_replica=keda)
    (value,) = [v for k, v in metric(spec, MetricNames())["external"]["target"].items() if k != "type"]
    assert int(value) == pack(spec).metrics_M["target"][0]


DIRECTIONS = st.none() | st.builds(
    HPADirection,
    stabilization_s=st.none() | st.integers(0, 3600),
    select=st.sampled_from(["Max", "Min", "Disabled"]),
    policies=st.none()
    | st.lists(
        st.builds(HPARule, type=st.sampled_from(["Pods", "Percent"]), value=st.integers(1, 50), period_s=st.integers(1, 1800)),
        min_size=1,
        max_size=3,
    ),
    tolerance=st.none() | st.sampled_from([0.0, 0.05, 0.1, 0.25]),
)  # fmt: skip
SPECS = st.builds(
    HPASpec,
    metric=st.sampled_from(["cpu", "queue", "in_flight"]),
    target=st.floats(1.0, 500.0),
    min_replicas=st.integers(1, 3),
    max_replicas=st.integers(3, 10),
    scale_up=DIRECTIONS,
    scale_down=DIRECTIONS,
)


@given(SPECS)
def test_a_server_that_only_fills_in_defaults_keeps_all_that_was_asked(spec: HPASpec) -> None:
    asked = manifest(spec, MetricNames(), "ns", "triton", "me")
    live = {"spec": spec_of(spec)}
    default_hpa(live, tolerance=True)
    assert holds(asked, live)
    live["spec"]["maxReplicas"] += 1
    assert list(lost(asked["spec"], live["spec"])) == ["maxReplicas"]


def test_a_behaviour_nobody_asked_for_is_noticed() -> None:
    asked = manifest(HPASpec(), MetricNames(), "ns", "triton", "me")
    live = {"spec": {**spec_of(HPASpec()), "behavior": {"scaleDown": {}}}}
    assert not holds(asked, live)


def test_what_a_server_drops_is_named() -> None:
    asked = spec_of(HPASpec(scale_up=HPADirection(tolerance=0.05)))
    live = {"spec": spec_of(HPASpec(scale_up=HPADirection(tolerance=0.05)))}
    default_hpa(live, tolerance=False)
    assert list(lost(asked, live["spec"])) == ["behavior.scaleUp.tolerance"]


def test_controls_are_read_for_the_one_environment() -> None:
    controls = Controls.scale([9])
    controls.cpu_cores_E = np.array([2.0])
    assert (wanted(controls, LIMITS).replicas, wanted(controls, LIMITS).cpu_cores) == (6, 2.0)
    assert wanted(Controls.scale([UNSET]), LIMITS).replicas is None


def test_an_hpa_owns_the_replicas_and_its_target_can_be_overridden() -> None:
    controls = Controls.autoscale(HPASpec(target=80), 1)
    controls.hpa_target_E = np.array([35.0])
    seen = wanted(controls, LIMITS)
    assert seen.replicas is None
    assert seen.hpa is not None and seen.hpa.target == 35.0


@given(
    request_share=st.floats(0.01, 1.0), limit=st.floats(0.02, 64.0), new_limit=st.floats(0.02, 64.0)
)  # fmt: skip
def test_a_resize_never_changes_the_pods_quality_of_service(
    request_share: float, limit: float, new_limit: float
) -> None:
    limit, new_limit = round(limit, 3), round(new_limit, 3)
    before = Cpu(request=max(round(limit * request_share, 3), 0.001), limit=limit)

    def pod(cpu: Cpu) -> dict:
        resources = cpu.as_resources()
        for part in resources.values():
            part["memory"] = "1Gi"  # equal, so that CPU alone decides between Guaranteed and Burstable
        return {"containers": [{"name": "triton", "resources": resources}]}

    assert qos(pod(before)) == qos(pod(before.scaled(new_limit)))


def test_the_request_keeps_its_share_of_the_limit() -> None:
    assert Cpu(request=0.5, limit=1.0).scaled(4.0) == Cpu(request=2.0, limit=4.0)
    assert Cpu(request=1.0, limit=1.0).scaled(0.25) == Cpu(request=0.25, limit=0.25)


@given(st.floats(0.02, 64.0))
def test_a_size_is_what_the_api_keeps_of_it(limit: float) -> None:
    cpu = Cpu(request=0.5, limit=1.0).scaled(limit)
    assert cpu_of({"name": "triton", "resources": cpu.as_resources()}, "here") == cpu


def test_a_container_must_exist_and_name_its_cpu() -> None:
    template = {"spec": {"containers": [{"name": "web"}, {"name": "log"}]}}
    with pytest.raises(ClusterError, match=r"no container 'triton' \(containers: web, log\)"):
        container(template, "triton", "here")
    with pytest.raises(ClusterError, match=r"no resources\.limits\.cpu"):
        cpu_of({"name": "web", "resources": {"requests": {"cpu": "1"}}}, "here")


def test_a_variable_with_a_source_is_no_lever() -> None:
    one = {"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {}}}]}
    assert (env_of(one, "A"), env_of(one, "B"), env_of(one, "C")) == ("1", None, None)


def test_an_instance_count_is_read_out_of_its_variable() -> None:
    target = Target(namespace="n", deployment="d", container="c")
    assert target.instances("instances-3") == 3
    assert np.isnan(target.instances("something-3"))


def test_selectors_become_query_text() -> None:
    rules = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "old", "operator": "DoesNotExist"},
        {"key": "new", "operator": "Exists"},
    ]
    thing = {"spec": {"selector": {"matchLabels": {"app": "t"}, "matchExpressions": rules}}}
    assert selector(thing) == "app=t,tier in (a,b),!old,new"


def node(**labels: str) -> dict:
    return {
        "metadata": {
            "name": "n1",
            "labels": {f"nvidia.com/gpu.{k.replace('_', '-')}": v for k, v in labels.items()},
        }
    }


def test_a_share_needs_mps_on_every_node() -> None:
    check_share(0.25, [node(sharing_strategy="mps", replicas="4")])
    with pytest.raises(ClusterError, match="does not share its GPU by MPS"):
        check_share(0.25, [node(sharing_strategy="mps", replicas="4"), node(sharing_strategy="time-slicing")])


def test_a_share_above_what_the_plugin_gives_each_is_refused() -> None:
    """floor(100/3) = 33 percent."""
    with pytest.raises(ClusterError, match=r"at most 0\.33"):
        check_share(0.333, [node(sharing_strategy="mps", replicas="3")])
