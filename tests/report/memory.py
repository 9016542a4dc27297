"""A store in memory, for tests of what the report does with runs and not of how they are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import StoreError
from gpusched.tracking.store import Found


@dataclass
class Memory:
    """Holds runs as `Store` finds them; a filter is no concern of it."""

    runs: dict[str, Found] = field(default_factory=dict)
    points: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    where: str = "memory"

    def start(
        self, kind: str, *, study: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> "Writer":
        run_id = f"{len(self.runs):032x}"
        self.runs[run_id] = Found(id=run_id, name=name, status="RUNNING", started_s=float(len(self.runs)),
                                  tags={**tags, "kind": kind, "study": study},
                                  params={k: str(v) for k, v in params.items()}, metrics={})  # fmt: skip
        return Writer(self, run_id)

    def find(
        self,
        study: str | None = None,
        kind: str | None = None,
        status: str | None = "FINISHED",
        tags: Mapping[str, str] | None = None,
        query: str = "",
    ) -> Sequence[Found]:
        assert not query
        wanted = dict(tags or {}) | {k: v for k, v in (("study", study), ("kind", kind)) if v}
        found = [
            r for r in self.runs.values() if status in (None, r.status) and wanted.items() <= r.tags.items()
        ]
        return found[::-1]

    def series(self, run_id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        points = self.points.get((run_id, metric), [])
        return np.array([p[0] for p in points], dtype=np.int64), np.array([p[1] for p in points], dtype=float)

    def download(self, run_id: str, artifact: str) -> Path:
        if path := self.files.get((run_id, artifact)):
            return path
        raise StoreError(f"no artifact {artifact} of run {run_id} is kept")


@dataclass
class Writer:
    """Writes one run, as `Run` does."""

    store: Memory
    id: str

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self.store.runs[self.id]
        self.store.runs[self.id] = replace(run, status="FAILED" if error else "FINISHED")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.store.points.setdefault((self.id, name), []).append((step, value))
            self.store.runs[self.id].metrics[name] = value

    def kpis(self, values: Mapping[str, float]) -> None:
        self.metrics(0, {f"kpi/{name}": value for name, value in values.items()})

    def ticks(self, ticks: object, offset_s: float) -> None:
        """Time series are not kept."""
