"""The reference engine's fleet: services that share nodes and GPUs, lived through together."""

from __future__ import annotations

from collections.abc import Sequence

from gpusched.core.ports import Episode
from gpusched.sim.reference import Reference, run_together


class ReferenceFleet:
    """The services of one fleet, in its order; the first brings the nodes."""

    def __init__(self, services: Sequence[Reference]) -> None:
        self.services = services

    def reset(self, episodes: Sequence[Episode]) -> None:
        """Put all services at t = 0. Once per object."""
        for service, episode in zip(self.services, episodes, strict=True):
            service.reset(episode)
        self.ticks: list[list[float]] = []

    def step(self, until_s: float) -> None:
        """Run to a control tick, writing tick rows."""
        tick_s, machines = self.services[0].tick_s, self.services[0].machines
        while (len(self.ticks) + 1) * tick_s <= until_s + 1e-9:
            run_together(self.services, (len(self.ticks) + 1) * tick_s)
            busy_s = sum(gpu.busy_s for gpu in machines.gpus) / len(machines.gpus)
            held = sum(pod.vram_bytes for s in self.services for pod in s.holding())
            pending = sum(len(s.pods()) - len(s.holding()) for s in self.services)
            self.ticks.append([self.services[0].t, busy_s, held, pending, *machines.fragments()])
            for service in self.services:
                service.tick()
