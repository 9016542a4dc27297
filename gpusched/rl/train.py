"""One training: rollouts and updates until the policy has converged or the budget is spent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tianshou.algorithm.optim import LRSchedulerFactory, TorchOptimizerFactory
from tianshou.utils.torch_utils import policy_within_training_step
from torch.optim.lr_scheduler import LambdaLR

from gpusched.core.ports import Cluster, Load, Reward
from gpusched.core.seeds import stream
from gpusched.policy.network import Network
from gpusched.policy.ppo import CARD, PPO, PROGRAM, TrainingConfig
from gpusched.rl.collector import RolloutBuffer, RolloutCollector
from gpusched.rl.convergence import Judgement, Validation, interval, judge
from gpusched.rl.episodes import Episodes, Trouble
from gpusched.rl.network import Actor, Critic, Levers, export
from gpusched.rl.ppo import ActorPolicy, FastPPO
from gpusched.rl.validate import Validator
from gpusched.rl.venv import ClusterEnv

OnUpdate = Callable[[int, dict[str, float]], None]


@dataclass(kw_only=True)
class Verdict:
    """How a training ended."""

    converged: bool
    reason: str
    frames: int
    wall_s: float
    values: dict[str, float] = field(default_factory=dict)


def train(
    *,
    policy: PPO,
    make_cluster: Callable[[int], Cluster],
    load: Load,
    reward: Reward,
    seed: int,
    study: str,
    folder: Path,
    on_update: OnUpdate,
    start: Network | None = None,
    trouble: Trouble | None = None,
) -> Verdict:
    """Train `policy` on episodes of `load`, with `trouble` in each, write the best validated model into `folder`, return the verdict.

    `start` is the network to learn on from, by default a new one. The best may be the start itself.

    `make_cluster(envs)` makes a cluster of that many environments. `on_update(frames, metrics)` is called
    after every update; metrics of a validation (reward, reward_low, reward_high, agreement) only come with some.
    The same arguments give the same weights. Randomness and threads of torch and numpy are left as found.
    """
    begin = time.perf_counter()
    spec = policy.config.training
    source = stream(study, type(load).__name__, seed, "train")
    with (
        repeatable(source),
        closing(make_cluster(spec.envs)) as cluster,
        closing(make_cluster(spec.validate_episodes)) as exam,
    ):
        duration_s = cluster.trial.end_s
        env = ClusterEnv(
            cluster,
            policy,
            reward,
            Episodes(load, duration_s, source, trouble),
            stagger=True,
            ahead=spec.critic_ahead,
        )
        same = partial(stream, study, type(load).__name__, seed, "validate")

        def exams() -> Episodes:
            return Episodes(load, duration_s, same(), trouble)

        validator = Validator(ClusterEnv(exam, policy, reward, exams()), exams)
        learner = Learner(policy, env, validator, start)
        judgement = learner.learn(on_update)
        card = {
            **policy.card(cluster.limits, learner.best),
            "study": study,
            "seed": seed,
            "reason": judgement.reason,
        }
        write_model(folder, learner.best, policy.config.network.hidden, card)
    return _verdict(judgement, learner, exam.trial.steps, time.perf_counter() - begin)


def _verdict(judgement: Judgement, learner: Learner, steps: int, wall_s: float) -> Verdict:
    """Return how the training ended, with its ledger; a validation episode has so many steps."""
    best = max(learner.looks, key=lambda look: look.reward)
    validated = sum(len(look.reward_P) for look in learner.looks) * steps
    ledger = {"steps": learner.frames + validated, "validate_steps": validated, "wall_s": wall_s}
    return Verdict(
        converged=judgement.converged,
        reason=judgement.reason,
        frames=learner.frames,
        wall_s=wall_s,
        values={
            **judgement.values,
            "best_reward": best.reward,
            "best_frames": float(best.frames),
            **{f"ledger/{key}": float(value) for key, value in ledger.items()},
        },
    )


class Learner:
    """Networks, algorithm and collector of one training, and its history of validations."""

    def __init__(
        self, policy: PPO, env: ClusterEnv, validator: Validator, start: Network | None = None
    ) -> None:
        self._spec, self._limits, self._env = policy.config.training, policy.config.convergence, env
        hidden: list[int] = policy.config.network.hidden
        # A last layer near zero makes the first policy almost uniform, so everything is tried at first.
        self.actor = Actor(env.encoder.size, hidden, sum(env.sizes), last_gain=0.01)
        self._start = start
        if start is not None:
            self.actor.take(start)
        self.critic = Critic(env.width, hidden, 1, last_gain=1.0)
        self._algorithm = make_algorithm(self.actor, self.critic, env, self._spec)
        self._buffer = RolloutBuffer(self._spec.envs, self._spec.rollout)
        self._collector = RolloutCollector(self._algorithm, env, self._buffer)
        self._validator, self._most_entropy = validator, float(np.sum(np.log(env.sizes)))
        self.looks: list[Validation] = []

    @property
    def frames(self) -> int:
        """Frames lived through so far, without those of validations."""
        return int(self._collector.collect_step)

    def learn(self, on_update: OnUpdate) -> Judgement:
        """Update until the budget is spent, or until converged where training may stop early."""
        self._measure()
        self._look([])
        since: list[dict[str, float]] = []
        for update in range(1, self._spec.updates + 1):
            metrics = self._update()
            since.append(metrics.copy())
            if update % self._spec.validate_every == 0 or update == self._spec.updates:
                metrics |= self._look(since)
                since = []
            on_update(self.frames, metrics)
            may_end = self._spec.stop_early or update == self._spec.updates
            if not since and may_end and (judgement := judge(self.looks, self._limits)).converged:
                return Judgement(
                    converged=True, reason=f"converged: {judgement.reason}", values=judgement.values
                )
        judgement = judge(self.looks, self._limits)
        spent = f"not converged: budget of {self._spec.frames} frames spent; "
        return Judgement(converged=False, reason=spent + judgement.reason, values=judgement.values)

    def _measure(self) -> None:
        """Live through one rollout of the first policy to scale features and rewards, once and for all.

        Scales that move during training would make an unchanged network act differently. Returns come out of
        the order of 1, so the critic's gradient does not drown the actor's.
        """
        self._collector.reset_env()
        self._collect()
        # Who learns on keeps the scales its weights were learnt with.
        for network in (self.actor, self.critic) if self._start is None else (self.critic,):
            network.normalise_by(self._buffer.obs)
        reward = self._buffer.rew
        horizon = 1.0 / (1.0 - min(self._spec.gamma, 0.999))
        self._env.centre, self._env.spread = float(reward.mean()), max(float(reward.std()), 1e-6) * horizon

    def _collect(self) -> None:
        self._collector.reset_buffer()
        self._collector.collect(n_step=self._spec.rollout_frames)

    def _update(self) -> dict[str, float]:
        self._collect()
        with policy_within_training_step(self._algorithm.policy):
            stats: Any = self._algorithm.update(self._buffer, self._spec.minibatch, self._spec.epochs)
        return {**stats.metrics(), "rollout_reward": self._env.raw(float(self._buffer.rew.mean()))}

    def _look(self, since: list[dict[str, float]]) -> dict[str, float]:
        """Validate, remember the network if it is the best so far, and return the validation's metrics."""
        network = self.actor.freeze()
        reward_P, agreement = self._validator.look(network)
        look = Validation(frames=self.frames if since else 0, reward_P=reward_P, agreement=agreement)
        if since:
            look.kl = float(np.mean([m["kl"] for m in since]))
            look.entropy = float(np.mean([m["entropy"] for m in since])) / self._most_entropy
        if all(look.reward > earlier.reward for earlier in self.looks):
            self.best: Network = network
        self.looks.append(look)
        mean, half = interval(reward_P)
        return {"reward": mean, "reward_low": mean - half, "reward_high": mean + half, "agreement": agreement}


