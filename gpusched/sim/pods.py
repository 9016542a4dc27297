"""Deployment, ReplicaSet and pod life: what is created, started, drained and killed. Compiled; seldom called.

Every wait has its source in the service profile; the order of the steps follows Kubernetes 1.36.
"""

from __future__ import annotations

import math

from gpusched.sim.fleet import accrue, cpu, gpu
from gpusched.sim.primitives import fork, jit, merge, resource_sync, uniform
from gpusched.sim.records import (
    DEPLOY,
    FREE,
    INF,
    NEIGHBOURS,
    NONE_YET,
    PENDING,
    READY,
    RUNNING,
    SCHEDULED,
    TERMINATING,
    Env,
)
from gpusched.sim.schedule import draw_start_s

CADVISOR_BASE_S = 10.0
"""cAdvisor housekeeping: each wait is uniform in [base, 2·base) (vendor cadvisor nextHousekeepingInterval)."""
RELIST_S = 1.0
"""The kubelet looks for dead containers this often (generic PLEG)."""
BACKOFF_FIRST_S, BACKOFF_MOST_S = 10.0, 300.0
"""CrashLoopBackOff: the first restart is immediate, the next waits 10 s, then twice as long each time up to 300 s;
a container that ran for twice the most starts anew (kubelet doBackOff, client-go util/flowcontrol/backoff.go)."""


@jit
def reconcile_deployment(env: Env, e: int, t: float) -> None:
    """Create and delete pods until the ReplicaSets match the Deployment (rolling update, surge before removal)."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    accrue(env, e, t)
    new, old, ready = 0, 0, 0
    for p in range(sim.pods):
        if FREE < pods[p].state < TERMINATING:
            if pods[p].revision == sim.revision:
                new += 1
            else:
                old += 1
            if pods[p].state == READY:
                ready += 1
    surge, spare = 0, 0
    if old > 0:
        surge = -((-sim.surge_percent * sim.replicas) // 100)  # rounded up
        spare = (sim.unavailable_percent * sim.replicas) // 100  # rounded down
        if surge == 0 and spare == 0:
            spare = 1
    for _ in range(min(sim.replicas - new, sim.replicas + surge - new - old)):
        create_pod(env, e, t)
    for _ in range(new - sim.replicas):
        delete_pod(env, e, victim(env, e, t, sim.revision, True), t)
    if old > 0:
        # Old pods that serve nobody go first; ready ones only as far as enough others are ready.
        for _ in range(old):
            p = victim(env, e, t, sim.revision, False)
            if pods[p].state == READY:
                if ready <= sim.replicas - spare:
                    break
                ready -= 1
            delete_pod(env, e, p, t)
    accrue(env, e, t)


@jit
def create_pod(env: Env, e: int, t: float) -> None:
    """Create one pod of the current template in a free slot, for the scheduler; without a slot the controller tries again later."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    for p in range(sim.pods):
        if pods[p].state == FREE:
            pod, meter = pods[p], env.meters_EP[e][p]
            sim.uid += 1
            pod.uid = sim.uid
            pod.rng = fork(sim.pod_key, sim.uid)
            pod.state = PENDING
            pod.revision = sim.revision
            pod.created_s = pod.turned_s = t
            pod.instances = sim.instances
            pod.share = sim.gpu_share
            pod.vram_bytes = sim.pod_vram_bytes + (sim.instances - 1) * sim.instance_vram_bytes
            pod.life_s = pod.endpoint_s = pod.batch_s = pod.advisor_s = INF
            pod.sigterm_s = pod.kill_s = INF
            pod.admitted_s = pod.up_s = pod.ready_s = meter.older_s = meter.newer_s = -INF
            pod.endpoint = -1
            pod.queued = pod.in_flight = pod.restarts = meter.readings = 0
            pod.free = -1
            sim.unscheduled = 1
            return


@jit
def victim(env: Env, e: int, t: float, revision: int, same: bool) -> int:
    """The pod ReplicaSet deletes next: not scheduled, not running, not ready, ready for a shorter time, restarted, younger.

    Times are compared by power of two and ties fall to a hash of the UID (controller_utils.go ActivePodsWithRanks).
    """
    sim, pods = env.sim_E[e], env.pods_EP[e]
    best, best_rank, best_hash = -1, INF, 0
    for p in range(sim.pods):
        pod = pods[p]
        if not FREE < pod.state < TERMINATING or (pod.revision == revision) != same:
            continue
        age_s = max(t - (pod.ready_s if pod.state == READY else pod.created_s), 0.0)
        state = (
            max(pod.state, RUNNING) if pod.restarts > 0 else pod.state
        )  # a crashed pod's phase is still Running
        rank = state * 100.0 + math.floor(math.log2(age_s + 1.0)) - min(pod.restarts, 99) * 0.01
        tie = (pod.uid * 2654435761) & 0xFFFF
        if best < 0 or rank < best_rank or (rank == best_rank and tie < best_hash):
            best, best_rank, best_hash = p, rank, tie
    return best


