"""The embedded cluster: the compiled simulator behind the Cluster port, batched over environments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError, refuse
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Cluster, Episode
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import ACCOUNT, FLEET_TICK


def cores() -> int:
    """Return how many threads this process may use. Who runs several processes says in OMP_NUM_THREADS (joblib does)."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1


class SimCluster(Cluster):
    """Simulated time: a step returns as soon as it is computed."""

    @dataclass(kw_only=True)
    class Config:
        """Periods of the metrics pipeline and the control plane; `nodes` with the profile's GPUs, cores and memory each;
        `threads` 0 = one per core, or as many as OMP_NUM_THREADS says.
        """

        scrape_s: float
        window_s: float
        metrics_server_s: float
        hpa_sync_s: float
        dcgm_s: float
        dcgm_window_s: float
        api_delay_s: float
        nodes: int
        threads: int

        def __post_init__(self) -> None:
            for key in ("scrape_s", "metrics_server_s", "hpa_sync_s", "dcgm_s", "dcgm_window_s"):
                if not getattr(self, key) > 0:
                    raise refuse(key, getattr(self, key), "must be greater than 0 s")
            if self.window_s < self.scrape_s:
                raise refuse("window_s", self.window_s, f"must be at least scrape_s ({self.scrape_s} s)")
            if self.api_delay_s < 0:
                raise refuse("api_delay_s", self.api_delay_s, "must be at least 0 s")
            if not 1 <= self.nodes <= 10_000:
                raise refuse("nodes", self.nodes, "must lie in 1..10000")
            if self.threads < 0:
                raise refuse("threads", self.threads, "must be at least 0")

    def __init__(
        self,
        config: Any,
        *,
        service: Service,
        trial: TrialSpec,
        limits: Limits,
        slo_s: float,
        envs: int = 1,
        record: bool = True,
        services: int = 1,
    ) -> None:
        super().__init__(
            config, service=service, trial=trial, limits=limits, slo_s=slo_s, envs=envs, record=record
        )
        clocks = {f.name: getattr(config, f.name) for f in dataclasses.fields(Clocks)}
        self.sim = BatchSim(
            service,
            envs=envs,
            max_replicas=limits.max_replicas,
            clocks=Clocks(**clocks),
            slo_s=slo_s,
            start_replicas=trial.start_replicas,
            instances_max=max(limits.instances),
            tick_s=trial.tick_s,
            record=record,
            threads=config.threads or cores(),
            services=services,
            nodes=config.nodes,
        )
        self.now_s_E = np.zeros(envs)

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        chosen = range(self.envs) if envs is None else envs
        self.sim.reset(episodes, list(chosen))
        for e in chosen:
            self.now_s_E[e] = self.trial.warmup_s
        self.sim.step(self.now_s_E, list(chosen))
        return self._seen()

    def step(self, controls: Controls) -> Observation:
        return self.step_each([(range(self.envs), controls)])

    def step_each(self, asked: Sequence[tuple[Sequence[int], Controls]]) -> Observation:
        """As `step`, where several policies control some of the environments each."""
        for envs, controls in asked:
            self._check(controls)
            replicas_E = np.asarray(controls.replicas_E, dtype=np.int64)
            inside_E = np.clip(replicas_E, self.limits.min_replicas, self.limits.max_replicas)
            bounded_E = np.where(replicas_E < 0, replicas_E, inside_E)
            self.sim.apply(dataclasses.replace(controls, replicas_E=bounded_E), list(envs))
        self.now_s_E += self.trial.control_s
        self.sim.step(self.now_s_E)
        return self._seen()

    def branch(self, sources_E: NDArray[np.int64]) -> None:
        self.sim.branch(sources_E)
        self.now_s_E = self.now_s_E[sources_E]

    def _check(self, controls: Controls) -> None:
        if controls.gpu_share_E is not None and self.service.sharing != "mps":
            raise InputError(
                "action gpu_share: the GPU is shared by time-slicing, which has no shares. "
                "Set service.sharing=mps, or action.gpu_shares=[1.0]."
            )
        if controls.instances_E is not None and controls.instances_E.max() > max(self.limits.instances):
            raise refuse(
                "instances", int(controls.instances_E.max()), f"must be one of {self.limits.instances}"
            )
        if controls.hpa is not None and controls.hpa.max_replicas > self.limits.max_replicas:
            raise refuse("max_replicas", controls.hpa.max_replicas,
                         f"must be at most trial.max_replicas ({self.limits.max_replicas})")  # fmt: skip

    def _seen(self) -> Observation:
        return Observation.from_table(self.sim.seen_EF.copy())

    def outcome(self) -> Outcome:
        interval = dict(zip(ACCOUNT, self.sim.interval_EC.T.copy(), strict=True))
        dt_E = np.maximum(interval["t"], 1e-9)
        return Outcome(
            gpu_busy_E=interval["gpu_busy_s"] / (dt_E * self.sim.env.sim_E["devices"]),
            replicas_alive_E=interval["alive_s"] / dt_E,
            cpu_cores_limit_E=interval["limit_s"] / dt_E,
            completed_E=interval["completed"],
            failed_E=interval["failed"],
            slow_E=interval["slow"],
            latency_p95_s_E=np.nan_to_num(self.sim.p95_E),
            overdue_E=self.sim.overdue_E.copy(),
            replicas_max=self.limits.max_replicas,
            cpu_cores_max=self.limits.max_replicas * max(self.limits.cpu_cores),
            slo_s=self.slo_s,
        )

    def logs(self, env: int = 0) -> tuple[RequestLog, TickLog]:
        return self.sim.logs(env)

    def forget(self, env: int) -> None:
        """Drop the requests logged so far of one environment, for the memory they take."""
        self.sim.forget(env)

    def fleet_ticks(self) -> dict[str, NDArray[np.float64]]:
        """Return the tick log of the nodes that all environments share, by column of records.FLEET_TICK, shape [T] each."""
        return dict(zip(FLEET_TICK, self.sim.fleet_ticks().T, strict=True))

    def close(self) -> None:
        if self.sim.pool is not None:
            self.sim.pool.shutdown()
