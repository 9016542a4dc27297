"""The vector environment: episodes end apart, restart alone, and are drawn by seed."""

from dataclasses import replace

import numpy as np
import pytest
from toy import LEVELS, TRIAL, Levels, Price, Setup, ToyCluster, best_replicas, price

from gpusched.core.load import LoadPlan
from gpusched.core.ports import Episode
from gpusched.core.seeds import stream
from gpusched.rl.episodes import Episodes, Trouble
from gpusched.rl.venv import ClusterEnv, demand

ENVS = 8


def make(envs: int = ENVS, seed: int = 0, stagger: bool = True, purpose: str = "train") -> ClusterEnv:
    episodes = Episodes(Levels(None), TRIAL.end_s, stream("study", "levels", seed, purpose))
    return ClusterEnv(ToyCluster(envs), Setup().policy(), Price(None), episodes, stagger=stagger)


def live(env: ClusterEnv, steps: int, choice: int = 2) -> np.ndarray:
    """Return when each environment ended, shape [steps, E]; ended ones are restarted."""
    env.reset()
    ends = np.zeros((steps, env.env_num), dtype=bool)
    for t in range(steps):
        *_, terminated, ends[t], _ = env.step(np.full((env.env_num, 1), choice))
        assert not terminated.any()
        if ends[t].any():
            env.reset(np.flatnonzero(ends[t]))
    return ends


def test_first_episodes_end_apart_and_all_later_ones_last_the_full_time() -> None:
    ends = live(make(), 3 * TRIAL.steps)
    assert ends.sum(axis=1).max() == 1
    for env in range(ENVS):
        when = np.flatnonzero(ends[:, env])
        assert when[0] + 1 == TRIAL.steps * (env + 1) // ENVS
        assert (np.diff(when) == TRIAL.steps).all()


def test_without_stagger_all_end_together() -> None:
    ends = live(make(stagger=False), TRIAL.steps)
    assert ends[-1].all() and not ends[:-1].any()


def test_a_restart_leaves_the_others_as_they_are() -> None:
    one, two = make(), make()
    one.reset()
    two.reset()
    act = np.full((ENVS, 1), 2)
    before = one.step(act)[0], two.step(act)[0]
    np.testing.assert_array_equal(*before)
    one.reset([3])
    after = one.step(act)[0], two.step(act)[0]
    others = np.arange(ENVS) != 3
    age = one.encoder.size - 3  # the oldest memories of the toy's history of two
    np.testing.assert_array_equal(after[0][others, age:], after[1][others, age:])
    assert not np.array_equal(after[0][3, age:], after[1][3, age:])


def test_the_reward_is_the_options_own_on_the_scale_given() -> None:
    env = make(stagger=False)
    env.reset()
    users = np.array([plan.users_at(np.array([TRIAL.warmup_s]))[0] for plan in env.cluster.plans])
    late = 1 - np.minimum(1, 30 / (users / 1.5))
    np.testing.assert_allclose(env.step(np.full((ENVS, 1), 2))[1], price(3, late, 6))
    env.centre, env.spread = -0.5, 4.0
    reward = env.step(np.full((ENVS, 1), 5))[1]
    assert env.raw(float(reward[0])) == pytest.approx(float(env.reward.score(env.cluster.outcome())[0]))


def test_the_critic_is_told_the_users_to_come_and_a_restart_begins_its_own() -> None:
    env = ClusterEnv(
        ToyCluster(2),
        Setup().policy(),
        Price(None),
        Episodes(Levels(None), TRIAL.end_s, stream("study", "levels", 0)),
        ahead=3,
    )

    def told(features_EF: np.ndarray) -> list[list[float]]:
        assert features_EF.shape[1] == env.width == env.encoder.size + 3
        return features_EF[:, env.encoder.size :].tolist()

    def truth(plan: LoadPlan, step: int) -> list[int]:
        middle_s = TRIAL.warmup_s + TRIAL.control_s * (step + np.arange(3) + 0.5)
        return plan.users_at(middle_s).tolist()

    features, _ = env.reset()
    assert told(features) == [truth(plan, 0) for plan in env.cluster.plans]
    for step in range(1, TRIAL.steps + 1):
        features, *_ = env.step(np.zeros((2, 1), dtype=int))
        assert told(features) == [truth(plan, step) for plan in env.cluster.plans]
    again, _ = env.reset([1])
    assert told(again) == [truth(env.cluster.plans[1], 0)]


def test_arrivals_are_told_as_the_users_who_would_send_them() -> None:
    arrivals_s_N = np.array([1.0, 31.0, 44.0, 46.0, 200.0])  # warm-up 30 s, intervals of 15 s
    plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.zeros(1, dtype=int), arrivals_s_N=arrivals_s_N)
    # Two requests in 15 s are what 0.2 users send who think for 1.5 s.
    assert demand(plan, TRIAL, 3).tolist() == pytest.approx([0.2, 0.1, 0.0])


def plans(seed: int, purpose: str = "train") -> list[list[int]]:
    source = stream("study", "levels", seed, purpose)
    return [e.plan.users_K.tolist() for e in Episodes(Levels(None), TRIAL.end_s, source).draw(6)]


def test_episodes_come_from_the_seed_and_the_purpose() -> None:
    assert plans(0) == plans(0)
    assert plans(0) != plans(1)
    assert plans(0) != plans(0, "validate")
    assert len({tuple(p) for p in plans(0)}) == 6


def test_episodes_have_streams_of_their_own() -> None:
    drawn = Episodes(Levels(None), TRIAL.end_s, stream("study", "levels", 0, "train")).draw(4)
    assert len({int(e.seed.generate_state(1)[0]) for e in drawn}) == 4


def test_trouble_leaves_the_users_as_they_are() -> None:
    def wrong(episode: Episode, source: np.random.SeedSequence) -> Episode:
        return replace(episode, slo_s=float(np.random.default_rng(source).uniform()))

    def drawn(trouble: Trouble | None) -> list[Episode]:
        return Episodes(Levels(None), TRIAL.end_s, stream("study", "levels", 0, "train"), trouble).draw(4)

    calm, troubled = drawn(None), drawn(wrong)
    for one, other in zip(calm, troubled, strict=True):
        assert np.array_equal(one.plan.users_K, other.plan.users_K)
        assert one.seed.generate_state(4).tolist() == other.seed.generate_state(4).tolist()
    assert len({e.slo_s for e in troubled}) == 4
    assert [e.slo_s for e in troubled] == [e.slo_s for e in drawn(wrong)]


def test_part_of_the_environments_cannot_step_alone() -> None:
    env = make()
    env.reset()
    with pytest.raises(ValueError, match="step together"):
        env.step(np.zeros((2, 1), dtype=int), [0, 1])


def test_the_toy_has_no_best_constant() -> None:
    assert [best_replicas(users) for users in LEVELS] == [1, 2, 4, 5]
