"""The control plane of a local cluster: a thread that brings what is to what is wanted, ten times a second."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpusched.cluster.local.autoscaler import Autoscaler
from gpusched.cluster.local.front import Front
from gpusched.cluster.local.processes import Processes
from gpusched.cluster.local.replica import Command, Life, Probes, Replica
from gpusched.cluster.local.scraping import Prometheus, Usage
from gpusched.core.controls import HPASpec
from gpusched.core.errors import ClusterError
from gpusched.live.state import ReplicaState

log = logging.getLogger(__name__)

LOOK_S = 0.1
CRASHES = 3
"""Servers in a row that end before they were ready, after which starting another is pointless."""
BACK_OFF_S = 10.0
"""Wait before the place of a crashed replica is filled again, as the kubelet's first back-off."""


@dataclass(kw_only=True)
class Parts:
    """What the control plane moves."""

    processes: Processes
    front: Front
    prometheus: Prometheus
    autoscaler: Autoscaler
    probes: Probes
    command: Command
    environment: dict[str, str]
    prefix: str
    rng: random.Random


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for last: replicas (None: as before), or an HPA and its target."""

    replicas: int | None
    spec: HPASpec | None = None
    target: float | None = None


class ControlPlane:
    """Deployment, kubelet, endpoints and HPA in one; all times are seconds of its own clock.

    Only its thread touches replicas; others leave an order and read what it shows, so nobody waits for a probe.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.replicas: list[Replica] = []
        self.wanted = self.uid = self.crashes = 0
        self.not_before_s = 0.0
        self.scraped: Mapping[str, int] = {}
        self.order: Order | None = None
        self.shown = ReplicaState(spec=0, ready=0, alive=0)
        self.error: ClusterError | None = None
        self.zero_s = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="control plane", daemon=True)

    # --- what the cluster asks ---

    def scale(self, order: Order) -> None:
        """Set the replicas wanted, or hand them to an HPA. Raises ClusterError if all is lost."""
        self._check()
        with self.lock:
            self.order = order
            if order.spec is None and order.replicas is not None:
                self.shown = replace(self.shown, spec=order.replicas, hpa_target=math.nan)
        if not self.thread.ident:
            self.thread.start()

    def state(self) -> ReplicaState:
        """Return what the control plane shows. Raises ClusterError if all is lost."""
        self._check()
        return self.shown

    def wait_ready(self, timeout_s: float) -> None:
        """Return when as many replicas are ready as are wanted, and no other is there."""
        until_s = time.monotonic() + timeout_s
        while True:
            state = self.state()
            if state.ready == state.alive == state.spec:
                return
            if time.monotonic() > until_s:
                raise ClusterError(
                    f"only {state.ready} of {state.spec} replicas were ready after {timeout_s:g} s "
                    "(cluster.ready_timeout_s). Ask for fewer, or give them longer."
                )
            time.sleep(LOOK_S)

    def usage(self) -> dict[str, Usage]:
        """Return what every replica has used, by pod."""
        used = {replica.pod: replica.processes.usage(replica.pod) for replica in list(self.replicas)}
        return {pod: Usage(cpu_s=u[0], memory_bytes=u[1]) for pod, u in used.items() if u}

    def ready_s(self) -> dict[str, float]:
        """Return the time each replica took from its start until it was ready, by pod; what has not is absent."""
        return {r.pod: r.ready_s - r.created_s for r in list(self.replicas) if r.ready_s > -math.inf}

    def ports(self) -> dict[str, int]:
        """Return the HTTP port of each ready replica, by pod."""
        return {r.pod: r.http_port for r in list(self.replicas) if r.life == Life.READY}

    def end(self) -> None:
        """Stop the thread; the processes stay."""
        self.ended.set()
        if self.thread.ident:
            self.thread.join()

    def now_s(self) -> float:
        return time.monotonic() - self.zero_s

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self.ended.wait(LOOK_S):
                self._look(self.now_s())
        except ClusterError as error:
            self.error = error
        except Exception as error:
            log.exception("the control plane of the local cluster broke")
            self.error = ClusterError(f"the control plane of the local cluster broke: {error!r}")

    def _look(self, now_s: float) -> None:
        self._obey(now_s)
        codes = self.parts.processes.exits()
        self.parts.front.check(codes)
        for replica in self.replicas:
            replica.look(now_s, codes)
        self._bury(now_s)
        self.parts.autoscaler.look(now_s, self.replicas)
        self.wanted = self.parts.autoscaler.sync(now_s, self.replicas, self.wanted)
        self._reconcile(now_s)
        self._point()
        self._show()

    def _obey(self, now_s: float) -> None:
        with self.lock:
            order, self.order = self.order, None
        if order is not None:
            self.parts.autoscaler.set(order.spec, order.target, now_s)
            if order.spec is None and order.replicas is not None:
                self.wanted = order.replicas

    def _show(self) -> None:
        ready = sum(replica.life == Life.READY for replica in self.replicas)
        target = self.parts.autoscaler.target
        with self.lock:
            if self.order is None:
                self.shown = ReplicaState(
                    spec=self.wanted, ready=ready, alive=len(self.replicas), hpa_target=target
                )

    def _bury(self, now_s: float) -> None:
        """Forget replicas that are gone; one that nobody told to go has crashed."""
        for replica in [r for r in self.replicas if r.life == Life.GONE]:
            self.replicas.remove(replica)
            if replica.deleted_s < math.inf:
                continue
            tail = self.parts.processes.tail(replica.pod)
            log.warning("%s ended by itself (code %s): %s", replica.pod, replica.code, tail)
            served = replica.ready_s > -math.inf
            self.crashes = 0 if served else self.crashes + 1
            self.not_before_s = now_s + (BACK_OFF_S if served else 0.0)
            if self.crashes >= CRASHES:
                raise ClusterError(f"Triton ends before it is ready (code {replica.code}): {tail}")

    def _reconcile(self, now_s: float) -> None:
        active = [replica for replica in self.replicas if replica.active]
        for replica in sorted(active, key=lambda r: _deletion_rank(r, now_s))[
            : max(len(active) - self.wanted, 0)
        ]:
            replica.delete(now_s)
        free = [
            slot
            for slot in range(1, self.parts.front.slots + 1)
            if slot not in {r.slot for r in self.replicas}
        ]
        for slot in free[: max(self.wanted - len(active), 0)]:
            if now_s >= self.not_before_s:
                self._create(slot, now_s)

    def _create(self, slot: int, now_s: float) -> None:
        self.uid += 1
        p = self.parts
        replica = Replica(
            uid=self.uid, slot=slot, identity=f"{p.prefix}r{self.uid}", processes=p.processes, front=p.front,
            probes=p.probes, created_s=now_s, phase=p.rng.random(),
        )  # fmt: skip
        replica.start(p.command, p.environment)
        self.replicas.append(replica)

    def _point(self) -> None:
        """Tell Prometheus whom to scrape: every process, as a PodMonitor does with every running pod."""
        ports = {replica.pod: replica.metrics_port for replica in self.replicas}
        if ports != self.scraped:
            self.parts.prometheus.point_at(ports)
            self.scraped = ports


def _deletion_rank(replica: Replica, now_s: float) -> tuple[int, int, int]:
    """controller_utils.go ActivePodsWithRanks: what is less far goes first, then the younger by powers of two."""
    since_s = replica.ready_s if replica.life == Life.READY else replica.created_s
    return replica.life, math.floor(math.log2(max(now_s - since_s, 0.0) + 1.0)), replica.uid
