"""A toy cluster whose best policy is known on paper, with the load, reward and action that go with it.

A fluid queue: `users` users offer users / think requests per second to replicas of a fixed capacity each.
A new replica count holds for the whole next interval. Requests beyond the capacity, and only those, are late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpusched.core.controls import Controls, Limits
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Action, Cluster, Episode, Load, Reward
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.policy.encoder import EncoderConfig
from gpusched.policy.ppo import PPO, ConvergenceConfig, NetworkConfig, TrainingConfig

SLO_S = 0.2
THINK_S = 1.5
CAPACITY_RPS = 10.0
LEVELS = (10, 30, 50, 80)
TRIAL = TrialSpec(duration_s=600.0, warmup_s=30.0, control_s=15.0, tick_s=5.0, start_replicas=1)


class ToyCluster(Cluster):
    """E fluid queues; the observation is exact, of age zero, and noisy only in the rate."""

    def __init__(self, envs: int = 1, limits: Limits | None = None) -> None:
        super().__init__(
            None,
            service=cast(Service, None),
            trial=TRIAL,
            limits=limits or Limits(),
            slo_s=SLO_S,
            envs=envs,
            record=False,
        )
        self.replicas_E = np.full(envs, TRIAL.start_replicas, dtype=float)
        self.t_s_E = np.zeros(envs)
        self.plans: list[LoadPlan] = [cast(LoadPlan, None)] * envs
        self.rngs = [np.random.default_rng(0)] * envs
        self.closed = False

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        for env, episode in zip(envs if envs is not None else range(self.envs), episodes, strict=True):
            self.plans[env], self.rngs[env] = episode.plan, np.random.default_rng(episode.seed)
            self.replicas_E[env], self.t_s_E[env] = TRIAL.start_replicas, TRIAL.warmup_s
        return self._live()

    def step(self, controls: Controls) -> Observation:
        self.replicas_E = controls.replicas_E.astype(float)
        observation = self._live()
        self.t_s_E += TRIAL.control_s
        return observation

    def outcome(self) -> Outcome:
        none_E = np.zeros(self.envs)
        return Outcome(
            gpu_busy_E=self.busy_E,
            replicas_alive_E=self.replicas_E,
            cpu_cores_limit_E=self.replicas_E,
            completed_E=self.demand_E,
            failed_E=none_E,
            slow_E=self.demand_E * self.late_E,
            latency_p95_s_E=none_E,
            replicas_max=self.limits.max_replicas,
            cpu_cores_max=float(self.limits.max_replicas),
            slo_s=SLO_S,
        )

    def logs(self, env: int = 0) -> tuple[RequestLog, TickLog]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def _live(self) -> Observation:
        users_E = np.array(
            [p.users_at(np.array([t]))[0] for p, t in zip(self.plans, self.t_s_E, strict=True)]
        )
        self.demand_E = users_E / THINK_S
        capacity_E = self.replicas_E * CAPACITY_RPS
        self.busy_E = np.minimum(1.0, self.demand_E / capacity_E)
        self.late_E = 1.0 - np.minimum(1.0, capacity_E / self.demand_E)
        noise_E = np.array([rng.normal(1.0, 0.02) for rng in self.rngs])
        return self._observe(users_E, noise_E)

    def _observe(self, users_E: np.ndarray, noise_E: np.ndarray) -> Observation:
        table = {name: np.zeros(self.envs) for name in Observation.columns()}
        table |= {
            "rate_rps_E": self.demand_E * noise_E,
            "slow_share_E": self.late_E,
            "latency_mean_s_E": 0.05 + self.late_E,
            "gpu_utilization_E": self.busy_E,
            "replicas_spec_E": self.replicas_E,
            "replicas_ready_E": self.replicas_E,
            "hpa_target_E": np.full(self.envs, np.nan),
        }
        return Observation(**table)


class Levels(Load):
    """Jumps between the levels every two to six minutes."""

    def plan(self, duration_s: float, rng: np.random.Generator) -> LoadPlan:
        lengths_s = rng.uniform(120, 360, size=int(duration_s // 120) + 1)
        from_s_K = np.concatenate([[0.0], np.cumsum(lengths_s)])
        return LoadPlan(from_s_K=from_s_K, users_K=rng.choice(LEVELS, size=len(from_s_K)))


class Price(Reward):
    """Minus the share of replicas held, minus twice the share of late requests."""

    @property
    def slo_s(self) -> float:
        return SLO_S

    def score(self, outcome: Outcome) -> np.ndarray:
        return price(outcome.replicas_alive_E, outcome.violation_share_E, outcome.replicas_max)


def price(replicas: Any, late: Any, most: int) -> np.ndarray:
    return -(np.asarray(replicas) / most + 2.0 * np.asarray(late))


def best_replicas(users: int, most: int = 6) -> int:
    """Return the replica count a clairvoyant would hold for that many users."""
    counts = np.arange(1, most + 1)
    late = 1.0 - np.minimum(1.0, counts * CAPACITY_RPS * THINK_S / users)
    return int(counts[np.argmax(price(counts, late, most))])


class Replicas(Action):
    """One lever: the replica count."""

    def sizes(self, limits: Limits) -> list[int]:
        return [limits.max_replicas - limits.min_replicas + 1]

    def decode(self, choice_EA: np.ndarray, limits: Limits) -> Controls:
        return Controls.scale(choice_EA[:, 0] + limits.min_replicas)


class TwoLevers(Replicas):
    """The replica count, and a lever that does nothing."""

    def sizes(self, limits: Limits) -> list[int]:
        return [*super().sizes(limits), 3]


@dataclass
class Setup:
    """Everything a training takes besides a seed."""

    frames: int = 8192
    action: Action | None = None
    history: int = 2
    critic_ahead: int = 0
    stop_early: bool = True
    thrift: float = 0.0

    def policy(self) -> PPO:
        return PPO(
            PPO.Config(
                thrift=self.thrift,
                encoder=EncoderConfig(
                    slo_s=SLO_S, think_s=THINK_S, lags=[*range(1, self.history + 1)], changes=False,
                    roughness=[], peaks=[], troughs=[],
                ),
                network=NetworkConfig(hidden=[32, 32]),
                training=TrainingConfig(
                    frames=self.frames, envs=16, rollout=64, epochs=6, minibatch=256, learning_rate=2e-3,
                    learning_rate_end=0.1, gamma=0.9, gae_lambda=0.9, clip=0.2, kl_stop=0.0,
                    entropy_weight=0.003, value_weight=0.5, max_grad_norm=0.5,
                    critic_ahead=self.critic_ahead, critic_epochs=0, critic_minibatch=512, stop_early=self.stop_early,
                    validate_every=4, validate_episodes=16,
                ),
                convergence=ConvergenceConfig(
                    window=3, reward_tolerance=0.005, kl_max=0.02, entropy_tolerance=0.1, agreement_min=0.9
                ),
                train_load=None,
            ),
            self.action or Replicas(None),
        )  # fmt: skip
