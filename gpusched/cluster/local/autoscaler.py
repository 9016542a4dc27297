"""The HPA of the simulator in wall time: its metrics pipeline, its sync, the very same `reconcile`."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpusched.cluster.local.parts import get
from gpusched.cluster.local.replica import Life, Replica
from gpusched.core.controls import HPASpec
from gpusched.sim import hpa
from gpusched.sim.hpa_replicas import PHASE_RUNNING, READY_FALSE, READY_TRUE

SAMPLE = re.compile(r"^(nv_inference_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
QUEUE, DONE, PENDING = (
    "nv_inference_queue_duration_us",
    "nv_inference_request_success",
    "nv_inference_pending_request_count",
)
COMPUTE = tuple(f"nv_inference_compute_{phase}_duration_us" for phase in ("input", "infer", "output"))
ROWS = 512
FIRST_SAMPLE_S = 10.0
"""metrics-server pairs a container's first sample with its start once it is this old."""


@dataclass(kw_only=True)
class Clocks:
    """Periods of the metrics pipeline and the controller, seconds; the same as in conf/cluster/sim.yaml."""

    scrape_s: float
    window_s: float
    advisor_s: float
    metrics_server_s: float
    hpa_sync_s: float


@dataclass(kw_only=True)
class Scrape:
    """What was read off one replica's metrics page, all versions of the model together.

    queue_us, busy_us, done   cumulative: time in the queue and in execution, summed over requests; answered requests
    pending                   requests waiting now
    """

    t_s: float
    queue_us: float
    busy_us: float
    done: float
    pending: float


