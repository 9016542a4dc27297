"""The fast collector and the fast update leave exactly the weights that Tianshou's own leave."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm import PPO
from tianshou.algorithm.optim import TorchOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.utils.torch_utils import policy_within_training_step
from torch.distributions import Categorical
from toy import TRIAL, Levels, Price, Replicas, Setup, ToyCluster, TwoLevers

from gpusched.core.seeds import stream
from gpusched.rl.collector import RolloutBuffer, RolloutCollector
from gpusched.rl.episodes import Episodes
from gpusched.rl.network import Actor, Critic, Levers
from gpusched.rl.ppo import ActorPolicy, FastPPO, minibatches
from gpusched.rl.train import LinearDecay, repeatable
from gpusched.rl.venv import ClusterEnv

ENVS, STEPS, UPDATES = 6, 30, 4  # 6 x 40 steps of an episode: some end inside a rollout, others span two


class StockBuffer(VectorReplayBuffer):
    def _compile(self) -> None:
        """Spare the test seconds of compiling index functions that PPO does not call."""


class DiscreteEnv(ClusterEnv):
    """One lever as gymnasium's Discrete: actions come without their own axis."""

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        return (
            [spaces.Discrete(self.sizes[0])] * self.env_num
            if key == "action_space"
            else super().get_env_attr(key)
        )

    def step(self, action: Any, id: Any = None) -> Any:
        return super().step(np.asarray(action)[:, None], id)


KINDS: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    "discrete": (DiscreteEnv, Replicas, lambda x: Categorical(logits=x, validate_args=False)),
    "one lever": (ClusterEnv, Replicas, lambda x: Levers(x, [6])),
    "two levers": (ClusterEnv, TwoLevers, lambda x: Levers(x, [6, 3])),
}


def learn(
    kind: str,
    fast: bool,
    return_scaling: bool = False,
    minibatch: int = 50,
    ahead: int = 0,
    updates: int = UPDATES,
    **more: int,
) -> tuple[list[str], Any]:
    make_env, action, dist_fn = KINDS[kind]
    source = stream("study", "levels", 0, "train")
    with repeatable(source):
        episodes = Episodes(Levels(None), TRIAL.end_s, source)
        env = make_env(
            ToyCluster(ENVS),
            Setup(action=action(None)).policy(),
            Price(None),
            episodes,
            stagger=True,
            ahead=ahead,
        )
        actor, critic = (
            Actor(env.encoder.size, [16], sum(env.sizes), 0.01),
            Critic(env.width, [16], 1, 1.0),
        )
        space = env.get_env_attr("action_space")[0]
        policy = ActorPolicy(
            actor=actor, dist_fn=dist_fn, action_space=space, action_scaling=False, action_bound_method=None
        )
        optim = TorchOptimizerFactory(torch.optim.Adam, lr=1e-2, fused=True)
        optim.with_lr_scheduler_factory(LinearDecay(UPDATES, 0.1))
        algorithm = (FastPPO if fast else PPO)(
            policy=policy,
            critic=critic,
            optim=optim,
            max_grad_norm=0.5,
            return_scaling=return_scaling,
            max_batchsize=999,
            **more,
        )
        buffer: Any = RolloutBuffer(ENVS, STEPS) if fast else StockBuffer(ENVS * STEPS, ENVS)
        collector = (RolloutCollector if fast else Collector)(algorithm, env, buffer)
        collector.reset_env()
        digests = []
        for _ in range(updates):
            collector.reset_buffer()
            stats = collector.collect(n_step=ENVS * STEPS)
            with policy_within_training_step(policy):
                algorithm.update(buffer, minibatch, 3)
            weights = b"".join(p.detach().numpy().tobytes() for p in algorithm.parameters())
            digests.append(hashlib.sha256(weights).hexdigest())
    return digests, (buffer, stats, algorithm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_equal_bit_by_bit(kind: str) -> None:
    stock, (buffer, *_) = learn(kind, fast=False)
    fast, (rollout, *_) = learn(kind, fast=True)
    assert stock == fast
    assert len(set(stock)) == UPDATES  # it learnt
    for column in ("obs", "act", "rew", "truncated", "done", "obs_next"):
        np.testing.assert_array_equal(getattr(buffer, column), getattr(rollout, column))


@pytest.mark.slow
def test_also_with_scaled_returns_and_one_minibatch() -> None:
    options = {"return_scaling": True, "minibatch": 1000}
    assert learn("one lever", fast=False, **options)[0] == learn("one lever", fast=True, **options)[0]


@pytest.mark.slow
def test_also_where_the_critic_is_told_more_than_the_actor() -> None:
    stock, fast = (learn("one lever", fast=fast, ahead=3)[0] for fast in (False, True))
    assert stock == fast
    assert stock != learn("one lever", fast=True)[0]


@pytest.mark.slow
def test_passes_for_the_critic_alone_leave_the_actor_as_it_is_and_foretell_the_rollout_better() -> None:
    def weights(net: Any) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in net.parameters())

    def error(algorithm: Any, buffer: Any) -> float:
        batch, indices = buffer.sample(0)
        with torch.inference_mode():
            batch = algorithm._preprocess_batch(batch, buffer, indices)
        return float((batch.returns - batch.v_s.flatten()).pow(2).mean())

    _, (buffer, _, plain) = learn("one lever", fast=True, updates=1)
    _, (_, _, more) = learn("one lever", fast=True, updates=1, critic_epochs=10, critic_minibatch=30)
    assert weights(plain.policy.actor) == weights(more.policy.actor)
    assert weights(plain.critic) != weights(more.critic)
    assert error(more, buffer) < error(plain, buffer)


