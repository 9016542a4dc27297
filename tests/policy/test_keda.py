"""KEDA: the HPA it would create, and what that HPA then decides."""

from __future__ import annotations

import numpy as np
import pytest

from gpusched.core.controls import UNSET, HPASpec, Limits
from gpusched.core.errors import InputError
from gpusched.policy.keda import KEDA, Space
from gpusched.policy.tuned import Chosen, HandOver, SearchConfig
from gpusched.sim.hpa import EVENT, MEMORY, POD, REC, STATUS, pack, reconcile
from gpusched.sim.hpa_replicas import TARGET_AVERAGE_VALUE, TYPE_EXTERNAL

LIMITS = Limits(min_replicas=1, max_replicas=6)
SEARCH = SearchConfig(frames=1000, episodes=2, batch=2, finalists=1, validate_episodes=2)


def made(threshold: float, low: int = 1, span: int = 5, limits: Limits = LIMITS) -> HandOver:
    policy = KEDA(KEDA.Config(search=SEARCH, train_load=None, space=Space(threshold=[1.0, 500.0])))
    return policy.rule(Chosen({"threshold": threshold, "min_replicas": low, "span": span}, "here"), limits)


def test_the_hpa_is_the_one_keda_creates() -> None:
    rule = made(20.0, low=2, span=1)
    rule.reset(LIMITS, 2)
    controls = rule.act(None)  # type: ignore[arg-type]
    assert list(controls.replicas_E) == [UNSET, UNSET]
    assert controls.hpa == HPASpec(
        metric="queue", per_replica=True, target=20.0, min_replicas=2, max_replicas=3
    )
    assert controls.hpa.scale_up is None
    assert controls.hpa.scale_down is None
    packed = pack(controls.hpa)
    assert (packed.metrics_M["type"][0], packed.metrics_M["target_type"][0]) == (
        TYPE_EXTERNAL,
        TARGET_AVERAGE_VALUE,
    )
    assert packed.spec["has_behavior"][0] == 0


def test_its_bounds_stay_within_the_trial_s() -> None:
    limits = Limits(min_replicas=2, max_replicas=4)
    assert (made(5.0, 3, 2, limits).spec.min_replicas, made(5.0, 3, 2, limits).spec.max_replicas) == (3, 4)


def decided(threshold_ms: float, queue_ms: float, spec: int, status: int) -> int:
    """Return what the HPA wants with `spec` replicas asked for and `status` there, its memory empty of wishes."""
    packed = pack(made(threshold_ms).spec)
    memory = np.zeros(1, dtype=MEMORY)
    memory["has_recs"] = 1
    nothing = np.zeros((1, 1), dtype=np.int64)
    desired, _, _ = reconcile(
        packed.spec[0], packed.metrics_M, packed.rules, memory[0], np.zeros(9, REC), np.zeros(9, EVENT),
        np.zeros(9, EVENT), np.zeros(1, POD), 0, nothing, nothing, nothing, nothing.astype(np.bool_), nothing,
        np.array([round(queue_ms * 1000)]), np.ones(1, dtype=np.bool_), 0, spec, status, 0, np.zeros(1, STATUS),
    )  # fmt: skip
    return int(desired)


@pytest.mark.parametrize(
    ("queue_ms", "spec", "status", "expected"),
    [
        (50.0, 1, 1, 3),  # ceil(50 / 20)
        (61.0, 3, 3, 3),  # 61 / (20 · 3) is within the tolerance
        (67.0, 3, 3, 4),  # 67 / 60 = 1.117 is not
        (15.0, 3, 3, 1),
        (300.0, 2, 2, 4),  # ceil(300 / 20) = 15, but one sync at most doubles, or makes 4
        (0.0, 2, 2, 1),  # never to zero
        (61.0, 2, 3, 3),  # within the tolerance the answer is status.replicas: the drift (docs/hpa.md A.4)
    ],
)
def test_replicas_are_queue_time_over_threshold(
    queue_ms: float, spec: int, status: int, expected: int
) -> None:
    assert decided(20.0, queue_ms, spec, status) == expected


def test_a_threshold_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"space\.threshold"):
        Space(threshold=[0.0, 10.0])