@jit
def delete_pod(env: Env, e: int, p: int, t: float) -> None:
    """Start a pod's graceful end: endpoint removal and preStop run in parallel, SIGTERM after it, SIGKILL at grace."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    pod = pods[p]
    accrue(env, e, t)
    if pod.state < RUNNING:  # nothing runs yet, nothing to drain
        free_pod(env, e, p, t)
        return
    pod.state = TERMINATING
    pod.endpoint_s = t + sim.endpoint_min_s + sim.endpoint_span_s * uniform(pod) if pod.endpoint >= 0 else INF
    pod.sigterm_s = t + sim.prestop_s
    pod.kill_s = t + max(sim.grace_s, sim.prestop_s)
    pod.life_s = pod.sigterm_s


@jit
def free_pod(env: Env, e: int, p: int, t: float) -> None:
    """Give back all a pod held, keep its CPU time in the service's counter, and wake the scheduler."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    accrue(env, e, t)
    clear_cpu(env, e, p, t)
    if pods[p].endpoint >= 0:
        remove_endpoint(env, e, p)
    pods[p].state = FREE
    pods[p].batch_s = pods[p].advisor_s = INF
    accrue(env, e, t)
    sim.slow_s[DEPLOY] = min(sim.slow_s[DEPLOY], t + sim.api_delay_s)
    sim.unscheduled = 1


@jit
def clear_cpu(env: Env, e: int, p: int, t: float) -> None:
    """The container's process is gone; what it used stays in the service's counter."""
    own = cpu(env, e, p)
    resource_sync(own, t)
    env.sim_E[e].cpu_gone_s += own.used_s
    own.used_s = 0.0
    own.jobs = 0
    own.root = -1
    own.virtual_s = 0.0
    own.throttled = 0


@jit
def life_event(env: Env, e: int, p: int, t: float, broken: int) -> int:
    """The next stage of a pod: process up, Ready, told to stop, drained or killed."""
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    if pod.state == SCHEDULED:
        start_process(env, e, p, t)
    elif pod.state == RUNNING:
        pod.state = READY
        pod.ready_s = pod.turned_s = t
        pod.life_s = INF
        pod.endpoint_s = t + sim.endpoint_min_s + sim.endpoint_span_s * uniform(pod)
        if sim.mps:
            device = gpu(env, e, pod.gpu)
            resource_sync(device, t)
            device.per_job = pod.share * sim.gpu_speed
        sim.slow_s[DEPLOY] = min(sim.slow_s[DEPLOY], t + sim.api_delay_s)
    elif t >= pod.sigterm_s and pod.in_flight == 0:
        if pod.endpoint >= 0:
            pod.life_s = pod.endpoint_s  # until then connections still come, and are refused
        else:
            free_pod(env, e, p, t)
    elif t >= pod.kill_s:
        broken = break_requests(env, e, p, t, broken)
        free_pod(env, e, p, t)
    else:
        pod.life_s = pod.kill_s
    return broken


@jit
def start_process(env: Env, e: int, p: int, t: float) -> None:
    """The container runs and Triton is up; the readiness probe finds that out at its own pace."""
    sim, pod, own = env.sim_E[e], env.pods_EP[e][p], cpu(env, e, p)
    pod.state = RUNNING
    pod.life_s = t + sim.probe_delay_s + sim.probe_period_s * uniform(pod)
    pod.advisor_s = t + CADVISOR_BASE_S * uniform(pod)
    open_instances(env, e, p)
    own.last_s = t
    own.capacity = sim.cpu_applied
    own.per_job = 1.0
    own.period_s = sim.cfs_period_s
    own.period_end_s = t + sim.cfs_period_s
    own.quota_s = sim.cpu_applied * sim.cfs_period_s
    own.busy_s = 0.0


@jit
def open_instances(env: Env, e: int, p: int) -> None:
    """Chain the pod's instances into its list of free ones."""
    sim, pod, instances = env.sim_E[e], env.pods_EP[e][p], env.instances_FI[env.sim_E[e].fleet]
    first = (sim.first_pod + p) * sim.instances_max
    for k in range(pod.instances):
        instances[first + k].head = first + k + 1 if k + 1 < pod.instances else -1
        instances[first + k].size = 0
        instances[first + k].on_gpu = 0
    pod.free = first
    pod.ahead = pod.first_closed = pod.closed = pod.wanted = 0
    pod.current, pod.awake = NONE_YET, 0


@jit
def endpoint_event(env: Env, e: int, p: int) -> None:
    """kube-proxy learns that a pod became ready, is terminating, or no longer ready."""
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    accrue(env, e, pod.endpoint_s)
    pod.endpoint_s = INF
    if pod.state == READY and pod.endpoint < 0:
        env.pods_EP[e][sim.endpoints].listed = sim.first_pod + p
        pod.endpoint = sim.endpoints
        sim.endpoints += 1
    elif pod.state != READY and pod.endpoint >= 0:
        remove_endpoint(env, e, p)


