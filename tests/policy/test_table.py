"""The table: which population asks for how many replicas, and what slows it down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.controls import Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.table import Space, Table, TableRule
from gpusched.policy.tuned import Chosen, SearchConfig

LIMITS = Limits(min_replicas=2, max_replicas=5)
SEARCH = SearchConfig(frames=1000, episodes=2, batch=2, finalists=1, validate_episodes=2)
SPACE = {"users": [0.0, 100.0], "gap": [0.0, 100.0], "band": [0.0, 0.5], "hold": [0, 8]}


def seen(users: list[float], think_s: float = 1.5) -> Observation:
    """Return what `users` look like when a tenth of them waits."""
    users_E = np.array(users)
    table = {name: np.full(len(users), np.nan) for name in Observation.columns()}
    table |= {"rate_rps_E": 0.9 * users_E / think_s, "in_flight_E": 0.1 * users_E}
    return Observation(**{**table, "replicas_spec_E": np.full(len(users), 3.0)})


def table(thresholds: list[float], band: float = 0.0, hold: int = 0, envs: int = 1) -> TableRule:
    rule = TableRule(thresholds, think_s=1.5, band=band, hold=hold)
    rule.reset(LIMITS, envs)
    return rule


def asked(rule: TableRule, *users: float) -> list[int]:
    """Return what is asked for, one population after the other."""
    return [int(rule.act(seen([n])).replicas_E[0]) for n in users]


def test_the_table_is_read() -> None:
    rule = table([30, 30, 75], envs=6)
    assert list(rule.act(seen([0, 29, 31, 74, 76, 1000])).replicas_E) == [2, 2, 4, 4, 5, 5]


def test_the_estimate_is_the_population() -> None:
    rule = TableRule([30], think_s=1.5)
    rule.reset(LIMITS, 2)
    observation = seen([0, 0])
    observation.rate_rps_E = np.array([12.0, 12.0])  # 18 users think ...
    observation.in_flight_E = np.array([11.0, 13.0])  # ... and so many wait
    assert list(rule.act(observation).replicas_E) == [2, 3]


def test_inside_the_band_nothing_moves() -> None:
    rule = table([40], band=0.25)  # up above 40, down below 30
    assert asked(rule, 39, 41, 35, 31, 29, 35, 39, 41) == [2, 3, 3, 3, 2, 2, 2, 3]


def test_a_smaller_wish_must_last() -> None:
    rule = table([30, 60], hold=2)
    assert asked(rule, 70, 10, 10, 10, 40, 10, 10, 10) == [4, 4, 4, 2, 3, 3, 3, 2]


def test_without_metrics_it_stays() -> None:
    rule = table([30, 60])
    assert asked(rule, np.nan) == [3]  # what there is
    assert asked(rule, 70, np.nan, np.nan, 10) == [4, 4, 4, 2]


def test_environments_do_not_see_each_other() -> None:
    both = table([30, 60], band=0.2, hold=1, envs=2)
    courses = [[10, 70, 20, 20, 50], [70, 10, 10, 65, 10]]
    together = [list(both.act(seen(list(now))).replicas_E) for now in zip(*courses, strict=True)]
    for e, course in enumerate(courses):
        alone = asked(table([30, 60], band=0.2, hold=1), *course)
        assert [now[e] for now in together] == alone


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=3, max_size=3),
    st.floats(0, 0.5),
    st.lists(st.floats(0, 400), min_size=2, max_size=8),
)
def test_more_users_never_ask_for_fewer_replicas(gaps: list[float], band: float, users: list[float]) -> None:
    rule = table(list(np.cumsum(gaps)), band, envs=len(users))
    ordered = sorted(users)
    replicas = rule.act(seen(ordered)).replicas_E
    assert np.all(np.diff(replicas) >= 0)
    assert replicas.min() >= 2
    assert replicas.max() <= 5
    later = rule.act(seen(ordered)).replicas_E
    assert np.array_equal(
        later, replicas
    )  # the same users, the same answer: the band moves nothing by itself


def test_the_search_s_parameters_are_thresholds_one_upon_the_other() -> None:
    policy = Table(Table.Config(search=SEARCH, train_load=None, think_s=1.5, space=Space(**SPACE)))
    values = {"users": 20.0, "gap_4": 15.0, "gap_5": 0.0, "band": 0.1, "hold": 3}
    rule = policy.rule(Chosen(values, "here"), LIMITS)
    assert list(rule.thresholds_K) == [20.0, 35.0, 35.0]
    assert (rule.band, rule.hold, rule.think_s) == (0.1, 3, 1.5)
    first = policy.rule(Chosen(policy.first(LIMITS), "first"), LIMITS)
    assert list(first.thresholds_K) == [30.0, 60.0, 90.0]


def test_one_allowed_count_leaves_nothing_to_read() -> None:
    policy = Table(Table.Config(search=SEARCH, train_load=None, think_s=1.5, space=Space(**SPACE)))
    limits = Limits(min_replicas=3, max_replicas=3)
    rule = policy.rule(Chosen(policy.first(limits), "first"), limits)
    rule.reset(limits, 1)
    assert asked(rule, 1000) == [3]


@pytest.mark.parametrize(
    "space", [{"users": [10.0, 5.0]}, {"band": [0.0, 1.5]}, {"hold": [-1, 3]}, {"gap": []}]
)
def test_a_space_that_cannot_be_is_refused(space: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match="space"):
        Space(**{**SPACE, **space})
