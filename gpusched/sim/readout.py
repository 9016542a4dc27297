"""What is read off the engine: accounts, tick rows, observations; and what is written to it: controls. Compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.control import BY_CPU, next_slow_s, next_sync_s, slow_event
from gpusched.sim.engine import run_alone, run_fleet, settle
from gpusched.sim.fleet import accrue, busy_s, gpu
from gpusched.sim.metrics import (
    cpu_used_s,
    good_sample_s,
    good_scrape_s,
    gpu_busy_s,
    latest_gpu_row,
    latest_row,
    window_rows,
)
from gpusched.sim.pods import CADVISOR_BASE_S, create_pod, start_process
from gpusched.sim.primitives import copy_row, entry, inlined, jit, quantile
from gpusched.sim.records import (
    DEPLOY,
    EXECUTING,
    HPA_SYNC,
    INF,
    LOG_FULL,
    LOST,
    PENDING,
    QUEUED,
    REACHED,
    READY,
    RESIZE,
    SCHEDULED,
    SLOW_EVENT,
    Env,
)
from gpusched.sim.schedule import fragments, schedule


@jit
def account(env: Env, e: int, row_C: NDArray[Any]) -> None:
    """Write the columns of records.ACCOUNT as of now."""
    sim = env.sim_E[e]
    row_C[0], row_C[1], row_C[2], row_C[3] = sim.t, sim.completed, sim.failed, sim.slow
    row_C[4], row_C[5], row_C[6] = sim.latency_sum_s, sim.queue_sum_s, sim.batches
    row_C[7], row_C[8], row_C[9] = cpu_used_s(env, e, sim.t), sim.alive_s, sim.ready_s
    row_C[10], row_C[11], row_C[12] = sim.limit_s, sim.vram_s, gpu_busy_s(env, e, sim.t)


@jit
def tick(env: Env, e: int, row_C: NDArray[Any], now_C: NDArray[Any]) -> None:
    """Write one row of the tick log, columns in the order of core.logs.TickLog."""
    sim = env.sim_E[e]
    before_C, histogram_B = sim.tick_account, sim.histogram
    account(env, e, now_C)
    dt = now_C[0] - before_C[0]
    alive = (now_C[8] - before_C[8]) / dt
    row_C[0], row_C[1], row_C[2] = now_C[0], sim.target_users, sim.replicas
    row_C[3], row_C[4] = (now_C[9] - before_C[9]) / dt, alive
    row_C[5], row_C[6] = (now_C[7] - before_C[7]) / dt, (now_C[10] - before_C[10]) / dt
    row_C[7], row_C[8] = (now_C[12] - before_C[12]) / (dt * sim.devices), (now_C[11] - before_C[11]) / dt
    row_C[9], row_C[10] = alive * sim.pod_memory_bytes, sim.in_flight
    row_C[11], row_C[12], row_C[13] = now_C[1] - before_C[1], now_C[2] - before_C[2], now_C[3] - before_C[3]
    row_C[14], row_C[15] = now_C[4] - before_C[4], quantile(histogram_B, sim.tick_histogram, 0.95)
    row_C[16], row_C[17] = now_C[5] - before_C[5], now_C[6] - before_C[6]
    row_C[18] = sim.hpa_target if sim.hpa_on else math.nan
    row_C[19], row_C[20], row_C[21] = sim.cpu_limit, sim.instances, sim.gpu_share
    copy_row(now_C, before_C)
    copy_row(histogram_B, sim.tick_histogram)


@jit
def observe(env: Env, e: int, row_F: NDArray[Any]) -> None:
    """Write one observation, columns in the order of core.observation.Observation."""
    sim = env.sim_E[e]
    for k in range(len(row_F)):
        row_F[k] = math.nan
    gpu, latest = latest_gpu_row(sim), latest_row(sim)
    newer, older = window_rows(sim)
    if gpu >= 0:
        row_F[10], row_F[11] = sim.sampled[gpu][1], sim.sampled[gpu][2]
    row_F[12], row_F[13] = sim.replicas, sim.endpoints
    row_F[14] = sim.hpa_target if sim.hpa_on else math.nan
    row_F[15], row_F[16], row_F[17] = sim.cpu_limit, sim.instances, sim.gpu_share
    row_F[18], row_F[19] = sim.t - good_scrape_s(sim), sim.t - good_sample_s(sim)
    if latest >= 0 and sim.scraped[latest][LOST] == 0.0:
        row_F[7] = sim.scraped[latest][8]
    if newer == older:
        return
    now, before = sim.scraped[newer], sim.scraped[older]
    span_s, done, failed = now[0] - before[0], now[1] - before[1], now[2] - before[2]
    row_F[0] = done / span_s
    row_F[1] = failed / (done + failed) if done + failed > 0.0 else math.nan
    if done > 0.0:
        row_F[2] = (now[3] - before[3]) / done
        row_F[3] = (now[4] - before[4]) / done
        histograms = sim.scraped_histogram
        row_F[4] = quantile(histograms[newer], histograms[older], 0.95)
        row_F[5] = (now[5] - before[5]) / done
        if now[6] > before[6]:
            row_F[6] = done / (now[6] - before[6])
    row_F[8] = (now[7] - before[7]) / span_s
    request = sim.endpoints * sim.cpu_limit * sim.request_per_limit
    row_F[9] = row_F[8] / request if request > 0.0 else math.nan


@jit
def overdue(env: Env, e: int) -> int:
    """Requests in the pods that have no answer and are later than the SLO."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    instances, late = env.instances_FI[sim.fleet], 0
    users = env.users_EU[sim.lead : sim.lead + sim.services].reshape(sim.services * env.users_EU.shape[1])
    for p in range(sim.pods):
        if pods[p].in_flight == 0:
            continue
        first = (sim.first_pod + p) * sim.instances_max
        for k in range(first - 1, first + pods[p].instances):
            u = pods[p].head if k < first else instances[k].head
            for _ in range(pods[p].queued if k < first else instances[k].size):
                late += sim.t - users[u].send_s > sim.slo_s
                u = users[u].next
    return late


