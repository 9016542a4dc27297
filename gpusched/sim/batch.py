"""E independent simulations stepped together: allocation, reset, and the thread pool over the compiled engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import METRICS, UNSET, Controls, HPASpec
from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation
from gpusched.core.ports import Episode
from gpusched.core.seeds import child, states
from gpusched.core.service import Service
from gpusched.sim import hpa, readout
from gpusched.sim.faults import moments
from gpusched.sim.pods import CADVISOR_BASE_S
from gpusched.sim.records import (
    ACCOUNT,
    DCGM_BEGIN,
    DCGM_END,
    DETERMINISTIC,
    EVENT,
    FAULT,
    FAULTS,
    FREE,
    INF,
    INSTANCE,
    LEVEL,
    LEVELS,
    LOG,
    LOG_FULL,
    LOGNORMAL,
    METER,
    METRICS_SERVER,
    NEIGHBOURS,
    POD,
    READINGS,
    RESOURCE,
    SCRAPE,
    SCRAPES,
    SIM,
    TREE,
    USER,
    Env,
)  # fmt: skip

OPEN_SLOTS = 4096
"""Requests of an open load that can be under way at once; more are refused at the client."""
LOG_ROWS = 65536
"""Requests logged before Python must empty the log."""
QUIET = FaultPlan()
LONG_AGO_S = 3600.0
"""Age of the start replicas at t = 0: past every start-up period."""


@dataclass(kw_only=True)
class Clocks:
    """Periods of the metrics pipeline and the control plane, in seconds."""

    scrape_s: float = 5.0
    window_s: float = 30.0
    metrics_server_s: float = 15.0
    hpa_sync_s: float = 15.0
    dcgm_s: float = 5.0
    dcgm_window_s: float = 1.0
    api_delay_s: float = 0.1


class BatchSim:
    """E environments of one service; the arrays grow when an episode needs more users, and are reused."""

    def __init__(
        self,
        service: Service,
        *,
        envs: int,
        max_replicas: int,
        clocks: Clocks,
        slo_s: float,
        start_replicas: int = 1,
        instances_max: int | None = None,
        tick_s: float = 5.0,
        record: bool = True,
        threads: int = 1,
    ) -> None:
        self.service, self.clocks, self.envs = service, clocks, envs
        self.slo_s, self.tick_s, self.record = slo_s, tick_s, record
        self.start_replicas = start_replicas
        self.pod_slots = 2 * max_replicas + 1
        self.instances_max = max(int(service.instances.value), instances_max or 1)
        self.threads = max(1, min(threads, envs))
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self.window = max(2, round(clocks.window_s / clocks.scrape_s) + 1)
        if self.window > SCRAPES:
            raise refuse(
                "window_s",
                clocks.window_s,
                f"must be at most {SCRAPES - 1} times scrape_s ({clocks.scrape_s} s)",
            )
        self.env = self._allocate()
        self.sent: HPASpec | None = None
        self.rows: list[list[NDArray[Any]]] = [[] for _ in range(envs)]
        self.ticks_ETC = np.zeros((envs, 0, len(TickLog.columns())))
        self.seen_EF = np.full((envs, len(Observation.columns())), np.nan)
        self.interval_EC = np.zeros((envs, len(ACCOUNT)))
        self.p95_E = np.full(envs, np.nan)
        self.overdue_E = np.zeros(envs)
        self.status_E = np.zeros(envs, dtype=np.int64)

    # --- memory ---

    def _allocate(self) -> Env:
        E, P, G = self.envs, self.pod_slots, int(self.service.gpus.value)
        leaves = 1 << (P + G - 1).bit_length()
        return Env(
            sim_E=np.zeros(E, SIM),
            users_EU=np.zeros((E, 1), USER),
            events_EU=np.zeros((E, 2), EVENT),
            pods_EP=np.zeros((E, P), POD),
            meters_EP=np.zeros((E, P), METER),
            instances_EI=np.zeros((E, P * self.instances_max + G * NEIGHBOURS), INSTANCE),
            resources_ER=np.zeros((E, P + G), RESOURCE),
            tree_EL=np.zeros((E, 2 * leaves), TREE),
            log_EK=np.zeros((E, 1), LOG),
            levels_EV=np.zeros((E, 1), LEVELS),
            faults_EM=np.zeros((E, 1), FAULTS),
            arrival_s_EN=np.zeros((E, 1)),
        )

    def _make_room(self, episodes: Sequence[Episode]) -> None:
        """Grow the arrays whose size the loads decide; the environments keep what they hold."""
        plans = [episode.plan for episode in episodes]
        users = max(OPEN_SLOTS if plan.is_open else max(plan.max_users, 1) for plan in plans)
        sizes = {
            "users_EU": users,
            "events_EU": users + 1,
            "levels_EV": max(len(plan.from_s_K) for plan in plans),
            "arrival_s_EN": max(1 if plan.arrivals_s_N is None else len(plan.arrivals_s_N) for plan in plans),
            "faults_EM": max(1, *(len(f.from_s_K) + len(f.death_s_D) for f in map(faults_of, episodes))),
            "log_EK": 2 * users + 64 + LOG_ROWS if self.record else 1,
        }
        arrays: dict[str, NDArray[Any]] = self.env._asdict()
        for name, size in sizes.items():
            before = arrays[name]
            if before.shape[1] < size:
                after = np.zeros((self.envs, size), dtype=before.dtype)
                if name in ("levels_EV", "arrival_s_EN", "faults_EM"):
                    (after["from_s"] if after.dtype.names else after)[:] = INF
                after[:, : before.shape[1]] = before
                arrays[name] = after
        self.env = Env(**arrays)

    # --- episodes ---

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int]) -> None:
        """Put the given environments at t = 0 with their start replicas ready and the load about to begin."""
        self._make_room(episodes)
        for e, episode in zip(envs, episodes, strict=True):
            self._reset_one(e, episode)

    def _reset_one(self, e: int, episode: Episode) -> None:
        env, plan = self.env, episode.plan
        arrays: dict[str, NDArray[Any]] = env._asdict()
        for array in arrays.values():
            array[e] = np.zeros((), dtype=array.dtype)
        self.rows[e] = []
        users_seed, keys_seed, clocks_seed, pods_seed = (child(episode.seed, k) for k in range(4))
        sim = env.sim_E[e : e + 1]
        service = episode.service or self.service
        self._fill_constants(sim, service)
        sim["rng"], sim["pod_key"], sim["user_key"] = states(keys_seed, 3)
        env.users_EU["rng"][e] = states(users_seed, env.users_EU.shape[1])
        self._fill_load(e, sim, episode)
        self._fill_clocks(e, np.random.default_rng(clocks_seed))
        self._fill_faults(e, faults_of(episode), service)
        self._start_replicas(e, np.random.default_rng(pods_seed))
        sim["think_min_s"], sim["think_span_s"] = plan.think_min_s, plan.think_max_s - plan.think_min_s
        env.tree_EL["t"][e] = INF
        leaves = env.tree_EL.shape[1] // 2
        env.tree_EL["leaf"][e, leaves:] = np.arange(leaves)
        if not sim["events"][0]:
            env.events_EU["t"][e, 0] = INF

    def _fill_constants(self, sim: NDArray[Any], service: Service) -> None:
        s = {name: c.value for name, c in service.constants().items()}
        if s["gpus"] != self.service.gpus.value or s["instances"] > self.instances_max:
            raise ValueError(
                "an episode's service must have the GPUs and the room for instances of the simulator's"
            )
        same = (
            "gpu_alpha_s",
            "gpu_beta_s",
            "host_alpha_s",
            "host_beta_s",
            "queue_delay_s",
            "queue_timeout_s",
            "pod_vram_bytes",
            "instance_vram_bytes",
            "pod_memory_bytes",
            "node_cpu_cores",
            "schedule_min_s",
            "probe_delay_s",
            "probe_period_s",
            "endpoint_min_s",
            "prestop_s",
            "grace_s",
            "cfs_period_s",
            "gpus",
            "max_batch",
            "queue_size",
            "connection_requests",
            "instances",
        )
        for name in same:
            sim[name] = s[name]
        sim["gpu_dist"] = LOGNORMAL if s["gpu_cv"] > 0 else DETERMINISTIC
        sim["gpu_sigma"] = math.sqrt(math.log1p(s["gpu_cv"] ** 2))
        sim["half_client_s"] = 0.5 * s["client_s"]
        sim["tail_median_s"], sim["tail_sigma"] = s["client_tail_median_s"], s["client_tail_sigma"]
        sim["schedule_span_s"] = s["schedule_max_s"] - s["schedule_min_s"]
        sim["endpoint_span_s"] = s["endpoint_max_s"] - s["endpoint_min_s"]
        sim["start_sigma"] = math.sqrt(math.log1p(s["start_cv"] ** 2))
        sim["start_mu"] = math.log(max(s["start_s"], 1e-9)) - 0.5 * sim["start_sigma"] ** 2
        sim["resize_delay_s"], sim["api_delay_s"] = s["resize_s"], self.clocks.api_delay_s
        sim["usable_vram_bytes"] = service.usable_vram_bytes
        sim["mps"] = service.sharing == "mps"
        sim["gpu_capacity"] = 1.0
        sim["gpu_shared_loss"] = 0.0 if sim["mps"] else s["gpu_switch_s"] / s["gpu_slice_s"]
        sim["gpu_loss_per_job"] = s["mps_interference"] if sim["mps"] else 0.0
        sim["cpu_limit"] = sim["cpu_applied"] = s["cpu_limit_cores"]
        sim["request_per_limit"] = s["cpu_request_cores"] / s["cpu_limit_cores"]
        sim["gpu_share"], sim["slo_s"] = 1.0, self.slo_s
        if self.sent:
            self._send_hpa(sim, self.sent)
        sizes = service.preferred_batches or [int(s["max_batch"])]
        sim["preferred_mask"], sim["preferred_max"] = sum(1 << b for b in sizes), max(sizes)
        # apps/v1 defaults: 25 % each, surge rounded up and unavailability rounded down
        sim["surge_percent"] = sim["unavailable_percent"] = 25

    def _fill_load(self, e: int, sim: NDArray[Any], episode: Episode) -> None:
        env, plan = self.env, episode.plan
        if plan.arrivals_s_N is None:
            n = len(plan.from_s_K)
            env.levels_EV["from_s"][e] = INF
            env.levels_EV["from_s"][e, :n], env.levels_EV["users"][e, :n] = plan.from_s_K, plan.users_K
            return
        arrivals_s_N = plan.arrivals_s_N
        env.levels_EV["from_s"][e] = INF
        env.arrival_s_EN[e] = INF
        env.arrival_s_EN[e, : len(arrivals_s_N)] = arrivals_s_N
        env.users_EU["next"][e] = np.arange(1, env.users_EU.shape[1] + 1)
        env.users_EU["next"][e, -1] = -1
        sim["is_open"] = 1
        if len(arrivals_s_N):
            env.events_EU[e, 0] = (arrivals_s_N[0] + sim["half_client_s"][0], -1)
            sim["events"] = 1

    def _fill_clocks(self, e: int, rng: np.random.Generator) -> None:
        """Every periodic process starts at a phase of its own, as on a real cluster."""
        clocks, sim, slow = self.clocks, self.env.sim_E[e : e + 1], self.env.sim_E["slow_s"][e]
        sim["scrape_s"], sim["metrics_server_s"] = clocks.scrape_s, clocks.metrics_server_s
        sim["hpa_sync_s"], sim["dcgm_s"] = clocks.hpa_sync_s, clocks.dcgm_s
        sim["dcgm_window_s"] = min(clocks.dcgm_window_s, clocks.dcgm_s)
        sim["window"] = sim["ring"] = self.window
        sim["record"] = self.record
        sim["scraped_s"] = sim["sampled_s"] = -INF
        slow[:] = INF
        slow[LEVEL] = self.env.levels_EV["from_s"][e, 0]
        slow[SCRAPE] = clocks.scrape_s * rng.random()
        slow[METRICS_SERVER] = clocks.metrics_server_s * rng.random()
        slow[DCGM_BEGIN] = clocks.dcgm_s * rng.random()
        slow[DCGM_END] = slow[DCGM_BEGIN] + sim["dcgm_window_s"][0]

    def _fill_faults(self, e: int, plan: FaultPlan, service: Service) -> None:
        sim, rows = self.env.sim_E[e : e + 1], self.env.faults_EM[e]
        sim["gpu_speed"], sim["start_factor"], sim["frozen_s"] = 1.0, 1.0, -INF
        rows["from_s"] = INF
        if plan.quiet:
            return
        found = moments(plan, service.host_alpha_s.value, service.host_beta_s.value)
        rows[: len(found)] = found
        sim["slow_s"][0, FAULT] = found["from_s"][0]
        delay_s = float(found["metric_delay_s"].max())
        if delay_s > self.most_delay_s:
            raise refuse(
                "metric_delay_s", delay_s, f"must be at most {self.most_delay_s:g} s with these clocks"
            )
        sim["ring"] = self.window + math.ceil(delay_s / self.clocks.scrape_s) + 1
        if found["neighbours"].max() > NEIGHBOURS:
            raise refuse("neighbours", int(found["neighbours"].max()), f"must be at most {NEIGHBOURS}")

    @property
    def most_delay_s(self) -> float:
        """Longest delay of the metrics for which enough of the past is kept."""
        c = self.clocks
        rings = (
            (SCRAPES - self.window - 1) * c.scrape_s,
            (SCRAPES - 2) * c.dcgm_s,
            (READINGS - 2) * CADVISOR_BASE_S,
        )
        return max(min(rings), 0.0)

    def _start_replicas(self, e: int, rng: np.random.Generator) -> None:
        """Start with replicas that have long been ready, on GPUs in turn."""
        env, sim = self.env, self.env.sim_E[e : e + 1]
        P, G = self.pod_slots, int(sim["gpus"][0])
        sim["pods"], sim["instances_max"] = P, self.instances_max
        sim["leaves"] = env.tree_EL.shape[1] // 2
        sim["replicas"] = self.start_replicas
        gpus = env.resources_ER[e, P:]
        gpus["capacity"], gpus["per_job"] = sim["gpu_capacity"], 1.0
        gpus["shared_loss"], gpus["loss_per_job"] = sim["gpu_shared_loss"], sim["gpu_loss_per_job"]
        env.resources_ER[e]["root"] = -1
        env.pods_EP[e]["state"] = FREE
        env.pods_EP[e]["endpoint"] = -1
        env.pods_EP[e]["batch_s"] = env.pods_EP[e]["advisor_s"] = INF
        for p in range(self.start_replicas):
            readout.place_ready(env, e, p, p % G, -LONG_AGO_S, float(rng.random()))

    # --- steps ---

    def apply(self, controls: Controls) -> None:
        """Set the desired state of every environment."""
        E = self.envs
        sim_E = self.env.sim_E
        if controls.hpa is not None:
            if controls.hpa != self.sent:
                self.sent = controls.hpa
                self._send_hpa(sim_E, controls.hpa)
            # A new HPA object meets a controller without memory of it.
            sim_E["hpa"]["memory"][sim_E["hpa_on"] == 0] = np.zeros((), hpa.MEMORY)
        target_E = controls.hpa_target_E
        if target_E is None:
            target_E = np.full(E, controls.hpa.target if controls.hpa else 0.0)
        readout.apply_all(
            self.env,
            np.asarray(controls.replicas_E, dtype=np.int64),
            1 if controls.hpa is not None else 0,
            np.asarray(target_E, dtype=np.float64),
            _or_unset(controls.cpu_cores_E, E, np.float64),
            _or_unset(controls.instances_E, E, np.int64),
            _or_unset(controls.gpu_share_E, E, np.float64),
        )

    def _send_hpa(self, sim: NDArray[Any], spec: HPASpec) -> None:
        packed = hpa.pack(spec)
        sim["hpa"]["spec"] = packed.spec[0]
        sim["hpa"]["metrics"][:, 0] = packed.metrics_M[0]
        sim["hpa"]["rules"][:, : len(packed.rules)] = packed.rules
        sim["hpa_metric"] = METRICS.index(spec.metric)

    def step(self, until_s_E: NDArray[np.float64], envs: Sequence[int] | None = None) -> None:
        """Advance environments to `until_s_E`; fills seen_EF, interval_EC (differences of ACCOUNT), p95_E and overdue_E."""
        if self.record:
            self._room_for_ticks(float(until_s_E.max()))
        if envs is not None:
            for e in envs:
                self._run(e, e + 1, until_s_E)
        elif self.pool is None:
            self._run(0, self.envs, until_s_E)
        else:
            edges = np.linspace(0, self.envs, self.threads + 1).astype(int)
            list(self.pool.map(lambda a, b: self._run(a, b, until_s_E), edges[:-1], edges[1:]))

    def branch(self, sources_E: NDArray[np.int64]) -> None:
        """Let every environment go on from the present state of environment `sources_E[e]`; without a record only."""
        if self.record:
            raise ValueError("a recorded simulation cannot be branched: its logs have one past")
        for array in (*self.env, self.seen_EF, self.interval_EC, self.p95_E, self.overdue_E, self.status_E):
            array[:] = array[sources_E]

    def _run(self, first: int, last: int, until_s_E: NDArray[np.float64]) -> None:
        readout.step_range(
            self.env,
            int(first),
            int(last),
            until_s_E,
            self.tick_s,
            self.ticks_ETC,
            self.seen_EF,
            self.interval_EC,
            self.p95_E,
            self.overdue_E,
            self.status_E,
        )
        for e in range(first, last):
            while self.status_E[e] == LOG_FULL:
                self._drain(e)
                readout.step_range(
                    self.env,
                    e,
                    e + 1,
                    until_s_E,
                    self.tick_s,
                    self.ticks_ETC,
                    self.seen_EF,
                    self.interval_EC,
                    self.p95_E,
                    self.overdue_E,
                    self.status_E,
                )

    def _room_for_ticks(self, until_s: float) -> None:
        need = round(until_s / self.tick_s) + 1
        have = self.ticks_ETC.shape[1]
        if have < need:
            more = np.zeros((self.envs, max(need, 2 * have) - have, self.ticks_ETC.shape[2]))
            self.ticks_ETC = np.concatenate([self.ticks_ETC, more], axis=1)

    def _drain(self, e: int) -> None:
        env = self.env
        n = int(env.sim_E["log_rows"][e])
        self.rows[e].append(env.log_EK[e, :n].copy())
        env.sim_E["log_rows"][e] = 0

    def logs(self, e: int) -> tuple[RequestLog, TickLog]:
        """Return all requests (open ones last, with their age) and ticks of one environment since its reset."""
        self._drain(e)
        users, now_s = self.env.users_EU[e], float(self.env.sim_E["t"][e])
        done = np.concatenate(self.rows[e])
        open_s = users["send_s"][readout.open_requests(users)]
        start = np.concatenate([done["start_s"], open_s])
        latency = np.concatenate([done["latency_s"], now_s - open_s])
        status = np.concatenate([done["status"], np.full(len(open_s), RequestLog.UNFINISHED)]).astype(np.int8)
        ticks = TickLog.from_table(self.ticks_ETC[e, : int(self.env.sim_E["ticks"][e])])
        return RequestLog(start_s_N=start, latency_s_N=latency, status_N=status), ticks


def faults_of(episode: Episode) -> FaultPlan:
    """What an episode is to suffer."""
    return episode.fault or QUIET


def _or_unset(values: NDArray[Any] | None, n: int, dtype: Any) -> NDArray[Any]:
    return np.full(n, UNSET, dtype=dtype) if values is None else np.asarray(values, dtype=dtype)
