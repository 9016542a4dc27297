"""The control plane's clockwork: what is due when, load levels, and the HPA's syncs. Compiled; seldom called."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpusched.sim import hpa
from gpusched.sim.faults import fault_event
from gpusched.sim.fleet import turn_devices
from gpusched.sim.hpa_replicas import NONE_MS, PHASE_PENDING, PHASE_RUNNING, READY_FALSE, READY_TRUE
from gpusched.sim.metrics import (
    gpu_busy_s,
    latest_row,
    metrics_server_scrape,
    queue_us,
    sample_gpu,
    scrape,
    window_rows,
)
from gpusched.sim.pods import apply_resize, endpoint_event, life_event, reconcile_deployment
from gpusched.sim.primitives import allocating, heap_push, jit, kept, uniform
from gpusched.sim.records import (
    CLOCK_HZ,
    DCGM_BEGIN,
    DCGM_END,
    DEPLOY,
    FAULT,
    FREE,
    HPA_SYNC,
    INACTIVE,
    INF,
    LEVEL,
    LOST,
    METRICS_SERVER,
    PENDING,
    RESIZE,
    RUNNING,
    SCRAPE,
    TERMINATING,
    THINKING,
    Env,
)
from gpusched.sim.schedule import schedule_pending

BY_CPU, BY_QUEUE, BY_IN_FLIGHT = 0, 1, 2
"""What an HPA scales on, in the order of core.controls.METRICS."""


@jit
def next_slow_s(env: Env, e: int) -> float:
    """Time of the next control-plane or pod-life event."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    slow = sim.slow_s
    t = INF
    for k in range(len(slow)):
        t = min(t, slow[k])
    for p in range(sim.pods):
        if pods[p].state != FREE:
            t = min(t, pods[p].life_s, pods[p].endpoint_s)
    return t


@kept
def slow_event(env: Env, e: int, t: float) -> int:
    """Live through everything due at t; returns the users whose requests it broke, chained by `next`, or -1."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    slow = sim.slow_s
    broken = np.int64(-1)
    turn_devices(env, e, t)
    for p in range(sim.pods):
        if pods[p].state == FREE:
            continue
        if pods[p].endpoint_s <= t:
            endpoint_event(env, e, p)
        if pods[p].life_s <= t:
            broken = life_event(env, e, p, t, broken)
    if slow[FAULT] <= t:
        broken = fault_event(env, e, t, broken)
    if slow[LEVEL] <= t:
        level_event(env, e, t)
    if slow[RESIZE] <= t:
        slow[RESIZE] = INF
        apply_resize(env, e, t)
    if slow[DEPLOY] <= t:
        slow[DEPLOY] = INF
        reconcile_deployment(env, e, t)
    turn_devices(env, e, t)
    if sim.unscheduled == 1:
        sim.unscheduled = 0
        schedule_pending(env, e, t)
    if slow[METRICS_SERVER] <= t:
        slow[METRICS_SERVER] += sim.metrics_server_s
        for p in range(sim.pods):
            metrics_server_scrape(env, e, p)
    if slow[SCRAPE] <= t:
        slow[SCRAPE] += sim.scrape_s
        scrape(env, e, t)
    if slow[DCGM_END] <= t:
        slow[DCGM_END] += sim.dcgm_s
        sample_gpu(env, e, t)
    if slow[DCGM_BEGIN] <= t:
        slow[DCGM_BEGIN] += sim.dcgm_s
        sim.dcgm_busy_s = gpu_busy_s(env, e, t)
    if slow[HPA_SYNC] <= t:
        hpa_event(env, e, t)
    return int(broken)


@jit
def level_event(env: Env, e: int, t: float) -> None:
    """Change the number of users; new ones send first within one longest think time."""
    sim, users = env.sim_E[e], env.users_EU[e]
    lead, levels = env.sim_E[sim.lead], env.levels_EV[e]
    target = levels[sim.level].users
    for u in range(sim.target_users, target):
        if users[u].state == INACTIVE:
            users[u].state = THINKING
            first_s = t + (sim.think_min_s + sim.think_span_s) * uniform(users[u]) + sim.half_client_s
            next_s = math.floor(first_s * CLOCK_HZ + 0.5) / CLOCK_HZ
            heap_push(env.events_FU[sim.fleet], lead.events, next_s, sim.first_user + u)
            lead.events += 1
    sim.target_users = target
    sim.level += 1
    sim.slow_s[LEVEL] = levels[sim.level].from_s if sim.level < len(levels) else INF


@jit
def next_sync_s(sim: Any, t: float) -> float:
    """When the controller looks at an HPA that it has just looked at, or that is new: a period later, and its own work.

    Its queue makes every key wait for a sync period, that of a new HPA, too (podautoscaler/horizontal.go, enqueueHPA).
    """
    return float(t + sim.hpa_sync_s + 0.01 + 0.09 * uniform(sim))


@allocating
def hpa_event(env: Env, e: int, t: float) -> None:
    """One sync of the HPA controller; the next one comes a period after this one has ended."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    sim.slow_s[HPA_SYNC] = next_sync_s(sim, t)
    api = np.zeros(sim.pods, hpa.POD)
    value = np.zeros((1, sim.pods), np.int64)
    sample_ms, window_ms, request = np.zeros_like(value), np.zeros_like(value), np.zeros_like(value)
    has = np.zeros((1, sim.pods), np.bool_)
    listed, active = np.int64(0), np.int64(0)
    for p in range(sim.pods):
        if pods[p].state != FREE:
            list_pod(sim, pods[p], api[listed])
            request[0, listed] = np.int64(math.ceil(sim.cpu_limit * sim.request_per_limit * 1000.0 - 1e-9))
            has[0, listed], value[0, listed], sample_ms[0, listed], window_ms[0, listed] = sample(
                sim, pods[p], env.meters_EP[e][p]
            )
            listed += 1
            if pods[p].state < TERMINATING:
                active += 1
    newer, older = window_rows(sim)
    object_value = np.full(1, queue_us(sim))
    object_ok = np.full(1, 1 if newer != older else 0)
    own = sim.hpa
    desired, rescaled, _ = hpa.reconcile(
        own.spec, own.metrics, own.rules, own.memory, own.recs, own.up, own.down, api, listed,
        value, sample_ms, window_ms, has, request, object_value, object_ok,
        np.int64(round(t * 1000.0)), sim.replicas, active, np.int64(0), np.zeros(1, hpa.STATUS),
    )  # fmt: skip
    if rescaled:
        sim.replicas = desired
        sim.slow_s[DEPLOY] = min(sim.slow_s[DEPLOY], t + sim.api_delay_s)


