"""What the report reads from: stored runs and the store that finds them, as far as it uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Record(Protocol):
    """A stored run, as the tracking store finds it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def started_s(self) -> float: ...
    @property
    def tags(self) -> dict[str, str]: ...
    @property
    def params(self) -> dict[str, str]: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Source(Protocol):
    """Where runs are read from: the tracking store."""

    @property
    def where(self) -> str: ...
    def find(
        self,
        study: str | None = None,
        kind: str | None = None,
        status: str | None = "FINISHED",
        tags: Mapping[str, str] | None = None,
        query: str = "",
    ) -> Sequence[Record]: ...
    def series(self, run_id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
    def download(self, run_id: str, artifact: str) -> Path: ...
