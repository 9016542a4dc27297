"""Looks at a policy on episodes it never trains on: always the same ones, with the choices it would make in service."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpusched.policy.network import Network
from gpusched.rl.episodes import Episodes
from gpusched.rl.venv import ClusterEnv


class Validator:
    """Runs a frozen network through P fixed episodes.

    `episodes` returns a fresh source of the same episodes; `env` holds P environments.
    """

    def __init__(self, env: ClusterEnv, episodes: Callable[[], Episodes]) -> None:
        self._env, self._episodes = env, episodes
        self._before: Network | None = None

    def look(self, network: Network) -> tuple[NDArray[np.float64], float]:
        """Return the mean reward per step of each episode [P], and the agreement with the network before.

        The agreement is the share of steps at which both choose the same; NaN at the first look.
        """
        self._env.episodes = self._episodes()
        features_PF, _ = self._env.reset()
        reward_TP, same_TP = [], []
        for _ in range(self._env.cluster.trial.steps):
            choice_PA = self._env.choose(network, features_PF)
            if self._before is not None:
                other_PA = self._env.choose(self._before, features_PF)
                same_TP.append((choice_PA == other_PA).all(axis=-1))
            features_PF, reward_P, *_ = self._env.step(choice_PA)
            reward_TP.append(reward_P)
        self._before = network
        return np.mean(reward_TP, axis=0), float(np.mean(same_TP)) if same_TP else float("nan")
