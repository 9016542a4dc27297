"""Small services, loads and runs for the simulator's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpusched.core.controls import Controls
from gpusched.core.fault import FaultPlan
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Episode
from gpusched.core.service import Constant, Service
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.reference import Reference
from gpusched.sim.reference_fleet import ReferenceFleet
from gpusched.sim.reference_schedule import Machines

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "conf" / "service" / "mobilenetv4-rtx3080.yaml"


PINNED: dict[str, float] = {
    "host_alpha_s": 0.0061, "host_beta_s": 0.0193, "gpu_alpha_s": 0.0271, "gpu_beta_s": 0.0041, "gpu_cv": 0.0,
    "client_s": 0.0153, "client_tail_median_s": 0.00012, "client_tail_sigma": 1.88, "max_batch": 8,
    "cpu_limit_cores": 1.0, "cpu_request_cores": 0.5, "queue_size": 256, "queue_timeout_s": 0.0, "queue_delay_s": 0.0,
    "instances": 1, "gpus": 1, "gpu_slice_s": 0.002, "gpu_switch_s": 0.00015, "node_cpu_cores": 16,
    "gpu_vram_bytes": 1e10, "gpu_reserved_bytes": 5e8, "pod_vram_bytes": 1.5e9, "connection_requests": 1,
}  # fmt: skip
"""What the scenarios rely on, so that a new calibration of the profile changes no test."""


def shipped() -> Service:
    """Return the service profile as it is shipped."""
    return _service({})


def profile(**changes: Any) -> Service:
    """Return a service like the shipped one, its constants pinned, some of them changed."""
    return _service(PINNED | changes)


def _service(changes: dict[str, Any]) -> Service:
    tree = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    tree.pop("_target_")
    for f in fields(Service):
        if "unit" in f.metadata:
            one = tree[f.name] | ({"value": changes[f.name]} if f.name in changes else {})
            tree[f.name] = Constant(**{**one, "value": float(one["value"])})
        elif f.name in changes:
            tree[f.name] = changes[f.name]
    return Service(**tree)


def bare(**changes: Any) -> Service:
    """Return a service of which only the GPU phase is left (1 s, one request per batch), for queueing theory."""
    nothing = (
        "gpu_beta_s", "gpu_cv", "host_alpha_s", "host_beta_s", "client_s", "client_tail_median_s", "gpu_switch_s",
        "gpu_reserved_bytes", "queue_delay_s", "queue_size", "queue_timeout_s", "cfs_period_s", "instance_vram_bytes",
    )  # fmt: skip
    plain: dict[str, Any] = dict.fromkeys(nothing, 0.0)
    plain |= {
        "gpu_alpha_s": 1.0,
        "max_batch": 1,
        "pod_vram_bytes": 1.0,
        "node_cpu_cores": 1e9,
        "cpu_limit_cores": 1e6,
    }
    return profile(**(plain | changes))


def closed(*levels: tuple[float, int] | int, think: tuple[float, float] = (1.0, 2.0)) -> LoadPlan:
    """Return a closed load: (from_s, users) per level, or just the number of users."""
    pairs = [(0.0, level) if isinstance(level, int) else level for level in levels]
    return LoadPlan(
        from_s_K=np.array([float(t) for t, _ in pairs]), users_K=np.array([n for _, n in pairs], dtype=np.int64),
        think_min_s=think[0], think_max_s=think[1],
    )  # fmt: skip


def arrivals(times_s: Any) -> LoadPlan:
    """Return an open load."""
    none = np.zeros(1)
    return LoadPlan(
        from_s_K=none, users_K=none.astype(np.int64), arrivals_s_N=np.asarray(times_s, dtype=np.float64)
    )


def poisson(rate_rps: float, count: int, seed: int) -> LoadPlan:
    """Return `count` Poisson arrivals."""
    return arrivals(np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_rps, count)))


def episode(plan: LoadPlan, *seed: int, **more: Any) -> Episode:
    return Episode(plan=plan, seed=np.random.SeedSequence(seed or (1,)), **more)


def controls(replicas: int = -1, **levers: Any) -> Controls:
    """Return the controls of one environment: replicas, cpu_cores, instances, gpu_share, hpa, hpa_target."""
    arrays = {f"{name}_E": np.array([value]) for name, value in levers.items() if name != "hpa"}
    return Controls(replicas_E=np.array([replicas]), hpa=levers.get("hpa"), **arrays)


@dataclass(kw_only=True)
class Scenario:
    """A service, a load, and what is asked of it when; the defaults suit short lockstep runs."""

    load: LoadPlan
    service: Service = field(default_factory=profile)
    asked: Sequence[tuple[float, Controls]] = ()
    fault: FaultPlan | None = None
    until_s: float = 60.0
    start_replicas: int = 1
    max_replicas: int = 4
    instances_max: int = 4
    control_s: float = 5.0
    tick_s: float = 5.0
    clocks: Clocks = field(default_factory=Clocks)
    seed: int = 1

    def episode(self) -> Episode:
        """Return what both engines are to live through."""
        return episode(self.load, self.seed, **({} if self.fault is None else {"fault": self.fault}))

    def compiled(self, *, envs: int = 1, threads: int = 1, record: bool = True) -> BatchSim:
        """Return the compiled engine for this scenario, not yet reset."""
        return BatchSim(
            self.service, envs=envs, max_replicas=self.max_replicas, clocks=self.clocks, slo_s=0.2, tick_s=self.tick_s,
            start_replicas=self.start_replicas, instances_max=self.instances_max, threads=threads, record=record,
        )  # fmt: skip

    def reference(self) -> Reference:
        """Return the reference engine for this scenario, not yet reset."""
        return Reference(
            self.service, max_replicas=self.max_replicas, clocks=self.clocks, slo_s=0.2,
            start_replicas=self.start_replicas, tick_s=self.tick_s,
        )  # fmt: skip

    def steps(self) -> list[tuple[float, list[Controls]]]:
        """Return the end of every control interval and what is asked at its start."""
        ends = np.arange(self.control_s, self.until_s + 1e-9, self.control_s)
        starts = ends - self.control_s
        return [
            (float(end), [c for t, c in self.asked if start - 1e-9 <= t < end - 1e-9])
            for start, end in zip(starts, ends, strict=True)
        ]


@dataclass(kw_only=True)
class FleetScenario:
    """Services that share `nodes` nodes, each with its own load; what is asked names the service by its place."""

    loads: Sequence[LoadPlan]
    services: Sequence[Service]
    nodes: int = 1
    asked: Sequence[tuple[float, int, Controls]] = ()
    until_s: float = 60.0
    start_replicas: Sequence[int] = ()
    slo_s: float = 0.2
    max_replicas: int = 4
    instances_max: int = 4
    control_s: float = 5.0
    seed: int = 1

    def episodes(self, fleet: int = 0) -> list[Episode]:
        """Return what each service is to live through."""
        starts = self.start_replicas or [1] * len(self.loads)
        own = zip(self.loads, self.services, starts, strict=True)
        return [
            episode(load, self.seed + fleet, place, service=service, start_replicas=start)
            for place, (load, service, start) in enumerate(own)
        ]

    def compiled(self, *, fleets: int = 1, threads: int = 1, record: bool = True) -> BatchSim:
        """Return the compiled engine, not yet reset."""
        S = len(self.loads)
        return BatchSim(
            self.services[0], envs=S * fleets, services=S, nodes=self.nodes, max_replicas=self.max_replicas,
            clocks=Clocks(), slo_s=self.slo_s, instances_max=self.instances_max, record=record, threads=threads,
        )  # fmt: skip

    def reference(self) -> ReferenceFleet:
        """Return the reference engine, not yet reset."""
        machines = Machines(nodes=self.nodes)
        return ReferenceFleet(
            [
                Reference(
                    service,
                    max_replicas=self.max_replicas,
                    clocks=Clocks(),
                    slo_s=self.slo_s,
                    machines=machines,
                )
                for service in self.services
            ]
        )

    def steps(self) -> list[tuple[float, list[tuple[int, Controls]]]]:
        """Return the end of every control interval and what is asked of whom at its start."""
        ends = np.arange(self.control_s, self.until_s + 1e-9, self.control_s)
        return [
            (
                float(end),
                [(place, c) for t, place, c in self.asked if end - self.control_s - 1e-9 <= t < end - 1e-9],
            )
            for end in ends
        ]