def test_episode_lengths_are_right_across_rollouts() -> None:
    _, (_, stats, _) = learn("one lever", fast=True)
    assert stats.lens.tolist() == [TRIAL.steps] * len(stats.lens) and len(stats.lens) > 0


@pytest.mark.parametrize(
    ("rows", "size", "parts"), [(10, 5, [5, 5]), (10, 4, [4, 6]), (10, 20, [10]), (7, 7, [7])]
)
def test_minibatches_cover_every_row_once(rows: int, size: int, parts: list[int]) -> None:
    drawn = list(minibatches(rows, size))
    assert [len(part) for part in drawn] == parts
    assert sorted(torch.cat(drawn).tolist()) == list(range(rows))


class Rectangle:
    buffer_num = 1


def advantages(terminated: list[bool], truncated: list[bool]) -> list[float]:
    class Batch:
        rew = np.array([1.0, 2.0, 4.0])

    batch = Batch()
    batch.terminated = np.array(terminated)
    batch.done = np.array(terminated) | np.array(truncated)
    v, v_next = np.zeros(3), np.array([10.0, 20.0, 40.0])
    return FastPPO.compute_episodic_return(batch, Rectangle(), np.arange(3), v_next, v, 0.5, 0.5)[1].tolist()


def test_advantages_by_hand() -> None:
    # delta = reward + 0.5 value_next = 6, 12, 24; advantage = delta + 0.25 advantage_next
    assert advantages([False] * 3, [False] * 3) == [6 + 0.25 * (12 + 0.25 * 24), 12 + 0.25 * 24, 24]


def test_a_cut_episode_is_worth_its_future_a_finished_one_is_not() -> None:
    assert advantages([False] * 3, [False, True, False]) == [6 + 0.25 * 12, 12, 24]
    assert advantages([False, True, False], [False] * 3) == [6 + 0.25 * 2, 2, 24]


def test_the_collector_refuses_what_it_cannot_do() -> None:
    episodes = Episodes(Levels(None), TRIAL.end_s, np.random.SeedSequence(0))
    env = ClusterEnv(ToyCluster(2), Setup().policy(), Price(None), episodes)
    actor, critic = Actor(env.encoder.size, [4], 6, 1.0), Critic(env.encoder.size, [4], 1, 1.0)
    space = spaces.MultiDiscrete([6])
    policy = ActorPolicy(
        actor=actor,
        dist_fn=lambda x: Levers(x, [6]),
        action_space=space,
        action_scaling=False,
        action_bound_method=None,
    )
    algorithm = FastPPO(policy=policy, critic=critic, optim=TorchOptimizerFactory(torch.optim.Adam, lr=1e-3))
    collector = RolloutCollector(algorithm, env, RolloutBuffer(2, 5))
    collector.reset_env()
    with pytest.raises(ValueError, match="n_step = 10"):
        collector.collect(n_step=6)
    with pytest.raises(ValueError, match="not built"):
        FastPPO(policy=policy, critic=critic, optim=None, value_clip=True)
