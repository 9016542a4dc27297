"""The weighted sum of four shares: GPU-utilisation gain, resource efficiency, latency penalty, QoS violation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import InputError, refuse
from gpusched.core.observation import Outcome
from gpusched.core.ports import Reward

VIOLATION_GAIN = 5.0
"""A fifth of the requests in violation already costs all of w4: nobody runs a service beyond that."""


class Weighted(Reward):
    """R = w1·U + w2·E − w3·L − w4·V per control interval, every term in [0, 1].

    U  GPU-utilisation gain: GPU busy share × (1 − violation share), the share that served requests in time
    E  resource efficiency: 1 − mean(replicas held / most replicas, CPU limit held / most CPU)
    L  latency penalty: (p95 − SLO) / SLO, clipped to [0, 1]
    V  QoS violation: min(1, 5 × share of requests that failed, came later than the SLO, or hang and are later than it)
    """

    @dataclass(kw_only=True)
    class Config:
        w1: float
        w2: float
        w3: float
        w4: float
        slo_s: float

        def __post_init__(self) -> None:
            if not 0 < self.slo_s < math.inf:
                raise refuse("slo_s", self.slo_s, "must be greater than 0 s")
            for key in ("w1", "w2", "w3", "w4"):
                if not 0 <= getattr(self, key) < math.inf:
                    raise refuse(
                        key, getattr(self, key), "must be at least 0", "The sign is part of the formula."
                    )
            if self.w1 == self.w2 == self.w3 == self.w4 == 0:
                raise InputError("w1 = w2 = w3 = w4 = 0: at least one weight must be greater than 0.")

    config: Config

    @property
    def slo_s(self) -> float:
        return self.config.slo_s

    def score(self, outcome: Outcome) -> NDArray[np.float64]:
        bad_E = outcome.violation_share_E
        held_E = 0.5 * (
            outcome.replicas_alive_E / outcome.replicas_max
            + outcome.cpu_cores_limit_E / outcome.cpu_cores_max
        )
        gain_E = outcome.gpu_busy_E * (1 - bad_E)
        efficiency_E = np.clip(1 - held_E, 0, 1)
        latency_E = np.clip(outcome.latency_p95_s_E / self.slo_s - 1, 0, 1)
        violation_E = np.minimum(1, VIOLATION_GAIN * bad_E)
        c = self.config
        return c.w1 * gain_E + c.w2 * efficiency_E - c.w3 * latency_E - c.w4 * violation_E
