"""The default kube-scheduler and the device plugin: which node and GPU a pod gets, and what no pod can use. Compiled.

Filter: CPU and memory requests, and a GPU with room for the pod. Score, as the plugins of Kubernetes 1.36 do by
default, in whole numbers of 0..100: NodeResourcesFit with LeastAllocated (weight 1), NodeResourcesBalancedAllocation (1),
PodTopologySpread with the default constraint on the host name (2; nodes carry no zone). The others are equal everywhere.
A GPU is a filter and never a score, which is why free memory gets scattered (`fragments`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.fleet import accrue, turn_devices
from gpusched.sim.primitives import jit, normal, uniform
from gpusched.sim.records import INF, PENDING, SCHEDULED, TERMINATING, Env

MOST = 100
"""Largest score of a plugin (framework/interface.go, MaxNodeScore)."""
FEWEST_NODES, LEAST_PERCENT = 100, 5
"""A search ends once this many nodes, and this share of all, have room (schedule_one.go, numFeasibleNodesToFind)."""
SPREAD_WEIGHT, HOST_SKEW = 2, 3
"""PodTopologySpread's weight and its default maxSkew (default_plugins.go, podtopologyspread/plugin.go)."""


@jit
def schedule(env: Env, e: int, p: int, t: float) -> None:
    """Bind a pending pod to the best node that has room for it; else leave it pending.

    A terminating pod holds what it has until it is gone. Inside the node a GPU ticket stands for the pod's VRAM, and
    tickets are spread over the GPUs (device plugin's `distributed`).
    """
    sim, pod = env.sim_E[e], env.pods_EP[e][p]
    tally(env, e, pod.revision)
    n = choose_node(env, e, pod.vram_bytes)
    if n < 0:
        return
    accrue(env, e, t)
    turn_devices(env, e, t)
    pod.gpu = emptiest_gpu(env, e, n, pod.vram_bytes)
    pod.state = SCHEDULED
    pod.admitted_s = t + sim.schedule_min_s + sim.schedule_span_s * uniform(pod)
    pod.up_s = pod.life_s = pod.admitted_s + draw_start_s(sim, pod)
    sim.due_s = min(sim.due_s, pod.life_s)
    accrue(env, e, t)
    turn_devices(env, e, t)