class LinearDecay(LRSchedulerFactory):
    """Lowers the learning rate linearly to `end` of its first value over `updates` updates."""

    def __init__(self, updates: int, end: float) -> None:
        self._updates, self._end = updates, end

    def create_scheduler(self, optim: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optim, lambda k: 1.0 - (1.0 - self._end) * min(1.0, k / self._updates))


def make_algorithm(actor: Actor, critic: Critic, env: ClusterEnv, spec: TrainingConfig) -> FastPPO:
    """Return PPO over the actor and the critic."""
    optim = TorchOptimizerFactory(torch.optim.Adam, lr=spec.learning_rate, eps=1e-5, fused=True)
    optim.with_lr_scheduler_factory(LinearDecay(spec.updates, spec.learning_rate_end))
    sizes = env.sizes
    policy = ActorPolicy(
        actor=actor,  # type: ignore[arg-type]
        dist_fn=lambda logits: Levers(logits, sizes),
        action_space=env.get_env_attr("action_space")[0],
        action_scaling=False,
        action_bound_method=None,
    )
    return FastPPO(
        policy=policy,
        critic=critic,
        optim=optim,
        kl_stop=spec.kl_stop,
        critic_epochs=spec.critic_epochs,
        critic_minibatch=spec.critic_minibatch,
        eps_clip=spec.clip,
        vf_coef=spec.value_weight,
        ent_coef=spec.entropy_weight,
        max_grad_norm=spec.max_grad_norm,
        gamma=spec.gamma,
        gae_lambda=spec.gae_lambda,
        max_batchsize=spec.rollout_frames,
    )


@contextmanager
def repeatable(source: np.random.SeedSequence) -> Iterator[None]:
    """Seed the global generators that torch and Tianshou draw from, use one thread; put all back in the end.

    One thread: these networks are too small to share, and sums in another order would change the weights.
    """
    torch_state, numpy_state, threads = torch.get_rng_state(), np.random.get_state(), torch.get_num_threads()
    words = source.generate_state(2)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        torch.set_num_threads(threads)


def write_model(folder: Path, network: Network, hidden: list[int], card: dict[str, Any]) -> None:
    """Write the model files; each appears whole, the card, which holds the weights' digest, last."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f".new.{PROGRAM}"
    export(network, hidden, program)
    os.replace(program, folder / PROGRAM)
    note = folder / f".new.{CARD}"
    note.write_text(json.dumps(card, indent=2) + "\n")
    os.replace(note, folder / CARD)
