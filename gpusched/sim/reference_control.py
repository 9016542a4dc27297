"""The reference engine's control plane: Deployment, pod life, faults, controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpusched.core.controls import UNSET, Controls
from gpusched.core.fault import LEVELS, FaultPlan
from gpusched.core.service import Service
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
from gpusched.sim.reference_metrics import CADVISOR_S, Metrics
from gpusched.sim.reference_parts import Pod, Processor, Stream, User
from gpusched.sim.reference_schedule import Machines
from gpusched.sim.reference_triton import Batcher

RELIST_S = 1.0
CLOCK_ORDER = (FAULT, LEVEL, RESIZE, DEPLOY, METRICS_SERVER, SCRAPE, DCGM_END, DCGM_BEGIN, HPA_SYNC)
"""Who goes first of two that are due at the same time."""


class ControlPlane(Metrics):
    """Pods and what moves them. The data plane (`reference.Reference`) gives and takes the requests."""

    service: Service
    in_flight: int
    pod_key: int

    def __init__(self, service: Service, clocks: Any, max_replicas: int, machines: Machines) -> None:
        self.service, self.clocks, self.machines = service, clocks, machines
        self.place = len(machines.services)
        machines.services.append(self)
        self.value = {name: c.value for name, c in service.constants().items()}
        self.slots: list[Pod | None] = [None] * (2 * max_replicas + 1)
        self.endpoints: list[Pod] = []
        self.uid = self.revision = 0
        self.instances, self.share = int(self.value["instances"]), 1.0
        self.cpu_limit = self.cpu_applied = self.value["cpu_limit_cores"]
        self.clock_s = [INF] * (FAULT + 1)
        self.gone_cpu_s = self.gone_to_dcgm_s = self.device_busy_s = 0.0
        self.scrapes, self.gpu_samples = [], []
        self.fault, self.level_now, self.frozen_s = FaultPlan(), dict(LEVELS), -INF
        self.hpa = None

    # --- what the data plane must offer ---

    def change_users(self) -> None:
        raise NotImplementedError

    def fail(self, users: list[User]) -> None:
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
            created_s=self.t, turned_s=self.t, place=self.place,
        )  # fmt: skip
        self.slots[pod.slot] = pod
        self.machines.wake = True
        return pod

    def schedule(self, pod: Pod) -> None:
        """Bind the pod to a node and a GPU, if there is one with room."""
        g = self.machines.place(self, pod)
        if g is None:
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
        pod.batcher = self.new_batcher(pod)

    def new_batcher(self, pod: Pod) -> Batcher | None:
        """Return a batcher that runs ahead; None where it does not, or where that makes no difference."""
        v, largest = self.value, int(self.value["max_batch"])
        preferred = self.service.preferred_batches or [largest]
        policy = v["queue_size"] > 0.0 or v["queue_timeout_s"] > 0.0
        if policy or (v["queue_delay_s"] == 0.0 and preferred == [largest]):
            return None
        return Batcher(
            instances=pod.instances, max_batch=largest, delay_s=v["queue_delay_s"], preferred=preferred
        )

    def become_ready(self, pod: Pod) -> None:
        pod.state, pod.ready_s, pod.turned_s, pod.life_s = READY, self.t, self.t, INF
        pod.endpoint_s = self.t + self.endpoint_lag_s(pod)
        if self.service.sharing == "mps":
            self.machines.gpus[pod.gpu].per_job = pod.share
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
        waiting = pod.batcher.clear() if pod.batcher else pod.queue
        broken = [*waiting, *(user for batch in pod.running for user in batch.users)]
        for batch in pod.running:
            self.machines.gpus[pod.gpu].left_s.pop(batch, None)
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
        self.machines.wake = True

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
        for gpu in self.machines.gpus:
            gpu.speed, gpu.foreign = now["gpu_speed"], int(now["neighbours"])
        if now["stolen_cores"] != before["stolen_cores"]:
            self.machines.wake = True

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