@jit
def schedule_pending(env: Env, e: int, t: float) -> None:
    """Let every pending pod of the fleet try again: those of several services in the order of their creation."""
    lead, services = env.sim_E[e].lead, env.sim_E[e].services
    past_s, past = -INF, -1
    while True:
        best_s, best = INF, -1
        for k in range(lead, lead + services):
            pods = env.pods_EP[k]
            for p in range(len(pods)):
                if pods[p].state == PENDING:
                    created_s = pods[p].created_s if services > 1 else 0.0
                    place = (k - lead) * len(pods) + p
                    after = created_s > past_s or (created_s == past_s and place > past)
                    if after and created_s < best_s:
                        best_s, best = created_s, place
        if best < 0:
            return
        past_s, past = best_s, best
        slots = env.pods_EP.shape[1]
        schedule(env, lead + best // slots, best % slots, t)


@jit
def draw_start_s(sim: Any, pod: Any) -> float:
    """Time a container takes until its process is up."""
    return float(sim.start_factor * math.exp(sim.start_mu + sim.start_sigma * normal(pod)))


@jit
def request_milli(sim: Any) -> int:
    """A pod's CPU request as the API has it, rounded up."""
    return math.ceil(sim.cpu_limit * sim.request_per_limit * 1000.0 - 1e-9)


@jit
def tally(env: Env, e: int, revision: int) -> None:
    """Count what the fleet's pods hold of every node and GPU, and how many of this ReplicaSet each node has.

    The spread's selector is the ReplicaSet's, so pods of other revisions do not count, nor do terminating ones
    (plugins/helper/spread.go DefaultSelector, podtopologyspread/common.go countPodsMatchSelector).
    """
    own = env.sim_E[e]
    machines, N = env.machines_FM[own.fleet], own.nodes
    for n in range(N):
        machines[n].cores = 0.0
        machines[n].milli_cores = machines[n].memory_bytes = machines[n].matching = 0
    for g in range(own.gpus):
        machines[N + g].held_bytes = 0.0
    per_node = own.gpus // N
    for k in range(own.lead, own.lead + own.services):
        sim, pods = env.sim_E[k], env.pods_EP[k]
        milli, memory = request_milli(sim), np.int64(sim.pod_memory_bytes)
        for p in range(sim.pods):
            pod = pods[p]
            if pod.state <= PENDING:
                continue
            machines[N + pod.gpu].held_bytes += pod.vram_bytes
            node = machines[pod.gpu // per_node]
            node.cores += sim.cpu_limit * sim.request_per_limit
            node.milli_cores += milli
            node.memory_bytes += memory
            if k == e and pod.state < TERMINATING and pod.revision == revision:
                node.matching += 1


@jit
def emptiest_gpu(env: Env, e: int, n: int, vram_bytes: float) -> int:
    """The GPU of a node that holds least and has room, -1 without one; `tally` has counted."""
    sim = env.sim_E[e]
    machines, N = env.machines_FM[sim.fleet], sim.nodes
    per_node = sim.gpus // N
    best, least = -1, INF
    for g in range(n * per_node, (n + 1) * per_node):
        held = machines[N + g].held_bytes
        if held + vram_bytes <= sim.usable_vram_bytes and held < least:
            best, least = g, held
    return best


@jit
def host_has_room(env: Env, e: int, n: int) -> bool:
    """Whether a node has the CPU and memory that another pod of a service requests (noderesources/fit.go)."""
    sim, node = env.sim_E[e], env.machines_FM[env.sim_E[e].fleet][n]
    cores = node.cores + sim.cpu_limit * sim.request_per_limit
    return bool(
        cores <= sim.node_cpu_cores - sim.stolen_cores
        and node.memory_bytes + sim.pod_memory_bytes <= sim.node_memory_bytes
    )


@jit
def choose_node(env: Env, e: int, vram_bytes: float) -> int:
    """The node a pod is bound to, -1 where none has room; `tally` has counted.

    A search looks at the nodes in turn, from where the last one ended, until enough have room (schedule_one.go,
    findNodesThatPassFilters); one that finds a single node does not score it.
    """
    sim = env.sim_E[e]
    nodes = env.machines_FM[sim.fleet]
    wanted, found, looked, only = nodes_wanted(sim.nodes), 0, 0, -1
    for n in range(sim.nodes):
        nodes[n].score = -1
    while looked < sim.nodes and found < wanted:
        n = (nodes[0].resume + looked) % sim.nodes
        looked += 1
        if host_has_room(env, e, n) and emptiest_gpu(env, e, n, vram_bytes) >= 0:
            nodes[n].score = 0
            found += 1
            only = n
    nodes[0].resume = (nodes[0].resume + looked) % sim.nodes
    if found <= 1:
        return int(only)
    score_nodes(sim, nodes, found)
    return draw_best(nodes, sim.nodes)


@jit
def nodes_wanted(nodes: int) -> int:
    """Nodes with room at which a search ends: all of up to 100, else 50 % less 1 % for every 125, 5 % at least."""
    if nodes < FEWEST_NODES:
        return nodes
    percent = max(50 - nodes // 125, LEAST_PERCENT)
    return max(nodes * percent // 100, FEWEST_NODES)


@jit
def score_nodes(sim: Any, nodes: NDArray[Any], found: int) -> None:
    """Give every node with room its score, 0 to 400.

    PodTopologySpread (podtopologyspread/scoring.go): matching pods weigh log(nodes + 2) each, plus maxSkew − 1, rounded;
    then the least is worth 100 and the others proportionally less.
    """
    weight = math.log(found + 2.0)
    least, most = 1 << 62, 0
    for n in range(sim.nodes):
        if nodes[n].score >= 0:
            raw = spread_raw(nodes[n].matching, weight)
            least, most = min(least, raw), max(most, raw)
    milli, memory = request_milli(sim), np.int64(sim.pod_memory_bytes)
    for n in range(sim.nodes):
        if nodes[n].score >= 0:
            raw = spread_raw(nodes[n].matching, weight)
            spread = MOST * (most + least - raw) // most
            cpu, mem = nodes[n].milli_cores + milli, nodes[n].memory_bytes + memory
            whole_cpu, whole_mem = np.int64(sim.node_cpu_cores * 1000.0), np.int64(sim.node_memory_bytes)
            nodes[n].score = (
                SPREAD_WEIGHT * spread
                + least_allocated(cpu, whole_cpu, mem, whole_mem)
                + balanced_allocation(cpu, whole_cpu, mem, whole_mem)
            )


@jit
def spread_raw(matching: int, weight: float) -> int:
    """PodTopologySpread's score before it is made comparable."""
    return math.floor(matching * weight + (HOST_SKEW - 1.0) + 0.5)


@jit
def least_allocated(cpu: int, whole_cpu: int, mem: int, whole_mem: int) -> int:
    """Mean share of CPU and memory left free, in whole percent each (noderesources/least_allocated.go)."""
    of_cpu = 0 if cpu > whole_cpu else (whole_cpu - cpu) * MOST // whole_cpu
    of_mem = 0 if mem > whole_mem else (whole_mem - mem) * MOST // whole_mem
    return (of_cpu + of_mem) // 2


@jit
def balanced_allocation(cpu: int, whole_cpu: int, mem: int, whole_mem: int) -> int:
    """100 less the deviation between the shares of CPU and memory requested (noderesources/balanced_allocation.go)."""
    deviation = abs((min(cpu / whole_cpu, 1.0) - min(mem / whole_mem, 1.0)) / 2.0)
    return int((1.0 - deviation) * MOST)


@jit
def draw_best(nodes: NDArray[Any], count: int) -> int:
    """A node of the highest score, each of several with the same chance (schedule_one.go, selectHost)."""
    best, ties = -1, 1
    for n in range(count):
        if nodes[n].score < 0:
            continue
        if best < 0 or nodes[n].score > nodes[best].score:
            best, ties = n, 1
        elif nodes[n].score == nodes[best].score:
            ties += 1
            if int(uniform(nodes[0]) * ties) == 0:
                best = n
    return int(best)


@jit
def fragments(env: Env, e: int, row_C: NDArray[Any]) -> None:
    """Write VRAM and CPU that are free, and how much of each one more pod could not use.

    In bytes: vram_fragmented, vram_free; in cores: cores_stranded, cores_free. Which service's pod it would be is not
    known: each weighs as much as it has replicas. Free VRAM is a fragment for a service where the GPU has less than its
    pod needs, or the node no CPU or memory for it (Weng et al., "Beware of Fragmentation", USENIX ATC 2023, section 3);
    free CPU is stranded where no GPU of the node has room for the pod.
    """
    own = env.sim_E[e]
    tally(env, e, 0)
    machines, N = env.machines_FM[own.fleet], own.nodes
    per_node, replicas = own.gpus // N, 0
    for k in range(own.lead, own.lead + own.services):
        replicas += env.sim_E[k].replicas
    for c in range(len(row_C)):
        row_C[c] = 0.0
    for n in range(N):
        cores = max(own.node_cpu_cores - own.stolen_cores - machines[n].cores, 0.0)
        vram_bytes = 0.0
        for g in range(n * per_node, (n + 1) * per_node):
            vram_bytes += own.usable_vram_bytes - machines[N + g].held_bytes
        row_C[1] += vram_bytes
        row_C[3] += cores
        for k in range(own.lead, own.lead + own.services):
            sim = env.sim_E[k]
            weight = sim.replicas / replicas if replicas > 0 else 1.0 / own.services
            pod_bytes = sim.pod_vram_bytes + (sim.instances - 1) * sim.instance_vram_bytes
            room, usable_bytes = host_has_room(env, k, n), 0.0
            for g in range(n * per_node, (n + 1) * per_node):
                free_bytes = own.usable_vram_bytes - machines[N + g].held_bytes
                if free_bytes >= pod_bytes:
                    usable_bytes += free_bytes
            row_C[0] += weight * (vram_bytes - (usable_bytes if room else 0.0))
            row_C[2] += weight * (cores if usable_bytes == 0.0 else 0.0)
