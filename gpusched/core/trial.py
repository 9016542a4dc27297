"""How long a trial lasts, how often it is looked at, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.core.errors import refuse

LONGEST_S = 1e7
"""Nearly four months, whose record still fits into memory; a typing slip is likelier."""


@dataclass(kw_only=True)
class TrialSpec:
    """Times in seconds; a policy acts every `control_s`, the record has a row every `tick_s`.

    `episodes` trials, each with users of its own, are run of one policy, load and seed.
    """

    duration_s: float = 1200.0
    warmup_s: float = 120.0
    control_s: float = 15.0
    tick_s: float = 5.0
    start_replicas: int = 2
    min_replicas: int = 1
    max_replicas: int = 6
    episodes: int = 1

    def __post_init__(self) -> None:
        for key in ("duration_s", "control_s", "tick_s"):
            if not 0 < getattr(self, key) <= LONGEST_S:
                raise refuse(
                    key, getattr(self, key), f"must be greater than 0 s, and at most {LONGEST_S:g} s"
                )
        if not 0 <= self.warmup_s <= LONGEST_S:
            raise refuse("warmup_s", self.warmup_s, f"must lie in 0..{LONGEST_S:g} s")
        for key, base in (("control_s", "tick_s"), ("duration_s", "control_s"), ("warmup_s", "control_s")):
            self._must_divide(key, base)
        if self.episodes < 1:
            raise refuse("episodes", self.episodes, "must be at least 1")
        if self.min_replicas < 1:
            raise refuse("min_replicas", self.min_replicas, "must be at least 1")
        if self.max_replicas < self.min_replicas:
            raise refuse(
                "max_replicas", self.max_replicas, f"must be at least min_replicas ({self.min_replicas})"
            )
        if not self.min_replicas <= self.start_replicas <= self.max_replicas:
            raise refuse("start_replicas", self.start_replicas,
                         f"must lie in min_replicas..max_replicas ({self.min_replicas}..{self.max_replicas})")  # fmt: skip

    def _must_divide(self, key: str, base: str) -> None:
        count = getattr(self, key) / getattr(self, base)
        if abs(count - round(count)) > 1e-9:
            raise refuse(key, getattr(self, key), f"must be a multiple of {base} ({getattr(self, base)} s)")

    @property
    def steps(self) -> int:
        """Control steps of an episode."""
        return round(self.duration_s / self.control_s)

    @property
    def end_s(self) -> float:
        """End of the episode, seconds from the start of the warm-up."""
        return self.warmup_s + self.duration_s
