"""The control plane: load levels, Deployment, pod life, kubelet and metrics pipeline, HPA. Compiled; seldom called.

Every wait has its source in the service profile; the order of the steps follows Kubernetes 1.36
(ReplicaSet's deletion order, rolling update's surge, metrics-server's two-point CPU rate, DCGM's point sample).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpusched.sim import hpa
from gpusched.sim.hpa_replicas import NONE_MS, PHASE_PENDING, PHASE_RUNNING, READY_FALSE, READY_TRUE
from gpusched.sim.primitives import fork, heap_push, jit, merge, normal, resource_sync, uniform
from gpusched.sim.records import (
    DCGM_BEGIN, DCGM_END, DEPLOY, FREE, HPA_SYNC, INACTIVE, INF, LEVEL, METRICS_SERVER, PENDING, READY, RESIZE,
    RUNNING, SCHEDULED, SCRAPE, TERMINATING, THINKING, Env,
)  # fmt: skip

BY_CPU, BY_QUEUE, BY_IN_FLIGHT = 0, 1, 2
CADVISOR_BASE_S = 10.0
"""cAdvisor housekeeping: each wait is uniform in [base, 2·base) (vendor cadvisor nextHousekeepingInterval)."""
FRESH_CONTAINER_S = 10.0
"""metrics-server: a container's first sample needs this age (pkg/storage/pod.go)."""


@jit
def next_slow_s(env: Env, e: int) -> float:
    """Time of the next control-plane or pod-life event."""
    slow, pods = env.slow_E8[e], env.pods_EP[e]
    t = INF
    for k in range(len(slow)):
        t = min(t, slow[k])
    for p in range(env.sim_E[e].pods):
        if pods[p].state != FREE:
            t = min(t, pods[p].life_s, pods[p].advisor_s, pods[p].endpoint_s)
    return t


@jit
def slow_event(env: Env, e: int, t: float) -> int:
    """Live through everything due at t; returns the users whose requests it broke, chained by `next`, or -1."""
    sim, slow, pods = env.sim_E[e], env.slow_E8[e], env.pods_EP[e]
    broken = -1
    for p in range(sim.pods):
        if pods[p].state == FREE:
            continue
        if pods[p].endpoint_s <= t:
            endpoint_event(env, e, p)
        if pods[p].advisor_s <= t:
            advisor_event(env, e, p, t)
        if pods[p].life_s <= t:
            broken = life_event(env, e, p, t, broken)
    if slow[LEVEL] <= t:
        level_event(env, e, t)
    if slow[RESIZE] <= t:
        slow[RESIZE] = INF
        apply_resize(env, e, t)
    if slow[DEPLOY] <= t:
        slow[DEPLOY] = INF
        reconcile_deployment(env, e, t)
    if slow[METRICS_SERVER] <= t:
        slow[METRICS_SERVER] += sim.metrics_server_s
        for p in range(sim.pods):
            metrics_server_scrape(pods[p])
    if slow[SCRAPE] <= t:
        slow[SCRAPE] += sim.scrape_s
        scrape(env, e, t)
    if slow[DCGM_BEGIN] <= t:
        slow[DCGM_BEGIN] += sim.dcgm_s
        sim.dcgm_busy_s = gpu_busy_s(env, e, t)
    if slow[DCGM_END] <= t:
        slow[DCGM_END] += sim.dcgm_s
        sim.gpu_seen = (gpu_busy_s(env, e, t) - sim.dcgm_busy_s) / (sim.dcgm_window_s * sim.gpus)
        sim.gpu_seen_at_s = t
    if slow[HPA_SYNC] <= t:
        hpa_event(env, e, t)
    return broken


# --- load ---


@jit
def level_event(env: Env, e: int, t: float) -> None:
    """Change the number of users; new ones send first within one longest think time."""
    sim, users = env.sim_E[e], env.users_EU[e]
    level_s, level_users = env.level_s_EV[e], env.level_users_EV[e]
    target = level_users[sim.level]
    for u in range(sim.target_users, target):
        if users[u].state == INACTIVE:
            users[u].state = THINKING
            first_s = t + (sim.think_min_s + sim.think_span_s) * uniform(users[u]) + sim.half_client_s
            heap_push(env.events_EU[e], sim.events, first_s, u)
            sim.events += 1
    sim.target_users = target
    sim.level += 1
    env.slow_E8[e][LEVEL] = level_s[sim.level] if sim.level < len(level_s) else INF