class Autoscaler:
    """Samples the replicas as cAdvisor, metrics-server and Prometheus would, and reconciles once per sync."""

    def __init__(self, clocks: Clocks, request_cores: float, model: str, rng: random.Random) -> None:
        self.clocks, self.request_cores, self.model, self.rng = clocks, request_cores, model, rng
        self.spec: HPASpec | None = None
        self.target = math.nan
        self.due_s = {"metrics_server": 0.0, "scrape": 0.0, "sync": math.inf}
        self.advisor_s: dict[int, float] = {}
        self.advised: dict[int, tuple[float, float]] = {}
        self.kept: dict[int, deque[tuple[float, float]]] = {}
        self.scrapes: dict[int, deque[Scrape]] = {}

    def set(self, spec: HPASpec | None, target: float | None, now_s: float) -> None:
        """Create, change or delete the HPA; a new one knows no past and waits for its first sync."""
        was_off, self.spec = self.spec is None, spec
        if spec is None:
            self.due_s["sync"], self.target = math.inf, math.nan
            return
        self.target = spec.target if target is None else target
        if was_off:
            self.memory = np.zeros(1, dtype=hpa.MEMORY)
            self.history = [np.zeros(ROWS, dtype=dtype) for dtype in (hpa.REC, hpa.EVENT, hpa.EVENT)]
            self.due_s["sync"] = now_s + self.clocks.hpa_sync_s

    def look(self, now_s: float, replicas: Sequence[Replica]) -> None:
        """Take every sample that is due; forget replicas that are gone."""
        here = {replica.uid for replica in replicas}
        memories: tuple[dict[int, Any], ...] = (self.advisor_s, self.advised, self.kept, self.scrapes)
        for memory in memories:
            for uid in memory.keys() - here:
                del memory[uid]
        for replica in replicas:
            self._advise(now_s, replica)
        if self._is_due("metrics_server", now_s, self.clocks.metrics_server_s):
            for replica in replicas:
                self._keep(replica)
        if self._is_due("scrape", now_s, self.clocks.scrape_s) and self._reads_triton:
            for replica in replicas:
                self._scrape(now_s, replica)

    @property
    def _reads_triton(self) -> bool:
        return self.spec is not None and self.spec.metric != "cpu"

    def _is_due(self, what: str, now_s: float, period_s: float) -> bool:
        if now_s < self.due_s[what]:
            return False
        self.due_s[what] = now_s + period_s
        return True

    def _advise(self, now_s: float, replica: Replica) -> None:
        """cAdvisor reads the CPU counter, again after one to two of its periods."""
        period_s = self.clocks.advisor_s
        due_s = self.advisor_s.setdefault(replica.uid, replica.created_s + period_s * self.rng.random())
        if now_s >= due_s and (used := replica.processes.usage(replica.pod)):
            self.advised[replica.uid] = (now_s, used[0])
            self.advisor_s[replica.uid] = now_s + period_s * (1.0 + self.rng.random())

    def _keep(self, replica: Replica) -> None:
        """metrics-server keeps the last two distinct samples; the first counts once it is old enough."""
        seen, kept = self.advised.get(replica.uid), self.kept.setdefault(replica.uid, deque(maxlen=2))
        if seen is None or (kept and seen[0] <= kept[-1][0]):
            return
        if not kept:
            if seen[0] - replica.created_s < min(FIRST_SAMPLE_S, self.clocks.advisor_s):
                return
            kept.append((replica.created_s, 0.0))
        kept.append(seen)

    def _scrape(self, now_s: float, replica: Replica) -> None:
        rows = round(self.clocks.window_s / self.clocks.scrape_s) + 1
        try:
            page = get(replica.metrics_port, "/metrics")[1].decode()
        except OSError:
            return
        values: defaultdict[str, float] = defaultdict(float)
        for name, labels, value in SAMPLE.findall(page):
            if f'model="{self.model}"' in labels:
                values[name] += float(value)
        if QUEUE in values:
            row = Scrape(
                t_s=now_s,
                queue_us=values[QUEUE],
                busy_us=sum(values[name] for name in COMPUTE),
                done=values[DONE],
                pending=values[PENDING],
            )
            self.scrapes.setdefault(replica.uid, deque(maxlen=max(rows, 2))).append(row)

    def sync(self, now_s: float, replicas: Sequence[Replica], wanted: int) -> int:
        """Return the replicas wanted from now on: reconcile where it is due, else as before."""
        if self.spec is None or now_s < self.due_s["sync"]:
            return wanted
        self.due_s["sync"] = now_s + self.clocks.hpa_sync_s
        packed = hpa.pack(self.spec)
        packed.metrics_M["target"] = hpa.target_units(self.spec.metric, self.target)
        listed = np.array([_listed(replica) for replica in replicas], dtype=hpa.POD)
        samples = [self._sample(now_s, replica) for replica in replicas]
        value, sample_ms, window_ms = (np.array([[s[k] for s in samples]], dtype=np.int64) for k in range(3))
        has = np.array([[s[3] for s in samples]], dtype=np.bool_)
        request = np.full_like(value, math.ceil(self.request_cores * 1000.0 - 1e-9))
        queue_us = self._queue_us()
        desired, rescaled, _ = hpa.reconcile(
            packed.spec[0], packed.metrics_M, packed.rules, self.memory[0], *self.history,
            listed, len(replicas), value, sample_ms, window_ms, has, request,
            np.array([max(queue_us, 0)]), np.array([int(not self._reads_triton or queue_us >= 0)]),
            round(now_s * 1000.0), wanted, sum(replica.active for replica in replicas), 0,
            np.zeros(1, dtype=hpa.STATUS),
        )  # fmt: skip
        return int(desired) if rescaled else wanted

    def _sample(self, now_s: float, replica: Replica) -> tuple[int, int, int, bool]:
        """Return a replica's metric: milli-value, timestamp and window in ms, whether there is one."""
        if self._reads_triton:
            rows = self.scrapes.get(replica.uid, ())
            return (_in_flight_m(rows), int(now_s * 1000), 0, True) if len(rows) > 1 else (0, 0, 0, False)
        kept = self.kept.get(replica.uid)
        if kept is None or len(kept) < 2:
            return 0, 0, 0, False
        (older_s, older), (newer_s, newer) = kept
        cores_m = math.ceil((newer - older) / (newer_s - older_s) * 1000.0 - 1e-9)
        return cores_m, 1000 * math.floor(newer_s), int((newer_s - older_s) * 1000), True

    def _queue_us(self) -> int:
        """Return the mean queue time of the window, microseconds; -1 before the second scrape."""
        pairs = [(rows[0], rows[-1]) for rows in self.scrapes.values() if len(rows) > 1]
        if not pairs:
            return -1
        done = sum(newer.done - older.done for older, newer in pairs)
        queue_us = sum(newer.queue_us - older.queue_us for older, newer in pairs)
        return int(queue_us / done) if done > 0 else 0


def _in_flight_m(rows: Sequence[Scrape]) -> int:
    """Requests in flight in thousandths: those waiting are counted, those executing follow from Little's law."""
    older, newer = rows[0], rows[-1]
    executing = 1e-6 * (newer.busy_us - older.busy_us) / (newer.t_s - older.t_s)
    return round(1000 * (newer.pending + executing))


def _listed(replica: Replica) -> tuple[int, int, int, int, int]:
    """The replica as a pod of the API: phase, deleting, Ready, its last transition, start; whole seconds."""
    was_ready = replica.ready_s > -math.inf
    return (
        PHASE_RUNNING,
        int(not replica.active),
        READY_TRUE if was_ready and replica.life != Life.STARTING else READY_FALSE,
        1000 * math.floor(replica.ready_s if was_ready else replica.created_s),
        1000 * math.floor(replica.created_s),
    )
