"""What the event loop asks of kube-proxy and Triton: a pod for a request, a batch, its GPU time. Compiled."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from gpusched.sim.primitives import at, jit, normal, uniform
from gpusched.sim.records import EXPONENTIAL, LOGNORMAL, READY, TERMINATING


@jit
def batch_size(queued: int, due: bool, sim: Any) -> int:
    """Requests Triton's dynamic batcher sends now, 0 to wait (dynamic_batch_scheduler.cc, GetDynamicBatch).

    Batches form when an instance is idle. Triton closes up to two batches ahead where it has no queue policy; without a
    queue delay and preferred sizes these are the same. `due`: the oldest request has waited for the queue delay.
    """
    total = min(queued, sim.max_batch)
    preferred = total
    while preferred > 0 and not (sim.preferred_mask >> preferred) & 1:
        preferred -= 1
    if preferred > 0 and (not due or sim.queue_delay_s == 0.0):
        return int(preferred)
    if queued > sim.max_batch or total >= sim.preferred_max or due:
        return int(total)
    return 0


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
