"""The metrics pipeline: cAdvisor, metrics-server, Prometheus, DCGM. Compiled; seldom called.

Whoever asks sees what was taken up to `visible_s`: now, or earlier while a fault delays the metrics. A scrape that
failed leaves a row marked as lost; a window is what is left of the rows it spans.
"""

from __future__ import annotations

from typing import Any

from gpusched.sim.fleet import cpu, gpu, own_devices
from gpusched.sim.pods import CADVISOR_BASE_S
from gpusched.sim.primitives import copy_row, jit, resource_sync, uniform
from gpusched.sim.records import INF, LOST, READINGS, RUNNING, SCRAPES, Env

FRESH_CONTAINER_S = 10.0
"""metrics-server: a container's first sample needs this age (pkg/storage/pod.go)."""


@jit
def advisor_event(env: Env, e: int, p: int, t: float) -> None:
    """cAdvisor reads the container's cumulative CPU time."""
    pod, meter, own = env.pods_EP[e][p], env.meters_EP[e][p], cpu(env, e, p)
    resource_sync(own, t)
    k = meter.readings % READINGS
    meter.seen_s[k] = t
    meter.seen_used_s[k] = own.used_s
    meter.readings += 1
    pod.advisor_s = t + CADVISOR_BASE_S * (1.0 + uniform(pod))


@jit
def visible_s(sim: Any) -> float:
    """Time up to which samples can be seen: a growing delay first stops the data, it never takes back what was seen."""
    return max(sim.frozen_s, sim.t - sim.metric_delay_s)


@jit
def metrics_server_scrape(env: Env, e: int, p: int) -> None:
    """metrics-server keeps the last two distinct points of a container; what a scrape misses is forgotten.

    A container between FRESH_CONTAINER_S and a resolution old is paired with its start (pkg/storage/pod.go, Store).
    """
    sim, pod, meter = env.sim_E[e], env.pods_EP[e][p], env.meters_EP[e][p]
    if pod.state < RUNNING or sim.metrics_lost == 1:
        meter.older_s = meter.newer_s = -INF
        return
    last_s = visible_s(sim)
    r = meter.readings - 1
    while r >= 0 and meter.seen_s[r % READINGS] > last_s:
        r -= 1
    if r < 0 or r < meter.readings - READINGS:
        return
    seen_s, used_s = meter.seen_s[r % READINGS], meter.seen_used_s[r % READINGS]
    if FRESH_CONTAINER_S <= seen_s - pod.up_s < sim.metrics_server_s:
        meter.older_s, meter.older_used_s = pod.up_s, 0.0
    elif seen_s > meter.newer_s:
        meter.older_s = meter.newer_s if meter.newer_s > pod.up_s else -INF  # not across a restart
        meter.older_used_s = meter.newer_used_s
    meter.newer_s, meter.newer_used_s = seen_s, used_s


@jit
def cpu_used_s(env: Env, e: int, t: float) -> float:
    """CPU time of all pods since the reset."""
    sim = env.sim_E[e]
    total = sim.cpu_gone_s
    for p in range(sim.pods):
        if env.pods_EP[e][p].state >= RUNNING:
            own = cpu(env, e, p)
            resource_sync(own, t)
            total += own.used_s
    return float(total)


@jit
def gpu_busy_s(env: Env, e: int, t: float) -> float:
    """Time at which a kernel ran, summed over the GPUs; in a fleet its mean over those the service stands on.

    Monitoring shows devices, so what other services run there is part of it.
    """
    sim = env.sim_E[e]
    if sim.services > 1:
        sum_s, count = own_devices(env, e, t)
        return float(sim.device_busy_s + (sum_s - sim.device_sum_s) / count)
    total = 0.0
    for g in range(sim.gpus):
        resource_sync(gpu(env, e, g), t)
        total += gpu(env, e, g).busy_s
    return total