# --- Deployment and ReplicaSet ---


@jit
def accrue(env: Env, e: int, t: float) -> None:
    """Add what the replicas held since the last change to the integrals."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    dt = t - sim.accrued_s
    sim.accrued_s = t
    alive, vram = 0, 0.0
    for p in range(sim.pods):
        if pods[p].state > PENDING:
            alive += 1
            vram += pods[p].vram_bytes
    sim.alive = alive
    sim.vram_bytes = vram
    sim.alive_s += dt * alive
    sim.ready_s += dt * sim.endpoints
    sim.limit_s += dt * alive * sim.cpu_applied
    sim.vram_s += dt * vram


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
    """Create one pod of the current template in a free slot; without a slot the controller tries again later."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    for p in range(sim.pods):
        if pods[p].state == FREE:
            pod = pods[p]
            sim.uid += 1
            pod.uid = sim.uid
            pod.rng = fork(sim.pod_key, sim.uid)
            pod.state = PENDING
            pod.revision = sim.revision
            pod.created_s = t
            pod.instances = sim.instances
            pod.share = sim.gpu_share
            pod.vram_bytes = sim.pod_vram_bytes + (sim.instances - 1) * sim.instance_vram_bytes
            pod.life_s = pod.endpoint_s = pod.batch_s = pod.advisor_s = INF
            pod.sigterm_s = pod.kill_s = INF
            pod.admitted_s = pod.up_s = pod.ready_s = pod.seen_s = pod.older_s = pod.newer_s = -INF
            pod.seen_used_s = pod.older_used_s = pod.newer_used_s = 0.0
            pod.endpoint = -1
            pod.queued = pod.in_flight = pod.scraped_in_flight = 0
            pod.free = -1
            schedule(env, e, p, t)
            return


@jit
def schedule(env: Env, e: int, p: int, t: float) -> None:
    """Bind a pending pod where its CPU request and a GPU ticket fit; else leave it pending.

    A time-slicing ticket stands for one replica's VRAM; a terminating pod holds its ticket until it is gone.
    Tickets are spread over the GPUs (device plugin's `distributed`).
    """
    sim, pods = env.sim_E[e], env.pods_EP[e]
    requested, best, least = 0.0, -1, INF
    for g in range(sim.gpus):
        used = 0.0
        for q in range(sim.pods):
            if pods[q].state > PENDING and pods[q].gpu == g:
                used += pods[q].vram_bytes
        if used + pods[p].vram_bytes <= sim.usable_vram_bytes and used < least:
            best, least = g, used
    for q in range(sim.pods):
        if pods[q].state > PENDING:
            requested += sim.cpu_limit * sim.request_per_limit
    if best < 0 or requested + sim.cpu_limit * sim.request_per_limit > sim.node_cpu_cores:
        return
    accrue(env, e, t)
    pods[p].gpu = best
    pods[p].state = SCHEDULED
    pods[p].admitted_s = t + sim.schedule_min_s + sim.schedule_span_s * uniform(pods[p])
    pods[p].up_s = pods[p].admitted_s + math.exp(sim.start_mu + sim.start_sigma * normal(pods[p]))
    pods[p].life_s = pods[p].up_s
    accrue(env, e, t)


@jit
def victim(env: Env, e: int, t: float, revision: int, same: bool) -> int:
    """The pod ReplicaSet deletes next: not scheduled, not running, not ready, ready for a shorter time, younger.

    Times are compared by power of two and ties fall to a hash of the UID (controller_utils.go ActivePodsWithRanks).
    """
    sim, pods = env.sim_E[e], env.pods_EP[e]
    best, best_rank, best_hash = -1, INF, 0
    for p in range(sim.pods):
        pod = pods[p]
        if not FREE < pod.state < TERMINATING or (pod.revision == revision) != same:
            continue
        age_s = max(t - (pod.ready_s if pod.state == READY else pod.created_s), 0.0)
        rank = pod.state * 100.0 + math.floor(math.log2(age_s + 1.0))
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
    """Give back all a pod held, keep its CPU time in the service's counter, and let pending pods try again."""
    sim, pods, cpu = env.sim_E[e], env.pods_EP[e], env.resources_ER[e][p]
    accrue(env, e, t)
    resource_sync(cpu, t)
    sim.cpu_gone_s += cpu.used_s
    cpu.used_s = 0.0
    cpu.jobs = 0
    cpu.root = -1
    cpu.virtual_s = 0.0
    cpu.throttled = 0
    if pods[p].endpoint >= 0:
        remove_endpoint(env, e, p)
    pods[p].state = FREE
    accrue(env, e, t)
    env.slow_E8[e][DEPLOY] = min(env.slow_E8[e][DEPLOY], t + sim.api_delay_s)
    for q in range(sim.pods):
        if pods[q].state == PENDING:
            schedule(env, e, q, t)


