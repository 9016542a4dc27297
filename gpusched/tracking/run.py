"""One run being written: parameters, metrics, logs, gates and models, and an end that tells how it came."""

from __future__ import annotations

import json
import logging
import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from gpusched.core.errors import StoreError
from gpusched.core.gate import GATE, verdict
from gpusched.core.logs import RequestLog, TickLog
from gpusched.tracking.database import PATIENCE_S, patiently
from gpusched.tracking.model import log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

R = TypeVar("R")

BATCH = 1000
"""Most points and tags together that MLflow takes in one call."""
PARAM_BATCH = 100
PARAM_CHARS = 6000
TAG_CHARS = 8000
FLUSH_S = 5.0
"""How old a buffered point may get, so that the UI shows a training while it runs."""
SIGTERM_EXIT = 128 + signal.SIGTERM
CURVE_POINTS = 100
"""Points of a curve in the MLflow UI: more are not seen, and writing them is most of what a short trial takes."""
TICK_METRICS = {
    "replicas": "replicas_ready_T",
    "users": "users_T",
    "latency_p95_s": "latency_p95_s_T",
    "gpu_busy": "gpu_busy_T",
}
"""Columns of the tick log that are also charted in the MLflow UI, under "tick/"."""


def cut(text: object, chars: int = TAG_CHARS) -> str:
    """Return the text, shortened with a visible mark where it is longer than MLflow stores."""
    whole = str(text)
    return whole if len(whole) <= chars else whole[: chars - 1] + "…"


class Run:
    """A run of the store, as a context manager.

    A normal end makes it FINISHED, an exception FAILED (with the tag "error"), KeyboardInterrupt or
    SIGTERM KILLED. SIGTERM ends the process with code 143 once the run is closed.
    """

    def __init__(self, client: MlflowClient, run_id: str, where: str) -> None:
        self._client, self.id, self._where = client, run_id, where
        self._points: list[Metric] = []
        self._marks: dict[str, str] = {}
        self._flushed_s = time.monotonic()
        self._hears_sigterm = False
        self._patience_s = PATIENCE_S

    def __enter__(self) -> Self:
        # Only the main thread may listen, and a handler somebody else set (an outer run's too) stays.
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
            self._hears_sigterm = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        except StoreError:
            if error is None:
                raise
            log.exception("run %s could not be closed", self.id)  # the first error is the one to show
        finally:
            if self._hears_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _end(self, error: BaseException | None) -> None:
        status = _status(error)
        if error is not None:
            self._patience_s = 0.0  # who interrupts does not wait, and what failed is not worth it
        try:
            self.flush()
        except StoreError:
            self._close("FAILED" if status == "FINISHED" else status)
            raise
        if error is not None and status == "FAILED":
            self.tags({"error": f"{type(error).__name__}: {error}"[:500]})
        self._close(status)

    def _close(self, status: str) -> None:
        self._ask(self._client.set_terminated, self.id, status)

    def _ask(self, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return patiently(self._where, self._patience_s, call, *args, **kwargs)

    def params(self, values: Mapping[str, object]) -> None:
        """Log the configuration, one value per key."""
        from mlflow.entities import Param

        entries = [Param(key, cut(value, PARAM_CHARS)) for key, value in values.items()]
        for begin in range(0, len(entries), PARAM_BATCH):
            self._batch(params=entries[begin : begin + PARAM_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, cut(value)) for key, value in values.items()]
        for begin in range(0, len(entries), PARAM_BATCH):
            self._batch(tags=entries[begin : begin + PARAM_BATCH])

    def _batch(self, **entities: Any) -> None:
        self._ask(self._client.log_batch, self.id, **entities, synchronous=True)

    def kpis(self, values: Mapping[str, float]) -> None:
        """Log KPIs as "kpi/<name>"; one without a value is not a metric but is named in the tag "kpi_nan"."""
        missing = [name for name, value in values.items() if not math.isfinite(value)]
        self.metrics(0, {f"kpi/{name}": value for name, value in values.items()})
        if missing:
            self._marks["kpi_nan"] = ",".join(missing)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the finite values at a step; points are buffered and written in batches."""
        self._add(step, values)
        if len(self._points) >= BATCH or time.monotonic() - self._flushed_s > FLUSH_S:
            self.flush()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        # MLflow would store infinity as 1.8e308: a gap in the curve is the honest picture of "no value".
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._points += [Metric(key, value, now_ms, int(step)) for key, value in finite.items()]

    def flush(self) -> None:
        """Write the buffered points and what gates said, in as few calls as MLflow allows: each is a transaction."""
        from mlflow.entities import RunTag

        self._flushed_s = time.monotonic()
        while self._points or self._marks:
            marks = [RunTag(key, cut(value)) for key, value in self._marks.items()]
            points = self._points[: BATCH - len(marks)]
            self._batch(metrics=points, tags=marks)
            del self._points[: len(points)]
            self._marks.clear()

    def ticks(self, ticks: TickLog, offset_s: float) -> None:
        """Log every column of the tick log as ticks.csv and a few as "tick/<name>", the step being the second.

        The file has every tick, a curve at most CURVE_POINTS of them. `offset_s` is the end of the warm-up: times are
        stored relative to it, the warm-up's are negative.
        """
        t_s_T = ticks.t_s_T - offset_s
        columns = [t_s_T, *(getattr(ticks, name) for name in TickLog.columns()[1:])]
        names = [name.removesuffix("_T") for name in TickLog.columns()]
        rows = [",".join(f"{value:.9g}" for value in row) for row in zip(*columns, strict=True)]
        self.text("ticks.csv", "\n".join([",".join(names), *rows]) + "\n")
        charted = np.flatnonzero(t_s_T > 0)
        if len(charted) > CURVE_POINTS:
            charted = charted[np.linspace(0, len(charted) - 1, CURVE_POINTS).round().astype(int)]
        for i in charted:
            self._add(
                round(float(t_s_T[i])), {f"tick/{k}": getattr(ticks, c)[i] for k, c in TICK_METRICS.items()}
            )
        self.flush()

    def requests(self, requests: RequestLog, offset_s: float = 0.0) -> None:
        """Log the request log as requests.npz: start_s and latency_s in float32, status in int8."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "requests.npz"
            np.savez_compressed(
                path,
                start_s=(requests.start_s_N - offset_s).astype(np.float32),
                latency_s=requests.latency_s_N.astype(np.float32),
                status=requests.status_N.astype(np.int8),
            )
            self.file(path)

    def json(self, name: str, value: Any) -> None:
        """Log a value as a JSON artifact."""
        self.text(name, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")

    def text(self, name: str, text: str) -> None:
        """Log a text artifact."""
        self._ask(self._client.log_text, self.id, text, name)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or everything in a folder, as artifacts."""
        log_it = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._ask(log_it, self.id, str(path), folder)

    def gate(self, name: str, ok: bool, detail: str) -> None:
        """Record whether a gate let the result pass; buffered as points are."""
        self._marks[GATE + name] = verdict(ok, detail)

    def model(self, folder: Path) -> str:
        """Log a trained policy's folder as an MLflow model and return the model's ID; nothing in it is unpickled."""
        return self._ask(log_model, self._client, self.id, Path(folder))


def _status(error: BaseException | None) -> str:
    if error is None:
        return "FINISHED"
    terminated = isinstance(error, SystemExit) and error.code == SIGTERM_EXIT
    return "KILLED" if terminated or isinstance(error, KeyboardInterrupt) else "FAILED"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(SIGTERM_EXIT)
