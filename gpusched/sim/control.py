"""The control plane's clockwork: what is due when, load levels, and the HPA's syncs. Compiled; seldom called."""

from __future__ import annotations

import math

import numpy as np

from gpusched.sim import hpa
from gpusched.sim.hpa_replicas import NONE_MS, PHASE_PENDING, PHASE_RUNNING, READY_FALSE, READY_TRUE
from gpusched.sim.metrics import advisor_event, gpu_busy_s, metrics_server_scrape, queue_us, scrape
from gpusched.sim.pods import apply_resize, endpoint_event, life_event, reconcile_deployment
from gpusched.sim.primitives import heap_push, jit, uniform
from gpusched.sim.records import (
    CLOCK_HZ,
    DCGM_BEGIN,
    DCGM_END,
    DEPLOY,
    FREE,
    HPA_SYNC,
    INACTIVE,
    INF,
    LEVEL,
    METRICS_SERVER,
    PENDING,
    RESIZE,
    RUNNING,
    SCRAPE,
    TERMINATING,
    THINKING,
    Env,
)

BY_CPU, BY_QUEUE, BY_IN_FLIGHT = 0, 1, 2
"""What an HPA scales on, in the order of core.controls.METRICS."""


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
    if slow[DCGM_END] <= t:
        slow[DCGM_END] += sim.dcgm_s
        sim.gpu_seen = (gpu_busy_s(env, e, t) - sim.dcgm_busy_s) / (sim.dcgm_window_s * sim.gpus)
        sim.gpu_seen_at_s = t
    if slow[DCGM_BEGIN] <= t:
        slow[DCGM_BEGIN] += sim.dcgm_s
        sim.dcgm_busy_s = gpu_busy_s(env, e, t)
    if slow[HPA_SYNC] <= t:
        hpa_event(env, e, t)
    return broken


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
            heap_push(env.events_EU[e], sim.events, math.floor(first_s * CLOCK_HZ + 0.5) / CLOCK_HZ, u)
            sim.events += 1
    sim.target_users = target
    sim.level += 1
    env.slow_E8[e][LEVEL] = level_s[sim.level] if sim.level < len(level_s) else INF


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
    env.hpa_request_EMP[e][0][row] = np.int64(
        math.ceil(sim.cpu_limit * sim.request_per_limit * 1000.0 - 1e-9)
    )
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
    return math.floor(t) * 1000
