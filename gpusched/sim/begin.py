"""How an episode begins: one service's constants, place in its fleet, load, clocks, faults and start replicas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import refuse
from gpusched.core.fault import FaultPlan
from gpusched.core.fleet import NODE_CONSTANTS
from gpusched.core.ports import Episode
from gpusched.core.seeds import child, states
from gpusched.core.service import Service
from gpusched.sim import readout
from gpusched.sim.faults import moments
from gpusched.sim.pods import CADVISOR_BASE_S
from gpusched.sim.records import (
    DCGM_BEGIN,
    DCGM_END,
    DETERMINISTIC,
    FAULT,
    FREE,
    INF,
    LEVEL,
    LOGNORMAL,
    METRICS_SERVER,
    NEIGHBOURS,
    READINGS,
    SCRAPE,
    SCRAPES,
    Env,
)  # fmt: skip

QUIET = FaultPlan()
WRITTEN_FIRST = ("log_EK", "arrival_s_EN")
"""Large arrays of which nothing is read that the same episode has not written."""
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


class Beginning:
    """What `batch.BatchSim` does when it is reset."""

    env: Env
    service: Service
    clocks: Clocks
    slo_s: float
    record: bool
    start_replicas: int
    services: int
    nodes: int
    pod_slots: int
    instances_max: int
    window: int

    def begin(self, envs: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Put the services of one fleet at t = 0."""
        env, lead = self.env, envs[0]
        arrays: dict[str, NDArray[Any]] = env._asdict()
        for name, array in arrays.items():
            if name in WRITTEN_FIRST:
                continue
            by_fleet = name.partition("_")[2].startswith("F")
            rows = (
                slice(lead // self.services, lead // self.services + 1)
                if by_fleet
                else slice(lead, envs[-1] + 1)
            )
            array[rows].view(np.uint8)[:] = 0  # as bytes: by records it takes many times as long
        for e, episode in zip(envs, episodes, strict=True):
            self._fill(e, episode)
        self._begin_fleet(lead, child(episodes[0].seed, 1))
        for e, episode in zip(envs, episodes, strict=True):
            self._start_replicas(e, episode)

    def _fill(self, e: int, episode: Episode) -> None:
        env, plan = self.env, episode.plan
        users_seed, keys_seed, clocks_seed = (child(episode.seed, k) for k in range(3))
        sim = env.sim_E[e : e + 1]
        service = episode.service or self.service
        self._fill_place(e, sim)
        self._fill_constants(sim, service, self.slo_s if episode.slo_s is None else episode.slo_s)
        sim["rng"], sim["pod_key"], sim["user_key"] = states(keys_seed, 3)
        # An open load's requests get their streams as they come; there may be thousands of slots for them.
        own = 0 if plan.is_open else plan.max_users
        env.users_EU["rng"][e, :own] = states(users_seed, own)
        self._fill_load(e, sim, episode)
        self._fill_clocks(e, np.random.default_rng(clocks_seed))
        self._fill_faults(e, faults_of(episode), service)
        sim["think_min_s"], sim["think_span_s"] = plan.think_min_s, plan.think_max_s - plan.think_min_s

    def _fill_place(self, e: int, sim: NDArray[Any]) -> None:
        """Number what belongs to a service through its fleet."""
        env, (place, users) = self.env, (e % self.services, self.env.users_EU.shape[1])
        sim["services"], sim["lead"], sim["fleet"] = self.services, e - place, e // self.services
        sim["first_pod"], sim["first_user"] = place * self.pod_slots, place * users
        sim["nodes"], sim["gpus"] = self.nodes, self.nodes * self.service.gpus.value
        sim["devices"] = 1 if self.services > 1 else sim["gpus"]
        sim["pods"], sim["instances_max"] = self.pod_slots, self.instances_max
        sim["leaves"] = env.tree_FL.shape[1] // 2
        env.users_EU["service"][e] = env.pods_EP["service"][e] = place
        env.pods_EP["state"][e] = FREE
        env.pods_EP["endpoint"][e] = -1
        env.pods_EP["batch_s"][e] = env.pods_EP["advisor_s"][e] = INF

    def _begin_fleet(self, lead: int, seed: np.random.SeedSequence) -> None:
        """Start what the services share: GPUs, the scheduler, the heap and the tree of events."""
        env, f = self.env, lead // self.services
        sim = env.sim_E[lead]
        gpus = env.resources_FR[f, self.services * self.pod_slots :]
        gpus["capacity"], gpus["per_job"] = sim["gpu_capacity"], 1.0
        gpus["shared_loss"], gpus["loss_per_job"] = sim["gpu_shared_loss"], sim["gpu_loss_per_job"]
        env.resources_FR[f]["root"] = -1
        env.machines_FM[f, 0]["rng"] = states(seed, 4)[3]  # the first three are the first service's own
        env.tree_FL["t"][f] = INF
        leaves = env.tree_FL.shape[1] // 2
        env.tree_FL["leaf"][f, leaves:] = np.arange(leaves)
        self._begin_arrivals(lead, f)

    def _begin_arrivals(self, lead: int, f: int) -> None:
        """Put the first arrival of each open load into the heap; users of closed ones come with their level."""
        first = []
        for place in range(self.services):
            sim, next_s = self.env.sim_E[lead + place], self.env.arrival_s_EN[lead + place, 0]
            if sim["is_open"] and next_s < INF:
                first.append((float(next_s + sim["half_client_s"]), -1 - place))
        self.env.sim_E["events"][lead] = len(first)
        self.env.events_FU["t"][f, 0] = INF
        for k, (t, user) in enumerate(sorted(first)):  # a sorted list is a heap
            self.env.events_FU[f, k] = (t, user)

    def _start_replicas(self, e: int, episode: Episode) -> None:
        """Start with replicas that have long been ready, where the scheduler puts them."""
        rng = np.random.default_rng(child(episode.seed, 3))
        count = self.start_replicas if episode.start_replicas is None else episode.start_replicas
        self.env.sim_E["replicas"][e] = count
        for p in range(count):
            readout.place_ready(self.env, e, p, -LONG_AGO_S, float(rng.random()))

    def _fill_constants(self, sim: NDArray[Any], service: Service, slo_s: float) -> None:
        most = self.instances_max
        s = {name: c.value for name, c in service.constants().items()}
        shared = NODE_CONSTANTS if self.services > 1 else ("gpus",)
        if any(s[name] != getattr(self.service, name).value for name in shared) or s["instances"] > most:
            raise ValueError(
                "an episode's service must have the nodes, GPUs and room for instances of the simulator's"
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
            "node_memory_bytes",
            "schedule_min_s",
            "probe_delay_s",
            "probe_period_s",
            "endpoint_min_s",
            "prestop_s",
            "grace_s",
            "cfs_period_s",
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
        sim["gpu_share"], sim["slo_s"] = 1.0, slo_s
        sizes = service.preferred_batches or [int(s["max_batch"])]
        sim["preferred_mask"], sim["preferred_max"] = sum(1 << (b - 1) for b in set(sizes)), max(sizes)
        # Without a delay and preferred sizes, batches formed ahead are those formed when an instance is idle.
        waits = s["queue_delay_s"] > 0.0 or sizes != [int(s["max_batch"])]
        sim["prefetching"] = waits and s["queue_size"] == 0.0 and s["queue_timeout_s"] == 0.0
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
        first = sim["first_user"][0]
        sim["free_slot"] = first
        env.users_EU["next"][e] = first + np.arange(1, env.users_EU.shape[1] + 1)
        env.users_EU["next"][e, -1] = -1
        sim["is_open"] = 1

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
        sim, rows = self.env.sim_E[e : e + 1], self.env.faults_ED[e]
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


def faults_of(episode: Episode) -> FaultPlan:
    """What an episode is to suffer."""
    return episode.fault or QUIET
