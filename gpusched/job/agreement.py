"""How far two runs of the same load agree: a real one in ticks, a simulated one in episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.trial import TrialSpec

Floats = NDArray[np.float64]

DRAWS = 1000
BIN = 1e-3
"""Width of a latency bin in the draws, relative."""
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

    latency_s_N: Floats
    span_s: float
    cpu_s: float
    ready_s: float
    lag_s: float
    queue_s: float

    @property
    def completed(self) -> int:
        return len(self.latency_s_N)


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


QUANTILES = {"p50_s": 0.50, "p95_s": 0.95, "p99_s": 0.99}
RATIOS = {
    "throughput_rps": ("completed", "span_s"),
    "utilisation": ("cpu_s", "ready_s"),
    "queue_s": ("queue_s", "completed"),
    "not_ready": ("lag_s", "span_s"),
}
"""Sums above and below. utilisation: CPU seconds per second of a ready replica; not_ready: replicas asked for and not
ready, time average."""
MEASURES = (*QUANTILES, *RATIOS)


def measured(blocks: Sequence[Block]) -> dict[str, float]:
    """Return every measure of the blocks together."""
    every_s_N = np.concatenate([b.latency_s_N for b in blocks])
    found = {
        name: float(np.quantile(every_s_N, q)) if len(every_s_N) else math.nan
        for name, q in QUANTILES.items()
    }
    for name, (above, below) in RATIOS.items():
        total = sum(getattr(b, below) for b in blocks)
        found[name] = sum(getattr(b, above) for b in blocks) / total if total else math.nan
    return found


def drawn(blocks: Sequence[Block], weight_DB: Floats) -> dict[str, Floats]:
    """Return every measure [D] of draws in which block B counts weight_DB times; quantiles to 0.1 %."""
    found = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, (above, below) in RATIOS.items():
            sums_D = [
                weight_DB @ np.array([getattr(b, key) for b in blocks], dtype=float) for key in (above, below)
            ]
            found[name] = sums_D[0] / sums_D[1]
    logs = [np.log(np.maximum(b.latency_s_N, 1e-6)) for b in blocks]
    low, high = min(x.min(initial=0.0) for x in logs), max(x.max(initial=-20.0) for x in logs)
    edges = np.linspace(low, max(high, low) + BIN, 2 + int((max(high, low) - low) / BIN))
    below_DK = np.cumsum(weight_DB @ np.array([np.histogram(x, edges)[0] for x in logs], dtype=float), axis=1)
    for name, q in QUANTILES.items():
        bin_D = (below_DK < q * below_DK[:, -1:]).sum(axis=1)
        found[name] = np.exp(edges[np.minimum(bin_D, len(edges) - 2)] + 0.5 * BIN)
    return found


def weights(blocks: int, rng: np.random.Generator) -> Floats:
    """Return how often each of the blocks is drawn, with replacement, [DRAWS, blocks]."""
    return rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), DRAWS).astype(float)


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
    parts = [weights(n, rng) for n in (half, len(real) - half) if n]
    real_D, sim_D = drawn(real, np.hstack(parts)), drawn(simulated, weights(len(simulated), rng))
    one, other = measured(real), measured(simulated)
    rows = []
    for name in MEASURES:
        with np.errstate(divide="ignore", invalid="ignore"):
            error_D = sim_D[name] / real_D[name] - 1.0
            error = float(np.divide(other[name], one[name]) - 1.0)
        error_D = error_D[np.isfinite(error_D)]
        low, high = np.quantile(error_D, [0.025, 0.975]) if len(error_D) else (math.nan, math.nan)
        rows.append(
            Row(
                case=case.name,
                measure=name,
                real=one[name],
                sim=other[name],
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
