"""The reference engine's metrics pipeline and its HPA: cAdvisor, metrics-server, Prometheus, DCGM, autoscaling/v2."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gpusched.core.controls import HPASpec
from gpusched.sim import hpa
from gpusched.sim.hpa_replicas import PHASE_PENDING, PHASE_RUNNING, READY_FALSE, READY_TRUE
from gpusched.sim.records import (
    DCGM_BEGIN,
    DCGM_END,
    HPA_SYNC,
    INF,
    METRICS_SERVER,
    PENDING,
    RUNNING,
    SCRAPE,
    TERMINATING,
)  # fmt: skip
from gpusched.sim.reference_parts import Pod, Stream
from gpusched.sim.reference_schedule import Machines

CADVISOR_S = 10.0


class Metrics(ABC):
    """What watches a service, and the controller that acts on it."""

    clocks: Any
    clock_s: list[float]
    t: float
    stream: Stream
    machines: Machines
    level_now: dict[str, float]
    frozen_s: float
    scrapes: list[dict[str, Any]]  # a lost one has a time only
    gpu_samples: list[dict[str, float]]
    gone_cpu_s: float
    gone_to_dcgm_s: float
    device_busy_s: float
    hpa: HPASpec | None
    hpa_target: float
    replicas: int

    @abstractmethod
    def pods(self) -> list[Pod]:
        """Return all pods that exist, in slot order."""

    @abstractmethod
    def holding(self) -> list[Pod]:
        """Return the pods that hold resources: all but pending ones."""

    @abstractmethod
    def request_cores(self) -> float:
        """Return what one pod requests."""

    @abstractmethod
    def deploy_soon(self) -> None:
        """Let the Deployment controller look."""

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """Return what Prometheus scrapes."""

    @property
    def devices(self) -> int:
        """What `gpu_busy_s` is divided by for a mean."""
        return 1 if len(self.machines.services) > 1 else len(self.machines.gpus)

    # --- metrics ---

    def advisor(self, pod: Pod) -> None:
        """cAdvisor reads the CPU counter, again after 10 to 20 s."""
        pod.seen.append((self.t, pod.cpu.used_s if pod.cpu else 0.0))
        pod.advisor_s = self.t + CADVISOR_S * (1.0 + pod.stream.uniform())

    def metrics_server(self) -> None:
        """Keep the last two distinct samples of every container the scrape finds, and none of the others.

        A container that is at least 10 s and less than one resolution old is paired with its start instead.
        """
        self.clock_s[METRICS_SERVER] += self.clocks.metrics_server_s
        for pod in self.pods():
            if pod.cpu is None or self.level_now["metrics_lost"]:
                pod.older = pod.newer = None
                continue
            visible = [sample for sample in pod.seen if sample[0] <= self.visible_s()]
            if not visible:
                continue
            if 10.0 <= visible[-1][0] - pod.up_s < self.clocks.metrics_server_s:
                pod.older = (pod.up_s, 0.0)
            elif pod.newer is None or visible[-1][0] > pod.newer[0]:
                pod.older = (
                    pod.newer if pod.newer and pod.newer[0] > pod.up_s else None
                )  # not across a restart
            pod.newer = visible[-1]

    def cpu_used_s(self) -> float:
        return self.gone_cpu_s + sum(pod.cpu.used_s for pod in self.pods() if pod.cpu)

    def gpu_busy_s(self) -> float:
        """All GPUs' busy time; in a fleet the mean of those the service stands on, or of all where it has no pod."""
        return (
            self.device_busy_s
            if len(self.machines.services) > 1
            else sum(g.busy_s for g in self.machines.gpus)
        )

    def watch_gpus(self, dt: float) -> None:
        """Count the next dt seconds, in which nothing changes, for the GPUs the service stands on."""
        own = {pod.gpu for pod in self.holding()} or set(range(len(self.machines.gpus)))
        busy = sum(1 for g in own if self.machines.gpus[g].left_s or self.machines.gpus[g].foreign)
        self.device_busy_s += dt * busy / len(own)

    def scrape(self) -> None:
        self.clock_s[SCRAPE] += self.clocks.scrape_s
        pods = {pod.uid: pod.in_flight for pod in self.pods()}
        lost = bool(self.level_now["metrics_lost"])
        self.scrapes.append({"t": self.t} if lost else self.counters() | {"pods": pods})

    def visible_s(self) -> float:
        """Samples taken until then can be seen; a delay that grows stops the data, but takes nothing back."""
        return max(self.frozen_s, self.t - self.level_now["metric_delay_s"])

    def latest(self, samples: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the newest sample that can be seen, None where it was lost or there is none."""
        visible = [sample for sample in samples if sample["t"] <= self.visible_s()]
        return visible[-1] if visible and len(visible[-1]) > 1 else None

    def window(self) -> list[dict[str, Any]]:
        """Return the scrapes inside the window that were not lost."""
        rows = max(2, round(self.clocks.window_s / self.clocks.scrape_s) + 1)
        visible = [scrape for scrape in self.scrapes if scrape["t"] <= self.visible_s()]
        return [scrape for scrape in visible[-rows:] if len(scrape) > 1]

    def age_s(self, samples: list[dict[str, Any]]) -> float:
        """Age of the newest sample that was not lost, INF without one."""
        taken_s = [sample["t"] for sample in samples if len(sample) > 1 and sample["t"] <= self.visible_s()]
        return self.t - taken_s[-1] if taken_s else INF

    def dcgm_begin(self) -> None:
        self.clock_s[DCGM_BEGIN] += self.clocks.dcgm_s
        self.gone_to_dcgm_s = self.gpu_busy_s()

    def dcgm_end(self) -> None:
        """A point sample of the device: the share of a short window in which a kernel ran."""
        self.clock_s[DCGM_END] += self.clocks.dcgm_s
        window_s = min(self.clocks.dcgm_window_s, self.clocks.dcgm_s)
        busy = (self.gpu_busy_s() - self.gone_to_dcgm_s) / (window_s * self.devices)
        seen = {"busy": busy, "vram_bytes": sum(pod.vram_bytes for pod in self.holding())}
        self.gpu_samples.append({"t": self.t} | ({} if self.level_now["metrics_lost"] else seen))

    # --- HPA ---

    def start_hpa(self) -> None:
        """A controller without a past; a new HPA waits in its queue as long as one it has just looked at."""
        self.memory = np.zeros(1, dtype=hpa.MEMORY)
        self.history = [np.zeros(512, dtype=dtype) for dtype in (hpa.REC, hpa.EVENT, hpa.EVENT)]
        self.clock_s[HPA_SYNC] = self.next_sync_s()

    def next_sync_s(self) -> float:
        return float(self.t + self.clocks.hpa_sync_s + 0.01 + 0.09 * self.stream.uniform())

    def hpa_sync(self) -> None:
        self.clock_s[HPA_SYNC] = self.next_sync_s()
        assert self.hpa is not None
        packed, pods = hpa.pack(self.hpa), self.pods()
        packed.metrics_M["target"] = hpa.target_units(self.hpa.metric, self.hpa_target)
        listed = [self.listed(pod) for pod in pods]
        samples = [self.sample(pod) for pod in pods]
        columns = [np.array([[s[k] for s in samples]], dtype=np.int64) for k in range(4)]
        value, sample_ms, window_ms, request = columns
        has = np.array([[s[4] for s in samples]], dtype=np.bool_)
        available = np.array([len(self.window()) > 1], dtype=np.int64)
        desired, rescaled, _ = hpa.reconcile(
            packed.spec[0], packed.metrics_M, packed.rules, self.memory[0], *self.history,
            np.array(listed, dtype=hpa.POD), len(pods), value, sample_ms, window_ms, has, request,
            np.array([self.queue_us()]), available, round(self.t * 1000.0), self.replicas,
            sum(1 for pod in pods if pod.active), 0, np.zeros(1, dtype=hpa.STATUS),
        )  # fmt: skip
        if rescaled:
            self.replicas = int(desired)
            self.deploy_soon()

    def listed(self, pod: Pod) -> tuple[int, int, int, int, int]:
        """The pod as the API shows it: phase, deleting, Ready, its last transition, start; whole seconds."""
        return (
            PHASE_RUNNING if pod.state >= RUNNING or pod.restarts else PHASE_PENDING,
            int(pod.state == TERMINATING),
            READY_TRUE if pod.ready_s > -INF else READY_FALSE,
            1000 * math.floor(pod.turned_s),
            hpa.NONE_MS if pod.state == PENDING else 1000 * math.floor(pod.admitted_s),
        )

    def sample(self, pod: Pod) -> tuple[int, int, int, int, bool]:
        """The pod's metric: value, timestamp, window, request, whether there is one."""
        request = math.ceil(self.request_cores() * 1000.0 - 1e-9)
        nothing = 0, 0, 0, request, False
        if pod.state < RUNNING:
            return nothing
        if self.hpa is not None and self.hpa.metric != "cpu":
            scrape = self.latest(self.scrapes)
            if scrape is None or scrape["t"] < pod.up_s:
                return nothing
            return 1000 * scrape["pods"][pod.uid], int(self.t * 1000.0), 0, request, True
        if pod.newer is None or pod.older is None:
            return nothing
        window_s = pod.newer[0] - pod.older[0]
        cores = (pod.newer[1] - pod.older[1]) / window_s
        newer_ms = 1000 * math.floor(pod.newer[0])
        return math.ceil(cores * 1000.0 - 1e-9), newer_ms, int(window_s * 1000.0), request, True

    def queue_us(self) -> int:
        """Mean Triton queue time of the window, microseconds."""
        if len(self.window()) < 2:
            return 0
        newer, older = self.window()[-1], self.window()[0]
        done = newer["completed"] - older["completed"]
        return int((newer["queue_sum_s"] - older["queue_sum_s"]) / done * 1e6) if done > 0 else 0
