"""What the event loop asks of kube-proxy and Triton: a pod for a request, a batch, its GPU time. Compiled."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from gpusched.sim.primitives import at, jit, normal, uniform
from gpusched.sim.records import (
    CLOSED,
    EXPONENTIAL,
    GROWING,
    INF,
    LOGNORMAL,
    NONE_YET,
    READY,
    TERMINATING,
)


@jit
def is_preferred(sim: Any, size: int) -> bool:
    """Whether a batch of so many requests (1 to 64) has one of the preferred sizes."""
    return (sim.preferred_mask >> at(size - 1)) & at(1) != at(0)


@jit
def batch_size(queued: int, due: bool, sim: Any) -> int:
    """Requests Triton's dynamic batcher sends now, 0 to wait (dynamic_batch_scheduler.cc, GetDynamicBatch).

    For a batcher that forms batches when an instance is idle: one with a queue policy. `due`: the oldest request has
    waited for the queue delay.
    """
    total = min(queued, sim.max_batch)
    preferred = total
    while preferred > 0 and not is_preferred(sim, preferred):
        preferred -= 1
    if preferred > 0 and (not due or sim.queue_delay_s == 0.0):
        return int(preferred)
    if queued > sim.max_batch or total >= sim.preferred_max or due:
        return int(total)
    return 0


# --- batches ahead of time ---
#
# Without a queue policy the batcher runs ahead (dynamic_batch_scheduler.cc, BatcherThread; rate_limiter.cc,
# PayloadSlotAvailable): while the instances work it closes batches, at most two per instance, and goes on adding to the
# last one until an instance takes it. Without a queue delay and preferred sizes that comes to what `batch_size` says.


@jit
def wake_batcher(pod: Any) -> None:
    """A request has joined the queue: the batcher looks only if it can do something (Enqueue)."""
    if pod.closed < 2 * pod.instances and (pod.current == CLOSED or pod.queued - pod.ahead >= pod.wanted):
        pod.awake = 1


@jit
def next_batch(sim: Any, pod: Any, users: NDArray[Any], instances: NDArray[Any], first: int, t: float) -> int:
    """Let the batcher work, and return how many requests an idle instance takes now, 0 for none.

    Instances come first: they take a batch before the batcher hears of anything. `first`: the pod's first instance.
    """
    while True:
        if pod.free >= 0 and pod.closed > 0:
            return take_batch(sim, pod, users, instances, first, t)
        if pod.awake == 0:
            return 0
        if pod.current == CLOSED:
            pod.current = NONE_YET
            pod.wanted = 0
        if pod.queued == pod.ahead or pod.closed == 2 * pod.instances:
            pod.awake = 0
            pod.batch_s = INF
            return 0
        grow_batch(sim, pod, users, instances, first, t)


@jit
def take_batch(sim: Any, pod: Any, users: NDArray[Any], instances: NDArray[Any], first: int, t: float) -> int:
    """Take the first closed batch, and with a queue delay those behind it that are overdue, as far as they fit.

    The first one that does not fit stays and can no longer grow (instance_queue.cc, Dequeue).
    """
    size = drop_batch(pod, instances, first)
    u, walked = pod.head, 0
    while sim.queue_delay_s > 0.0 and pod.closed > 0:
        while walked < size:
            u = users[at(u)].next
            walked += 1
        if t < users[at(u)].enqueue_s + sim.queue_delay_s:
            break
        following = instances[at(first + (pod.first_closed >> 1))].closed[pod.first_closed & 1]
        if pod.closed == 1 and pod.current == GROWING:
            pod.current = CLOSED
        if size + following > sim.max_batch:
            break
        size += drop_batch(pod, instances, first)
    pod.ahead -= size
    pod.awake = 1
    return size


@jit
def drop_batch(pod: Any, instances: NDArray[Any], first: int) -> int:
    """Take the first closed batch off the ring and return its size."""
    k = pod.first_closed
    size = int(instances[at(first + (k >> 1))].closed[k & 1])
    pod.first_closed = (k + 1) % (2 * pod.instances)
    pod.closed -= 1
    if pod.closed == 0 and pod.current == GROWING:
        pod.current = CLOSED
    return size


@jit
def grow_batch(
    sim: Any, pod: Any, users: NDArray[Any], instances: NDArray[Any], first: int, t: float
) -> None:
    """Add waiting requests to the current batch, or go to sleep until the queue delay is over (GetDynamicBatch)."""
    last = (pod.first_closed + pod.closed - (1 if pod.current == GROWING else 0)) % (2 * pod.instances)
    held = int(instances[at(first + (last >> 1))].closed[last & 1]) if pod.current == GROWING else 0
    waiting, most = pod.queued - pod.ahead, sim.preferred_max
    best, more, full, closed = 0, 0, False, False
    while more < waiting:
        if held + more > 0:
            if held + more + 1 > most and best == 0:
                best, closed = more, True
            if held + more + 1 > sim.max_batch:
                full = True
                break
        more += 1
        if is_preferred(sim, held + more):
            best = more
    due_s = users[at(pod.waiting)].enqueue_s + sim.queue_delay_s
    due = sim.queue_delay_s > 0.0 and t >= due_s
    if best > 0 and not due:
        more = best
        closed = closed or sim.queue_delay_s == 0.0
    elif more > 0 and (full or held + more >= most):
        closed = True
    elif more > 0 and not due and sim.queue_delay_s > 0.0:
        wanted = held + more + 1
        while not is_preferred(sim, wanted):
            wanted += 1
        pod.wanted = wanted - held
        if closed or held == 0 or is_preferred(sim, held):
            pod.batch_s = due_s
            pod.awake = 0
            return
    if more > 0:
        instances[at(first + (last >> 1))].closed[last & 1] = held + more
        if pod.current == NONE_YET:
            pod.closed += 1
            pod.current = GROWING
        pod.ahead += more
        u = pod.waiting
        for _ in range(more):
            u = users[at(u)].next
        pod.waiting = u
    if closed:
        pod.current = CLOSED


@jit
def gpu_work_s(sim: Any, pod: Any, size: int) -> float:
    """GPU time of one batch: alpha + beta·b, with the profile's scatter."""
    mean_s = sim.gpu_alpha_s + sim.gpu_beta_s * size
    if sim.gpu_dist == LOGNORMAL:
        return float(mean_s * math.exp(sim.gpu_sigma * normal(pod) - 0.5 * sim.gpu_sigma * sim.gpu_sigma))
    if sim.gpu_dist == EXPONENTIAL:
        return float(-mean_s * math.log(uniform(pod)))
    return float(mean_s)


@jit
def choose_pod(sim: Any, user: Any, pods: NDArray[Any], t: float) -> int:
    """The pod a request goes to: that of the kept-alive connection, else a random endpoint; -1 without one.

    kube-proxy (iptables, nftables) chooses uniformly per connection; a connection outlives its endpoint
    until the pod's process is told to stop.
    """
    u = uniform(user)  # drawn every time, so streams stay aligned whatever a policy does to connections
    if user.left > 0:
        pod = pods[at(user.pod)]
        if pod.uid == user.uid and (pod.state == READY or (pod.state == TERMINATING and t < pod.sigterm_s)):
            user.left -= 1
            return int(user.pod)
    if sim.endpoints == 0:
        return -1
    p = pods[at(sim.first_pod + min(int(u * sim.endpoints), sim.endpoints - 1))].listed
    user.left = 0
    if pods[at(p)].state != READY and (pods[at(p)].state != TERMINATING or t >= pods[at(p)].sigterm_s):
        return -1  # kube-proxy has not heard of the end yet: connection refused
    user.pod = p
    user.uid = pods[at(p)].uid
    user.left = sim.connection_requests - 1 if sim.connection_requests > 0 else 1 << 30
    return int(p)
