"""Compiled building blocks of the engine: random streams, shared processors, heaps, the event tree, histograms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gpusched.sim.records import BINS, INF

entry = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
"""For what Python calls. Without numba's runtime: views need no reference counts, and nothing may allocate."""
jit = njit(nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what only compiled code calls: half the compile time, and its cache is its caller's. Python must not call it."""
kept = njit(
    cache=True, nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""As `jit`, with a cache of its own: for what is much to compile and has several callers, in whatever process."""
inlined = njit(
    nogil=True,
    error_model="numpy",
    _nrt=False,
    inline="always",
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
"""As `jit`, for what has one caller and calls much: numba writes it into the caller."""
allocating = njit(nogil=True, error_model="numpy", _nrt=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""As `jit`, for what needs memory of its own."""

at = np.uint64
"""An index that is never negative: with a signed one numba asks at every access whether to count from the end."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


# --- random streams: one splitmix64 counter per record (Steele, Lea, Flood, OOPSLA 2014) ---


@jit
def uniform(rec: Any) -> float:
    """Draw from (0, 1) and advance the record's stream."""
    z = rec.rng + _GOLDEN
    rec.rng = z
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    z = z ^ (z >> _S31)
    return (np.float64(z >> _S11) + 0.5) * 1.1102230246251565e-16


@jit
def fork(key: Any, k: int) -> Any:
    """Return the state of stream k under a key.

    The index goes through the mixer: states a constant apart would give the same stream shifted by one draw.
    """
    z = key + np.uint64(k) * np.uint64(0xD1342543DE82EF95)
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@jit
def normal(rec: Any) -> float:
    """Draw a standard normal by inversion (Acklam's rational approximation, relative error 1.2e-9).

    One uniform per draw keeps streams aligned between policies, which polar methods do not.
    """
    p = uniform(rec)
    q = min(p, 1.0 - p)
    if q > 0.02425:
        c = p - 0.5
        r = c * c
        above = (((((-3.969683028665376e01 * r + 2.209460984245205e02) * r - 2.759285104469687e02) * r
                   + 1.383577518672690e02) * r - 3.066479806614716e01) * r + 2.506628277459239e00) * c  # fmt: skip
        below = ((((-5.447609879822406e01 * r + 1.615858368580409e02) * r - 1.556989798598866e02) * r
                  + 6.680131188771972e01) * r - 1.328068155288572e01) * r + 1.0  # fmt: skip
        return above / below
    s = math.sqrt(-2.0 * math.log(q))
    above = ((((-7.784894002430293e-03 * s - 3.223964580411365e-01) * s - 2.400758277161838e00) * s
              - 2.549732539343734e00) * s + 4.374664141464968e00) * s + 2.938163982698783e00  # fmt: skip
    below = (((7.784695709041462e-03 * s + 3.224671290700398e-01) * s + 2.445134137142996e00) * s
             + 3.754408661907416e00) * s + 1.0  # fmt: skip
    return above / below if p < 0.5 else -above / below


# --- shared processors ---
#
# virtual_s is the work every present job has received; a job is done when it reaches the job's key.
# A pod's CPU runs each job on a thread of its own until the CFS quota of the period is spent, then all
# threads stop until the next period. A GPU (period 0) gives its jobs equal shares, at most per_job each,
# and loses some capacity to switching (time-slicing) or interference (MPS) once it is shared.


@jit
def share_rate(r: Any) -> float:
    """Work per second that each job of a resource receives while it is not throttled."""
    if r.period_s > 0.0:
        return 1.0
    if r.jobs <= 1:
        return min(r.per_job, r.capacity)
    loss = 1.0 + r.shared_loss + r.loss_per_job * (r.jobs - 1)
    return min(r.per_job, r.capacity / (loss * r.jobs))


@jit
def resource_sync(r: Any, t: float) -> None:
    """Bring the resource's account to time t; no job may end before t, and `rate` must be that of its jobs."""
    dt = t - r.last_s
    r.last_s = t
    if r.jobs > 0 and r.throttled == 0:
        r.virtual_s += dt * r.rate
        r.used_s += dt * r.rate * r.jobs
        r.quota_s -= dt * r.jobs
    if r.jobs > 0:
        r.busy_s += dt
    if r.period_s > 0.0 and t >= r.period_end_s:
        _refill(r, t)


@jit
def _refill(r: Any, t: float) -> None:
    r.period_end_s += (math.floor((t - r.period_end_s) / r.period_s) + 1.0) * r.period_s
    spent = 0.0 if r.throttled else r.jobs * (t - (r.period_end_s - r.period_s))
    r.quota_s = r.capacity * r.period_s - spent
    r.throttled = 0


@jit
def resource_edge(r: Any) -> float:
    """Time at which the CFS quota runs out or is refilled, INF where that cannot matter."""
    if r.period_s <= 0.0 or r.jobs == 0:
        return INF
    if r.throttled == 1:
        return float(r.period_end_s)
    if r.quota_s >= r.jobs * (r.period_end_s - r.last_s) - 1e-12:
        return INF if r.jobs <= r.capacity else float(r.period_end_s)
    return min(r.last_s + max(r.quota_s, 0.0) / r.jobs, r.period_end_s)


@jit
def resource_done(r: Any, nodes: NDArray[Any]) -> float:
    """Time at which the first job would end if nothing else happened, INF without a job."""
    if r.jobs == 0 or r.throttled == 1:
        return INF
    left = nodes[at(r.root)].key - r.virtual_s
    return float(r.last_s + (left if r.period_s > 0.0 else left / r.rate))


@jit
def resource_pass_edge(r: Any, t: float) -> None:
    """Live through the event that `resource_edge` announced."""
    refilled = t >= r.period_end_s
    resource_sync(r, t)
    r.throttled = 0 if refilled else 1


@jit
def resource_add(r: Any, nodes: NDArray[Any], node: int, work_s: float, t: float) -> None:
    """Give the resource one more job."""
    resource_sync(r, t)
    rec = nodes[at(node)]
    rec.key = r.virtual_s + work_s
    rec.left = -1
    rec.right = -1
    r.root = node if r.jobs == 0 else merge(nodes, r.root, node)
    r.jobs += 1


@jit
def resource_pop(r: Any, nodes: NDArray[Any], t: float) -> int:
    """Take the job that ends at t off the resource and return its node."""
    resource_sync(r, t)
    node = r.root
    rec = nodes[at(node)]
    r.jobs -= 1
    if r.jobs == 0:
        r.root = -1
        r.virtual_s = 0.0  # an empty processor forgets its virtual time, so rounding never piles up
    else:
        r.virtual_s = rec.key
        r.root = merge(nodes, rec.left, rec.right)
    return int(node)


@jit
def merge(nodes: NDArray[Any], a: int, b: int) -> int:
    """Merge two skew heaps of jobs by key (Sleator, Tarjan 1986), top down; -1 is the empty heap."""
    if a < 0:
        return b
    if b < 0:
        return a
    if nodes[at(b)].key < nodes[at(a)].key:
        a, b = b, a
    root = a
    while True:
        rec = nodes[at(a)]
        right = rec.right
        rec.right = rec.left
        if right < 0:
            rec.left = b
            return root
        if nodes[at(b)].key < nodes[at(right)].key:
            right, b = b, right
        rec.left = right
        a = right


# --- 4-ary heap of the users' next arrivals ---


@jit
def heap_push(heap: NDArray[Any], n: int, t: float, user: int) -> None:
    """Insert (t, user) into a heap of n entries."""
    k = n
    while k > 0:
        parent = (k - 1) >> 2
        above = heap[at(parent)]
        if above.t <= t:
            break
        heap[at(k)].t = above.t
        heap[at(k)].user = above.user
        k = parent
    heap[at(k)].t = t
    heap[at(k)].user = user


@jit
def heap_drop(heap: NDArray[Any], n: int) -> None:
    """Remove the first of n entries; an empty heap's first time is INF."""
    n -= 1
    t = heap[at(n)].t if n > 0 else INF
    user = heap[at(n)].user
    k = 0
    while True:
        child = 4 * k + 1
        if child >= n:
            break
        best, best_t = child, heap[at(child)].t
        for c in range(child + 1, min(child + 4, n)):
            if heap[at(c)].t < best_t:
                best, best_t = c, heap[at(c)].t
        if best_t >= t:
            break
        heap[at(k)].t = best_t
        heap[at(k)].user = heap[at(best)].user
        k = best
    heap[at(k)].t = t
    heap[at(k)].user = user


# --- tournament tree over the processors; ties go to the lower leaf ---


@jit
def tree_set(tree: NDArray[Any], leaves: int, leaf: int, t: float) -> None:
    """Set the next time of one processor and replay its matches up to the root (index 1).

    The winner so far stays in registers: reading back what the level below stored takes most of a request's time. In a
    large tree the replay ends where a match has the winner it had; in a small one asking costs more than going on.
    """
    k = leaves + leaf
    large = leaves >= 64
    if tree[at(k)].t == t:
        return
    tree[at(k)].t = t
    while k > 1:
        other = tree[at(k ^ 1)]
        if other.t < t or (other.t == t and (k & 1) == 1):
            t, leaf = other.t, other.leaf
        k >>= 1
        if large and tree[at(k)].t == t and tree[at(k)].leaf == leaf:
            return
        tree[at(k)].t = t
        tree[at(k)].leaf = leaf


@jit
def copy_row(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy an array of one axis; a slice assignment would need numba's runtime."""
    for k in range(len(source)):
        target[k] = source[k]


# --- latency histogram ---


@jit
def bin_of(x: float) -> int:
    """Bin of a latency: the exponent and the first four mantissa bits, from 2^-10 s."""
    k: Any = (np.float64(x).view(np.int64) >> 48) - ((1023 - 10) << 4)
    return int(min(max(k, 0), BINS - 1))


@jit
def bin_edge(k: int) -> float:
    """Lower edge of a bin in seconds."""
    return float(2.0 ** ((k >> 4) - 10) * (1.0 + (k & 15) / 16.0))


@jit
def quantile(newer_B: NDArray[Any], older_B: NDArray[Any], q: float) -> float:
    """Quantile of what two cumulative histograms differ by, linear within a bin; NaN without a count."""
    total = 0
    for k in range(BINS):
        total += newer_B[k] - older_B[k]
    if total == 0:
        return math.nan
    rank = q * total
    below = 0.0
    for k in range(BINS):
        count = newer_B[k] - older_B[k]
        if count > 0 and below + count >= rank:
            return bin_edge(k) + (rank - below) / count * (bin_edge(k + 1) - bin_edge(k))
        below += count
    return bin_edge(np.int64(BINS))
