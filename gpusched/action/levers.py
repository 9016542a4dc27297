"""A multi-discrete space as named levers; one with a single choice is no lever and takes no axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import refuse

Levers = Mapping[str, Sequence[float]]


@dataclass(kw_only=True)
class Sizes:
    """What the trial's limits offer for one pod: cores of CPU limit, Triton instances, shares of the GPU."""

    cpu_cores: list[float]
    instances: list[int]
    gpu_shares: list[float]

    def __post_init__(self) -> None:
        check_choices("cpu_cores", self.cpu_cores, 0.01, 1024)
        check_choices("instances", self.instances, 1, 16)
        check_choices("gpu_shares", self.gpu_shares, 0.01, 1)


def levers(limits: Limits, **more: Sequence[float]) -> Levers:
    """Return the choices of each lever: `more` first, then what the limits let a policy set of one pod."""
    return {
        **more,
        "cpu_cores": limits.cpu_cores,
        "instances": limits.instances,
        "gpu_shares": limits.gpu_shares,
    }


def sizes(choices: Levers) -> list[int]:
    """Return the number of choices of each lever that has more than one."""
    return [len(values) for values in choices.values() if len(values) > 1]


def target_expense(targets: Sequence[float]) -> NDArray[np.float64]:
    """Return the replicas an HPA holds at each target, beyond each one it holds at the highest.

    It asks for usage / target (kubernetes.io, "Horizontal Pod Autoscaling", algorithm details), so for 3 at 30 % where
    one will do at 90 %. Empty for a single target, which is no lever.
    """
    return max(targets) / np.asarray(targets, dtype=float) - 1.0 if len(targets) > 1 else np.zeros(0)


def pick(choices: Levers, choice_EA: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the chosen value of every lever, shape [E] each; a single choice needs no column."""
    columns = iter(choice_EA.T)
    whole_E = np.zeros(len(choice_EA), dtype=np.int64)
    return {
        name: np.asarray(values)[next(columns) if len(values) > 1 else whole_E]
        for name, values in choices.items()
    }


def resize(controls: Controls, chosen: Mapping[str, NDArray[Any]], limits: Limits) -> Controls:
    """Set the size of the pods in place and return the controls."""
    controls.cpu_cores_E = chosen["cpu_cores"].astype(np.float64)
    controls.instances_E = chosen["instances"].astype(np.int64)
    if limits.gpu_shares != [1.0]:  # where the GPU is time-sliced there are no shares to set
        controls.gpu_share_E = chosen["gpu_shares"].astype(np.float64)
    return controls


def check_choices(key: str, values: Sequence[float], low: float, high: float) -> None:
    """Raise InputError unless the choices rise strictly within low..high."""
    inside = all(low <= value <= high for value in values)
    if not values or not inside or any(b <= a for a, b in pairwise(values)):
        raise refuse(key, list(values), f"must be a rising list of values in {low:g}..{high:g}")