@jit
def remove_endpoint(env: Env, e: int, p: int) -> None:
    """Take a pod out of the Service's endpoints."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    sim.endpoints -= 1
    last, place = pods[sim.endpoints].listed, pods[p].endpoint
    pods[place].listed = last
    pods[last - sim.first_pod].endpoint = place
    pods[p].endpoint = -1


@jit
def break_requests(env: Env, e: int, p: int, t: float, broken: int) -> int:
    """The process dies: every request still in the pod fails; returns the chain of their users in front of `broken`."""
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    instances = env.instances_FI[sim.fleet]
    users = env.users_EU[sim.lead : sim.lead + sim.services].reshape(sim.services * env.users_EU.shape[1])
    first = (sim.first_pod + p) * sim.instances_max
    for k in range(first, first + pod.instances):
        on_gpu = instances[k].on_gpu == 1
        if instances[k].size > 0:
            u = instances[k].head
            for _ in range(instances[k].size):
                following = users[u].next
                users[u].next = broken
                broken = u
                u = following
            instances[k].size = 0
        if on_gpu:
            instances[k].on_gpu = 0
            rebuild_gpu(env, e, pod.gpu, t)
    u = pod.head
    for _ in range(pod.queued):
        following = users[u].next
        users[u].next = broken
        broken = u
        u = following
    sim.in_flight -= pod.in_flight
    pod.queued = pod.in_flight = 0
    return broken


@jit
def restart_container(env: Env, e: int, p: int, t: float) -> None:
    """The container of a ready pod, rid of its requests, has died and is restarted: at once, or after its back-off.

    kube-proxy hears of it once the kubelet has noticed; until then connections come, and are refused.
    """
    sim, pod, users, meter = env.sim_E[e], env.pods_EP[e][p], env.users_EU[e], env.meters_EP[e][p]
    for u in range(len(users)):
        if users[u].pod == sim.first_pod + p and users[u].uid == pod.uid:
            users[u].left = 0  # its kept-alive connection is closed
    clear_cpu(env, e, p, t)
    noticed_s = t + RELIST_S * uniform(pod)
    lag_s = sim.endpoint_min_s + sim.endpoint_span_s * uniform(pod)
    again = pod.restarts > 0 and t - pod.backoff_at_s <= 2.0 * BACKOFF_MOST_S
    restart_s = max(noticed_s, t + pod.backoff_s) if again else noticed_s
    pod.backoff_s = min(2.0 * pod.backoff_s, BACKOFF_MOST_S) if again else BACKOFF_FIRST_S
    pod.backoff_at_s = restart_s
    pod.restarts += 1
    pod.state = SCHEDULED
    pod.ready_s, pod.turned_s = -INF, t
    pod.endpoint_s = noticed_s + lag_s if pod.endpoint >= 0 else INF
    pod.batch_s = pod.advisor_s = INF
    pod.up_s = pod.life_s = restart_s + draw_start_s(sim, pod)
    meter.readings = 0


@jit
def rebuild_gpu(env: Env, e: int, g: int, t: float) -> None:
    """Collect the jobs of a GPU anew, those of foreign processes among them; these never end by themselves."""
    sim, device = env.sim_E[e], gpu(env, e, g)
    nodes = env.instances_FI[sim.fleet]
    resource_sync(device, t)
    device.root, device.jobs = -1, 0
    for s in range(sim.services):
        pods = env.pods_EP[sim.lead + s]
        for p in range(sim.pods):
            if pods[p].state < RUNNING or pods[p].gpu != g:
                continue
            first = (s * sim.pods + p) * sim.instances_max
            for k in range(first, first + pods[p].instances):
                if nodes[k].on_gpu == 1:
                    nodes[k].left = nodes[k].right = -1
                    device.root = merge(nodes, device.root, k)
                    device.jobs += 1
    first = sim.services * sim.pods * sim.instances_max + g * NEIGHBOURS
    for k in range(first, first + sim.neighbours):
        nodes[k].key = INF
        nodes[k].left = nodes[k].right = -1
        device.root = merge(nodes, device.root, k)
        device.jobs += 1


@jit
def apply_resize(env: Env, e: int, t: float) -> None:
    """The kubelet applies a new CPU limit in place: a fresh quota for the running period, and nobody stays throttled.

    (Linux kernel/sched/core.c, tg_set_cfs_bandwidth)
    """
    sim, pods = env.sim_E[e], env.pods_EP[e]
    accrue(env, e, t)
    for p in range(sim.pods):
        if pods[p].state >= RUNNING:
            own = cpu(env, e, p)
            resource_sync(own, t)
            own.capacity = sim.cpu_limit
            own.quota_s = sim.cpu_limit * own.period_s
            own.throttled = 0
    sim.cpu_applied = sim.cpu_limit