@jit
def scrape(env: Env, e: int, t: float) -> None:
    """Prometheus stores counters, the in-flight gauges and the latency histogram in its ring."""
    sim = env.sim_E[e]
    k = sim.scrapes % sim.ring
    row = sim.scraped[k]
    if sim.scrapes >= sim.ring and row[LOST] == 0.0:
        sim.scraped_s = row[0]
    row[0], row[1], row[2], row[3] = t, sim.completed, sim.failed, sim.slow
    row[4], row[5], row[6] = sim.latency_sum_s, sim.queue_sum_s, sim.batches
    row[7], row[8], row[LOST] = cpu_used_s(env, e, t), sim.in_flight, sim.metrics_lost
    copy_row(sim.histogram, sim.scraped_histogram[k])
    for p in range(sim.pods):
        env.meters_EP[e][p].in_flight[k] = env.pods_EP[e][p].in_flight
    sim.scrapes += 1


@jit
def latest_row(sim: Any) -> int:
    """Row of the newest scrape that can be seen, lost or not; -1 without one."""
    last_s = visible_s(sim)
    for s in range(sim.scrapes - 1, max(sim.scrapes - sim.ring, 0) - 1, -1):
        if sim.scraped[s % sim.ring][0] <= last_s:
            return int(s % sim.ring)
    return -1


@jit
def window_rows(sim: Any) -> tuple[int, int]:
    """Rows of the newest and the oldest scrape of the window that were not lost: the same with one only, -1 without.

    rate() looks past staleness markers, and needs two samples.
    """
    last_s = visible_s(sim)
    newer, older, left = -1, -1, sim.window
    for s in range(sim.scrapes - 1, max(sim.scrapes - sim.ring, 0) - 1, -1):
        k = s % sim.ring
        if sim.scraped[k][0] > last_s:
            continue
        if left == 0:
            break
        left -= 1
        if sim.scraped[k][LOST] == 0.0:
            older = k
            if newer < 0:
                newer = k
    return newer, older


@jit
def sample_gpu(env: Env, e: int, t: float) -> None:
    """DCGM samples the device: the share of a short window in which a kernel ran, and the memory held."""
    sim = env.sim_E[e]
    row = sim.sampled[sim.samples % SCRAPES]
    if sim.samples >= SCRAPES and row[3] == 0.0:
        sim.sampled_s = row[0]
    row[0] = t
    row[1] = (gpu_busy_s(env, e, t) - sim.dcgm_busy_s) / (sim.dcgm_window_s * sim.devices)
    row[2], row[3] = sim.vram_bytes, sim.metrics_lost
    sim.samples += 1


@jit
def good_scrape_s(sim: Any) -> float:
    """Time of the newest scrape that can be seen and was not lost, -INF without one."""
    last_s = visible_s(sim)
    for s in range(sim.scrapes - 1, max(sim.scrapes - sim.ring, 0) - 1, -1):
        row = sim.scraped[s % sim.ring]
        if row[0] <= last_s and row[LOST] == 0.0:
            return float(row[0])
    return float(sim.scraped_s)  # the newest good one before the rows that are kept


@jit
def good_sample_s(sim: Any) -> float:
    """Time of the newest DCGM sample that can be seen and was not lost, -INF without one."""
    last_s = visible_s(sim)
    for s in range(sim.samples - 1, max(sim.samples - SCRAPES, 0) - 1, -1):
        row = sim.sampled[s % SCRAPES]
        if row[0] <= last_s and row[3] == 0.0:
            return float(row[0])
    return float(sim.sampled_s)


@jit
def latest_gpu_row(sim: Any) -> int:
    """Row of the newest DCGM sample that can be seen and was not lost; -1 where the newest is lost or there is none."""
    last_s = visible_s(sim)
    for s in range(sim.samples - 1, max(sim.samples - SCRAPES, 0) - 1, -1):
        k = s % SCRAPES
        if sim.sampled[k][0] <= last_s:
            return int(k) if sim.sampled[k][3] == 0.0 else -1
    return -1


@jit
def queue_us(sim: Any) -> int:
    """Mean Triton queue time of the window in microseconds, as the external metrics API would return it."""
    newer, older = window_rows(sim)
    if newer == older:
        return 0
    row, base = sim.scraped[newer], sim.scraped[older]
    done = row[1] - base[1]
    return int((row[5] - base[5]) / done * 1e6) if done > 0.0 else 0
