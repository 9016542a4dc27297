"""Tianshou's Collector for one rectangular rollout at a time: the same transitions, a fraction of the time.

The stock collector files every transition of every environment one by one and builds an autograd graph nobody
uses. Here a rollout is written into arrays [E, T] and handed to the buffer whole.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from tianshou.data import Batch, Collector, CollectStats, VectorReplayBuffer
from tianshou.data.types import RolloutBatchProtocol

from gpusched.rl.venv import ClusterEnv

COLUMNS = ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")


class RolloutBuffer(VectorReplayBuffer):
    """Holds exactly one rollout of E environments x T steps."""

    def __init__(self, envs: int, steps: int) -> None:
        super().__init__(envs * steps, envs)
        self.steps = steps

    def _compile(self) -> None:
        """Skip compiling index functions (seconds) that a full buffer never calls."""

    def _set_batch_for_children(self) -> None:
        """Skip handing each environment its part: nobody asks for one, and with many it takes longer than the rollout."""

    def fill(self, **columns_ET: np.ndarray) -> None:
        """Take a whole rollout, every column shaped [E, T, ...]."""
        columns: dict[str, Any] = {
            name: x.reshape(self.maxsize, *x.shape[2:]) for name, x in columns_ET.items()
        }
        self.set_batch(cast(RolloutBatchProtocol, Batch({**columns, "info": Batch()})))
        self._lengths[:] = self.steps
        self.last_index = self._offset + self.steps - 1

    def sample(self, batch_size: int | None) -> tuple[RolloutBatchProtocol, np.ndarray]:
        """Return the whole rollout, environment after environment, without copying it; only for a batch size of 0."""
        if batch_size != 0 or len(self) != self.maxsize:
            raise ValueError(f"only a full rollout can be had, and as a whole (0); asked for {batch_size}")
        columns = {name: self._meta[name] for name in COLUMNS}
        whole = Batch({**columns, "info": Batch(), "policy": Batch()})
        return cast(RolloutBatchProtocol, whole), np.arange(self.maxsize)


class RolloutCollector(Collector[CollectStats]):
    """Fills a RolloutBuffer with exactly one rollout; nothing else of the stock collector is offered."""

    def __init__(self, policy: Any, env: ClusterEnv, buffer: RolloutBuffer) -> None:
        super().__init__(policy, env, buffer)
        self._return_E = np.zeros(env.env_num)
        self._length_E = np.zeros(env.env_num, dtype=int)

    def _collect(self, n_step: int | None = None, *_: Any, **__: Any) -> CollectStats:
        buffer = cast(RolloutBuffer, self.buffer)
        if n_step != buffer.maxsize or len(buffer):
            raise ValueError(f"needs an empty buffer and n_step = {buffer.maxsize}, got {n_step}")
        stats = CollectStats()
        with torch.inference_mode():
            steps = [self._step(stats) for _ in range(buffer.steps)]
        names = ("obs", "act", "rew", "terminated", "truncated", "obs_next")
        columns = {name: np.stack(x, axis=1) for name, x in zip(names, zip(*steps, strict=True), strict=True)}
        buffer.fill(**columns, done=columns["terminated"] | columns["truncated"])
        self.collect_step += n_step
        self.collect_episode += stats.n_collected_episodes
        stats.n_collected_steps = n_step
        return stats

    def _step(self, stats: CollectStats) -> tuple[np.ndarray, ...]:
        obs = cast(np.ndarray, self._pre_collect_obs_RO)
        act = cast(Any, self.policy).choose(obs)
        obs_next, reward_E, terminated_E, truncated_E, _ = self.env.step(act)
        self._return_E += reward_E
        self._length_E += 1
        done = np.flatnonzero(terminated_E | truncated_E)
        self._pre_collect_obs_RO = obs_next
        if len(done):
            self._finish(done, stats)
            self._pre_collect_obs_RO = obs_next.copy()
            self._pre_collect_obs_RO[done], _ = self.env.reset(done)
        return obs, act, reward_E, terminated_E, truncated_E, obs_next

    def _finish(self, done: np.ndarray, stats: CollectStats) -> None:
        stats.returns = np.concatenate([stats.returns, self._return_E[done]])
        stats.lens = np.concatenate([stats.lens, self._length_E[done]])
        stats.n_collected_episodes += len(done)
        self._return_E[done], self._length_E[done] = 0.0, 0
