"""Where a service's parts lie in its fleet, and what it holds there. Compiled; seldom called.

A fleet's services share its GPUs. Which of them a service stands on, and how busy these are, is counted here.
"""

from __future__ import annotations

from typing import Any

from gpusched.sim.primitives import jit
from gpusched.sim.records import PENDING, Env


@jit
def cpu(env: Env, e: int, p: int) -> Any:
    """The CPU of a service's pod slot."""
    sim = env.sim_E[e]
    return env.resources_FR[sim.fleet][sim.first_pod + p]


@jit
def gpu(env: Env, e: int, g: int) -> Any:
    """A GPU of the fleet."""
    sim = env.sim_E[e]
    return env.resources_FR[sim.fleet][sim.services * sim.pods + g]


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
    sim.vram_bytes = vram
    sim.alive_s += dt * alive
    sim.ready_s += dt * sim.endpoints
    sim.limit_s += dt * alive * sim.cpu_applied
    sim.vram_s += dt * vram


@jit
def turn_devices(env: Env, e: int, t: float) -> None:
    """Close the account of the GPUs a fleet's service stands on; to be called before its pods move, and again after."""
    sim = env.sim_E[e]
    if sim.services == 1:
        return
    total_s, count = own_devices(env, e, t)
    if t > sim.device_s:  # else the pods have just moved, and this is where the counters of their GPUs begin
        sim.device_busy_s += (total_s - sim.device_sum_s) / count
        sim.device_s = t
    sim.device_sum_s = total_s


@jit
def own_devices(env: Env, e: int, t: float) -> tuple[float, int]:
    """Busy time of the GPUs a service's pods stand on, summed, and their number; of all GPUs where it has no pod."""
    sim, pods = env.sim_E[e], env.pods_EP[e]
    machines, N = env.machines_FM[sim.fleet], sim.nodes
    for g in range(sim.gpus):
        machines[N + g].seen = 0
    total_s, count = 0.0, 0
    for p in range(sim.pods):
        if pods[p].state > PENDING and machines[N + pods[p].gpu].seen == 0:
            machines[N + pods[p].gpu].seen = 1
            total_s += busy_s(gpu(env, e, pods[p].gpu), t)
            count += 1
    if count == 0:
        for g in range(sim.gpus):
            total_s += busy_s(gpu(env, e, g), t)
        count = sim.gpus
    return total_s, count


@jit
def busy_s(r: Any, t: float) -> float:
    """Time a processor has been busy until t; only looks, so that who looks changes nothing for those it serves."""
    return float(r.busy_s + (t - r.last_s if r.jobs > 0 else 0.0))
