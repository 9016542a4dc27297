"""A live cluster whose replicas are numbers and whose service is a small Triton-speaking server of the test."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_class
from omegaconf import OmegaConf
from triton_double import TritonDouble

from gpusched.core.audit import Audit
from gpusched.core.controls import UNSET, Controls, Limits
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Episode
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.live.cluster import LiveCluster
from gpusched.live.state import Endpoint, ModelIO, ReplicaState

ROOT = Path(__file__).parents[2]
MODEL = {"model": "m", "input": "x", "shape": [3, 8, 8], "dtype": "UINT8", "output": "y"}
PODS = "replica-.*"


class LiveDouble(LiveCluster):
    """Replicas are ready `START_S` after they were asked for. `log` tells what was called, in order."""

    START_S = 0.1
    COUNTED_S = 0.3

    @dataclass(kw_only=True)
    class Config(LiveCluster.Config):
        url: str
        prometheus: str
        endpoint: ModelIO = field(default_factory=lambda: ModelIO(**MODEL))

    config: Config

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(config, **more)
        self.log: list[str] = []
        self.applied: list[Controls] = []
        self.deadlines_s: list[float] = []
        self.fail: dict[str, BaseException] = {}
        self.not_yet = 0
        self.hpa_target = float("nan")
        self.cpu_cores = float("nan")
        self.replicas, self.changed_s, self.before = 0, 0.0, 0

    def _called(self, name: str) -> None:
        self.log.append(name)
        if name in self.fail:
            raise self.fail[name]

    def take(self) -> None:
        self.replicas = self.before = self.trial.start_replicas
        self._called("take")

    def apply(self, controls: Controls, deadline_s: float) -> None:
        self._called("apply")
        self.deadlines_s.append(deadline_s)
        if self.not_yet:
            self.not_yet -= 1
            raise TimeoutError("the control plane is busy")
        self.applied.append(controls)
        wanted = int(controls.replicas_E[0])
        if controls.hpa is None and wanted != UNSET and wanted != self.replicas:
            self.before, self.replicas, self.changed_s = self.replicas, wanted, time.monotonic()
        self.hpa_target = float("nan")
        if controls.hpa is not None:
            given = controls.hpa_target_E
            self.hpa_target = controls.hpa.target if given is None else float(given[0])
        if controls.cpu_cores_E is not None:
            self.cpu_cores = float(controls.cpu_cores_E[0])

    def state(self) -> ReplicaState:
        late = time.monotonic() - self.changed_s < self.START_S
        ready = min(self.before, self.replicas) if late else self.replicas
        return ReplicaState(spec=self.replicas, ready=ready, alive=max(ready, self.replicas),
                            hpa_target=self.hpa_target, cpu_cores=self.cpu_cores)  # fmt: skip

    def endpoint(self) -> Endpoint:
        return self.at([self.config.url])

    def prometheus_url(self) -> str:
        return self.config.prometheus

    def selectors(self) -> dict[str, str]:
        return {"model": "m", "namespace": "", "pods": PODS, "node": "nowhere"}

    def give_back(self) -> None:
        self._called("give back")

    def audit_more(self, audit: Audit) -> Audit:
        audit.foreign_gpu_processes = 2
        return audit


def service() -> Service:
    """The service profile of the default configuration."""
    from gpusched.job.build import record

    node = OmegaConf.load(ROOT / "conf" / "service" / "mobilenetv4-rtx3080.yaml")
    plain: Any = OmegaConf.to_container(node)
    return record(
        {k: v for k, v in plain.items() if k != "_target_"}, get_class(plain["_target_"]), "service"
    )


def steady(users: int, think_s: float = 0.1) -> LoadPlan:
    """So many users, each thinking for about as long."""
    return LoadPlan(
        from_s_K=np.zeros(1),
        users_K=np.array([users]),
        think_min_s=0.5 * think_s,
        think_max_s=1.5 * think_s,
    )


def episode(plan: LoadPlan, seed: int = 7) -> Episode:
    return Episode(plan=plan, seed=np.random.SeedSequence([seed]))


TRIAL = TrialSpec(duration_s=3.0, warmup_s=2.0, control_s=1.0, tick_s=0.5, start_replicas=2)


def cluster(triton: TritonDouble, prometheus: str, trial: TrialSpec = TRIAL, **config: Any) -> LiveDouble:
    times = {"scrape_s": 0.2, "window_s": 1.0, "cpu_window_s": 1.0, "request_timeout_s": 2.0, **config}
    return LiveDouble(
        LiveDouble.Config(url=triton.url, prometheus=prometheus, **times),
        service=service(),
        trial=trial,
        limits=Limits(),
        slo_s=0.1,
    )
