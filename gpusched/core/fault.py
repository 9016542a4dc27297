"""What goes wrong in a trial and when, drawn before it: levels over time, and pods that die."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS: dict[str, float] = {
    "gpu_speed": 1.0,
    "host_speed": 1.0,
    "start_factor": 1.0,
    "neighbours": 0.0,
    "stolen_cores": 0.0,
    "metrics_lost": 0.0,
    "metric_delay_s": 0.0,
}
"""Every level of a plan and its value while nothing is wrong."""


def _none() -> Any:
    return field(default_factory=lambda: np.zeros(0))


@dataclass(kw_only=True)
class FaultPlan:
    """Levels that hold from a time on (axis K) and deaths of single pods (axis D), plain arrays of numbers.

    Times are seconds from the start of the warm-up; before `from_s_K[0]` nothing is wrong. A level left out rests.

    from_s_K          when row k begins to hold
    gpu_speed_K       clock of every GPU, 1 = full
    host_speed_K      speed of the CPUs in host phases that begin, 1 = full; the same work takes more CPU time
    start_factor_K    by how much longer a container that is now scheduled or restarted takes to start
    neighbours_K      foreign processes that always have work for every GPU
    stolen_cores_K    cores of the node that others' pods have requested: a new pod must fit into the rest
    metrics_lost_K    1 while every scrape fails: Prometheus', metrics-server's, DCGM's
    metric_delay_s_K  how much later than taken a sample can be seen
    death_s_D         when a pod dies
    death_draw_D      from [0, 1), picks it among the pods that are ready then; without one nobody dies
    evicted_D         1: the pod is evicted and the Deployment makes another; 0: its container crashes and is restarted
    """

    from_s_K: Floats = _none()
    gpu_speed_K: Floats = _none()
    host_speed_K: Floats = _none()
    start_factor_K: Floats = _none()
    neighbours_K: Floats = _none()
    stolen_cores_K: Floats = _none()
    metrics_lost_K: Floats = _none()
    metric_delay_s_K: Floats = _none()
    death_s_D: Floats = _none()
    death_draw_D: Floats = _none()
    evicted_D: Floats = _none()

    def __post_init__(self) -> None:
        for name, resting in LEVELS.items():
            if len(getattr(self, f"{name}_K")) == 0:
                setattr(self, f"{name}_K", np.full(len(self.from_s_K), resting))
        if len(self.evicted_D) == 0:
            self.evicted_D = np.zeros(len(self.death_s_D))
        for f in fields(self):
            if len(getattr(self, f.name)) != len(self.death_s_D if f.name.endswith("_D") else self.from_s_K):
                raise ValueError(f"{f.name} has not the length of its axis")
        if np.any(np.diff(self.from_s_K) <= 0) or np.any(np.diff(self.death_s_D) < 0):
            raise ValueError("times must increase")

    @classmethod
    def during(cls, begin_s: float, end_s: float, **levels: float) -> FaultPlan:
        """Let levels hold from `begin_s` to `end_s`."""
        pairs = {f"{name}_K": np.array([value, LEVELS[name]]) for name, value in levels.items()}
        return cls(from_s_K=np.array([begin_s, end_s]), **pairs)

    @property
    def quiet(self) -> bool:
        """True where nothing ever goes wrong."""
        return len(self.from_s_K) == len(self.death_s_D) == 0

    def spans(self, end_s: float, gap_s: float = 0.0) -> list[tuple[float, float]]:
        """Return from when to when something is wrong, in order; a death has no length.

        `end_s` closes what is still wrong then; spans less than `gap_s` apart are one.
        """
        bad_K = np.any([getattr(self, f"{name}_K") != resting for name, resting in LEVELS.items()], axis=0)
        edges = np.append(self.from_s_K, end_s)
        found = [(float(a), float(b)) for a, b, bad in zip(edges[:-1], edges[1:], bad_K, strict=True) if bad]
        joined: list[tuple[float, float]] = []
        for begin, end in sorted(found + [(float(t), float(t)) for t in self.death_s_D]):
            if joined and (begin <= joined[-1][1] or begin - joined[-1][1] < gap_s):
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((begin, end))
        return joined
