"""The cluster as a vector environment in Tianshou's shape: all environments step in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.env import BaseVectorEnv

from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster, Reward
from gpusched.core.trial import TrialSpec
from gpusched.policy.encoder import Features
from gpusched.policy.network import Network, most_likely
from gpusched.policy.ppo import PPO
from gpusched.rl.episodes import Episodes

Ids = Sequence[int] | NDArray[np.int64]


def demand(plan: LoadPlan, trial: TrialSpec, steps: int) -> NDArray[np.float32]:
    """Return the users in the middle of each control interval, or those whose requests arrive in it, shape [steps]."""
    edges_s = trial.warmup_s + trial.control_s * np.arange(steps + 1)
    if plan.arrivals_s_N is None:
        amount_T = plan.users_at(0.5 * (edges_s[1:] + edges_s[:-1])).astype(float)
    else:
        arrivals_T = np.diff(np.searchsorted(plan.arrivals_s_N, edges_s))
        amount_T = arrivals_T * (plan.think_mean_s or 1.0) / trial.control_s
    return amount_T.astype(np.float32)


class ClusterEnv(BaseVectorEnv):
    """E environments of one cluster; it shows the policy's features [E, F] and takes its choices [E, A].

    Episodes end by time, so they are truncated, never terminated. With `stagger`, the first episodes are
    cut to different lengths: afterwards the ends, and with them the load's phases, stay spread over time.
    The reward is returned as (reward - centre) / spread; where nothing terminates this changes no policy's rank.
    """

    def __init__(
        self,
        cluster: Cluster,
        policy: PPO,
        reward: Reward,
        episodes: Episodes,
        stagger: bool = False,
        ahead: int = 0,
    ) -> None:
        # BaseVectorEnv's own constructor starts one worker per environment; here the cluster holds them all.
        self.env_num = self.wait_num = cluster.envs
        self.timeout, self.is_async, self.is_closed = None, False, False
        self.workers, self.waiting_conn, self.waiting_id = [], [], []
        self.ready_id = list(range(cluster.envs))
        self.cluster, self.reward, self.episodes = cluster, reward, episodes
        self.action, self.sizes = policy.action, policy.action.sizes(cluster.limits)
        self._handicap_C = policy.handicap(cluster.limits)
        self.encoder = policy.encoder(cluster.limits, cluster.envs)
        self._spaces = {
            "action_space": spaces.MultiDiscrete(self.sizes),
            "observation_space": spaces.Box(-np.inf, np.inf, (self.encoder.size + ahead,), np.float32),
        }
        self.centre, self.spread = 0.0, 1.0
        self._infos_E = np.array([{} for _ in range(cluster.envs)], dtype=object)
        self._left_E = np.full(cluster.envs, cluster.trial.steps)
        self._stagger = stagger
        self.ahead, self.width = ahead, self.encoder.size + ahead
        self._demand_ET = np.zeros((cluster.envs, cluster.trial.steps + ahead), dtype=np.float32)
        self._step_E = np.zeros(cluster.envs, dtype=np.int64)

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        """Return one space per environment; Tianshou looks them up here."""
        return [self._spaces.get(key)] * self.env_num

    def reset(self, env_id: Any = None, **_: Any) -> tuple[Features, NDArray[np.object_]]:
        """Begin a new episode in the given environments (all by default)."""
        ids = np.arange(self.env_num) if env_id is None else np.atleast_1d(env_id)
        episodes = self.episodes.draw(len(ids))
        observation = self.cluster.reset(episodes, [int(e) for e in ids])
        steps = self.cluster.trial.steps
        self._left_E[ids] = steps
        if self._stagger:
            self._left_E[:] = -(-steps * np.arange(1, self.env_num + 1) // self.env_num)
            self._stagger = False
        self._step_E[ids] = 0
        if self.ahead:
            trial = self.cluster.trial
            self._demand_ET[ids] = [demand(e.plan, trial, self._demand_ET.shape[1]) for e in episodes]
        return self._see(self.encoder.start(observation, ids), ids), self._infos_E[ids]

    def step(
        self, action: Any, id: Any = None
    ) -> tuple[Features, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.object_]]:
        """Let every environment live through one control interval; a finished one waits for its reset."""
        if id is not None and len(id) != self.env_num:
            raise ValueError(f"all {self.env_num} environments step together, got {len(id)}")
        observation = self.cluster.step(self.action.decode(np.asarray(action), self.cluster.limits))
        reward_E = (self.reward.score(self.cluster.outcome()) - self.centre) / self.spread
        self._left_E -= 1
        terminated_E = np.zeros(self.env_num, dtype=bool)
        self._step_E += 1
        features_EF = self._see(self.encoder.follow(observation), np.arange(self.env_num))
        return features_EF, reward_E, terminated_E, self._left_E <= 0, self._infos_E

    def choose(self, network: Network, features_EF: Features) -> NDArray[np.int64]:
        """Return what the policy would choose in service with this network, shape [E, A]."""
        return most_likely(network(features_EF), self.sizes, self._handicap_C)

    def _see(self, features_EF: Features, ids: NDArray[np.int64]) -> Features:
        """Append the demand of the next `ahead` control intervals, which only the critic reads."""
        if not self.ahead:
            return features_EF
        when_EA = self._step_E[ids][:, None] + np.arange(self.ahead)
        return np.concatenate([features_EF, self._demand_ET[ids[:, None], when_EA]], axis=1)

    def raw(self, reward: float) -> float:
        """Return a reward as the reward option scored it."""
        return reward * self.spread + self.centre

    def seed(self, seed: Any = None) -> list[list[int] | None]:
        """Do nothing: the episodes carry their seeds."""
        return [None] * self.env_num

    def close(self) -> None:
        """Close the cluster."""
        self.cluster.close()
        self.is_closed = True
