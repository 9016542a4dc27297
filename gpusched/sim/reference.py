"""A second engine in plain Python: the executable specification the compiled one is held against, event by event.

Written to be read beside the Kubernetes, Triton and Linux rules it follows, with the simplest data structures and
no code shared with the compiled engine but constants and the HPA controller (which has an oracle of its own).
It draws from the same random streams in the same order, so both engines live through the same requests.
`reference_parts` holds processors, pods and streams, `reference_schedule` the nodes, `reference_metrics` and
`reference_control` the control plane, `reference_readout` what is read off; here are the users, Triton and the event loop.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpusched.core.fault import FaultPlan
from gpusched.core.logs import RequestLog
from gpusched.core.ports import Episode
from gpusched.core.seeds import child, states
from gpusched.core.service import Service
from gpusched.sim.records import (
    DCGM_BEGIN,
    DCGM_END,
    DETERMINISTIC,
    EXECUTING,
    EXPONENTIAL,
    INACTIVE,
    INF,
    LEVEL,
    LOGNORMAL,
    METRICS_SERVER,
    QUEUED,
    READY,
    SCRAPE,
    THINKING,
)  # fmt: skip
from gpusched.sim.reference_control import CLOCK_ORDER
from gpusched.sim.reference_metrics import CADVISOR_S
from gpusched.sim.reference_parts import Batch, Pod, Processor, Stream, User, on_grid
from gpusched.sim.reference_readout import Readout
from gpusched.sim.reference_schedule import Machines
from gpusched.sim.reference_triton import Batcher, on_demand

OPEN_SLOTS = 4096
LONG_AGO_S = 3600.0
Event = tuple[float, int, int, int, int, int, Callable[[], None]]


class Reference(Readout):
    """One environment of `batch.BatchSim`, with the same meaning of all arguments."""

    def __init__(
        self, service: Service, *, max_replicas: int, clocks: Any, slo_s: float, start_replicas: int = 1,
        tick_s: float = 5.0, gpu_capacity: float = 1.0, gpu_dist: int | None = None, machines: Machines | None = None,
    ) -> None:  # fmt: skip
        super().__init__(service, clocks, max_replicas, machines or Machines())
        self.slo_s, self.tick_s, self.start_replicas = slo_s, tick_s, start_replicas
        self.gpu_capacity = gpu_capacity
        self.half_client_s = 0.5 * self.value["client_s"]  # half lies before the pod, half behind it
        spread = LOGNORMAL if self.value["gpu_cv"] > 0.0 else DETERMINISTIC
        self.gpu_dist = spread if gpu_dist is None else gpu_dist

    # --- the start of an episode ---

    def reset(self, episode: Episode) -> None:
        """Put the service at t = 0, start replicas long ready, load about to begin. Once per object."""
        self.t, self.plan = 0.0, episode.plan
        users_seed, keys_seed, clocks_seed, pods_seed = (child(episode.seed, k) for k in range(4))
        rng, self.pod_key, self.user_key, scheduler = (int(word) for word in states(keys_seed, 4))
        self.stream = Stream(state=rng)
        self.slo_s = self.slo_s if episode.slo_s is None else episode.slo_s
        self.replicas = self.start_replicas if episode.start_replicas is None else episode.start_replicas
        self.in_flight = self.completed = self.failed = self.slow = self.batches = 0
        self.latency_sum_s = self.queue_sum_s = 0.0
        self.held = dict.fromkeys(("alive", "ready", "limit", "vram"), 0.0)
        self.latencies_s: list[float] = []
        self.log: list[tuple[float, float, int]] = []
        self.ticks: list[list[float]] = []
        self._start_load([int(word) for word in states(users_seed, max(self.plan.max_users, 1))])
        self._start_clocks(np.random.default_rng(clocks_seed))
        if self.place == 0:  # a fleet's first service brings what all share
            self._start_gpus()
            self.machines.stream = Stream(state=scheduler)
        self.begin_faults(episode.fault or FaultPlan())
        self._start_pods(np.random.default_rng(pods_seed))
        self.before = self.account()

    def _start_load(self, words: list[int]) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.level = self.target_users = self.arrival = 0
        self.free_slots: list[int] = []
        given = self.plan.arrivals_s_N
        if given is None:
            self.clock_s[LEVEL] = 0.0
            streams = [Stream(state=word) for word in words]
        else:
            self.free_slots = list(range(OPEN_SLOTS))[::-1]
            streams = [Stream(state=0) for _ in range(OPEN_SLOTS)]
            if len(given):
                self.arrivals = [(float(given[0]) + self.half_client_s, -1)]
        self.users = [User(index=u, stream=s, state=INACTIVE) for u, s in enumerate(streams)]

    def _start_clocks(self, rng: np.random.Generator) -> None:
        self.clock_s[SCRAPE] = self.clocks.scrape_s * rng.random()
        self.clock_s[METRICS_SERVER] = self.clocks.metrics_server_s * rng.random()
        self.clock_s[DCGM_BEGIN] = self.clocks.dcgm_s * rng.random()
        self.clock_s[DCGM_END] = self.clock_s[DCGM_BEGIN] + min(self.clocks.dcgm_window_s, self.clocks.dcgm_s)

    def _start_gpus(self) -> None:
        mps, v = self.service.sharing == "mps", self.value
        switch = 0.0 if mps else v["gpu_switch_s"] / v["gpu_slice_s"]
        interference = v["mps_interference"] if mps else 0.0
        self.machines.gpus = [
            Processor(capacity=self.gpu_capacity, now_s=0.0, shared_loss=switch, loss_per_job=interference)
            for _ in range(self.machines.nodes * int(v["gpus"]))
        ]

    def _start_pods(self, rng: np.random.Generator) -> None:
        for _ in range(self.replicas):
            phase = float(rng.random())
            pod = self.create_pod()
            if pod is None:
                continue
            self.schedule(pod)
            if pod.admitted_s == -INF:
                continue
            self.start_process(pod)
            pod.state, pod.life_s, pod.advisor_s = READY, INF, CADVISOR_S * phase
            pod.created_s = pod.admitted_s = pod.up_s = pod.ready_s = pod.turned_s = -LONG_AGO_S
            pod.newer, pod.older = (-CADVISOR_S * phase, 0.0), (-CADVISOR_S * (1.0 + phase), 0.0)
            pod.seen = [pod.newer]
            self.endpoints.append(pod)

    # --- the event loop ---

    def run(self, until_s: float) -> None:
        """Live through everything due until then."""
        run_together([self], until_s)

    def step(self, until_s: float) -> None:
        """Run to a control tick, writing a tick row every `tick_s`."""
        while (len(self.ticks) + 1) * self.tick_s <= until_s + 1e-9:
            self.run((len(self.ticks) + 1) * self.tick_s)
            self.tick()

    def due(self) -> Iterator[Event]:
        """Every next event: time, then who goes first of several at the same time, then what to do.

        Arrivals come first, then CPUs, GPUs, and the control planes, one service after the other.
        """
        e = self.place
        if self.arrivals:
            yield self.arrivals[0][0], 0, e, 0, 0, 0, self.arrive
        for pod in self.pods():
            if pod.cpu:
                t, batch = pod.cpu.next()
                if pod.batch_s <= t:
                    yield pod.batch_s, 1, e, pod.slot, 0, 0, lambda pod=pod: self.batcher_due(pod)  # type: ignore[misc]
                else:
                    yield t, 1, e, pod.slot, 0, 0, lambda pod=pod, batch=batch: self.cpu_event(pod, batch)  # type: ignore[misc]
        for pod in self.pods():
            yield pod.endpoint_s, 3, e, 0, pod.slot, 0, lambda pod=pod: self.endpoint(pod)  # type: ignore[misc]
            yield pod.advisor_s, 3, e, 0, pod.slot, 1, lambda pod=pod: self.advisor(pod)  # type: ignore[misc]
            yield pod.life_s, 3, e, 0, pod.slot, 2, lambda pod=pod: self.life(pod)  # type: ignore[misc]
        actions = self.clock_actions()
        for rank, clock in enumerate(CLOCK_ORDER):
            yield self.clock_s[clock], 3, e, 1, rank, 0, actions[clock]

    def elapse(self, t: float) -> None:
        """Let time pass in which nothing happens."""
        dt, holding = t - self.t, self.holding()
        self.held["alive"] += dt * len(holding)
        self.held["ready"] += dt * len(self.endpoints)
        self.held["limit"] += dt * len(holding) * self.cpu_applied
        self.held["vram"] += dt * sum(pod.vram_bytes for pod in holding)
        self.watch_gpus(dt)
        for pod in self.pods():
            if pod.cpu:
                pod.cpu.elapse(t)
        self.t = t

    # --- users ---

    def change_users(self) -> None:
        """The load level changes; users that join send first within one longest think time."""
        target = int(self.plan.users_K[self.level])
        for user in self.users[self.target_users : target]:
            if user.state == INACTIVE:
                user.state = THINKING
                wait_s = self.plan.think_max_s * user.stream.uniform()
                heapq.heappush(self.arrivals, (on_grid(self.t + wait_s + self.half_client_s), user.index))
        self.target_users = target
        self.level += 1
        more = self.level < len(self.plan.from_s_K)
        self.clock_s[LEVEL] = float(self.plan.from_s_K[self.level]) if more else INF

    def arrive(self) -> None:
        """A request reaches the service, or its user finds that it is no longer needed."""
        _, u = heapq.heappop(self.arrivals)
        if self.plan.arrivals_s_N is None:
            if u >= self.target_users:
                self.users[u].state = INACTIVE
            else:
                self.request(self.users[u])
            return
        if self.free_slots:
            user = self.users[self.free_slots.pop()]
            user.stream, user.left = Stream.fork(self.user_key, self.arrival), 0
            self.request(user)
        else:
            self.failed += 1
            self.log.append((self.t - self.half_client_s, 0.0, RequestLog.FAILED))
        self.arrival += 1
        if self.arrival < len(self.plan.arrivals_s_N):
            arrival_s = float(self.plan.arrivals_s_N[self.arrival])
            heapq.heappush(self.arrivals, (arrival_s + self.half_client_s, -1))

    def request(self, user: User) -> None:
        user.send_s = self.t - self.half_client_s
        pod = self.choose_pod(user)
        size = self.value["queue_size"]
        if pod is None or 0 < size <= len(pod.queue):
            self.answer(user, ok=False)
            return
        user.enqueue_s, user.state = self.t, QUEUED
        if pod.batcher:
            pod.batcher.enqueue(user)
        else:
            pod.queue.append(user)
        self.in_flight += 1
        self.form_batches(pod)

    def choose_pod(self, user: User) -> Pod | None:
        """kube-proxy: a random endpoint per connection; a kept-alive connection stays with its pod."""
        u = user.stream.uniform()
        if user.left > 0 and user.pod is not None and user.pod.takes_connection(self.t):
            user.left -= 1
            return user.pod
        if not self.endpoints:
            return None
        user.pod = self.endpoints[int(u * len(self.endpoints))]
        user.left = 0
        if not user.pod.takes_connection(self.t):
            return None  # told to stop, and kube-proxy does not know yet
        per_connection = int(self.value["connection_requests"])
        user.left = per_connection - 1 if per_connection > 0 else 2**30
        return user.pod

    def answer(self, user: User, *, ok: bool) -> None:
        """The client gets its answer; a closed-loop user then thinks."""
        v = self.value
        tail_s = v["client_tail_median_s"] * math.exp(v["client_tail_sigma"] * user.stream.normal())
        answer_s = self.t + self.half_client_s + tail_s
        latency_s = answer_s - user.send_s
        if ok:
            self.completed += 1
            self.latency_sum_s += latency_s
            self.latencies_s.append(latency_s)
            self.slow += latency_s > self.slo_s
        else:
            self.failed += 1
        self.log.append((user.send_s, latency_s, RequestLog.OK if ok else RequestLog.FAILED))
        user.state = THINKING
        if self.plan.is_open:
            self.free_slots.append(user.index)
            return
        span_s = self.plan.think_max_s - self.plan.think_min_s
        think_s = self.plan.think_min_s + span_s * user.stream.uniform()
        heapq.heappush(self.arrivals, (on_grid(answer_s + think_s + self.half_client_s), user.index))

    def disconnect(self, pod: Pod) -> None:
        """The pod's process died: kept-alive connections to it are closed."""
        for user in self.users:
            if user.pod is pod:
                user.left = 0

    def fail(self, users: list[User]) -> None:
        for user in users:
            self.answer(user, ok=False)

    # --- Triton ---

    def form_batches(self, pod: Pod) -> None:
        """Start batches while an instance is idle (dynamic_batch_scheduler.cc)."""
        if pod.batcher:
            self.run_ahead(pod, pod.batcher)
            return
        pod.batch_s = INF
        while pod.idle > 0 and pod.queue:
            self.reject_overdue(pod)
            if not pod.queue:
                break
            delay_s, largest = self.value["queue_delay_s"], int(self.value["max_batch"])
            due_s = pod.queue[0].enqueue_s + delay_s
            overdue = self.t >= due_s
            size = on_demand(len(pod.queue), overdue, delay_s, largest, self.service.preferred_batches)
            if size == 0:
                pod.batch_s = due_s
                break
            self.start_batch(pod, [pod.queue.popleft() for _ in range(size)])
        self.drained(pod)

    def run_ahead(self, pod: Pod, batcher: Batcher) -> None:
        """Idle instances take what is there, then the batcher looks, until both have nothing to do."""
        while True:
            if pod.idle > 0 and batcher.payloads:
                self.start_batch(pod, batcher.dequeue(self.t))
            elif not batcher.notified or batcher.look(self.t):
                break
        pod.batch_s = batcher.look_s
        self.drained(pod)

    def batcher_due(self, pod: Pod) -> None:
        """The queue delay is over."""
        if pod.batcher:
            pod.batcher.notified, pod.batcher.look_s = True, INF
        self.form_batches(pod)

    def reject_overdue(self, pod: Pod) -> None:
        timeout_s = self.value["queue_timeout_s"]
        while timeout_s > 0.0 and pod.queue and self.t - pod.queue[0].enqueue_s > timeout_s:
            self.in_flight -= 1
            self.answer(pod.queue.popleft(), ok=False)

    def start_batch(self, pod: Pod, users: list[User]) -> None:
        batch = Batch(pod=pod, users=users)
        for user in users:
            user.state = EXECUTING
            self.queue_sum_s += self.t - user.enqueue_s
        pod.idle -= 1
        pod.running.append(batch)
        work_s = self.value["host_alpha_s"] + self.value["host_beta_s"] * len(users)
        work_s /= self.level_now["host_speed"]
        if work_s > 0.0 and pod.cpu:
            pod.cpu.left_s[batch] = work_s
        else:
            self.start_gpu_phase(batch)

    def cpu_event(self, pod: Pod, batch: Batch | None) -> None:
        """A host phase ends, or the CFS quota runs out or comes back."""
        assert pod.cpu
        if batch is None:
            pod.cpu.edge(self.t)
            return
        del pod.cpu.left_s[batch]
        self.start_gpu_phase(batch)

    def start_gpu_phase(self, batch: Batch) -> None:
        v, stream = self.value, batch.pod.stream
        work_s = v["gpu_alpha_s"] + v["gpu_beta_s"] * len(batch.users)
        if self.gpu_dist == LOGNORMAL:
            sigma = math.sqrt(math.log1p(v["gpu_cv"] ** 2))
            work_s *= math.exp(sigma * stream.normal() - sigma**2 / 2)
        elif self.gpu_dist == EXPONENTIAL:
            work_s *= -math.log(stream.uniform())
        self.machines.gpus[batch.pod.gpu].left_s[batch] = work_s

    def gpu_done(self, batch: Batch) -> None:
        pod = batch.pod
        del self.machines.gpus[pod.gpu].left_s[batch]
        pod.running.remove(batch)
        pod.idle += 1
        self.batches += 1
        self.in_flight -= len(batch.users)
        if pod.batcher:
            pod.batcher.notified = True
        self.form_batches(pod)
        for user in batch.users:
            self.answer(user, ok=True)


def run_together(services: Sequence[Reference], until_s: float) -> None:
    """Let services that share their nodes and GPUs live through everything due until then, in the order of time."""
    machines = services[0].machines
    while True:
        events = [event for service in services for event in service.due()]
        for g, gpu in enumerate(machines.gpus):
            t, batch = gpu.next()
            if batch:
                owner = services[batch.pod.place]
                events.append(
                    (t, 2, g, 0, 0, 0, lambda owner=owner, batch=batch: owner.gpu_done(batch))  # type: ignore[misc]
                )
        t, *_, act = min(events, key=lambda event: event[:6])
        for service in services:
            service.elapse(min(t, until_s))
        for gpu in machines.gpus:
            gpu.elapse(min(t, until_s))
        if t > until_s:
            return
        act()
        if machines.wake:
            machines.schedule_pending()
