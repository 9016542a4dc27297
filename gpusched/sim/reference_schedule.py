"""The reference engine's nodes: the default kube-scheduler in the words of its plugins, and GPUs that services share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpusched.sim.records import PENDING, TERMINATING
from gpusched.sim.reference_parts import Pod, Processor, Stream

if TYPE_CHECKING:
    from gpusched.sim.reference_control import ControlPlane


@dataclass(kw_only=True)
class Machines:
    """Nodes of the same kind, their GPUs, and the services that run there.

    `wake` says that a pod waits for a node, or that what it waits for may have come free.
    """

    nodes: int = 1
    services: list[ControlPlane] = field(default_factory=list)
    gpus: list[Processor] = field(default_factory=list)
    stream: Stream = field(default_factory=lambda: Stream(state=0))
    next_node: int = 0
    wake: bool = False

    def on_node(self, n: int) -> list[tuple[ControlPlane, Pod]]:
        """Return the pods bound to a node, with their services."""
        per_node = len(self.gpus) // self.nodes
        return [(s, pod) for s in self.services for pod in s.holding() if pod.gpu // per_node == n]

    def vram_bytes(self, g: int) -> float:
        """VRAM that pods hold on a GPU."""
        return sum(pod.vram_bytes for s in self.services for pod in s.holding() if pod.gpu == g)

    def schedule_pending(self) -> None:
        """Try every pending pod; of several services the one created first comes first."""
        self.wake = False
        waiting = [(s, pod) for s in self.services for pod in s.pods() if pod.state == PENDING]
        if len(self.services) > 1:
            waiting.sort(key=lambda one: one[1].created_s)
        for service, pod in waiting:
            service.schedule(pod)

    def place(self, service: ControlPlane, pod: Pod) -> int | None:
        """Return the GPU a pod gets, None where no node has room for it."""
        fitting = self._fitting(service, pod)
        if not fitting:
            return None
        if len(fitting) == 1:
            return self._gpu(service, pod, fitting[0])
        score = {n: self._score(service, pod, n, fitting) for n in sorted(fitting)}
        best, ties = -1, 0
        for n, value in score.items():  # reservoir sampling among equals (selectHost)
            if best < 0 or value > score[best]:
                best, ties = n, 1
            elif value == score[best]:
                ties += 1
                if int(self.stream.uniform() * ties) == 0:
                    best = n
        return self._gpu(service, pod, best)

    def _fitting(self, service: ControlPlane, pod: Pod) -> list[int]:
        """Filter: nodes with room, from where the last search ended, until there are enough of them."""
        enough = self.nodes
        if self.nodes >= 100:
            enough = max(self.nodes * max(50 - self.nodes // 125, 5) // 100, 100)
        fitting: list[int] = []
        looked = 0
        while looked < self.nodes and len(fitting) < enough:
            n = (self.next_node + looked) % self.nodes
            looked += 1
            if self._has_room(service, n) and self._gpu(service, pod, n) is not None:
                fitting.append(n)
        self.next_node = (self.next_node + looked) % self.nodes
        return fitting

    def _has_room(self, service: ControlPlane, n: int) -> bool:
        v = service.value
        cores = sum(s.request_cores() for s, _ in self.on_node(n)) + service.request_cores()
        memory = sum(s.value["pod_memory_bytes"] for s, _ in self.on_node(n)) + v["pod_memory_bytes"]
        stolen = service.level_now["stolen_cores"]
        return bool(cores <= v["node_cpu_cores"] - stolen and memory <= v["node_memory_bytes"])

    def _gpu(self, service: ControlPlane, pod: Pod, n: int) -> int | None:
        """Return the GPU of a node with the least VRAM taken, None where the pod does not fit there."""
        per_node = len(self.gpus) // self.nodes
        taken = {g: self.vram_bytes(g) for g in range(n * per_node, (n + 1) * per_node)}
        g = min(taken, key=lambda g: taken[g])
        return g if taken[g] + pod.vram_bytes <= service.service.usable_vram_bytes else None

    def _score(self, service: ControlPlane, pod: Pod, n: int, fitting: list[int]) -> int:
        """Score: PodTopologySpread twice, LeastAllocated and BalancedAllocation once each; 0..100 each."""
        milli = sum(request_milli(s) for s, _ in self.on_node(n)) + request_milli(service)
        memory = sum(int(s.value["pod_memory_bytes"]) for s, _ in self.on_node(n))
        memory += int(service.value["pod_memory_bytes"])
        all_milli, all_memory = (
            int(service.value["node_cpu_cores"] * 1000),
            int(service.value["node_memory_bytes"]),
        )
        free = [
            max(0, whole - used) * 100 // whole for used, whole in ((milli, all_milli), (memory, all_memory))
        ]
        shares = [min(used / whole, 1.0) for used, whole in ((milli, all_milli), (memory, all_memory))]
        deviation = abs((shares[0] - shares[1]) / 2)
        raw = {k: self._crowd(service, pod, k, len(fitting)) for k in fitting}
        spread = 100 * (max(raw.values()) + min(raw.values()) - raw[n]) // max(raw.values())
        return 2 * spread + sum(free) // 2 + int((1.0 - deviation) * 100)

    def _crowd(self, service: ControlPlane, pod: Pod, n: int, fitting: int) -> int:
        """How many pods of the same ReplicaSet a node has, as PodTopologySpread counts (maxSkew 3)."""
        same = sum(
            1
            for s, other in self.on_node(n)
            if s is service and other.revision == pod.revision and other.state < TERMINATING
        )
        return math.floor(same * math.log(fitting + 2) + 2 + 0.5)

    def fragments(self) -> tuple[float, float, float, float]:
        """Return VRAM no further pod could use, free VRAM, CPU no further pod could use, free CPU (schedule.fragments)."""
        found = [0.0, 0.0, 0.0, 0.0]
        per_node, replicas = len(self.gpus) // self.nodes, sum(s.replicas for s in self.services)
        for n in range(self.nodes):
            own = self.services[0]
            room = own.value["node_cpu_cores"] - own.level_now["stolen_cores"]
            cores = max(room - sum(s.request_cores() for s, _ in self.on_node(n)), 0.0)
            free = [
                own.service.usable_vram_bytes - self.vram_bytes(g)
                for g in range(n * per_node, (n + 1) * per_node)
            ]
            found[1] += sum(free)
            found[3] += cores
            for s in self.services:
                weight = s.replicas / replicas if replicas else 1.0 / len(self.services)
                fits = [b for b in free if b >= s.service.vram_per_pod_bytes(s.instances)]
                found[0] += weight * (sum(free) - (sum(fits) if self._has_room(s, n) else 0.0))
                found[2] += weight * (0.0 if fits else cores)
        return found[0], found[1], found[2], found[3]


def request_milli(service: ControlPlane) -> int:
    """Return a pod's CPU request in thousandths of a core, rounded up."""
    return math.ceil(service.request_cores() * 1000 - 1e-9)
