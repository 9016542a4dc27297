"""Actions: what every choice means, and that no lever without a choice takes an axis."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gpusched.action.full import Full
from gpusched.action.hpa_target import HPATarget
from gpusched.action.replicas import Replicas
from gpusched.action.resources import Resources
from gpusched.core.controls import UNSET, Controls, Limits
from gpusched.core.errors import InputError
from gpusched.core.ports import Action

LIMITS = Limits(
    min_replicas=2, max_replicas=5, cpu_cores=[0.5, 1.0], instances=[1, 2, 3], gpu_shares=[0.25, 0.5]
)
SIZES: dict[str, Any] = {"cpu_cores": [0.5, 1.0], "instances": [1, 2, 3], "gpu_shares": [0.25, 0.5]}


def replicas() -> Action:
    return Replicas(Replicas.Config())


def hpa_target(**more: Any) -> Action:
    return HPATarget(HPATarget.Config(**{"targets": [30, 60, 90], **more}))


def resources(**more: Any) -> Action:
    return Resources(Resources.Config(**{**SIZES, "target": 70.0, **more}))


def full(**more: Any) -> Action:
    return Full(Full.Config(**{**SIZES, "targets": [30, 60, 90], **more}))


def decode(action: Action, *rows: list[int], limits: Limits = LIMITS) -> Controls:
    return action.decode(np.array(rows, dtype=np.int64).reshape(len(rows), -1), limits)


def test_replicas_are_absolute() -> None:
    assert replicas().sizes(LIMITS) == [4]
    controls = decode(replicas(), [0], [1], [3])
    assert list(controls.replicas_E) == [2, 3, 5]
    assert controls.hpa is None


def test_hpa_target_leaves_the_replicas_to_the_hpa() -> None:
    assert hpa_target().sizes(LIMITS) == [3]
    controls = decode(hpa_target(), [2], [0])
    assert list(controls.replicas_E) == [UNSET, UNSET]
    assert controls.hpa_target_E is not None
    assert list(controls.hpa_target_E) == [90, 30]
    assert controls.hpa is not None
    assert (controls.hpa.min_replicas, controls.hpa.max_replicas) == (2, 5)


def test_resources_and_full_have_one_axis_per_lever() -> None:
    assert resources().sizes(LIMITS) == [2, 3, 2]
    assert full().sizes(LIMITS) == [3, 2, 3, 2]
    controls = decode(full(), [0, 1, 2, 0], [2, 0, 0, 1])
    assert controls.hpa_target_E is not None
    assert controls.cpu_cores_E is not None
    assert controls.instances_E is not None
    assert controls.gpu_share_E is not None
    assert list(controls.hpa_target_E) == [30, 90]
    assert list(controls.cpu_cores_E) == [1.0, 0.5]
    assert list(controls.instances_E) == [3, 1]
    assert list(controls.gpu_share_E) == [0.25, 0.5]
    assert np.issubdtype(controls.instances_E.dtype, np.integer)


def test_a_lever_with_one_choice_is_no_lever() -> None:
    limits = Limits(cpu_cores=[0.5], instances=[1, 2], gpu_shares=[1.0])
    assert resources().sizes(limits) == [2]
    controls = decode(resources(), [1], limits=limits)
    assert controls.cpu_cores_E is not None
    assert controls.instances_E is not None
    assert (list(controls.cpu_cores_E), list(controls.instances_E)) == ([0.5], [2])
    assert replicas().sizes(Limits(min_replicas=3, max_replicas=3)) == []
    assert list(decode(replicas(), [], limits=Limits(min_replicas=3, max_replicas=3)).replicas_E) == [3]


@pytest.mark.parametrize("action", [replicas(), hpa_target(), resources(), full()])
def test_every_choice_is_another_control(action: Action) -> None:
    every = [list(row) for row in itertools.product(*map(range, action.sizes(LIMITS)))]
    controls = decode(action, *every)
    columns = [
        controls.replicas_E,
        controls.hpa_target_E,
        controls.cpu_cores_E,
        controls.instances_E,
        controls.gpu_share_E,
    ]
    seen = set(zip(*[column for column in columns if column is not None], strict=True))
    assert len(seen) == len(every)


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (hpa_target, {"targets": []}),
        (hpa_target, {"targets": [60, 30]}),
        (hpa_target, {"targets": [0, 30]}),
        (resources, {"cpu_cores": [1.0, 1.0]}),
        (resources, {"instances": [0, 1]}),
        (resources, {"gpu_shares": [0.5, 1.5]}),
        (resources, {"target": 0.0}),
        (full, {"targets": [float("nan")]}),
        (full, {"cpu_cores": []}),
    ],
)
def test_choices_rise_within_their_range(make: Any, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(more))} = .*must"):
        make(**more)


def test_a_replica_costs_a_replica() -> None:
    assert replicas().expense(LIMITS).tolist() == [0, 1, 2, 3]


def test_a_lower_target_costs_what_the_hpa_holds_for_it() -> None:
    assert hpa_target().expense(LIMITS).tolist() == [2, 0.5, 0]
    assert full().expense(LIMITS).tolist() == [2, 0.5, 0, *[0] * 7]


def test_the_size_of_a_pod_costs_no_replica() -> None:
    assert resources().expense(LIMITS).tolist() == [0] * 7


@pytest.mark.parametrize("action", [hpa_target(targets=[70]), full(targets=[70])])
def test_what_is_no_lever_has_no_expense(action: Action) -> None:
    assert len(action.expense(LIMITS)) == sum(action.sizes(LIMITS))
