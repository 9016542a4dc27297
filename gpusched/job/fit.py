"""Service constants from measurements: pure functions, each with the 95 % interval of what it returns.

Intervals are percentile bootstraps over stretches of time, so what changes slowly (another program, a warmer
processor) widens them; requests of one stretch are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from gpusched.core.errors import GateError
from gpusched.job.measure import Floats, Stretch

DRAWS = 1000
LEVEL = 0.95
SIGMA_MIN, SIGMA_MAX = 0.05, 4.0
LEAST_S = 1e-5
Z95, Z99 = 1.6448536269514722, 2.3263478740408408
"""Standard normal quantiles."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval and how many stretches it rests on."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    of: Callable[[Sequence[Stretch]], Floats],
    stretches: Sequence[Stretch],
    rng: np.random.Generator,
) -> list[Estimate]:
    """Return each component of a statistic of the stretches, drawn again with replacement within each level.

    A draw that lacks what the statistic needs (GateError) is left out.
    """
    levels = sorted({s.users for s in stretches})
    groups = [[s for s in stretches if s.users == level] for level in levels]

    values = np.atleast_1d(of(stretches))
    drawn = []
    for _ in range(DRAWS):
        again = [group[i] for group in groups for i in rng.integers(0, len(group), len(group))]
        with suppress(GateError):
            drawn.append(np.atleast_1d(of(again)))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        Estimate(value=float(v), low=float(a), high=float(b), n=len(stretches))
        for v, a, b in zip(values, low, high, strict=True)
    ]


def affine(stretches: Sequence[Stretch]) -> Floats:
    """Return alpha and beta of a batch's time in an instance, alpha + beta·b, least squares over executions."""
    totals: dict[int, list[float]] = {}
    for one in stretches:
        for b, n in one.stats.executions.items():
            if n:
                total = totals.setdefault(b, [0.0, 0.0])
                total[0] += n
                total[1] += one.stats.held_s[b]
    if len(totals) < 2:
        raise GateError(
            f"only batches of {list(totals)} were executed; a line through them needs two sizes. Raise job.users."
        )
    sizes = np.array(list(totals), dtype=float)
    counts, held_s = np.array(list(totals.values())).T
    return line(sizes, held_s / counts, counts)


def line(size_N: Floats, time_s_N: Floats, weight_N: Floats) -> Floats:
    """Return alpha and beta of alpha + beta·size, weighted least squares with neither below 0, as no time is."""
    beta, alpha = np.polyfit(size_N, time_s_N, 1, w=np.sqrt(weight_N))
    if beta < 0.0:
        alpha, beta = np.average(time_s_N, weights=weight_N), 0.0
    elif alpha < 0.0:
        alpha, beta = 0.0, (weight_N * size_N * time_s_N).sum() / (weight_N * size_N**2).sum()
    return np.array([alpha, beta])


def between(stretches: Sequence[Stretch], instances: int) -> Floats:
    """Return alpha and beta of the time between two batches of an instance that always has work, alpha + beta·b.

    It is what Triton's own times leave out; a large batch brings more answers to send and requests to take in. Of one size
    only, all of it is alpha.
    """
    rows = []
    for one in stretches:
        if executions := sum(one.stats.executions.values()):
            items = sum(b * n for b, n in one.stats.executions.items())
            rest_s = instances * one.span_s - sum(one.stats.held_s.values())
            rows.append((items / executions, rest_s / executions, executions))
    if not rows:
        return np.zeros(2)
    size, rest_s, weight = np.array(rows).T
    mean_s = max(float(np.average(rest_s, weights=weight)), 0.0)
    if np.ptp(size) < 1.0:
        return np.array([mean_s, 0.0])
    beta = float(np.polyfit(size, rest_s, 1, w=np.sqrt(weight))[0])
    middle = float(np.average(size, weights=weight))
    beta = min(max(beta, 0.0), mean_s / middle)  # neither part below 0, and the mean as it was seen
    return np.array([mean_s - beta * middle, beta])


def client(stretches: Sequence[Stretch], held_s: float) -> Floats:
    """Return client_s, client_tail_median_s and client_tail_sigma of a lone user.

    `held_s` is what the profile says a batch of one takes. The constants reproduce the lone user's p50, p95 and p99
    with what the simulator has: a constant and one lognormal.
    """
    p50, p95, p99 = np.quantile(np.concatenate([s.latency_s_N for s in stretches]), [0.5, 0.95, 0.99])
    above_s = max(p50 - held_s, LEAST_S)  # what constant and tail share at the median
    sigma = _sigma((p99 - p50) / max(p95 - p50, 1e-12))
    median_s = (p95 - p50) / np.expm1(Z95 * sigma)
    if median_s > above_s:  # a tail that short has no such median: it gives p50 and p95, and p99 as it comes
        median_s, sigma = above_s, max(np.log1p((p95 - p50) / above_s) / Z95, SIGMA_MIN)
    return np.array([above_s - median_s, median_s, sigma])


def _sigma(ratio: float) -> float:
    """Return the lognormal's sigma for which (q99 - q50) / (q95 - q50) is `ratio`; it grows with sigma."""
    low, high = SIGMA_MIN, SIGMA_MAX
    for _ in range(60):
        middle = 0.5 * (low + high)
        if np.expm1(Z99 * middle) / np.expm1(Z95 * middle) < ratio:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def mean(values: Sequence[float], rng: np.random.Generator) -> Estimate:
    """Return the mean of a few values and its bootstrap interval."""
    array = np.asarray(values, dtype=float)
    drawn = array[rng.integers(0, len(array), (DRAWS, len(array)))].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(array.mean()), low=float(low), high=float(high), n=len(array))


def gpu_line(stretches: Sequence[Stretch], gpus: int) -> Floats:
    """Return alpha and beta of a batch's GPU time, from how long the GPU was busy; zeros where none was seen."""
    points = []
    for one in stretches:
        batches = sum(one.stats.executions.values())
        items = sum(b * n for b, n in one.stats.executions.items())
        if batches and np.isfinite(one.gpu_busy):
            points.append((items / batches, gpus * one.gpu_busy * one.span_s / batches, batches))
    if len(points) < 2:
        return np.zeros(2)
    size, busy_s, weight = np.array(points).T
    return line(size, busy_s, weight)
