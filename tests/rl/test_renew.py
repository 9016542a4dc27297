"""Drift and promotion decide what was planted, and rarely anything else."""

import numpy as np
import pytest

from gpusched.rl.renew import Lived, drift, examine

P, NAMES = 32, ["users", "violations", "replicas", "constant"]


def lived(seed: int, shift: float = 0.0, reward: float = 0.5, noise: float = 0.05) -> Lived:
    rng = np.random.default_rng(seed)
    features_PF = rng.normal(size=(P, len(NAMES)))
    features_PF[:, 0] += shift
    features_PF[:, 3] = 1.0
    luck_P = np.random.default_rng(1).normal(size=P)
    return Lived(reward_P=reward + 0.3 * luck_P + noise * rng.normal(size=P), features_PF=features_PF)


def test_a_large_shift_is_found_and_named() -> None:
    (found,) = drift(lived(2), lived(3, shift=2.0), NAMES)
    assert found.feature == "users"
    assert found.d == pytest.approx(2.0, abs=0.7)
    assert found.p < 0.001


def test_the_same_load_rarely_drifts() -> None:
    """Holm holds the chance of any find at 5 %; asking for a large difference makes it far smaller."""
    alarms = sum(bool(drift(lived(10 + 2 * k), lived(11 + 2 * k), NAMES)) for k in range(200))
    assert alarms <= 20, "5 % of 200, and more than 3 standard errors above"


def test_a_certain_but_small_shift_is_no_drift() -> None:
    many = [np.random.default_rng(k).normal(size=(4000, 1)) + 0.2 * k for k in (0, 1)]
    then, now = (Lived(reward_P=np.zeros(4000), features_PF=x) for x in many)
    assert drift(then, now, ["users"]) == []


@pytest.mark.parametrize(
    ("gain", "margin", "passed"),
    [(0.1, 0.01, True), (0.0, 0.05, True), (-0.1, 0.01, False), (-0.1, 0.2, True), (0.0, 1e-6, False)],
)
def test_only_what_is_not_worse_passes(gain: float, margin: float, passed: bool) -> None:
    exam = examine("low", lived(4), lived(5, reward=0.5 + gain), margin)
    assert exam.passed == passed, exam.text
    assert exam.bounds.value == pytest.approx(gain, abs=0.04)


def test_who_acts_alike_in_every_episode_passes() -> None:
    one = lived(6)
    exam = examine("low", one, one, 0.01)
    assert exam.passed and exam.bounds.equal


def test_a_policy_that_is_worse_by_the_margin_is_rarely_promoted() -> None:
    """At the border of the margin the test errs in 5 %: 10 of 200 expected, standard error 3."""
    rng = np.random.default_rng(8)
    passed = 0
    for _ in range(200):
        base_P = rng.normal(size=P)
        one, other = (Lived(reward_P=x, features_PF=np.zeros((P, 1)))
                      for x in (base_P, base_P - 0.1 + 0.05 * rng.normal(size=P)))  # fmt: skip
        passed += examine("low", one, other, 0.1).passed
    assert passed <= 19
