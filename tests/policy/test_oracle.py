"""The bound: against every schedule there is, against every other policy, and with no way to it for them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Policy, Reward
from gpusched.job.build import setup
from gpusched.job.setup import Setup
from gpusched.job.trial import live
from gpusched.policy.oracle import Constants, Guide, Oracle, best_schedule, live_schedules, neighbours, spread
from gpusched.policy.table import TableRule

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"


def make(*overrides: str) -> Setup:
    return setup(*composed(*overrides))[1]


SHORT = ["trial.duration_s=360", "trial.warmup_s=60"]
BURST = ["load=spike", "load.spike_s=120", "load.base_users=15"]


def earned(*overrides: str) -> float:
    return float(live(make(*SHORT, *overrides)).reward_T.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("load", "seed"), [("spike", 0), ("mixed", 1), ("varied", 2), ("periodic", 3)])
def test_nobody_earns_more(load: str, seed: int) -> None:
    arguments = [f"load={load}", f"seed={seed}"]
    bound = earned(*arguments, "policy=oracle")
    others = {f"static {k}": earned(*arguments, "policy=static", f"policy.replicas={k}") for k in range(1, 7)}
    others |= {"hpa": earned(*arguments), "random": earned(*arguments, "policy=random")}
    made = make(*SHORT, *arguments)
    made.policy = Thresholds([60.0, 500.0])
    others["table"] = float(live(made).reward_T.mean())
    best = max(others, key=lambda name: others[name])
    assert bound >= others[best] - 1e-9, best
    assert others["random"] < bound - 0.1  # the episodes are no matter of indifference


class Thresholds(Policy):
    """A table without a search."""

    def __init__(self, thresholds: list[float]) -> None:
        super().__init__(None)
        self.rule = TableRule(thresholds, think_s=1.5, band=0.1, hold=1)

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        self.rule.reset(limits, envs)

    def act(self, observation: Observation) -> Controls:
        return self.rule.act(observation)


def test_of_all_schedules_there_are_it_finds_the_best() -> None:
    """Three counts and seven steps: 2,187 schedules, each lived through."""
    made = make(
        "trial.duration_s=105", "trial.warmup_s=30", "trial.max_replicas=3", "policy=oracle", *BURST,
        "load.first_share=0.25", "load.last_share=0.3",
    )  # fmt: skip
    future = made.future
    every_NT = np.array(list(itertools.product((1, 2, 3), repeat=made.spec.steps)))
    cluster = future.make_cluster(256)
    total_N = live_schedules(cluster, future, every_NT)
    cluster.close()
    found_T = best_schedule(future, beam=8, rounds=4)
    (own,) = total_N[(every_NT == found_T).all(axis=1)]
    assert own == pytest.approx(total_N.max(), abs=1e-9)
    assert total_N.max() > total_N[[0, -1]].max() + 0.1  # no constant is the answer


def test_what_was_foreseen_comes_true() -> None:
    """The trial keeps a record and has one environment, the search has neither; the reward is the same."""
    made = make(*SHORT, "policy=oracle", *BURST)
    lived = live(made)
    schedule_T = made.policy._schedule_T
    cluster = made.future.make_cluster(3)
    (total,) = live_schedules(cluster, made.future, schedule_T[None, :])
    cluster.close()
    assert lived.reward_T.sum() == pytest.approx(total, abs=1e-9)
    assert len(set(schedule_T)) > 1
    t = lived.ticks.between(made.spec.warmup_s, made.spec.end_s)
    per_step = round(made.spec.control_s / made.spec.tick_s)
    assert list(t.replicas_spec_T[per_step - 1 :: per_step]) == list(schedule_T)


def test_a_branch_is_the_same_history() -> None:
    """Environments branched from one go on exactly as it does, and apart where they are told apart."""
    made = make(*SHORT, "load=varied")
    future = made.future
    cluster = future.make_cluster(3)
    cluster.reset([future.episode] * 3)
    for replicas in ([1, 2, 3], [2, 2, 3], [3, 2, 3]):
        cluster.step(Controls.scale(replicas))
    cluster.branch(np.array([1, 1, 1]))
    seen = cluster.step(Controls.scale([2, 2, 4]))
    alone = future.make_cluster(1)
    alone.reset([future.episode])
    for _ in range(4):
        expected = alone.step(Controls.scale([2]))
    for name in Observation.columns():
        values_E = getattr(seen, name)
        assert values_E[0] == pytest.approx(getattr(expected, name)[0], nan_ok=True), name
        assert values_E[1] == pytest.approx(values_E[0], nan_ok=True), name
    assert list(seen.replicas_spec_E) == [2, 2, 4]
    for one in (cluster, alone):
        one.close()


def test_only_the_bound_is_told_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Policy, "foresee", lambda self, future: told.append(type(self).__name__))
    for name in ("hpa", "static", "random"):
        live(make("trial.duration_s=30", "trial.warmup_s=0", f"policy={name}"))
    assert told == []
    clairvoyant = [path.stem for path in sorted((CONF / "policy").glob("*.yaml"))
                   if make(f"policy={path.stem}").policy.hindsight]  # fmt: skip
    assert clairvoyant == ["oracle"]


def test_without_the_future_it_does_not_act() -> None:
    policy = Oracle(Oracle.Config(beam=2, rounds=0))
    policy.reset(Limits(), np.random.SeedSequence(0))
    seen = Observation(**{name: np.full(1, np.nan) for name in Observation.columns()})
    with pytest.raises(RuntimeError, match=r"before Oracle\.foresee"):
        policy.act(seen)


@pytest.mark.parametrize("changes", [{"beam": 0}, {"rounds": -1}])
def test_what_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(changes))} = "):
        Oracle.Config(**{"beam": 1, "rounds": 0, **changes})


class Demand(Reward):
    """Minus a price per replica held, minus the demand that finds no serving replica (busy share = demand)."""

    slo_s = 0.2

    def score(self, outcome: Outcome) -> np.ndarray:
        return -0.3 * outcome.replicas_alive_E - np.maximum(0.0, outcome.completed_E - outcome.failed_E)


def constants(demand_T: list[float], lag: int) -> Constants:
    """Return what constant counts 1..3 lead to where `failed` stands for the replicas that serve."""
    counts = np.array([1, 2, 3])
    outcomes = []
    for demand in demand_T:
        zero = np.zeros(3)
        outcomes.append(
            Outcome(
                gpu_busy_E=zero, replicas_alive_E=counts.astype(float), cpu_cores_limit_E=counts.astype(float),
                completed_E=zero + demand, failed_E=counts.astype(float), slow_E=zero, latency_p95_s_E=zero,
                replicas_max=3, cpu_cores_max=3.0, slo_s=0.2,
            )
        )  # fmt: skip
    steps = np.arange(len(demand_T))[:, None]
    ready_TA = np.where(steps + 1 >= lag, counts[None, :], np.minimum(counts, 1)[None, :]).astype(float)
    reward = Demand(None)
    return Constants(
        counts=counts, start=1, reward=reward, ready_TA=ready_TA, outcome_T=outcomes,
        reward_TA=np.array([reward.score(outcome) for outcome in outcomes]),
    )  # fmt: skip


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_the_guide_is_the_best_of_every_plan(lag: int) -> None:
    demand_T = [1.0, 1.0, 3.0, 3.0, 2.0, 1.0, 3.0]
    guide = Guide(constants(demand_T, lag))
    assert guide.lag == lag
    totals = []
    for plan in itertools.product((1, 2, 3), repeat=len(demand_T)):
        asked = [1] * lag + list(plan)
        serving = [min(asked[t : t + lag + 1]) for t in range(len(demand_T))]
        totals.append(sum(-0.3 * held - max(0.0, demand - up)
                          for held, demand, up in zip(plan, demand_T, serving, strict=True)))  # fmt: skip
    assert guide.left_TP[0][guide.begin] == pytest.approx(max(totals))
    assert guide.left_TP[-1].max() == 0.0


def test_the_past_is_the_last_choices() -> None:
    guide = Guide(constants([1.0] * 4, lag=2))
    past = np.array([guide.begin])
    for choice in (2, 0, 1):
        past = guide.next(past, np.array([choice]))
    assert past[0] == 0 * 3 + 1
    assert guide.next(np.array([[0], [8]]), np.array([[0, 2]])).tolist() == [[0, 2], [6, 8]]


def test_a_beam_keeps_the_best_and_then_the_different() -> None:
    promise = np.array([5.0, 9.0, 8.0, 1.0, 7.0, -np.inf])
    past = np.array([3, 1, 1, 4, 1, 9])
    assert list(spread(promise, past, 4)) == [1, 2, 0, 3]
    assert list(spread(promise, past, 5)) == [1, 2, 0, 3, 4]


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_neighbours_are_other_schedules_within_the_limits(path: list[int]) -> None:
    path_T = np.array(path)
    around_NT = neighbours(path_T, Limits(min_replicas=1, max_replicas=4))
    assert around_NT.shape[1] == len(path)
    assert len({tuple(row) for row in around_NT}) == len(around_NT)
    assert tuple(path) not in {tuple(row) for row in around_NT}
    assert around_NT.size == 0 or (around_NT.min() >= 1 and around_NT.max() <= 4)


def test_neighbours_by_hand() -> None:
    around = {
        tuple(row) for row in neighbours(np.array([1, 1, 1, 2, 2]), Limits(min_replicas=1, max_replicas=2))
    }
    assert around == {(2, 2, 2, 2, 2), (1, 1, 1, 1, 1), (1, 1, 2, 2, 2), (1, 2, 2, 2, 2), (1, 1, 1, 1, 2)}


def test_a_real_cluster_has_no_future(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("policy=oracle")
    monkeypatch.setattr(made.cluster_type, "real", True)
    with pytest.raises(InputError, match="policy: knows the future"):
        make("policy=oracle")