# --- pod life ---


@jit
def life_event(env: Env, e: int, p: int, t: float, broken: int) -> int:
    """The next stage of a pod: process up, Ready, told to stop, drained or killed."""
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    if pod.state == SCHEDULED:
        start_process(env, e, p, t)
    elif pod.state == RUNNING:
        pod.state = READY
        pod.ready_s = t
        pod.life_s = INF
        pod.endpoint_s = t + sim.endpoint_min_s + sim.endpoint_span_s * uniform(pod)
        if sim.mps:
            env.resources_ER[e][sim.pods + pod.gpu].per_job = pod.share
        env.slow_E8[e][DEPLOY] = min(env.slow_E8[e][DEPLOY], t + sim.api_delay_s)
    elif t >= pod.sigterm_s and pod.in_flight == 0:
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
    sim, pod, cpu = env.sim_E[e], env.pods_EP[e][p], env.resources_ER[e][p]
    pod.state = RUNNING
    pod.life_s = t + sim.probe_delay_s + sim.probe_period_s * uniform(pod)
    pod.advisor_s = t + CADVISOR_BASE_S * uniform(pod)
    open_instances(env, e, p)
    cpu.last_s = t
    cpu.capacity = sim.cpu_applied
    cpu.per_job = 1.0
    cpu.period_s = sim.cfs_period_s
    cpu.period_end_s = t + sim.cfs_period_s
    cpu.quota_s = sim.cpu_applied * sim.cfs_period_s
    cpu.busy_s = 0.0


@jit
def open_instances(env: Env, e: int, p: int) -> None:
    """Chain the pod's instances into its list of free ones."""
    sim, pod, instances = env.sim_E[e], env.pods_EP[e][p], env.instances_EPI[e]
    first = p * sim.instances_max
    for k in range(pod.instances):
        instances[first + k].head = first + k + 1 if k + 1 < pod.instances else -1
        instances[first + k].size = 0
        instances[first + k].on_gpu = 0
    pod.free = first


@jit
def endpoint_event(env: Env, e: int, p: int) -> None:
    """kube-proxy learns that a pod became ready or is terminating."""
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    accrue(env, e, pod.endpoint_s)
    pod.endpoint_s = INF
    if pod.state == READY and pod.endpoint < 0:
        env.endpoints_EP[e][sim.endpoints] = p
        pod.endpoint = sim.endpoints
        sim.endpoints += 1
    elif pod.state == TERMINATING and pod.endpoint >= 0:
        remove_endpoint(env, e, p)


@jit
def remove_endpoint(env: Env, e: int, p: int) -> None:
    """Take a pod out of the Service's endpoints."""
    sim, pods, endpoints = env.sim_E[e], env.pods_EP[e], env.endpoints_EP[e]
    sim.endpoints -= 1
    last = endpoints[sim.endpoints]
    endpoints[pods[p].endpoint] = last
    pods[last].endpoint = pods[p].endpoint
    pods[p].endpoint = -1


