"""The service is not what its profile says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpusched.core.errors import did_you_mean, refuse
from gpusched.core.ports import Fault
from gpusched.core.service import WHOLE, Service

NODE = ("node_", "gpu_vram", "gpu_reserved")
"""What the simulator has one of for all episodes."""


class ServiceShift(Fault):
    """Each of `constants` is multiplied by a factor drawn uniformly from 1 ± `spread`, for the whole trial.

    Policies were tuned, and learnt, on the profile: this asks how much they rely on it.
    """

    @dataclass(kw_only=True)
    class Config:
        spread: float
        constants: list[str]

        def __post_init__(self) -> None:
            if not 0 <= self.spread < 1:
                raise refuse("spread", self.spread, "must be at least 0 and less than 1")
            if not self.constants:
                raise refuse("constants", "[]", "must name at least one constant of the service")

    config: Config

    def on_service(self, service: Service, rng: np.random.Generator) -> Service:
        c, known = self.config, service.constants()
        factors_C = rng.uniform(1 - c.spread, 1 + c.spread, len(c.constants))
        changed: dict[str, Any] = {}
        for name, factor in zip(c.constants, factors_C, strict=True):
            if name not in known:
                cure = did_you_mean(name, known).strip()
                raise refuse("constants", name, "must be constants of the service", cure)
            if name in WHOLE or name.startswith(NODE):
                raise refuse("constants", name, "must be none that counts something or belongs to the node")
            one = known[name]
            source = f"{factor:.3f} times the profile's {one.value:g} {one.unit} (fault service_shift)"
            changed[name] = replace(one, value=one.value * float(factor), status="assumed", source=source)
        return replace(service, **changed)
