"""The reference engine's control plane: Deployment, scheduler, pod life, metrics pipeline, HPA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpusched.core.controls import UNSET, Controls, HPASpec
from gpusched.core.fault import LEVELS, FaultPlan
from gpusched.core.service import Service
from gpusched.sim import hpa
from gpusched.sim.hpa_replicas import PHASE_PENDING, PHASE_RUNNING, READY_FALSE, READY_TRUE
from gpusched.sim.records import (
    DCGM_BEGIN,
    DCGM_END,
    DEPLOY,
    FAULT,
    FREE,
    HPA_SYNC,
    INF,
    LEVEL,
    METRICS_SERVER,
    PENDING,
    READY,
    RESIZE,
    RUNNING,
    SCHEDULED,
    SCRAPE,
    TERMINATING,
)  # fmt: skip
from gpusched.sim.reference_parts import Pod, Processor, Stream, User

CADVISOR_S = 10.0
RELIST_S = 1.0
CLOCK_ORDER = (FAULT, LEVEL, RESIZE, DEPLOY, METRICS_SERVER, SCRAPE, DCGM_END, DCGM_BEGIN, HPA_SYNC)
"""Who goes first of two that are due at the same time."""


class ControlPlane:
    """Pods and what moves them. The data plane (`reference.Reference`) gives and takes the requests."""

    service: Service
    clocks: Any
    t: float
    replicas: int
    gpus: list[Processor]
    in_flight: int
    stream: Stream
    pod_key: int

    def __init__(self, service: Service, clocks: Any, max_replicas: int) -> None:
        self.service, self.clocks = service, clocks
        self.value = {name: c.value for name, c in service.constants().items()}
        self.slots: list[Pod | None] = [None] * (2 * max_replicas + 1)
        self.endpoints: list[Pod] = []
        self.uid = self.revision = 0
        self.instances, self.share = int(self.value["instances"]), 1.0
        self.cpu_limit = self.cpu_applied = self.value["cpu_limit_cores"]
        self.clock_s = [INF] * (FAULT + 1)
        self.gone_cpu_s = self.gone_to_dcgm_s = 0.0
        self.scrapes: list[dict[str, Any]] = []  # a lost one has a time only
        self.gpu_samples: list[dict[str, float]] = []
        self.fault, self.level_now, self.frozen_s = FaultPlan(), dict(LEVELS), -INF
        self.hpa: HPASpec | None = None

    # --- what the data plane must offer ---

    def change_users(self) -> None:
        raise NotImplementedError

    def fail(self, users: list[User]) -> None:
        raise NotImplementedError

    def counters(self) -> dict[str, Any]:
        raise NotImplementedError

    def disconnect(self, pod: Pod) -> None:
        raise NotImplementedError

    # --- pods ---

    def pods(self) -> list[Pod]:
        """Return all pods that exist, in slot order."""
        return [pod for pod in self.slots if pod is not None]

    def holding(self) -> list[Pod]:
        """Return the pods that hold resources: all but pending ones."""
        return [pod for pod in self.pods() if pod.state != PENDING]

    def request_cores(self) -> float:
        return self.cpu_limit * self.value["cpu_request_cores"] / self.value["cpu_limit_cores"]

    def deploy_soon(self) -> None:
        self.clock_s[DEPLOY] = min(self.clock_s[DEPLOY], self.t + self.clocks.api_delay_s)

    def reconcile_deployment(self) -> None:
        """Rolling update of the Deployment controller, then the ReplicaSets' creations and deletions."""
        want = self.replicas
        new = [pod for pod in self.pods() if pod.active and pod.revision == self.revision]
        old = [pod for pod in self.pods() if pod.active and pod.revision != self.revision]
        surge = math.ceil(want * 0.25) if old else 0
        spare = math.floor(want * 0.25) if old else 0
        spare = 1 if old and surge == spare == 0 else spare
        for _ in range(min(want - len(new), want + surge - len(new) - len(old))):
            self.create_pod()
        for pod in self.deletion_order(new)[: max(len(new) - want, 0)]:
            self.delete_pod(pod)
        for pod in self.deletion_order(old):
            ready = sum(1 for other in self.pods() if other.state == READY)
            if pod.state == READY and ready <= want - spare:
                break
            self.delete_pod(pod)

    def deletion_order(self, pods: list[Pod]) -> list[Pod]:
        """controller_utils.go ActivePodsWithRanks: less far first, then the younger by powers of two, then by UID."""

        def rank(pod: Pod) -> tuple[int, int, int, int]:
            age_s = max(self.t - (pod.ready_s if pod.state == READY else pod.created_s), 0.0)
            phase = max(pod.state, RUNNING) if pod.restarts else pod.state
            return phase, math.floor(math.log2(age_s + 1.0)), -pod.restarts, (pod.uid * 2654435761) % 65536

        return sorted(pods, key=rank)

    def create_pod(self) -> Pod | None:
        if None not in self.slots:
            return None
        self.uid += 1
        vram_bytes = self.service.vram_per_pod_bytes(self.instances)
        pod = Pod(
            slot=self.slots.index(None), uid=self.uid, stream=Stream.fork(self.pod_key, self.uid), state=PENDING,
            revision=self.revision, instances=self.instances, share=self.share, vram_bytes=vram_bytes,
            created_s=self.t, turned_s=self.t,
        )  # fmt: skip
        self.slots[pod.slot] = pod
        self.schedule(pod)
        return pod

    def schedule(self, pod: Pod) -> None:
        """Bind the pod to the GPU with the least VRAM taken, where it fits and the node has the CPU."""
        taken = [sum(p.vram_bytes for p in self.holding() if p.gpu == g) for g in range(len(self.gpus))]
        g = taken.index(min(taken))
        requested = (len(self.holding()) + 1) * self.request_cores()
        if (
            taken[g] + pod.vram_bytes > self.service.usable_vram_bytes
            or requested > self.value["node_cpu_cores"] - self.level_now["stolen_cores"]
        ):
            return
        low, high = self.value["schedule_min_s"], self.value["schedule_max_s"]
        pod.state, pod.gpu = SCHEDULED, g
        pod.admitted_s = self.t + low + (high - low) * pod.stream.uniform()
        pod.up_s = pod.life_s = pod.admitted_s + self.start_s(pod)

    def start_s(self, pod: Pod) -> float:
        """Draw how long a container takes until its process is up."""
        sigma = math.sqrt(math.log1p(self.value["start_cv"] ** 2))
        mu = math.log(max(self.value["start_s"], 1e-9)) - sigma**2 / 2
        return self.level_now["start_factor"] * math.exp(mu + sigma * pod.stream.normal())

    def start_process(self, pod: Pod) -> None:
        pod.state = RUNNING
        pod.life_s = (
            self.t + self.value["probe_delay_s"] + self.value["probe_period_s"] * pod.stream.uniform()
        )
        pod.advisor_s = self.t + CADVISOR_S * pod.stream.uniform()
        pod.cpu = Processor.cpu(self.cpu_applied, self.value["cfs_period_s"], self.t)
        pod.idle = pod.instances

    def become_ready(self, pod: Pod) -> None:
        pod.state, pod.ready_s, pod.turned_s, pod.life_s = READY, self.t, self.t, INF
        pod.endpoint_s = self.t + self.endpoint_lag_s(pod)
        if self.service.sharing == "mps":
            self.gpus[pod.gpu].per_job = pod.share
        self.deploy_soon()

    def endpoint_lag_s(self, pod: Pod) -> float:
        """Time until kube-proxy knows."""
        low, high = self.value["endpoint_min_s"], self.value["endpoint_max_s"]
        return low + (high - low) * pod.stream.uniform()

    def delete_pod(self, pod: Pod) -> None:
        """Endpoint removal and preStop run in parallel; SIGTERM after preStop, SIGKILL at the end of the grace."""
        if pod.state < RUNNING:
            self.free(pod)
            return
        pod.state = TERMINATING
        pod.endpoint_s = self.t + self.endpoint_lag_s(pod) if pod in self.endpoints else INF
        pod.sigterm_s = pod.life_s = self.t + self.value["prestop_s"]
        pod.kill_s = self.t + max(self.value["grace_s"], self.value["prestop_s"])

    def life(self, pod: Pod) -> None:
        """The next stage of a pod's life."""
        if pod.state == SCHEDULED:
            self.start_process(pod)
        elif pod.state == RUNNING:
            self.become_ready(pod)
        elif pod.in_flight == 0:  # told to stop, and drained
            if pod in self.endpoints:
                pod.life_s = pod.endpoint_s
            else:
                self.free(pod)
        elif self.t >= pod.kill_s:
            self.kill(pod)
        else:
            pod.life_s = pod.kill_s

    def drained(self, pod: Pod) -> None:
        """A terminating pod's process ends with its last request, but not before SIGTERM."""
        if pod.state == TERMINATING and pod.in_flight == 0:
            pod.life_s = min(pod.life_s, max(self.t, pod.sigterm_s))

    def kill(self, pod: Pod) -> None:
        broken = self.empty(pod)
        self.free(pod)
        self.fail(broken)

    def crash(self, pod: Pod) -> None:
        """The container dies and starts again: at once, or, if it died before, after 10 s, 20 s, 40 s ... 300 s.

        The kubelet's back-off (doBackOff) forgets a container that ran for ten minutes.
        """
        broken = self.empty(pod)
        self.disconnect(pod)
        self.gone_cpu_s += pod.cpu.used_s if pod.cpu else 0.0
        noticed_s = self.t + RELIST_S * pod.stream.uniform()
        endpoint_s = noticed_s + self.endpoint_lag_s(pod)
        pod.endpoint_s = endpoint_s if pod in self.endpoints else INF
        recent = pod.restarts > 0 and self.t - pod.backoff_at_s <= 600.0
        pod.backoff_at_s = max(noticed_s, self.t + pod.backoff_s) if recent else noticed_s
        pod.backoff_s = min(2.0 * pod.backoff_s, 300.0) if recent else 10.0
        pod.restarts += 1
        pod.state, pod.cpu, pod.ready_s, pod.turned_s = SCHEDULED, None, -INF, self.t
        pod.batch_s = pod.advisor_s = INF
        pod.up_s = pod.life_s = pod.backoff_at_s + self.start_s(pod)
        pod.seen = []
        self.fail(broken)

    def empty(self, pod: Pod) -> list[User]:
        """Take all requests out of a pod whose process is gone, and return their users."""
        broken = [*pod.queue, *(user for batch in pod.running for user in batch.users)]
        for batch in pod.running:
            self.gpus[pod.gpu].left_s.pop(batch, None)
        self.in_flight -= len(broken)
        pod.queue.clear()
        pod.running.clear()
        return broken

    def free(self, pod: Pod) -> None:
        """Give back all a pod held and let pending pods try again."""
        self.gone_cpu_s += pod.cpu.used_s if pod.cpu else 0.0
        self.slots[pod.slot] = None
        pod.state, pod.cpu = FREE, None
        if pod in self.endpoints:
            self.remove_endpoint(pod)
        self.deploy_soon()
        for other in self.pods():
            if other.state == PENDING:
                self.schedule(other)

    def endpoint(self, pod: Pod) -> None:
        pod.endpoint_s = INF
        if pod.state == READY and pod not in self.endpoints:
            self.endpoints.append(pod)
        elif pod.state != READY and pod in self.endpoints:
            self.remove_endpoint(pod)

    def remove_endpoint(self, pod: Pod) -> None:
        """The last one takes its place, so that both engines number the endpoints alike."""
        last = self.endpoints.pop()
        if last is not pod:
            self.endpoints[self.endpoints.index(pod)] = last

    def resize(self) -> None:
        """The kubelet applies the new CPU limit to running containers."""
        self.clock_s[RESIZE] = INF
        self.cpu_applied = self.cpu_limit
        for pod in self.pods():
            if pod.cpu:
                pod.cpu.resize(self.cpu_limit)

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
        return sum(gpu.busy_s for gpu in self.gpus)

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
        busy = (self.gpu_busy_s() - self.gone_to_dcgm_s) / (window_s * len(self.gpus))
        seen = {"busy": busy, "vram_bytes": sum(pod.vram_bytes for pod in self.holding())}
        self.gpu_samples.append({"t": self.t} | ({} if self.level_now["metrics_lost"] else seen))

    # --- HPA ---

    def start_hpa(self) -> None:
        """A controller without a past, looking at a phase of its own."""
        self.memory = np.zeros(1, dtype=hpa.MEMORY)
        self.history = [np.zeros(512, dtype=dtype) for dtype in (hpa.REC, hpa.EVENT, hpa.EVENT)]
        self.clock_s[HPA_SYNC] = self.t + self.clocks.hpa_sync_s * self.stream.uniform()

    def hpa_sync(self) -> None:
        self.clock_s[HPA_SYNC] = self.t + self.clocks.hpa_sync_s + 0.01 + 0.09 * self.stream.uniform()
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

    # --- faults ---

    def begin_faults(self, plan: FaultPlan) -> None:
        self.fault = plan
        self.moments = sorted(
            [(float(t), 0, k) for k, t in enumerate(plan.from_s_K)]
            + [(float(t), 1, d) for d, t in enumerate(plan.death_s_D)]
        )
        self.clock_s[FAULT] = self.moments[0][0] if self.moments else INF

    def suffer(self) -> None:
        """The next change of level, or the next death."""
        _, is_death, row = self.moments.pop(0)
        self.clock_s[FAULT] = self.moments[0][0] if self.moments else INF
        if is_death:
            self.lose_pod(float(self.fault.death_draw_D[row]), bool(self.fault.evicted_D[row]))
        else:
            self.change_levels({name: float(getattr(self.fault, f"{name}_K")[row]) for name in LEVELS})

    def lose_pod(self, draw: float, evicted: bool) -> None:
        ready = [pod for pod in self.pods() if pod.state == READY]
        if ready:
            pod = ready[int(draw * len(ready))]
            (self.kill if evicted else self.crash)(pod)

    def change_levels(self, now: dict[str, float]) -> None:
        before, visible_s, self.level_now = self.level_now, self.visible_s(), now
        if now["metric_delay_s"] != before["metric_delay_s"]:
            self.frozen_s = visible_s
        for gpu in self.gpus:
            gpu.speed, gpu.foreign = now["gpu_speed"], int(now["neighbours"])
        if now["stolen_cores"] != before["stolen_cores"]:
            for pod in self.pods():
                if pod.state == PENDING:
                    self.schedule(pod)

    # --- controls ---

    def apply(self, controls: Controls) -> None:
        """Set the desired state; what changed takes the API's time to act."""
        if controls.hpa is None:
            self.clock_s[HPA_SYNC] = INF
            if int(controls.replicas_E[0]) not in (UNSET, self.replicas):
                self.replicas = int(controls.replicas_E[0])
                self.deploy_soon()
        was_off, self.hpa = self.hpa is None, controls.hpa
        if self.hpa is not None:
            given = controls.hpa_target_E
            self.hpa_target = self.hpa.target if given is None else float(given[0])
            if was_off:
                self.start_hpa()
        if controls.cpu_cores_E is not None and float(controls.cpu_cores_E[0]) != self.cpu_limit:
            self.cpu_limit = float(controls.cpu_cores_E[0])
            self.clock_s[RESIZE] = self.t + self.value["resize_s"]
        wanted = self.instances, self.share
        if controls.instances_E is not None:
            self.instances = int(controls.instances_E[0])
        if controls.gpu_share_E is not None:
            self.share = float(controls.gpu_share_E[0])
        if wanted != (self.instances, self.share):  # the pod template changed: a rolling update
            self.revision += 1
            self.deploy_soon()

    def clock_actions(self) -> dict[int, Callable[[], None]]:
        """What each periodic or pending thing of the control plane does when its time has come."""
        return {
            LEVEL: self.change_users, RESIZE: self.resize, DEPLOY: self.deploy, METRICS_SERVER: self.metrics_server,
            SCRAPE: self.scrape, DCGM_END: self.dcgm_end, DCGM_BEGIN: self.dcgm_begin, HPA_SYNC: self.hpa_sync,
            FAULT: self.suffer,
        }  # fmt: skip

    def deploy(self) -> None:
        self.clock_s[DEPLOY] = INF
        self.reconcile_deployment()