@jit
def break_requests(env: Env, e: int, p: int, t: float, broken: int) -> int:
    """SIGKILL: every request still in the pod fails; returns the chain of their users in front of `broken`."""
    sim, pod, users, instances = env.sim_E[e], env.pods_EP[e][p], env.users_EU[e], env.instances_EPI[e]
    first = p * sim.instances_max
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
def rebuild_gpu(env: Env, e: int, g: int, t: float) -> None:
    """Collect the jobs of a GPU anew after one was torn out of it."""
    sim, pods, instances = env.sim_E[e], env.pods_EP[e], env.instances_EPI[e]
    nodes, gpu = env.nodes_EPI[e], env.resources_ER[e][sim.pods + g]
    resource_sync(gpu, t)
    gpu.root, gpu.jobs = -1, 0
    for p in range(sim.pods):
        if pods[p].state < RUNNING or pods[p].gpu != g:
            continue
        for k in range(p * sim.instances_max, p * sim.instances_max + pods[p].instances):
            if instances[k].on_gpu == 1:
                nodes[k].left = nodes[k].right = -1
                gpu.root = merge(nodes, gpu.root, k)
                gpu.jobs += 1


@jit
def apply_resize(env: Env, e: int, t: float) -> None:
    """The kubelet applies a new CPU limit in place; the quota of the running period changes with it."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    accrue(env, e, t)
    for p in range(sim.pods):
        if pods[p].state >= RUNNING:
            cpu = env.resources_ER[e][p]
            resource_sync(cpu, t)
            cpu.quota_s = max(cpu.quota_s + (sim.cpu_limit - cpu.capacity) * cpu.period_s, 0.0)
            cpu.capacity = sim.cpu_limit
    sim.cpu_applied = sim.cpu_limit


# --- metrics ---


@jit
def advisor_event(env: Env, e: int, p: int, t: float) -> None:
    """cAdvisor reads the container's cumulative CPU time."""
    pod, cpu = env.pods_EP[e][p], env.resources_ER[e][p]
    resource_sync(cpu, t)
    pod.seen_s = t
    pod.seen_used_s = cpu.used_s
    pod.advisor_s = t + CADVISOR_BASE_S * (1.0 + uniform(pod))


@jit
def metrics_server_scrape(pod: Any) -> None:
    """metrics-server keeps the last two distinct points; a young container's first one is paired with its start."""
    if pod.state < RUNNING or pod.seen_s <= pod.newer_s:
        return
    if pod.newer_s == -INF:
        if pod.seen_s - pod.up_s < FRESH_CONTAINER_S:
            return
        pod.older_s, pod.older_used_s = pod.up_s, 0.0
    else:
        pod.older_s, pod.older_used_s = pod.newer_s, pod.newer_used_s
    pod.newer_s, pod.newer_used_s = pod.seen_s, pod.seen_used_s


@jit
def cpu_used_s(env: Env, e: int, t: float) -> float:
    """CPU time of all pods since the reset."""
    sim = env.sim_E[e]
    total = sim.cpu_gone_s
    for p in range(sim.pods):
        if env.pods_EP[e][p].state >= RUNNING:
            resource_sync(env.resources_ER[e][p], t)
            total += env.resources_ER[e][p].used_s
    return float(total)


@jit
def gpu_busy_s(env: Env, e: int, t: float) -> float:
    """Time at which a kernel ran, summed over the GPUs."""
    sim = env.sim_E[e]
    total = 0.0
    for g in range(sim.gpus):
        resource_sync(env.resources_ER[e][sim.pods + g], t)
        total += env.resources_ER[e][sim.pods + g].busy_s
    return total


@jit
def scrape(env: Env, e: int, t: float) -> None:
    """Prometheus stores counters, the in-flight gauges and the latency histogram in its ring."""
    sim = env.sim_E[e]
    k = sim.scrapes % sim.window
    row = env.scraped_EWC[e][k]
    row[0], row[1], row[2], row[3] = t, sim.completed, sim.failed, sim.slow
    row[4], row[5], row[6] = sim.latency_sum_s, sim.queue_sum_s, sim.batches
    row[7], row[8] = cpu_used_s(env, e, t), sim.in_flight
    env.scraped_histogram_EWB[e][k][:] = env.histogram_EB[e]
    for p in range(sim.pods):
        env.pods_EP[e][p].scraped_in_flight = env.pods_EP[e][p].in_flight
    sim.scrapes += 1


# --- HPA ---


