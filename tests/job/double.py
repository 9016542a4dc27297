"""A cluster whose numbers are known on paper: fast while a replica has few users, slow beyond."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpusched.core.controls import Controls
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Cluster, Episode

FAST_S, SLOW_S, USERS_PER_REPLICA = 0.05, 0.5, 20


class DoubleCluster(Cluster):
    """Every request takes FAST_S while there are at most USERS_PER_REPLICA users per replica, else SLOW_S."""

    @dataclass(kw_only=True)
    class Config:
        break_at_users: int | None

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(config, **more)
        self.replicas_E = np.full(self.envs, float(self.trial.start_replicas))
        self.plans: list[LoadPlan] = [None] * self.envs  # type: ignore[list-item]
        self.rows: list[list[float]] = []

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        for env, episode in zip(envs if envs is not None else range(self.envs), episodes, strict=True):
            self.plans[env] = episode.plan
            self.replicas_E[env] = self.trial.start_replicas
        self.t_s, self.rows, self.requests = 0.0, [], list[tuple[float, float]]()
        self._live(self.trial.warmup_s)
        return self._seen()

    def step(self, controls: Controls) -> Observation:
        users = self.plans[0].users_at(np.array([self.t_s]))[0]
        if users == self.config.break_at_users:
            raise RuntimeError("the double broke")
        if os.environ.get("INTERRUPT_AT_USERS") == str(users):
            os.kill(os.getpid(), getattr(signal, os.environ.get("INTERRUPT_BY", "SIGINT")))
        if controls.hpa is None:
            asked_E = controls.replicas_E.astype(float)
            self.replicas_E = np.where(asked_E < 0, self.replicas_E, asked_E)
        self._live(self.trial.control_s)
        return self._seen()

    def _live(self, duration_s: float) -> None:
        for _ in range(round(duration_s / self.trial.tick_s)):
            self.users_E = np.array(
                [plan.users_at(np.array([self.t_s]))[0] for plan in self.plans], dtype=float
            )
            self.latency_s_E = np.where(self.users_E > USERS_PER_REPLICA * self.replicas_E, SLOW_S, FAST_S)
            self.done_E = self.users_E * self.trial.tick_s / (1.5 + self.latency_s_E)
            self._write()
            self.t_s += self.trial.tick_s

    def _write(self) -> None:
        if not self.record:
            return
        count, latency_s = round(self.done_E[0]), float(self.latency_s_E[0])
        ends_s = self.t_s + self.trial.tick_s * (np.arange(count) + 0.5) / max(count, 1)
        self.requests += [(float(end_s) - latency_s, latency_s) for end_s in ends_s]
        row = dict.fromkeys(TickLog.columns(), 0.0) | {
            "t_s_T": self.t_s + self.trial.tick_s,
            "users_T": float(self.users_E[0]),
            "replicas_spec_T": self.replicas_E[0],
            "replicas_ready_T": self.replicas_E[0],
            "replicas_alive_T": self.replicas_E[0],
            "cpu_cores_limit_T": self.replicas_E[0],
            "completed_T": float(count),
            "slow_T": count * float(latency_s > self.slo_s),
            "latency_p95_s_T": latency_s,
            "hpa_target_T": float("nan"),
        }
        self.rows.append([row[name] for name in TickLog.columns()])

    def _seen(self) -> Observation:
        table = dict.fromkeys(Observation.columns(), np.zeros(self.envs))
        return Observation(
            **{
                **table,
                "replicas_ready_E": self.replicas_E,
                "replicas_spec_E": self.replicas_E,
                "cpu_utilization_E": self.users_E / 50,
            }
        )

    def outcome(self) -> Outcome:
        none_E = np.zeros(self.envs)
        return Outcome(
            gpu_busy_E=none_E + 0.5,
            replicas_alive_E=self.replicas_E,
            cpu_cores_limit_E=self.replicas_E,
            completed_E=self.done_E,
            failed_E=none_E,
            slow_E=self.done_E * (self.latency_s_E > self.slo_s),
            latency_p95_s_E=self.latency_s_E,
            replicas_max=self.limits.max_replicas,
            cpu_cores_max=float(self.limits.max_replicas),
            slo_s=self.slo_s,
        )

    def logs(self, env: int = 0) -> tuple[RequestLog, TickLog]:
        start_s_N, latency_s_N = np.array(self.requests).T if self.requests else np.zeros((2, 0))
        status_N = np.zeros(len(start_s_N), dtype=np.int8)
        log = RequestLog(start_s_N=start_s_N, latency_s_N=latency_s_N, status_N=status_N)
        return log, TickLog.from_table(np.array(self.rows))
