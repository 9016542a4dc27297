"""The metrics pipeline: cAdvisor, metrics-server, Prometheus, DCGM. Compiled; seldom called."""

from __future__ import annotations

from typing import Any

from gpusched.sim.pods import CADVISOR_BASE_S
from gpusched.sim.primitives import copy_row, jit, resource_sync, uniform
from gpusched.sim.records import INF, RUNNING, Env

FRESH_CONTAINER_S = 10.0
"""metrics-server: a container's first sample needs this age (pkg/storage/pod.go)."""


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
    row = sim.scraped[k]
    row[0], row[1], row[2], row[3] = t, sim.completed, sim.failed, sim.slow
    row[4], row[5], row[6] = sim.latency_sum_s, sim.queue_sum_s, sim.batches
    row[7], row[8] = cpu_used_s(env, e, t), sim.in_flight
    copy_row(sim.histogram, sim.scraped_histogram[k])
    for p in range(sim.pods):
        env.pods_EP[e][p].scraped_in_flight = env.pods_EP[e][p].in_flight
    sim.scrapes += 1


@jit
def window_rows(env: Env, e: int) -> tuple[int, int]:
    """Rows of the newest scrape and of the oldest one inside the window."""
    sim = env.sim_E[e]
    newer = (sim.scrapes - 1) % sim.window
    older = sim.scrapes % sim.window if sim.scrapes >= sim.window else 0
    return newer, older


@jit
def queue_us(env: Env, e: int) -> int:
    """Mean Triton queue time of the window in microseconds, as the external metrics API would return it."""
    newer, older = window_rows(env, e)
    scraped = env.sim_E[e].scraped
    row, base = scraped[newer], scraped[older]
    done = row[1] - base[1]
    return int((row[5] - base[5]) / done * 1e6) if done > 0.0 else 0
