"""How far two runs of the same load agree: a real one in ticks, a simulated one in episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.trial import TrialSpec

DRAWS = 1000
GOAL = {"p50_s": 0.05, "p95_s": 0.05, "p99_s": 0.10}
"""Largest error wanted below saturation; Vidur (Agrawal et al., MLSys 2024) reports less than 9 % at the median and the tail."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `replicas_S` are the replicas asked for in each control step."""

    name: str
    level: float
    max_batch: int
    users: int
    replicas_S: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A stretch of a run: latencies of what was answered in it, and sums."""

    latency_s_N: NDArray[np.float64]
    span_s: float
    cpu_s: float
    ready_s: float
    lag_s: float
    queue_s: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of one case: both values, and sim / real - 1 with its 95 % interval."""

    case: str
    measure: str
    real: float
    sim: float
    error: float
    low: float
    high: float


def quantile(q: float) -> Callable[[Sequence[Block]], float]:
    def of(blocks: Sequence[Block]) -> float:
        every = np.concatenate([b.latency_s_N for b in blocks])
        return float(np.quantile(every, q)) if len(every) else math.nan

    return of


def share(above: str, below: str) -> Callable[[Sequence[Block]], float]:
    def of(blocks: Sequence[Block]) -> float:
        total = sum(getattr(b, below) for b in blocks)
        return float(sum(getattr(b, above) for b in blocks) / total) if total else math.nan

    return of


def per_request(blocks: Sequence[Block]) -> float:
    done = sum(len(b.latency_s_N) for b in blocks)
    return float(sum(b.queue_s for b in blocks) / done) if done else math.nan


def rate(blocks: Sequence[Block]) -> float:
    return sum(len(b.latency_s_N) for b in blocks) / sum(b.span_s for b in blocks)


MEASURES: dict[str, Callable[[Sequence[Block]], float]] = {
    "p50_s": quantile(0.50),
    "p95_s": quantile(0.95),
    "p99_s": quantile(0.99),
    "throughput_rps": rate,
    "utilisation": share("cpu_s", "ready_s"),
    "queue_s": per_request,
    "not_ready": share("lag_s", "span_s"),
}
"""utilisation: CPU seconds per second of a ready replica; not_ready: replicas asked for and not ready, time average."""


def blocks(requests: RequestLog, ticks: TickLog, spec: TrialSpec) -> list[Block]:
    """Return each tick after the warm-up as a block."""
    t = ticks.between(spec.warmup_s, spec.end_s)
    ok_N = requests.status_N == RequestLog.OK
    end_s_N, latency_s_N = requests.end_s_N[ok_N], requests.latency_s_N[ok_N]
    found = []
    for k, end_s in enumerate(t.t_s_T):
        inside_N = (end_s_N > end_s - spec.tick_s) & (end_s_N <= end_s)
        found.append(
            Block(
                latency_s_N=latency_s_N[inside_N],
                span_s=spec.tick_s,
                cpu_s=float(t.cpu_cores_used_T[k]) * spec.tick_s,
                ready_s=float(t.replicas_ready_T[k]) * spec.tick_s,
                lag_s=max(float(t.replicas_spec_T[k] - t.replicas_ready_T[k]), 0.0) * spec.tick_s,
                queue_s=float(t.queue_sum_s_T[k]),
            )
        )
    return found


def merged(some: Sequence[Block]) -> Block:
    """Return one block of several."""
    sums = {
        name: sum(getattr(b, name) for b in some)
        for name in ("span_s", "cpu_s", "ready_s", "lag_s", "queue_s")
    }
    return Block(latency_s_N=np.concatenate([b.latency_s_N for b in some]), **sums)


def compare(case: Case, real: Sequence[Block], simulated: Sequence[Block]) -> list[Row]:
    """Return every measure of a case."""
    rng = np.random.default_rng(0)
    # Before and after a scaling are two populations: drawn apart.
    half = len(real) // 2 if len(set(case.replicas_S)) > 1 else len(real)
    parts = [part for part in (real[:half], real[half:]) if part]

    def again(some: Sequence[Block]) -> list[Block]:
        return [some[i] for i in rng.integers(0, len(some), len(some))]

    pairs = [([b for part in parts for b in again(part)], again(simulated)) for _ in range(DRAWS)]
    rows = []
    for name, of in MEASURES.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.array([np.divide(of(s), of(r)) - 1.0 for r, s in pairs])
            error = float(np.divide(of(simulated), of(real)) - 1.0)
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
        rows.append(
            Row(
                case=case.name,
                measure=name,
                real=of(real),
                sim=of(simulated),
                error=error,
                low=float(low),
                high=float(high),
            )
        )
    return rows


def markdown(rows: Sequence[Row], notes: Sequence[dict[str, Any]]) -> str:
    """Return both tables: latencies with their errors, and the rest; an error beyond the goal is bold."""
    lines = [
        "| case | users | p50 real / sim | p95 real / sim | p99 real / sim | host busy |",
        "|---|---|---|---|---|---|",
    ]
    rest = ["| case | throughput, req/s | utilisation | queue, ms | not ready |", "|---|---|---|---|---|"]
    for note in notes:
        own = {row.measure: row for row in rows if row.case == note["name"]}
        cells = [_cell(own[name], 1e3, " ms") for name in GOAL]
        busy = f"{note['host_busy_cores']:.2f} cores"
        lines.append(f"| {note['name']} | {note['users']} | {' | '.join(cells)} | {busy} |")
        more = [
            _cell(own["throughput_rps"]),
            _cell(own["utilisation"]),
            _cell(own["queue_s"], 1e3),
            _cell(own["not_ready"]),
        ]
        rest.append(f"| {note['name']} | {' | '.join(more)} |")
    return "\n".join([*lines, "", *rest, ""])


def _cell(row: Row, scale: float = 1.0, unit: str = "") -> str:
    if not math.isfinite(row.error):
        return f"{scale * row.real:.3g} / {scale * row.sim:.3g}{unit}"
    error = f"{row.error:+.1%} ({row.low:+.1%}..{row.high:+.1%})"
    error = f"**{error}**" if abs(row.error) > GOAL.get(row.measure, math.inf) else error
    return f"{scale * row.real:.3g} / {scale * row.sim:.3g}{unit}, {error}"
