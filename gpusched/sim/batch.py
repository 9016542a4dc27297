"""E simulations stepped together: allocation, reset, and the thread pool over the compiled engine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import METRICS, UNSET, Controls, HPASpec
from gpusched.core.errors import refuse
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation
from gpusched.core.ports import Episode
from gpusched.core.service import Service
from gpusched.sim import hpa, readout
from gpusched.sim.begin import Beginning, Clocks, faults_of
from gpusched.sim.records import (
    ACCOUNT,
    EVENT,
    FAULTS,
    FLEET_TICK,
    INF,
    INSTANCE,
    LEVELS,
    LOG,
    LOG_FULL,
    MACHINE,
    METER,
    NEIGHBOURS,
    POD,
    RESOURCE,
    SCRAPES,
    SIM,
    TREE,
    USER,
    Env,
)  # fmt: skip

__all__ = ["BatchSim", "Clocks"]

OPEN_SLOTS = 4096
"""Requests of an open load that can be under way at once; more are refused at the client."""
LOG_ROWS = 65536
"""Requests logged before Python must empty the log."""


class BatchSim(Beginning):
    """E environments; the arrays grow when an episode needs more users, and are reused.

    Each environment is one service. `services` of them that follow one another are a fleet: they share `nodes` nodes
    with the GPUs, cores and memory of the profile each. By default each has a node of its own. An episode may bring its
    own service, SLO and number of start replicas, but not other machines.
    """

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
        services: int = 1,
        nodes: int = 1,
    ) -> None:
        if envs % services:
            raise ValueError(f"{envs} environments are no whole number of fleets of {services}")
        self.services, self.nodes = services, nodes
        self.service, self.clocks, self.envs = service, clocks, envs
        self.slo_s, self.tick_s, self.record = slo_s, tick_s, record
        self.start_replicas = start_replicas
        self.pod_slots = 2 * max_replicas + 1
        self.instances_max = max(int(service.instances.value), instances_max or 1)
        self.threads = max(1, min(threads, envs // services))
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self.window = max(2, round(clocks.window_s / clocks.scrape_s) + 1)
        if self.window > SCRAPES:
            raise refuse(
                "window_s",
                clocks.window_s,
                f"must be at most {SCRAPES - 1} times scrape_s ({clocks.scrape_s} s)",
            )
        self.env = self._allocate()
        self.sent: list[HPASpec | None] = [None] * envs
        self.rows: list[list[NDArray[Any]]] = [[] for _ in range(envs)]
        self.ticks_ETC = np.zeros((envs, 0, len(TickLog.columns())))
        self.fleet_FTC = np.zeros((envs // services, 0, len(FLEET_TICK)))
        self.seen_EF = np.full((envs, len(Observation.columns())), np.nan)
        self.interval_EC = np.zeros((envs, len(ACCOUNT)))
        self.p95_E = np.full(envs, np.nan)
        self.overdue_E = np.zeros(envs)
        self.status_E = np.zeros(envs, dtype=np.int64)

    # --- memory ---

    def _allocate(self) -> Env:
        E, F, S, P = self.envs, self.envs // self.services, self.services, self.pod_slots
        G = self.nodes * int(self.service.gpus.value)
        leaves = 1 << (S * P + G - 1).bit_length()
        return Env(
            sim_E=np.zeros(E, SIM),
            users_EU=np.zeros((E, 1), USER),
            pods_EP=np.zeros((E, P), POD),
            meters_EP=np.zeros((E, P), METER),
            log_EK=np.zeros((E, 1), LOG),
            levels_EV=np.zeros((E, 1), LEVELS),
            faults_ED=np.zeros((E, 1), FAULTS),
            arrival_s_EN=np.zeros((E, 1)),
            events_FU=np.zeros((F, S + 1), EVENT),
            instances_FI=np.zeros((F, S * P * self.instances_max + G * NEIGHBOURS), INSTANCE),
            resources_FR=np.zeros((F, S * P + G), RESOURCE),
            tree_FL=np.zeros((F, 2 * leaves), TREE),
            machines_FM=np.zeros((F, self.nodes + G), MACHINE),
        )

    def _make_room(self, episodes: Sequence[Episode]) -> None:
        """Grow the arrays whose size the loads decide; the environments keep what they hold."""
        plans = [episode.plan for episode in episodes]
        users = max(OPEN_SLOTS if plan.is_open else max(plan.max_users, 1) for plan in plans)
        sizes = {
            "users_EU": users,
            "events_FU": self.services * users + 1,
            "levels_EV": max(len(plan.from_s_K) for plan in plans),
            "arrival_s_EN": max(1 if plan.arrivals_s_N is None else len(plan.arrivals_s_N) for plan in plans),
            "faults_ED": max(1, *(len(f.from_s_K) + len(f.death_s_D) for f in map(faults_of, episodes))),
            "log_EK": 2 * users + 64 + LOG_ROWS if self.record else 1,
        }
        arrays: dict[str, NDArray[Any]] = self.env._asdict()
        for name, size in sizes.items():
            before = arrays[name]
            if before.shape[1] < size:
                after = np.zeros((len(before), size), dtype=before.dtype)
                if name in ("levels_EV", "arrival_s_EN", "faults_ED"):
                    (after["from_s"] if after.dtype.names else after)[:] = INF
                after[:, : before.shape[1]] = before
                arrays[name] = after
        self.env = Env(**arrays)

    # --- episodes ---

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int]) -> None:
        """Put the given environments at t = 0 with their start replicas ready and the load about to begin.

        Raises ValueError for a part of a fleet, and where only some of several fleets would get more users.
        """
        S, before = self.services, self.env.users_EU.shape[1]
        self._make_room(episodes)
        if S > 1 and len(envs) < self.envs and self.env.users_EU.shape[1] > before > 1:
            raise ValueError("the other fleets' users would have to be numbered anew: reset all fleets")
        for k in range(0, len(envs), S):
            fleet = list(envs[k : k + S])
            if fleet != list(range(fleet[0], fleet[0] + S)) or fleet[0] % S:
                raise ValueError(f"environments {fleet} are no whole fleet of {S}")
            for e in fleet:
                self.rows[e] = []
            self.begin(fleet, episodes[k : k + S])
            for e in fleet:
                if sent := self.sent[e]:
                    self._send_hpa([e], sent)

    # --- steps ---

    def apply(self, controls: Controls, envs: Sequence[int] | None = None) -> None:
        """Set the desired state of the given environments (all by default); the controls have one entry for each."""
        chosen_K = np.arange(self.envs) if envs is None else np.asarray(envs, dtype=np.int64)
        K, sim_E = len(chosen_K), self.env.sim_E
        if controls.hpa is not None:
            differs = {
                id(sent): sent != controls.hpa for sent in {id(sent): sent for sent in self.sent}.values()
            }
            stale_K = [e for e in chosen_K if differs[id(self.sent[e])]]
            if stale_K:
                self._send_hpa(stale_K, controls.hpa)
            # A new HPA object meets a controller without memory of it.
            fresh_K = chosen_K[sim_E["hpa_on"][chosen_K] == 0]
            sim_E["hpa"]["memory"][fresh_K] = np.zeros((), hpa.MEMORY)
        target_K = controls.hpa_target_E
        if target_K is None:
            target_K = np.full(K, controls.hpa.target if controls.hpa else 0.0)
        readout.apply_all(
            self.env,
            chosen_K,
            np.asarray(controls.replicas_E, dtype=np.int64),
            1 if controls.hpa is not None else 0,
            np.asarray(target_K, dtype=np.float64),
            _or_unset(controls.cpu_cores_E, K, np.float64),
            _or_unset(controls.instances_E, K, np.int64),
            _or_unset(controls.gpu_share_E, K, np.float64),
        )

    def _send_hpa(self, envs: Sequence[int], spec: HPASpec) -> None:
        packed, sim_E = hpa.pack(spec), self.env.sim_E
        for e in envs:
            self.sent[e] = spec
        sim_E["hpa"]["spec"][envs] = packed.spec[0]
        sim_E["hpa"]["metrics"][envs, 0] = packed.metrics_M[0]
        sim_E["hpa"]["rules"][envs, : len(packed.rules)] = packed.rules
        sim_E["hpa_metric"][envs] = METRICS.index(spec.metric)

    def step(self, until_s_E: NDArray[np.float64], envs: Sequence[int] | None = None) -> None:
        """Advance environments to `until_s_E`; fills seen_EF, interval_EC (differences of ACCOUNT), p95_E and overdue_E.

        The services of a fleet go to the same time, and together.
        """
        S = self.services
        if self.record:
            self._room_for_ticks(float(until_s_E.max()))
        if envs is not None:
            for e in envs[::S]:
                self._run(e, e + S, until_s_E)
        elif self.pool is None:
            self._run(0, self.envs, until_s_E)
        else:
            edges = S * np.linspace(0, self.envs // S, self.threads + 1).astype(int)
            list(self.pool.map(lambda a, b: self._run(a, b, until_s_E), edges[:-1], edges[1:]))

    def branch(self, sources_E: NDArray[np.int64]) -> None:
        """Let every environment go on from the present state of environment `sources_E[e]`; without a record only."""
        if self.record:
            raise ValueError("a recorded simulation cannot be branched: its logs have one past")
        if self.services > 1:
            raise ValueError("a service of a fleet cannot go on without the others")
        for array in (*self.env, self.seen_EF, self.interval_EC, self.p95_E, self.overdue_E, self.status_E):
            array[:] = array[sources_E]
        # Its place is an environment's own.
        self.env.sim_E["lead"] = self.env.sim_E["fleet"] = np.arange(self.envs)

    def _run(self, first: int, last: int, until_s_E: NDArray[np.float64]) -> None:
        self._step_range(first, last, until_s_E)
        for lead in range(first, last, self.services):
            while self.status_E[lead] == LOG_FULL:
                for e in range(lead, lead + self.services):
                    self._drain(e)
                self._step_range(lead, lead + self.services, until_s_E)

    def _step_range(self, first: int, last: int, until_s_E: NDArray[np.float64]) -> None:
        step = readout.step_fleets if self.services > 1 or self.nodes > 1 else readout.step_alone
        step(
            self.env,
            int(first),
            int(last),
            until_s_E,
            self.tick_s,
            self.ticks_ETC,
            self.fleet_FTC,
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
            self.ticks_ETC, self.fleet_FTC = (
                np.concatenate([old, np.zeros((len(old), max(need, 2 * have) - have, old.shape[2]))], axis=1)
                for old in (self.ticks_ETC, self.fleet_FTC)
            )

    def _drain(self, e: int) -> None:
        env = self.env
        n = int(env.sim_E["log_rows"][e])
        self.rows[e].append(env.log_EK[e, :n].copy())
        env.sim_E["log_rows"][e] = 0

    def forget(self, e: int) -> None:
        """Drop the requests an environment has logged so far."""
        self._drain(e)
        self.rows[e] = [np.zeros(0, LOG)]

    def fleet_ticks(self, fleet: int = 0) -> NDArray[np.float64]:
        """Return a fleet's own tick log since its reset, columns in the order of records.FLEET_TICK, shape [T, C]."""
        return self.fleet_FTC[fleet, : int(self.env.sim_E["ticks"][fleet * self.services])].copy()

    def logs(self, e: int) -> tuple[RequestLog, TickLog]:
        """Return all requests (open ones last, with their age) and ticks of one environment since its reset."""
        self._drain(e)
        users, now_s = self.env.users_EU[e], float(self.env.sim_E["t"][e])
        done = np.concatenate(self.rows[e])
        open_s = users["send_s"][readout.open_requests(users)]
        start = np.concatenate([done["start_s"], open_s])
        latency = np.concatenate([done["latency_s"], now_s - open_s])
        status = np.concatenate([done["status"], np.full(len(open_s), RequestLog.UNFINISHED)]).astype(np.int8)
        self.rows[e] = [done]
        ticks = TickLog.from_table(self.ticks_ETC[e, : int(self.env.sim_E["ticks"][e])])
        return RequestLog(start_s_N=start, latency_s_N=latency, status_N=status), ticks


def _or_unset(values: NDArray[Any] | None, n: int, dtype: Any) -> NDArray[Any]:
    return np.full(n, UNSET, dtype=dtype) if values is None else np.asarray(values, dtype=dtype)
