"""A second engine in plain Python: the executable specification the compiled one is held against, event by event.

Written to be read beside the Kubernetes, Triton and Linux rules it follows, with the simplest data structures and
no code shared with the compiled engine but constants and the HPA controller (which has an oracle of its own).
It draws from the same random streams in the same order, so both engines live through the same requests.
`reference_parts` holds processors, pods and streams, `reference_control` the control plane; here are the users,
Triton, the event loop and what is read off it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.fault import FaultPlan
from gpusched.core.logs import RequestLog, TickLog
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
from gpusched.sim.reference_control import CADVISOR_S, CLOCK_ORDER, ControlPlane
from gpusched.sim.reference_parts import Batch, Pod, Processor, Stream, User, on_grid, p95

OPEN_SLOTS = 4096
LONG_AGO_S = 3600.0
Event = tuple[float, int, int, int, Callable[[], None]]


class Reference(ControlPlane):
    """One environment of `batch.BatchSim`, with the same meaning of all arguments."""

    def __init__(
        self, service: Service, *, max_replicas: int, clocks: Any, slo_s: float, start_replicas: int = 1,
        tick_s: float = 5.0, gpu_capacity: float = 1.0, gpu_dist: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(service, clocks, max_replicas)
        self.slo_s, self.tick_s, self.replicas = slo_s, tick_s, start_replicas
        self.gpu_capacity = gpu_capacity
        self.half_client_s = 0.5 * self.value["client_s"]  # half lies before the pod, half behind it
        spread = LOGNORMAL if self.value["gpu_cv"] > 0.0 else DETERMINISTIC
        self.gpu_dist = spread if gpu_dist is None else gpu_dist

    # --- the start of an episode ---

    def reset(self, episode: Episode) -> None:
        """Put the service at t = 0, start replicas long ready, load about to begin. Once per object."""
        self.t, self.plan = 0.0, episode.plan
        users_seed, keys_seed, clocks_seed, pods_seed = (child(episode.seed, k) for k in range(4))
        rng, self.pod_key, self.user_key = (int(word) for word in states(keys_seed, 3))
        self.stream = Stream(state=rng)
        self.in_flight = self.completed = self.failed = self.slow = self.batches = 0
        self.latency_sum_s = self.queue_sum_s = 0.0
        self.held = dict.fromkeys(("alive", "ready", "limit", "vram"), 0.0)
        self.latencies_s: list[float] = []
        self.log: list[tuple[float, float, int]] = []
        self.ticks: list[list[float]] = []
        self._start_load([int(word) for word in states(users_seed, max(self.plan.max_users, 1))])
        self._start_clocks(np.random.default_rng(clocks_seed))
        self._start_gpus()
        self.begin_faults(episode.fault or FaultPlan())
        self._start_pods(np.random.default_rng(pods_seed))
        self.before = self._account()

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
        self.gpus = [
            Processor(capacity=self.gpu_capacity, now_s=0.0, shared_loss=switch, loss_per_job=interference)
            for _ in range(int(v["gpus"]))
        ]

    def _start_pods(self, rng: np.random.Generator) -> None:
        for k in range(self.replicas):
            phase = float(rng.random())
            pod = self.create_pod()
            if pod is None or pod.admitted_s == -INF:
                continue
            pod.gpu = k % len(self.gpus)
            self.start_process(pod)
            pod.state, pod.life_s, pod.advisor_s = READY, INF, CADVISOR_S * phase
            pod.created_s = pod.admitted_s = pod.up_s = pod.ready_s = pod.turned_s = -LONG_AGO_S
            pod.newer, pod.older = (-CADVISOR_S * phase, 0.0), (-CADVISOR_S * (1.0 + phase), 0.0)
            pod.seen = [pod.newer]
            self.endpoints.append(pod)

    # --- the event loop ---

    def run(self, until_s: float) -> None:
        """Live through everything due until then."""
        while True:
            t, *_, act = min(self._due(), key=lambda event: event[:4])
            if t > until_s:
                break
            self._elapse(t)
            act()
        self._elapse(until_s)

    def _due(self) -> Iterator[Event]:
        """Every next event: time, then who goes first of two at the same time, then what to do."""
        if self.arrivals:
            yield self.arrivals[0][0], 0, 0, 0, self.arrive
        for pod in self.pods():
            if pod.cpu:
                t, batch = pod.cpu.next()
                if pod.batch_s <= t:
                    yield pod.batch_s, 1, pod.slot, 0, lambda pod=pod: self.form_batches(pod)  # type: ignore[misc]
                else:
                    yield t, 1, pod.slot, 0, lambda pod=pod, batch=batch: self.cpu_event(pod, batch)  # type: ignore[misc]
        for g, gpu in enumerate(self.gpus):
            t, batch = gpu.next()
            yield t, 2, g, 0, lambda g=g, batch=batch: self.gpu_done(g, batch)  # type: ignore[misc]
        for pod in self.pods():
            yield pod.endpoint_s, 3, pod.slot, 0, lambda pod=pod: self.endpoint(pod)  # type: ignore[misc]
            yield pod.advisor_s, 3, pod.slot, 1, lambda pod=pod: self.advisor(pod)  # type: ignore[misc]
            yield pod.life_s, 3, pod.slot, 2, lambda pod=pod: self.life(pod)  # type: ignore[misc]
        actions = self.clock_actions()
        for rank, clock in enumerate(CLOCK_ORDER):
            yield self.clock_s[clock], 4, rank, 0, actions[clock]

    def _elapse(self, t: float) -> None:
        dt, holding = t - self.t, self.holding()
        self.held["alive"] += dt * len(holding)
        self.held["ready"] += dt * len(self.endpoints)
        self.held["limit"] += dt * len(holding) * self.cpu_applied
        self.held["vram"] += dt * sum(pod.vram_bytes for pod in holding)
        for processor in [*self.gpus, *(pod.cpu for pod in self.pods() if pod.cpu)]:
            processor.elapse(t)
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
        """Start batches while an instance is idle (dynamic_batch_scheduler.cc; any queue policy: no run-ahead)."""
        pod.batch_s = INF
        while pod.idle > 0 and pod.queue:
            self.reject_overdue(pod)
            if not pod.queue:
                break
            due_s = pod.queue[0].enqueue_s + self.value["queue_delay_s"]
            size = self.batch_size(len(pod.queue), self.t >= due_s)
            if size == 0:
                pod.batch_s = due_s
                break
            self.start_batch(pod, [pod.queue.popleft() for _ in range(size)])
        self.drained(pod)

    def reject_overdue(self, pod: Pod) -> None:
        timeout_s = self.value["queue_timeout_s"]
        while timeout_s > 0.0 and pod.queue and self.t - pod.queue[0].enqueue_s > timeout_s:
            self.in_flight -= 1
            self.answer(pod.queue.popleft(), ok=False)

    def batch_size(self, queued: int, due: bool) -> int:
        """How many requests go now, 0 to wait. Without preferred sizes the largest batch is the preferred one."""
        largest = int(self.value["max_batch"])
        preferred_sizes = self.service.preferred_batches or [largest]
        pending = min(queued, largest)
        fitting = [b for b in preferred_sizes if b <= pending]
        if fitting and (self.value["queue_delay_s"] == 0.0 or not due):
            return max(fitting)
        if queued > largest or pending >= max(preferred_sizes):
            return pending
        return pending if due else 0

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
        self.gpus[batch.pod.gpu].left_s[batch] = work_s

    def gpu_done(self, g: int, batch: Batch | None) -> None:
        assert batch
        del self.gpus[g].left_s[batch]
        pod = batch.pod
        pod.running.remove(batch)
        pod.idle += 1
        self.batches += 1
        self.in_flight -= len(batch.users)
        self.form_batches(pod)
        for user in batch.users:
            self.answer(user, ok=True)

    # --- what is read off ---

    def counters(self) -> dict[str, Any]:
        """Return what Prometheus scrapes."""
        names = ("t", "completed", "failed", "slow", "latency_sum_s", "queue_sum_s", "batches", "in_flight")
        return {name: getattr(self, name) for name in names} | {
            "cpu_used_s": self.cpu_used_s(), "answered": len(self.latencies_s),
        }  # fmt: skip

    def _account(self) -> dict[str, Any]:
        return self.counters() | self.held | {"gpu_busy_s": self.gpu_busy_s()}

    def step(self, until_s: float) -> None:
        """Run to a control tick, writing a tick row every `tick_s`."""
        while (len(self.ticks) + 1) * self.tick_s <= until_s + 1e-9:
            self.run((len(self.ticks) + 1) * self.tick_s)
            self._tick()

    def _tick(self) -> None:
        now, before = self._account(), self.before
        d = {name: now[name] - before[name] for name in now}
        alive = d["alive"] / d["t"]
        self.ticks.append([
            self.t, self.target_users, self.replicas, d["ready"] / d["t"], alive, d["cpu_used_s"] / d["t"],
            d["limit"] / d["t"], d["gpu_busy_s"] / d["t"] / len(self.gpus), d["vram"] / d["t"],
            alive * self.value["pod_memory_bytes"], self.in_flight, d["completed"], d["failed"], d["slow"],
            d["latency_sum_s"], p95(self.latencies_s[before["answered"] :]), d["queue_sum_s"], d["batches"],
            self.hpa_target if self.hpa else math.nan, self.cpu_limit, self.instances, self.share,
        ])  # fmt: skip
        self.before = now

    def observe(self) -> NDArray[np.float64]:
        """Return what a policy sees, in the order of core.observation.Observation."""
        ready, nan = len(self.endpoints), math.nan
        gpu = self.latest(self.gpu_samples) or {"busy": nan, "vram_bytes": nan}
        row = [nan] * 10 + [
            gpu["busy"], gpu["vram_bytes"], self.replicas, ready, self.hpa_target if self.hpa else nan,
            self.cpu_limit, self.instances, self.share, self.age_s(self.scrapes), self.age_s(self.gpu_samples),
        ]  # fmt: skip
        row[7] = (self.latest(self.scrapes) or {"in_flight": nan})["in_flight"]
        if len(self.window()) < 2:
            return np.array(row)
        newer, older = self.window()[-1], self.window()[0]
        d = {name: newer[name] - older[name] for name in newer if name != "pods"}
        done, cores = d["completed"], d["cpu_used_s"] / d["t"]
        row[0] = done / d["t"]
        row[1] = d["failed"] / (done + d["failed"]) if done + d["failed"] else nan
        if done:
            row[2], row[3], row[5] = d["slow"] / done, d["latency_sum_s"] / done, d["queue_sum_s"] / done
            row[4] = p95(self.latencies_s[older["answered"] : newer["answered"]])
            row[6] = done / d["batches"] if d["batches"] else nan
        row[8] = cores
        row[9] = cores / (ready * self.request_cores()) if ready else nan
        return np.array(row)

    def overdue(self) -> int:
        """Requests in the pods that have no answer and are later than the SLO."""
        waiting = [user for user in self.users if user.state in (QUEUED, EXECUTING)]
        return sum(self.t - user.send_s > self.slo_s for user in waiting)

    def logs(self) -> tuple[RequestLog, TickLog]:
        """Return all requests, open ones last with their age, and the ticks."""
        waiting = [u for u in self.users if u.state in (QUEUED, EXECUTING)]
        rows = self.log + [(u.send_s, self.t - u.send_s, RequestLog.UNFINISHED) for u in waiting]
        start_N, latency_N, status_N = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        requests = RequestLog(start_s_N=start_N, latency_s_N=latency_N, status_N=status_N.astype(np.int8))
        return requests, TickLog.from_table(np.array(self.ticks))
