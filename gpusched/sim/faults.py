"""Faults inside the engine: a plan's moments, and what happens at each. Compiled; without a fault nothing is called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.fault import LEVELS, FaultPlan
from gpusched.sim.fleet import gpu
from gpusched.sim.metrics import visible_s
from gpusched.sim.pods import break_requests, free_pod, rebuild_gpu, restart_container
from gpusched.sim.primitives import jit, resource_sync
from gpusched.sim.records import CRASHES, EVICTED, FAULT, FAULTS, INF, READY, SURVIVES, Env


def moments(plan: FaultPlan, host_alpha_s: float, host_beta_s: float) -> NDArray[Any]:
    """Return a plan as FAULTS rows in the order of time: its changes of level, then its deaths.

    A slower CPU takes longer over the host phases that begin on it, so the rows carry their length.
    """
    from_s = np.concatenate([plan.from_s_K, plan.death_s_D])
    order = np.argsort(from_s, kind="stable")
    rows = np.zeros(len(from_s), FAULTS)
    rows["from_s"] = from_s
    level_M = np.searchsorted(plan.from_s_K, from_s, side="right") - 1
    for name, resting in LEVELS.items():
        value_M = np.concatenate([[resting], getattr(plan, f"{name}_K")])[level_M + 1]
        if name == "host_speed":
            rows["host_alpha_s"], rows["host_beta_s"] = host_alpha_s / value_M, host_beta_s / value_M
        else:
            rows[name] = value_M
    first_death = len(plan.from_s_K)
    rows["draw"][first_death:] = plan.death_draw_D
    rows["death"][:first_death] = SURVIVES
    rows["death"][first_death:] = np.where(plan.evicted_D, EVICTED, CRASHES)
    return rows[order]


@jit
def fault_event(env: Env, e: int, t: float, broken: int) -> int:
    """Live through the next moment of the plan; returns the chain of users whose requests it broke."""
    sim, rows = env.sim_E[e], env.faults_ED[e]
    row = rows[sim.fault]
    sim.fault += 1
    sim.slow_s[FAULT] = rows[sim.fault].from_s if sim.fault < len(rows) else INF
    set_levels(env, e, t, row)
    if row.death != SURVIVES:
        p = pick_ready(env, e, row.draw)
        if p >= 0:
            broken = break_requests(env, e, p, t, broken)
            if row.death == EVICTED:
                free_pod(env, e, p, t)
            else:
                restart_container(env, e, p, t)
    return broken


@jit
def set_levels(env: Env, e: int, t: float, row: Any) -> None:
    """Let everything a moment sets hold from now on."""
    sim = env.sim_E[e]
    for g in range(sim.gpus):
        device = gpu(env, e, g)
        resource_sync(device, t)
        device.capacity *= row.gpu_speed / sim.gpu_speed
        device.per_job *= row.gpu_speed / sim.gpu_speed
    sim.gpu_speed = row.gpu_speed
    if row.neighbours != sim.neighbours:
        sim.neighbours = row.neighbours
        for g in range(sim.gpus):
            rebuild_gpu(env, e, g, t)
    sim.host_alpha_s, sim.host_beta_s = row.host_alpha_s, row.host_beta_s
    sim.start_factor = row.start_factor
    if row.metric_delay_s != sim.metric_delay_s:
        sim.frozen_s = visible_s(sim)
        sim.metric_delay_s = row.metric_delay_s
    sim.metrics_lost = row.metrics_lost
    if row.stolen_cores != sim.stolen_cores:
        sim.stolen_cores = row.stolen_cores
        sim.unscheduled = 1


@jit
def pick_ready(env: Env, e: int, draw: float) -> int:
    """Slot of the ready pod a draw from [0, 1) picks, -1 without a ready pod."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    ready = 0
    for p in range(sim.pods):
        if pods[p].state == READY:
            ready += 1
    left = min(int(draw * ready), ready - 1)
    for p in range(sim.pods):
        if pods[p].state == READY:
            if left == 0:
                return int(p)
            left -= 1
    return -1
