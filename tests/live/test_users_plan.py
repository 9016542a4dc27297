"""When users send: think times by seed, who is wanted when, what is split over processes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.errors import InputError
from gpusched.core.load import LoadPlan
from gpusched.live.plan import Sender, UsersPlan
from gpusched.live.state import Endpoint, ModelIO

ENDPOINT = Endpoint(urls=["h:1"], model="m", input="x", shape=[3, 8, 8], dtype="UINT8", output="y")


def plan(from_s: list[float], users: list[int], seed: int = 1, **more: float) -> UsersPlan:
    drawn = LoadPlan(from_s_K=np.array(from_s), users_K=np.array(users), **more)
    sequence = np.random.SeedSequence([seed, 2**63])
    return UsersPlan.made(drawn, sequence, ENDPOINT, connection_requests=0, timeout_s=1.0)


def sends(one: UsersPlan, k: int, latency_s: float, until_s: float) -> list[float]:
    """Return the times at which user k sends while every request takes `latency_s`."""
    sender, times = Sender(one, k), []
    while (due_s := sender.due_s()) < until_s:
        times.append(due_s)
        sender.free_s = due_s + latency_s
    return times


def test_think_times_depend_on_seed_and_user_alone() -> None:
    one = plan([0.0], [5])
    fast, slow = sends(one, 3, 0.0, 100.0), sends(one, 3, 0.5, 100.0)
    thinks = np.diff(fast)
    assert np.allclose(thinks[:30], np.diff(slow)[:30] - 0.5), "the same thoughts whatever the answers"
    assert thinks.min() >= 1.0
    assert thinks.max() <= 2.0
    assert sends(plan([0.0], [5]), 3, 0.0, 100.0) == fast, "the same seed"
    assert sends(plan([0.0], [50]), 3, 0.0, 100.0) == fast, "the same user among more"
    assert sends(plan([0.0], [5], seed=2), 3, 0.0, 100.0) != fast
    assert sends(one, 2, 0.0, 100.0) != fast


def test_think_times_are_uniform() -> None:
    thinks = np.concatenate([np.diff(sends(plan([0.0], [9]), k, 0.0, 2000.0)) for k in range(5)])
    # mean 1.5 s, standard deviation 1/sqrt(12) s
    assert abs(thinks.mean() - 1.5) < 4 * math.sqrt(1 / 12 / len(thinks))


def test_a_user_rests_while_not_wanted_and_thinks_first() -> None:
    one = plan([0.0, 10.0, 30.0], [3, 1, 2])
    times = np.array(sends(one, 1, 0.1, 100.0))
    assert not ((times >= 10.0) & (times < 31.0)).any(), "rests from 10 s on, thinks from 30 s on"
    assert ((times >= 31.0) & (times <= 32.0)).any()
    assert 1.0 <= times[0] <= 2.0, "thinks before the first request"
    assert max(sends(one, 2, 0.1, 100.0)) < 10.0, "never wanted again"
    assert sends(one, 5, 0.1, 100.0) == [], "never wanted at all"


def test_nothing_is_sent_after_the_end() -> None:
    one = replace(plan([0.0], [2]), end_s=10.0)
    assert max(sends(one, 0, 0.0, 100.0)) < 10.0


@settings(max_examples=50, deadline=None)
@given(users=st.lists(st.integers(0, 20), min_size=1, max_size=6), at_s=st.floats(0, 70))
def test_users_follow_the_load_plan(users: list[int], at_s: float) -> None:
    from_s = [10.0 * i for i in range(len(users))]
    one, drawn = plan(from_s, users), LoadPlan(from_s_K=np.array(from_s), users_K=np.array(users))
    assert one.users_at(at_s) == drawn.users_at(np.array([at_s]))[0]
    assert one.most_users(at_s) == max(u for t, u in zip(from_s, users, strict=True) if t <= at_s)
    for k in range(21):
        wanted_s = one.wanted_from_s(k, at_s)
        assert wanted_s >= at_s
        if wanted_s == math.inf:
            assert all(u <= k for t, u in zip(from_s, users, strict=True) if t > at_s)
        else:
            assert one.users_at(wanted_s) > k


def test_arrivals_are_split_without_loss_and_need_new_connections() -> None:
    drawn = LoadPlan(from_s_K=np.zeros(0), users_K=np.zeros(0, int), arrivals_s_N=np.arange(10.0))
    whole = UsersPlan.made(drawn, np.random.SeedSequence(1), ENDPOINT, connection_requests=0, timeout_s=1.0)
    parts = [replace(whole, part=p, parts=3).own_arrivals() for p in range(3)]
    assert sorted(one for part in parts for one in part) == [(n, float(n)) for n in range(10)]
    assert whole.connection_requests == 1
    assert len(replace(whole, end_s=4.0).own_arrivals()) == 4


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    one = plan([0.0, 5.0], [1, 2])
    one.write(tmp_path / "plan.json")
    again = UsersPlan.read(tmp_path / "plan.json")
    assert again == one
    assert again.stream(0, 3).random() == one.stream(0, 3).random()


@pytest.mark.parametrize("text", ["", "[]", '{"urls": ["h:1"]}', '{"colour": 1}', "{"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match="plan of a load"):
        UsersPlan.read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", " "), ("shape", []), ("shape", [3, 0]), ("dtype", "INT4")],
)
def test_a_model_that_cannot_be_is_refused(key: str, value: object) -> None:
    good = {"model": "m", "input": "x", "shape": [3, 8, 8], "dtype": "UINT8", "output": "y"}
    with pytest.raises(InputError, match=key):
        ModelIO(**{**good, key: value})


@pytest.mark.parametrize("urls", [[], ["http://h:1"], ["h"]])
def test_addresses_are_host_and_port(urls: list[str]) -> None:
    with pytest.raises(InputError, match="urls"):
        replace(ENDPOINT, urls=urls)