@jit
def apply(
    env: Env,
    e: int,
    replicas: int,
    hpa_on: int,
    hpa_target: float,
    cpu_limit: float,
    instances: int,
    share: float,
) -> None:
    """Set the desired state; negative values leave a lever as it is. What changed takes the API's time to act."""
    sim = env.sim_E[e]
    slow = sim.slow_s
    deploy = False
    if hpa_on == 1:
        sim.hpa_target = hpa_target
        scale = 1.0 if sim.hpa_metric == BY_CPU else 1000.0
        sim.hpa.metrics[0].target = np.int64(round(hpa_target * scale))
        if sim.hpa_on == 0:
            slow[HPA_SYNC] = next_sync_s(sim, sim.t)
    else:
        slow[HPA_SYNC] = INF
        deploy = replicas >= 0 and replicas != sim.replicas
        if deploy:
            sim.replicas = replicas
    sim.hpa_on = hpa_on
    if cpu_limit > 0.0 and cpu_limit != sim.cpu_limit:
        sim.cpu_limit = cpu_limit
        slow[RESIZE] = sim.t + sim.resize_delay_s
    if (instances > 0 and instances != sim.instances) or (share > 0.0 and share != sim.gpu_share):
        sim.instances = instances if instances > 0 else sim.instances
        sim.gpu_share = share if share > 0.0 else sim.gpu_share
        sim.revision += 1
        deploy = True
    if deploy:
        slow[DEPLOY] = min(slow[DEPLOY], sim.t + sim.api_delay_s)


def fleet_step(run: Any, several: bool) -> Any:
    """Return what advances one fleet by a control interval, with the given loop for its requests.

    It is written into its one caller: a function in between would have the compiler go once more over all that it calls.
    """

    @inlined
    def advance(
        env: Env, e: int, until: float, tick_s: float, ticks_ETC: NDArray[Any], fleet_FTC: NDArray[Any],
        interval_EC: NDArray[Any],
    ) -> int:  # fmt: skip
        lead = env.sim_E[e]
        past = e + lead.services
        for k in range(e, past):
            env.sim_E[k].due_s = next_slow_s(env, k)
        refused, fresh, status = np.int64(-1), np.int64(-1), np.int64(REACHED)
        next_s = (lead.ticks + 1) * tick_s if lead.record else until
        while next_s <= until + 1e-9:
            status = np.int64(run(env, e, next_s, refused, fresh))
            if status == SLOW_EVENT:
                fresh = np.int64(0)
                for s in range(1, lead.services):
                    if env.sim_E[e + s].due_s < env.sim_E[e + fresh].due_s:
                        fresh = np.int64(s)
                refused = np.int64(slow_event(env, e + fresh, lead.t))
                env.sim_E[e + fresh].due_s = next_slow_s(env, e + fresh)
                continue
            if status == LOG_FULL:
                break
            refused, fresh = np.int64(-1), np.int64(-1)
            settle(env, e, next_s)
            if not lead.record:
                break
            row = lead.ticks
            if several:
                fleet_tick(env, e, fleet_FTC[lead.fleet, row])
            for k in range(e, past):
                tick(env, k, ticks_ETC[k, row], interval_EC[k])
                env.sim_E[k].ticks += 1
            next_s = (lead.ticks + 1) * tick_s
        return int(status)

    return advance


advance_alone, advance_fleet = fleet_step(run_alone, False), fleet_step(run_fleet, True)


@entry
def step_alone(
    env: Env, first: int, last: int, until_s_E: NDArray[Any], tick_s: float, ticks_ETC: NDArray[Any],
    fleet_FTC: NDArray[Any], seen_EF: NDArray[Any], interval_EC: NDArray[Any], p95_E: NDArray[Any],
    overdue_E: NDArray[Any], status_E: NDArray[Any],
) -> None:  # fmt: skip
    """Advance environments first..last-1 by one control interval; writes observation, account, p95 and overdue of each.

    Where the record is kept, a tick row is written every `tick_s`; an environment whose status is LOG_FULL must be
    emptied and stepped again.
    """
    for e in range(first, last):
        status = advance_alone(env, e, until_s_E[e], tick_s, ticks_ETC, fleet_FTC, interval_EC)
        status_E[e] = status
        if status == REACHED:
            report(env, e, seen_EF[e], interval_EC[e], p95_E, overdue_E)


