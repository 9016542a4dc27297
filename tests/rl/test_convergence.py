"""The verdict on curves whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from gpusched.policy.ppo import ConvergenceConfig
from gpusched.rl.convergence import Validation, change_over, interval, judge, student_t

LIMITS = ConvergenceConfig(
    window=4, reward_tolerance=0.01, kl_max=0.02, entropy_tolerance=0.05, agreement_min=0.9
)
DIFFICULTY_P = np.linspace(-0.3, 0.3, 16)


def curve(rewards: list[float], noise: float = 0.0, **last: float) -> list[Validation]:
    """Return validations with these mean rewards; episodes differ in difficulty by far more than the tolerance."""
    rng = np.random.default_rng(0)
    looks = [
        Validation(frames=1000 * k, reward_P=reward + DIFFICULTY_P + noise * rng.normal(size=16),
                   kl=0.005, entropy=0.4, agreement=0.97)
        for k, reward in enumerate(rewards)
    ]  # fmt: skip
    return [*looks[:-1], replace(looks[-1], **last)]


def test_plateau() -> None:
    verdict = judge(curve([-0.9, -0.6, -0.501, -0.499, -0.5, -0.5]), LIMITS)
    assert verdict.converged and verdict.reason.startswith("reward plateau")
    assert "KL 0.0050" in verdict.reason and "agreement 0.970" in verdict.reason


def test_still_rising() -> None:
    verdict = judge(curve([-0.9, -0.8, -0.7, -0.6, -0.5, -0.4]), LIMITS)
    assert not verdict.converged and "still rising (+0.3000" in verdict.reason


def test_falling() -> None:
    verdict = judge(curve([-0.9, -0.40, -0.42, -0.44, -0.46]), LIMITS)
    assert not verdict.converged and "reward falling" in verdict.reason


def test_collapsed_onto_a_plateau() -> None:
    verdict = judge(curve([-0.9, -0.2, -0.7, -0.7, -0.7, -0.7]), LIMITS)
    assert not verdict.converged and "0.5000 ± 0.0000 below its best" in verdict.reason
    assert "plateau" not in verdict.reason  # only what speaks against it is named


def test_too_noisy_to_tell() -> None:
    verdict = judge(curve([-0.9, -0.5, -0.5, -0.5, -0.5], noise=0.1), LIMITS)
    assert not verdict.converged and "too noisy to tell" in verdict.reason


def test_too_early() -> None:
    verdict = judge(curve([-0.5, -0.5, -0.5, -0.5]), LIMITS)  # the first is the untrained policy
    assert not verdict.converged and verdict.reason == "only 3 of 4 validations"


@pytest.mark.parametrize(
    ("last", "word"),
    [
        ({"kl": 0.5}, "KL"),
        ({"entropy": 0.2}, "entropy change -0.200"),
        ({"agreement": 0.3}, "agreement 0.80"),
    ],
)
def test_each_other_criterion_alone_prevents_it(last: dict[str, float], word: str) -> None:
    verdict = judge(curve([-0.9, -0.5, -0.5, -0.5, -0.5], **last), LIMITS)
    assert not verdict.converged and word in verdict.reason and "plateau" not in verdict.reason


def test_missing_numbers_never_count_as_converged() -> None:
    for key in ("kl", "entropy", "agreement"):
        assert not judge(curve([-0.9, -0.5, -0.5, -0.5, -0.5], **{key: float("nan")}), LIMITS).converged


def test_change_is_the_regression_line_and_difficulty_cancels() -> None:
    mean, half = interval(change_over(curve([0.0, 0.1, 0.2, 0.3])))
    assert (mean, half) == (pytest.approx(0.3), pytest.approx(0.0, abs=1e-12))


def test_interval_covers_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    hits = sum(
        abs(mean - 2.0) <= half for mean, half in (interval(rng.normal(2.0, 1.0, 8)) for _ in range(4000))
    )
    assert abs(hits / 4000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize(
    ("freedom", "truth"), [(4, 2.776), (7, 2.365), (15, 2.131), (31, 2.040), (10**6, 1.960)]
)
def test_students_t_against_the_table(freedom: int, truth: float) -> None:
    assert student_t(0.975, freedom) == pytest.approx(truth, rel=2e-3)
