"""The guard: whatever a policy asks for, what reaches the cluster stays within bounds, pace and shadow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.core.controls import UNSET, Controls, HPASpec, Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.guard import Guard, GuardConfig

LIMITS = Limits(min_replicas=2, max_replicas=5)
SEEN = Observation(**{name: np.full(1, np.nan) for name in Observation.columns()})


def play(asked: list[int], start: int = 3, **config: float) -> list[int]:
    """Return the replicas after each step on a cluster that obeys at once; a step is 15 s."""
    guard = Guard(GuardConfig(**config), LIMITS, 15.0)  # type: ignore[arg-type]
    now, lived = start, []
    for want in asked:
        passed = guard.pass_on(
            Controls.scale([want]), replace(SEEN, replicas_spec_E=np.array([float(now)]))
        ).replicas_E[0]
        now = now if passed == UNSET else int(passed)
        lived.append(now)
    return lived


def test_without_a_guard_only_the_limits_hold() -> None:
    assert play([9, 0, 4]) == [5, 2, 4]


def test_max_change_lets_one_replica_at_a_time() -> None:
    assert play([5, 5, 5, 2, 2], max_change=1) == [4, 5, 5, 4, 3]


def test_cooldown_holds_what_was_changed() -> None:
    # changed at 0 s, so free again at 60 s: the fifth step
    assert play([4, 5, 5, 5, 5, 2], cooldown_s=60.0) == [4, 4, 4, 4, 5, 5]


def test_a_step_that_changes_nothing_starts_no_cooldown() -> None:
    assert play([3, 3, 4], cooldown_s=600.0) == [3, 3, 4]


def test_shadow_decides_and_changes_nothing() -> None:
    guard = Guard(GuardConfig(shadow=True), LIMITS, 15.0)
    for controls in (Controls.scale([5]), Controls.autoscale(HPASpec(), 1)):
        passed = guard.pass_on(controls, SEEN)
        assert passed.replicas_E[0] == UNSET
        assert passed.hpa is None
    assert [c.replicas_E[0] for c in guard.decided] == [5, UNSET]


def test_an_hpa_and_a_lever_left_alone_pass_unchanged() -> None:
    guard = Guard(GuardConfig(max_change=1, cooldown_s=60.0), LIMITS, 15.0)
    spec = Controls.autoscale(HPASpec(target=50.0), 1)
    assert guard.pass_on(spec, SEEN) is spec
    seen = replace(SEEN, replicas_spec_E=np.array([3.0]))
    only_cpu = Controls(replicas_E=np.array([UNSET]), cpu_cores_E=np.array([2.0]))
    passed = guard.pass_on(only_cpu, seen)
    assert passed.replicas_E[0] == UNSET
    assert passed.cpu_cores_E is not None


@given(
    asked=st.lists(st.integers(-1, 9), min_size=1, max_size=40),
    start=st.integers(2, 5),
    most=st.integers(0, 3),
    cooldown_s=st.sampled_from([0.0, 15.0, 40.0, 300.0]),
)
def test_no_sequence_breaks_bounds_pace_or_cooldown(
    asked: list[int], start: int, most: int, cooldown_s: float
) -> None:
    lived = [start, *play(asked, start, max_change=most, cooldown_s=cooldown_s)]
    assert all(LIMITS.min_replicas <= n <= LIMITS.max_replicas for n in lived)
    steps = np.abs(np.diff(lived))
    assert not most or steps.max() <= most
    changes_s = 15.0 * np.flatnonzero(steps)
    assert np.all(np.diff(changes_s) >= cooldown_s)


@pytest.mark.parametrize(("key", "value"), [("max_change", -1), ("cooldown_s", -1.0)])
def test_a_guard_that_cannot_be_is_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        GuardConfig(**{key: value})  # type: ignore[arg-type]
