"""After deployment: has what the policy meets drifted, and may a newly trained policy take its place?

Both questions are answered by episodes that neither policy was trained or chosen on; an episode is the unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.policy.network import Network
from gpusched.report.equivalence import Bounded, bounded
from gpusched.report.statistics import holm, welch
from gpusched.rl.episodes import Episodes
from gpusched.rl.venv import ClusterEnv

Array = NDArray[np.float64]

ALPHA = 0.05
LARGE = 0.8
"""A difference of 0.8 standard deviations is large (Cohen 1988, Statistical Power Analysis, section 2.2)."""


@dataclass(kw_only=True, frozen=True)
class Lived:
    """Episodes of one policy: mean reward per step [P] and mean features [P, F] of each."""

    reward_P: Array
    features_PF: Array


@dataclass(kw_only=True, frozen=True)
class Drift:
    """One feature that moved: d is the difference of the means in pooled standard deviations, p Holm-adjusted."""

    feature: str
    d: float
    p: float


@dataclass(kw_only=True, frozen=True)
class Exam:
    """Candidate against the policy in service on one load: the difference of rewards and its tests."""

    load: str
    in_service: float
    candidate: float
    bounds: Bounded

    @property
    def passed(self) -> bool:
        """True where the candidate is not worse by the margin; policies that act alike in every episode pass."""
        return self.bounds.not_worse(+1) < ALPHA or self.bounds.equal

    @property
    def text(self) -> str:
        b = self.bounds
        return (
            f"{self.load}: {self.in_service:.4f} → {self.candidate:.4f} ({b.value:+.4f}, 90 % [{b.low:.4f}, {b.high:.4f}], "
            f"margin {b.margin:g}): {'not worse' if self.passed else 'not shown to be no worse'}"
        )


def live_through(env: ClusterEnv, network: Network, episodes: Episodes) -> Lived:
    """Let a frozen policy live through one episode in every environment."""
    env.episodes = episodes
    features_PF, _ = env.reset()
    rewards, seen = [], []
    for _ in range(env.cluster.trial.steps):
        seen.append(features_PF)
        features_PF, reward_P, *_ = env.step(env.choose(network, features_PF))
        rewards.append(reward_P)
    return Lived(reward_P=np.mean(rewards, axis=0), features_PF=np.mean(seen, axis=0, dtype=float))


def drift(then: Lived, now: Lived, names: list[str]) -> list[Drift]:
    """Return the features whose episode means differ largely and certainly (Welch's t test, Holm over all features)."""
    p_F = np.array([_welch(a, b) for a, b in zip(then.features_PF.T, now.features_PF.T, strict=True)])
    d_F = [_d(a, b) for a, b in zip(then.features_PF.T, now.features_PF.T, strict=True)]
    found = [
        Drift(feature=name, d=d, p=float(p))
        for name, d, p in zip(names, d_F, holm(p_F), strict=True)
        if p < ALPHA and abs(d) >= LARGE
    ]
    return sorted(found, key=lambda x: -abs(x.d))


def examine(load: str, in_service: Lived, candidate: Lived, margin: float) -> Exam:
    """Test whether the candidate's reward is at most `margin` below that of the policy in service, paired by episode."""
    return Exam(
        load=load,
        in_service=float(in_service.reward_P.mean()),
        candidate=float(candidate.reward_P.mean()),
        bounds=bounded(candidate.reward_P, in_service.reward_P, margin, relative=False, alpha=ALPHA),
    )


def _welch(a: Array, b: Array) -> float:
    constant = a.std() == b.std() == 0.0
    return 0.0 if constant and a.mean() != b.mean() else welch(a, b)


def _d(a: Array, b: Array) -> float:
    spread = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    shift = float(b.mean() - a.mean())
    return shift / spread if spread > 0 else math.copysign(math.inf, shift) if shift else 0.0