@entry
def step_fleets(
    env: Env, first: int, last: int, until_s_E: NDArray[Any], tick_s: float, ticks_ETC: NDArray[Any],
    fleet_FTC: NDArray[Any], seen_EF: NDArray[Any], interval_EC: NDArray[Any], p95_E: NDArray[Any],
    overdue_E: NDArray[Any], status_E: NDArray[Any],
) -> None:  # fmt: skip
    """As `step_alone`, for whole fleets; all services of one are to go to the same time.

    Of several whose control planes are due at once the first goes first.
    """
    services = env.sim_E[first].services
    for e in range(first, last, services):
        status = advance_fleet(env, e, until_s_E[e], tick_s, ticks_ETC, fleet_FTC, interval_EC)
        for k in range(e, e + services):
            status_E[k] = status
            if status == REACHED:
                report(env, k, seen_EF[k], interval_EC[k], p95_E, overdue_E)


@jit
def report(
    env: Env,
    e: int,
    seen_F: NDArray[Any],
    interval_C: NDArray[Any],
    p95_E: NDArray[Any],
    overdue_E: NDArray[Any],
) -> None:
    """Write what happened to a service since the last control interval, and what a policy sees of it."""
    sim = env.sim_E[e]
    account(env, e, interval_C)
    before_C = sim.control_account
    for c in range(len(before_C)):
        now = interval_C[c]
        interval_C[c] = now - before_C[c]
        before_C[c] = now
    p95_E[e] = quantile(sim.histogram, sim.control_histogram, 0.95)
    copy_row(sim.histogram, sim.control_histogram)
    overdue_E[e] = overdue(env, e)
    observe(env, e, seen_F)


@jit
def fleet_tick(env: Env, e: int, row_C: NDArray[Any]) -> None:
    """Write one row of the fleet's tick log, columns in the order of records.FLEET_TICK; all as of now.

    `gpu_busy` is the busy time of all GPUs so far, divided by their number.
    """
    lead = env.sim_E[e]
    row_C[0], row_C[1], row_C[2], row_C[3] = lead.t, 0.0, 0.0, 0.0
    for g in range(lead.gpus):
        row_C[1] += busy_s(gpu(env, e, g), lead.t) / lead.gpus
    for k in range(e, e + lead.services):
        pods = env.pods_EP[k]
        row_C[2] += env.sim_E[k].vram_bytes
        for p in range(lead.pods):
            row_C[3] += 1.0 if pods[p].state == PENDING else 0.0
    fragments(env, e, row_C[4:])


@entry
def apply_all(
    env: Env,
    envs_K: NDArray[Any],
    replicas_K: NDArray[Any],
    hpa_on: int,
    hpa_target_K: NDArray[Any],
    cpu_K: NDArray[Any],
    instances_K: NDArray[Any],
    share_K: NDArray[Any],
) -> None:
    """Apply one row of controls to each of K environments."""
    for k in range(len(envs_K)):
        e, replicas, target = envs_K[k], replicas_K[k], hpa_target_K[k]
        apply(env, e, replicas, hpa_on, target, cpu_K[k], instances_K[k], share_K[k])


@entry
def place_ready(env: Env, e: int, p: int, since_s: float, phase: float) -> None:
    """Put a replica into slot p that has been ready since `since_s`; `phase` in 0..1 places its cAdvisor readings."""
    sim = env.sim_E[e]
    create_pod(env, e, 0.0)
    schedule(env, e, p, 0.0)
    pod, meter = env.pods_EP[e][p], env.meters_EP[e][p]
    if pod.state != SCHEDULED:  # no room: stays pending, and the readiness gate will say so
        return
    start_process(env, e, p, 0.0)
    pod.state = READY
    pod.created_s = pod.admitted_s = pod.up_s = pod.ready_s = pod.turned_s = since_s
    pod.life_s = INF
    meter.seen_s[0] = meter.newer_s = -CADVISOR_BASE_S * phase
    meter.older_s = meter.newer_s - CADVISOR_BASE_S
    meter.seen_used_s[0] = meter.newer_used_s = meter.older_used_s = 0.0
    meter.readings = 1
    pod.advisor_s = CADVISOR_BASE_S * phase
    env.pods_EP[e][sim.endpoints].listed = sim.first_pod + p
    pod.endpoint = sim.endpoints
    sim.endpoints += 1
    accrue(env, e, 0.0)


def open_requests(users: NDArray[Any]) -> NDArray[np.bool_]:
    """Which users wait for an answer, shape [U]."""
    return (users["state"] == QUEUED) | (users["state"] == EXECUTING)
