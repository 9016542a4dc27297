"""guard: what keeps any policy safe on a real service: bounds, a rate limit, a cooldown, and shadow mode."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import UNSET, Controls, Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class GuardConfig:
    """What guards any policy, whatever it decides.

    shadow      decide and log, but change nothing
    max_change  most replicas added or removed at one control tick, 0 = any number
    cooldown_s  time after a change before the next one, seconds
    """

    shadow: bool = False
    max_change: int = 0
    cooldown_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_change < 0:
            raise refuse("max_change", self.max_change, "must be at least 0 (0 = any number)")
        if not self.cooldown_s >= 0:
            raise refuse("cooldown_s", self.cooldown_s, "must be at least 0 s")


class Guard:
    """Passes a policy's controls on within bounds.

    Replicas asked for directly are kept inside the limits, moved by at most `max_change` per control tick, and held
    for `cooldown_s` after a change. An HPA has rules of its own for that (its behaviour) and passes unchanged.
    """

    def __init__(self, config: GuardConfig, limits: Limits, control_s: float) -> None:
        self.config, self.limits, self.control_s = config, limits, control_s
        self.decided: list[Controls] = []
        """What the policy asked for at each step, before the guard."""
        self._since_s_E: NDArray[np.float64] | None = None

    def pass_on(self, controls: Controls, seen: Observation) -> Controls:
        """Return the controls that may reach the cluster, given what the policy saw when it decided."""
        self.decided.append(controls)
        if self.config.shadow:
            log.info("shadow: would set %s", told(controls))
            return Controls(replicas_E=np.full(seen.envs, UNSET, dtype=np.int64))
        if controls.hpa is not None:
            return controls
        return replace(controls, replicas_E=self._bounded(controls.replicas_E, seen))

    def _bounded(self, wanted_E: NDArray[np.int64], seen: Observation) -> NDArray[np.int64]:
        now_E = np.asarray(seen.replicas_spec_E, dtype=np.int64)
        if self._since_s_E is None:
            self._since_s_E = np.full(seen.envs, np.inf)
        allowed_E = np.clip(wanted_E, self.limits.min_replicas, self.limits.max_replicas)
        if self.config.max_change:
            allowed_E = np.clip(allowed_E, now_E - self.config.max_change, now_E + self.config.max_change)
        cooling_E = self._since_s_E < self.config.cooldown_s - 1e-9
        allowed_E = np.where(cooling_E, now_E, allowed_E)
        # A lever left alone stays alone.
        allowed_E = np.where(wanted_E == UNSET, UNSET, allowed_E)
        changed_E = (allowed_E != UNSET) & (allowed_E != now_E)
        self._since_s_E = np.where(changed_E, 0.0, self._since_s_E) + self.control_s
        return allowed_E.astype(np.int64)


def told(controls: Controls) -> str:
    """Return the first environment's controls in words."""
    if controls.hpa is not None:
        target = controls.hpa.target if controls.hpa_target_E is None else float(controls.hpa_target_E[0])
        return f"an HPA on {controls.hpa.metric} at {target:g}"
    words = [f"{int(controls.replicas_E[0])} replicas"] if controls.replicas_E[0] != UNSET else []
    levers = {"CPU cores": controls.cpu_cores_E, "instances": controls.instances_E,
              "GPU share": controls.gpu_share_E}  # fmt: skip
    words += [f"{float(value_E[0]):g} {name}" for name, value_E in levers.items() if value_E is not None]
    return ", ".join(words) or "nothing"
