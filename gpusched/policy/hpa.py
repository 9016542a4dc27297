"""hpa: the Kubernetes HorizontalPodAutoscaler with one fixed target, as most services run it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.observation import Observation
from gpusched.core.ports import Policy


class HPA(Policy):
    """Hands the replica count to the control plane's HPA, within the trial's limits, and leaves it there."""

    Config = HPASpec
    config: HPASpec

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode; InputError where the limits leave nothing between the spec's bounds."""
        c = self.config
        self._spec = replace(
            c,
            min_replicas=max(c.min_replicas, limits.min_replicas),
            max_replicas=min(c.max_replicas, limits.max_replicas),
        )
        self._envs = envs

    def act(self, observation: Observation) -> Controls:
        return Controls.autoscale(self._spec, self._envs)