@jit
def list_pod(sim: Any, pod: Any, row: Any) -> None:
    """Write what the API shows of a pod; its times have whole seconds."""
    row.phase = PHASE_RUNNING if pod.state >= RUNNING or pod.restarts > 0 else PHASE_PENDING
    row.deleting = 1 if pod.state == TERMINATING else 0
    row.ready = READY_TRUE if pod.ready_s > -INF else READY_FALSE
    row.start_ms = NONE_MS if pod.state == PENDING else whole_second_ms(pod.admitted_s)
    row.ready_ms = whole_second_ms(pod.turned_s)


@jit
def sample(sim: Any, pod: Any, meter: Any) -> tuple[Any, Any, Any, Any]:
    """Return what the metrics API has of a pod: whether there is a sample, its milli-value, its time and window in ms."""
    nothing = False, np.int64(0), np.int64(0), np.int64(0)
    if pod.state < RUNNING:
        return nothing
    if sim.hpa_metric != BY_CPU:
        # A Pods metric comes through the Prometheus adapter, stamped with the time of the query.
        k = latest_row(sim)
        if k < 0 or sim.scraped[k][LOST] > 0.0 or sim.scraped[k][0] < pod.up_s:
            return nothing
        return True, np.int64(meter.in_flight[k] * 1000), np.int64(sim.t * 1000.0), np.int64(0)
    if meter.older_s == -INF:
        return nothing
    window_s = meter.newer_s - meter.older_s
    used_m = math.ceil((meter.newer_used_s - meter.older_used_s) / window_s * 1000.0 - 1e-9)
    return True, np.int64(used_m), np.int64(whole_second_ms(meter.newer_s)), np.int64(window_s * 1000.0)


@jit
def whole_second_ms(t: float) -> int:
    """metav1.Time drops what is below a second."""
    return math.floor(t) * 1000
