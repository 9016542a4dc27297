"""What a search may choose and what it has found: one definition, read twice; and the tuned HPA's spec."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.controls import UNSET, HPADirection, HPARule, HPASpec, Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.hpa_tuned import HPATuned, Space
from gpusched.policy.tuned import CARD, Chosen, Hold, SearchConfig, check_span, population

LIMITS = Limits(min_replicas=1, max_replicas=5)
SEED = np.random.SeedSequence(1)
SEARCH = SearchConfig(frames=1000, episodes=4, batch=2, finalists=1, validate_episodes=2)


def seen(**columns: list[float]) -> Observation:
    envs = len(next(iter(columns.values()))) if columns else 1
    table = {name: np.full(envs, np.nan) for name in Observation.columns()}
    return Observation(**{**table, **{f"{name}_E": np.array(values) for name, values in columns.items()}})


def hpa_tuned(**space: Any) -> HPATuned:
    whole = {
        "metrics": ["cpu", "queue"], "cpu": [20, 200], "queue": [1.0, 100.0], "in_flight": [0.5, 5.0],
        "paths": ["legacy", "behavior"], "up_stabilization_s": [0, 60], "down_stabilization_s": [0, 300],
        "up_pods": [1, 4], "down_pods": [1, 4], "down_period_s": [15, 60], "tolerance": [0.0, 0.2],
    }  # fmt: skip
    return HPATuned(HPATuned.Config(search=SEARCH, train_load=None, space=Space(**{**whole, **space})))


def stored(policy: HPATuned, found: dict[str, Any], folder: Path, **changes: Any) -> str:
    card = {**policy.card(found, LIMITS), **changes}
    (folder / CARD).write_text(json.dumps(card))
    return str(folder)


LEGACY = {"metric": "cpu", "cpu": 65, "min_replicas": 2, "span": 2, "path": "legacy"}
BEHAVIOR = {
    "metric": "queue", "queue": 12.5, "min_replicas": 1, "span": 9, "path": "behavior", "up_stabilization_s": 30,
    "up_pods": 2, "up_tolerance": 0.05, "down_stabilization_s": 120, "down_pods": 1, "down_period_s": 60,
    "down_tolerance": 0.2,
}  # fmt: skip


def test_the_found_parameters_make_the_hpa(tmp_path: Path) -> None:
    policy = hpa_tuned()
    policy.load(stored(policy, LEGACY, tmp_path))
    policy.reset(LIMITS, SEED, envs=3)
    controls = policy.act(seen())
    assert list(controls.replicas_E) == [UNSET] * 3
    assert controls.hpa == HPASpec(metric="cpu", target=65, min_replicas=2, max_replicas=4)


def test_the_behavior_is_the_one_found(tmp_path: Path) -> None:
    policy = hpa_tuned()
    policy.load(stored(policy, {**BEHAVIOR, "span": 4}, tmp_path))
    policy.reset(LIMITS, SEED)
    assert policy.act(seen()).hpa == HPASpec(
        metric="queue",
        target=12.5,
        min_replicas=1,
        max_replicas=5,
        scale_up=HPADirection(
            stabilization_s=30, policies=[HPARule(type="Pods", value=2, period_s=15)], tolerance=0.05
        ),
        scale_down=HPADirection(
            stabilization_s=120, policies=[HPARule(type="Pods", value=1, period_s=60)], tolerance=0.2
        ),
    )


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ({**LEGACY, "cpu": 201}, {}, r"cpu = 201: must lie in 20\.\.200\. Tune the policy again"),
        ({**LEGACY, "metric": "in_flight"}, {}, "metric = 'in_flight': must be one of cpu, queue"),
        ({**LEGACY, "cpu": "many"}, {}, "cpu = 'many'"),
        ({"metric": "cpu"}, {}, "has no min_replicas"),
        (BEHAVIOR, {}, r"span = 9: must lie in 0\.\.4"),
        (
            LEGACY,
            {"limits": asdict(Limits(max_replicas=9))},
            "searched with limits .* Tune the policy for this",
        ),
    ],
)
def test_parameters_of_another_space_are_refused(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    policy = hpa_tuned()
    policy.load(stored(policy, values, tmp_path, **changes))
    with pytest.raises(InputError, match=message):
        policy.reset(LIMITS, SEED)


@pytest.mark.parametrize("changes", [{"format": 99}, {"rule": "Table"}, {"values": None}])
def test_another_policy_s_file_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    policy = hpa_tuned()
    with pytest.raises(InputError, match=CARD):
        policy.load(stored(policy, LEGACY, tmp_path, **changes))


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tuned policy here"):
        hpa_tuned().load(str(tmp_path))
    (tmp_path / CARD).write_text("{")
    with pytest.raises(InputError, match="not readable as a tuned policy"):
        hpa_tuned().load(str(tmp_path))
    with pytest.raises(RuntimeError, match="before load"):
        hpa_tuned().reset(LIMITS, SEED)


def test_what_is_tried_first_lies_in_the_space_and_is_the_plan_s_hpa() -> None:
    policy = hpa_tuned()
    rule = policy.rule(Chosen(policy.first(LIMITS), "first"), LIMITS)
    assert rule.spec == HPASpec(metric="cpu", target=70, min_replicas=1, max_replicas=5)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"metrics": ["gpu"]}, "space.metrics = .*must list some of cpu, queue, in_flight"),
        ({"paths": []}, "space.paths"),
        ({"cpu": [80, 20]}, "space.cpu"),
        ({"queue": [0.0, 5.0]}, "space.queue"),
        ({"up_pods": [0, 4]}, "space.up_pods"),
        ({"down_period_s": [15, 1801]}, "space.down_period_s"),
        ({"tolerance": [0.1]}, "space.tolerance"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hpa_tuned(**space)


@pytest.mark.parametrize(
    "changes", [{"frames": 0}, {"finalists": 0}, {"batch": 3}, {"validate_episodes": 1}, {"episodes": 5}]
)
def test_a_budget_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"^search\."):
        SearchConfig(**{**asdict(SEARCH), **changes})


def test_the_population_is_those_who_think_and_those_who_wait() -> None:
    users_E = population(seen(rate_rps=[20.0, np.nan], in_flight=[4.0, 4.0]), think_s=1.5)
    assert users_E[0] == 34.0
    assert np.isnan(users_E[1])


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 5))
def test_hold_asks_for_the_largest_recent_wish(wishes: list[int], steps: int) -> None:
    hold = Hold(steps, envs=1)
    got = [int(hold.pass_on(np.array([wish]))[0]) for wish in wishes]
    assert got == [max(wishes[max(0, k - steps) : k + 1]) for k in range(len(wishes))]


def test_a_span_is_checked_at_both_ends() -> None:
    check_span("key", [0, 1], 0, 1)
    for span in ([1, 0], [-1, 1], [0, 2], [0], [0, 1, 2], [float("nan"), 1]):
        with pytest.raises(InputError, match="key = "):
            check_span("key", span, 0, 1)
