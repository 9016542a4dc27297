"""What is read off the reference engine: accounts, ticks, observations, logs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.logs import RequestLog, TickLog
from gpusched.sim.records import EXECUTING, QUEUED
from gpusched.sim.reference_control import ControlPlane
from gpusched.sim.reference_parts import User, p95


class Readout(ControlPlane):
    """A service as monitoring and a policy see it."""

    tick_s: float
    slo_s: float
    users: list[User]
    target_users: int
    latencies_s: list[float]
    log: list[tuple[float, float, int]]
    ticks: list[list[float]]
    held: dict[str, float]
    before: dict[str, Any]

    def counters(self) -> dict[str, Any]:
        """Return what Prometheus scrapes."""
        names = ("t", "completed", "failed", "slow", "latency_sum_s", "queue_sum_s", "batches", "in_flight")
        return {name: getattr(self, name) for name in names} | {
            "cpu_used_s": self.cpu_used_s(), "answered": len(self.latencies_s),
        }  # fmt: skip

    def account(self) -> dict[str, Any]:
        return self.counters() | self.held | {"gpu_busy_s": self.gpu_busy_s()}

    def tick(self) -> None:
        now, before = self.account(), self.before
        d = {name: now[name] - before[name] for name in now}
        alive = d["alive"] / d["t"]
        self.ticks.append([
            self.t, self.target_users, self.replicas, d["ready"] / d["t"], alive, d["cpu_used_s"] / d["t"],
            d["limit"] / d["t"], d["gpu_busy_s"] / d["t"] / self.devices, d["vram"] / d["t"],
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
