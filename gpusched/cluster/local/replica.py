"""One replica: a Triton server process and its life, from start over ready and draining to gone."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from gpusched.cluster.local.front import Front
from gpusched.cluster.local.parts import free_ports, get
from gpusched.cluster.local.processes import Processes

FAILURE_THRESHOLD = 3
"""Kubernetes' default: failureThreshold."""


class Life(IntEnum):
    """Where a replica is in its life; the order in which scaling down chooses."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPING = 3
    GONE = 4


@dataclass(kw_only=True)
class Probes:
    """What the profile says of probing and ending; seconds."""

    delay_s: float
    period_s: float
    prestop_s: float
    grace_s: float


Command = Callable[[str, int, int], list[str]]
"""identity, HTTP port, metrics port → command line"""


@dataclass(kw_only=True)
class Replica:
    """A server process; times are seconds of the control plane's clock, INF while they lie ahead undecided."""

    uid: int
    slot: int
    identity: str
    processes: Processes
    front: Front
    probes: Probes
    created_s: float
    phase: float
    life: Life = Life.STARTING
    ready_s: float = -math.inf
    probe_s: float = math.inf
    failures: int = 0
    deleted_s: float = math.inf
    code: int | None = None
    http_port: int = 0
    metrics_port: int = 0
    seen: list[tuple[float, float]] = field(default_factory=list)
    """CPU samples as metrics-server has them: (time, CPU seconds)."""

    @property
    def pod(self) -> str:
        return f"replica-{self.uid}"

    @property
    def active(self) -> bool:
        """Whether it counts towards the replicas asked for."""
        return self.life in (Life.STARTING, Life.READY)

    def start(self, command: Command, environment: dict[str, str]) -> None:
        """Start the process; the phase of the probes is the replica's own, as a kubelet's is."""
        self.http_port, self.metrics_port = free_ports(2)
        self.processes.start(self.pod, command(self.identity, self.http_port, self.metrics_port), environment)
        self.probe_s = self.created_s + self.probes.delay_s + self.phase * self.probes.period_s

    def look(self, now_s: float, codes: dict[str, int]) -> None:
        """Take the next step of life, if it is due."""
        if self.pod in codes and self.life != Life.GONE:
            self.code, self.life = codes[self.pod], Life.GONE
            self.front.remove(self.slot)
        elif self.active and now_s >= self.probe_s:
            self.probe_s += self.probes.period_s * (
                1 + math.floor((now_s - self.probe_s) / self.probes.period_s)
            )
            self.probe(now_s)
        elif self.life == Life.DRAINING and now_s >= self.deleted_s + self.probes.prestop_s:
            self.stop(now_s)
        elif self.life == Life.STOPPING and now_s >= self.deleted_s + self.grace_s:
            self.processes.signal(self.pod, signal.SIGKILL)

    @property
    def grace_s(self) -> float:
        return max(self.probes.grace_s, self.probes.prestop_s)

    def probe(self, now_s: float) -> None:
        """Ask for readiness; a server that has become deaf leaves the front until it answers again."""
        if healthy(self.http_port, self.identity):
            self.failures = 0
            if self.life == Life.STARTING:
                self.life, self.ready_s = Life.READY, now_s
                self.front.add(self.slot, self.http_port)
            return
        self.failures += 1
        if self.life == Life.READY and self.failures >= FAILURE_THRESHOLD:
            self.life = Life.STARTING
            self.front.drain(self.slot)

    def delete(self, now_s: float) -> None:
        """Take it out of the front; the process is told after preStop. One that serves nobody is told at once."""
        self.deleted_s = now_s
        if self.life == Life.STARTING and self.ready_s == -math.inf:
            self.stop(now_s)
            return
        self.life = Life.DRAINING
        self.front.drain(self.slot)

    def stop(self, now_s: float) -> None:
        """SIGTERM: Triton answers what it has accepted, then ends."""
        self.life = Life.STOPPING
        self.processes.signal(self.pod, signal.SIGTERM)


def healthy(port: int, identity: str) -> bool:
    """Whether the server is ready, and is the one we started and not another on the same port."""
    try:
        if get(port, "/v2/health/ready")[0] != 200:
            return False
        return bool(json.loads(get(port, "/v2")[1])["name"] == identity)
    except (OSError, ValueError, KeyError):
        return False