@jit
def hpa_event(env: Env, e: int, t: float) -> None:
    """One sync of the HPA controller; the next one comes a period after this one has ended."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    env.slow_E8[e][HPA_SYNC] = t + sim.hpa_sync_s + 0.01 + 0.09 * uniform(sim)
    listed, active = 0, 0
    for p in range(sim.pods):
        if pods[p].state != FREE:
            list_pod(env, e, p, listed)
            listed += 1
            if pods[p].state < TERMINATING:
                active += 1
    memory = env.hpa_memory_E[e]
    env.hpa_object_EM[e][0] = queue_us(env, e)
    env.hpa_object_ok_EM[e][0] = 1 if sim.hpa_metric == BY_CPU or sim.scrapes > 1 else 0
    desired, rescaled, _ = hpa.reconcile(
        env.hpa_spec_E[e], env.hpa_metric_EM[e], env.hpa_rules_ER[e], memory,
        env.hpa_recs_ER[e], env.hpa_up_ER[e], env.hpa_down_ER[e], env.hpa_pods_EP[e], listed,
        env.hpa_value_EMP[e], env.hpa_sample_ms_EMP[e], env.hpa_window_ms_EMP[e], env.hpa_has_EMP[e],
        env.hpa_request_EMP[e], env.hpa_object_EM[e], env.hpa_object_ok_EM[e],
        np.int64(round(t * 1000.0)), sim.replicas, active, 0, env.hpa_status_EM[e],
    )  # fmt: skip
    if rescaled:
        sim.replicas = desired
        env.slow_E8[e][DEPLOY] = min(env.slow_E8[e][DEPLOY], t + sim.api_delay_s)


@jit
def list_pod(env: Env, e: int, p: int, row: int) -> None:
    """What the API shows of a pod and its metric; API times have whole seconds."""
    sim, pod, listed = env.sim_E[e], env.pods_EP[e][p], env.hpa_pods_EP[e][row]
    listed.phase = PHASE_RUNNING if pod.state >= RUNNING else PHASE_PENDING
    listed.deleting = 1 if pod.state == TERMINATING else 0
    listed.ready = READY_TRUE if pod.ready_s > -INF else READY_FALSE
    listed.start_ms = NONE_MS if pod.state == PENDING else whole_second_ms(pod.admitted_s)
    listed.ready_ms = whole_second_ms(pod.ready_s if pod.ready_s > -INF else pod.created_s)
    env.hpa_request_EMP[e][0][row] = np.int64(math.ceil(sim.cpu_limit * sim.request_per_limit * 1000.0 - 1e-9))
    has = pod.state >= RUNNING and pod.newer_s > -INF
    if sim.hpa_metric == BY_CPU:
        env.hpa_has_EMP[e][0][row] = has
        if has:
            window_s = pod.newer_s - pod.older_s
            cores = (pod.newer_used_s - pod.older_used_s) / window_s
            env.hpa_value_EMP[e][0][row] = np.int64(math.ceil(cores * 1000.0 - 1e-9))
            env.hpa_sample_ms_EMP[e][0][row] = whole_second_ms(pod.newer_s)
            env.hpa_window_ms_EMP[e][0][row] = np.int64(window_s * 1000.0)
    else:
        # A Pods metric comes through the Prometheus adapter, stamped with the time of the query.
        env.hpa_has_EMP[e][0][row] = pod.state >= RUNNING
        env.hpa_value_EMP[e][0][row] = pod.scraped_in_flight * 1000
        env.hpa_sample_ms_EMP[e][0][row] = np.int64(sim.t * 1000.0)
        env.hpa_window_ms_EMP[e][0][row] = 0


@jit
def whole_second_ms(t: float) -> int:
    """metav1.Time drops what is below a second."""
    return int(math.floor(t)) * 1000


@jit
def queue_us(env: Env, e: int) -> int:
    """Mean Triton queue time of the window in microseconds, as the external metrics API would return it."""
    newer, older = window_rows(env, e)
    row, base = env.scraped_EWC[e][newer], env.scraped_EWC[e][older]
    done = row[1] - base[1]
    return int((row[5] - base[5]) / done * 1e6) if done > 0.0 else 0


@jit
def window_rows(env: Env, e: int) -> tuple[int, int]:
    """Rows of the newest scrape and of the oldest one inside the window."""
    sim = env.sim_E[e]
    newer = (sim.scrapes - 1) % sim.window
    older = sim.scrapes % sim.window if sim.scrapes >= sim.window else 0
    return newer, older
