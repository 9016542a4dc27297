"""The baselines: what they ask for, within which bounds, and from which stream."""

from __future__ import annotations

import numpy as np
import pytest

from gpusched.core.controls import UNSET, HPASpec, Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.hpa import HPA
from gpusched.policy.random import Random
from gpusched.policy.static import Static

LIMITS = Limits(min_replicas=2, max_replicas=5)
SEED = np.random.SeedSequence(1)
SEEN = Observation(**{name: np.full(3, np.nan) for name in Observation.columns()})


def test_hpa_hands_over_one_spec_within_the_limits() -> None:
    policy = HPA(HPASpec(target=70, min_replicas=1, max_replicas=9))
    policy.reset(LIMITS, SEED, envs=3)
    controls = policy.act(SEEN)
    assert list(controls.replicas_E) == [UNSET] * 3
    assert controls.hpa == HPASpec(target=70, min_replicas=2, max_replicas=5)
    assert controls.hpa.scale_up is None
    assert controls.hpa.scale_down is None
    assert policy.act(SEEN).hpa == controls.hpa


def test_hpa_outside_the_limits_is_refused() -> None:
    policy = HPA(HPASpec(min_replicas=6, max_replicas=9))
    with pytest.raises(InputError, match="max_replicas = 5"):
        policy.reset(LIMITS, SEED)


def test_static_never_moves() -> None:
    policy = Static(Static.Config(replicas=4))
    policy.reset(LIMITS, SEED, envs=3)
    assert list(policy.act(SEEN).replicas_E) == [4, 4, 4]
    assert policy.act(SEEN).hpa is None


@pytest.mark.parametrize("replicas", [1, 6, 0, -1])
def test_static_outside_the_limits_is_refused(replicas: int) -> None:
    with pytest.raises(InputError, match=rf"replicas = {replicas}: .*2\.\.5"):
        Static(Static.Config(replicas=replicas)).reset(LIMITS, SEED)


def episode(seed: int, steps: int = 400) -> np.ndarray:
    policy = Random(Random.Config())
    policy.reset(LIMITS, np.random.SeedSequence(seed), envs=3)
    return np.stack([policy.act(SEEN).replicas_E for _ in range(steps)])


def test_random_draws_every_allowed_count_equally() -> None:
    counts, seen = np.unique(episode(1), return_counts=True)
    assert list(counts) == [2, 3, 4, 5]
    assert np.all(np.abs(seen - 300) < 4 * np.sqrt(1200 * 0.25 * 0.75))


def test_random_repeats_with_its_seed_and_only_with_it() -> None:
    assert np.array_equal(episode(1), episode(1))
    assert not np.array_equal(episode(1), episode(2))
    assert not np.array_equal(episode(1)[:, 0], episode(1)[:, 1])
