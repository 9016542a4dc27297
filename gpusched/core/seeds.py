"""One rule for randomness: streams come from (study, load, seed) and a purpose, never from a policy's name.

Every policy therefore meets the same users (common random numbers), and pairs by seed are real pairs.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PURPOSES = ("trial", "train", "validate", "tune", "promote")
"""Disjoint stream families: what a method learns or is chosen on never appears in a trial."""


def stream(study: str, load: str, seed: int, purpose: str = "trial") -> np.random.SeedSequence:
    """Return the seed sequence of one (study, load, seed) for one purpose."""
    if purpose not in PURPOSES:
        raise ValueError(f"purpose {purpose!r} is none of {PURPOSES}")
    return np.random.SeedSequence([word(study), word(load), seed, PURPOSES.index(purpose)])


def word(text: str) -> int:
    """Hash a name to 64 bits, the same on every machine and run (Python's hash() is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def child(sequence: np.random.SeedSequence, k: int) -> np.random.SeedSequence:
    """Return the k-th child of a sequence; unlike `spawn` it does not count, so it can be asked for again."""
    return np.random.SeedSequence(entropy=sequence.entropy, spawn_key=(*sequence.spawn_key, k))


def states(sequence: np.random.SeedSequence, n: int) -> NDArray[np.uint64]:
    """Return n independent 64-bit states, shape [n], for counter generators inside the engine."""
    return np.asarray(sequence.generate_state(n, np.uint64), dtype=np.uint64)
