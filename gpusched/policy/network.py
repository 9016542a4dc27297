"""A trained network as numbers: read from an exported program and run in numpy.

The file is a torch.export archive, which other tools can serve. Its own loader can be made to unpickle, that
is to run, what a crafted file holds; so the weights are taken from the archive as the raw numbers they are.
Importing torch (seconds) is spared with it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import InputError

Floats = NDArray[np.float32]

FEATURE_BOUND = 5.0
"""Normalised features are clipped to ± this many standard deviations, so an outlier cannot take over."""


class Network:
    """Normalise, hidden layers with tanh, one linear layer: features [E, F] → logits [E, C].

    weights: `mean`, `std` [F] and, for layer i, `layers.i.weight` [out, in] and `layers.i.bias` [out].
    """

    def __init__(self, weights: dict[str, Floats]) -> None:
        self.weights = weights
        depth = sum(name.endswith(".weight") for name in weights)
        self._layers = [(weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i in range(depth)]

    @property
    def shape(self) -> list[int]:
        """Width of the input, of every hidden layer and of the output."""
        return [len(self.weights["mean"]), *[len(bias) for _, bias in self._layers]]

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and numbers: the same weights, the same digest, on every machine."""
        hasher = hashlib.sha256()
        for name in sorted(self.weights):
            hasher.update(f"{name}{self.weights[name].shape}".encode())
            hasher.update(self.weights[name].astype("<f4").tobytes())
        return hasher.hexdigest()

    def __call__(self, features_EF: Floats) -> Floats:
        """Return the logits of every choice, shape [E, C]."""
        x = (features_EF - self.weights["mean"]) / self.weights["std"]
        x = np.clip(x, -FEATURE_BOUND, FEATURE_BOUND)
        for weight, bias in self._layers[:-1]:
            x = np.tanh(x @ weight.T + bias)
        weight, bias = self._layers[-1]
        return np.asarray(x @ weight.T + bias, dtype=np.float32)


def most_likely(
    logits_EC: NDArray[np.float32], sizes: Sequence[int], handicap_C: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the choice with the largest logit, less its handicap, for each of the A levers, shape [E, A]."""
    levers = np.split(logits_EC - handicap_C, np.cumsum(sizes)[:-1], axis=-1)
    return np.stack([lever.argmax(axis=-1) for lever in levers], axis=-1)


def read_network(path: Path) -> Network:
    """Read the weights of an exported program; InputError if it is missing, damaged or holds pickled data."""
    try:
        return Network(_read_weights(path))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a readable exported network ({error}). Train the policy again, or restore the file."
        ) from error


def _read_weights(path: Path) -> dict[str, Floats]:
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].split("/")[0] + "/data/weights"
        entries = json.loads(archive.read(f"{folder}/model_weights_config.json"))["config"]
        return {name: _read_tensor(archive, folder, entry) for name, entry in entries.items()}


def _read_tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, object]) -> Floats:
    if entry["use_pickle"]:
        raise ValueError("it holds pickled data, which is never loaded")
    meta = entry["tensor_meta"]
    if not isinstance(meta, dict):
        raise ValueError("a tensor has no shape")
    shape = [int(size["as_int"]) for size in meta["sizes"]]
    raw = archive.read(f"{folder}/{entry['path_name']}")
    return np.frombuffer(raw, dtype="<f4").reshape(shape)
