"""Has training converged? Decided by numbers: reward, step size, exploration, stability of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gpusched.policy.ppo import ConvergenceConfig

CONFIDENCE = 0.95


@dataclass(kw_only=True)
class Validation:
    """One look at the policy after `frames` frames of training.

    reward_P   mean reward per step in each of the P validation episodes, the same ones every time
    kl         mean approximate KL divergence of the updates since the last look
    entropy    mean entropy of the policy since the last look, as a share of the largest possible
    agreement  share of the steps at which the policy before would have chosen the same
    """

    frames: int
    reward_P: NDArray[np.float64]
    kl: float = float("nan")
    entropy: float = float("nan")
    agreement: float = float("nan")

    @property
    def reward(self) -> float:
        return float(np.mean(self.reward_P))


@dataclass(kw_only=True)
class Judgement:
    """The verdict at one moment, its reason in words, and the numbers behind it."""

    converged: bool
    reason: str
    values: dict[str, float] = field(default_factory=dict)


def judge(looks: Sequence[Validation], limits: ConvergenceConfig) -> Judgement:
    """Judge the validations so far, oldest first.

    Converged means, over the last `limits.window` looks at a trained policy: the change of the reward is
    certainly small (95 % interval within ± reward_tolerance), the reward is not certainly below its best by more
    than that, updates are small (KL), exploration is steady (entropy), successive policies act alike (agreement).
    """
    recent = [look for look in looks if look.frames > 0][-limits.window :]
    if len(recent) < limits.window:
        return Judgement(converged=False, reason=f"only {len(recent)} of {limits.window} validations")
    change, change_half = interval(change_over(recent))
    best = max(looks, key=lambda look: look.reward)
    below, below_half = interval(best.reward_P - recent[-1].reward_P)
    values = {
        "reward_change": change,
        "reward_change_half": change_half,
        "reward_below_best": below,
        "reward_below_best_half": below_half,
        "kl": float(np.mean([look.kl for look in recent])),
        "entropy_change": recent[-1].entropy - recent[0].entropy,
        "agreement": float(np.mean([look.agreement for look in recent])),
    }
    checks = _checks(values, limits)
    # Name what is against convergence, or else all that speaks for it.
    against = [text for good, text in checks if not good]
    return Judgement(
        converged=not against, reason="; ".join(against or [text for _, text in checks]), values=values
    )


def change_over(looks: Sequence[Validation]) -> NDArray[np.float64]:
    """Return each episode's change of reward from first to last look, by its regression line, shape [P].

    Episodes are the same at every look, so their differences in difficulty cancel.
    """
    x_V = np.linspace(-0.5, 0.5, len(looks))
    reward_VP = np.stack([look.reward_P for look in looks])
    return np.asarray(x_V @ reward_VP / (x_V @ x_V))


def interval(x_P: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval."""
    half = student_t(0.5 + CONFIDENCE / 2, len(x_P) - 1) * np.std(x_P, ddof=1) / np.sqrt(len(x_P))
    return float(np.mean(x_P)), float(half)


def student_t(p: float, freedom: int) -> float:
    """Return the p-quantile of Student's t (Abramowitz and Stegun 26.7.5; 0.1 % off at 5 degrees)."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**k for k, term in enumerate(terms, start=1)))


def _checks(v: dict[str, float], limits: ConvergenceConfig) -> list[tuple[bool, str]]:
    """Return each criterion: whether it holds, and what to say of it. A comparison with NaN does not hold."""
    change, half, tolerance = v["reward_change"], v["reward_change_half"], limits.reward_tolerance
    below, below_half = v["reward_below_best"], v["reward_below_best_half"]
    return [
        (
            abs(change) + half <= tolerance,
            f"{_trend(change, half, tolerance)} ({change:+.4f} ± {half:.4f} over {limits.window} "
            f"validations, allowed ±{tolerance:g})",
        ),
        (below - below_half <= tolerance, f"reward {below:.4f} ± {below_half:.4f} below its best"),
        (v["kl"] <= limits.kl_max, f"KL {v['kl']:.4f} (at most {limits.kl_max:g})"),
        (
            abs(v["entropy_change"]) <= limits.entropy_tolerance,
            f"entropy change {v['entropy_change']:+.3f} (allowed ±{limits.entropy_tolerance:g})",
        ),
        (
            v["agreement"] >= limits.agreement_min,
            f"agreement {v['agreement']:.3f} (at least {limits.agreement_min:g})",
        ),
    ]


def _trend(change: float, half: float, tolerance: float) -> str:
    if abs(change) + half <= tolerance:
        return "reward plateau"
    if change - half > 0:
        return "reward still rising"
    if change + half < 0:
        return "reward falling"
    return "reward too noisy to tell"
