"""What the contract suite needs to know of a cluster, and the trial it looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed
from hydra.utils import get_class
from omegaconf import OmegaConf

from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.load import LoadPlan
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Cluster, Episode
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.job.build import record

CONF = Path(__file__).parents[2] / "conf"
SEED = 7


@dataclass(kw_only=True)
class Session:
    """What a cluster's `opened` may ask pytest for."""

    request: pytest.FixtureRequest
    folders: pytest.TempPathFactory

    def __init__(self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> None:
        self.request, self.folders = request, folders

    def fixture(self, name: str) -> Any:
        return self.request.getfixturevalue(name)


@dataclass(kw_only=True)
class Case:
    """One cluster under contract.

    make     returns a new cluster; takes `envs`
    trial    a short trial on it, at least four control steps
    plan     its load; every replica serves some of it in every control interval
    slo_s    latency objective
    settle   control steps until replicas asked for are ready and an HPA's target is seen
    wire_s   longest way back of an answer that the record counts when it leaves the replica
    """

    make: Callable[..., Cluster]
    trial: TrialSpec
    plan: LoadPlan
    slo_s: float = 0.3
    settle: int = 1
    wire_s: float = 0.0
    limits: Limits = field(default_factory=Limits)

    def episode(self, seed: int = SEED) -> Episode:
        return Episode(plan=self.plan, seed=np.random.SeedSequence([seed]))


class Lived:
    """A trial: two replicas, three, an HPA, two replicas; each held until the cluster has settled."""

    def __init__(self, case: Case) -> None:
        self.case = case
        asked = [
            Controls.scale([2]),
            Controls.scale([3]),
            Controls.autoscale(HPASpec(target=55.0, min_replicas=1, max_replicas=4), 1),
            Controls.scale([2]),
        ]
        self.asked = [controls for controls in asked for _ in range(case.settle)]
        self.seen: list[Observation] = []
        self.outcomes: list[Outcome] = []
        self.step_s: list[float] = []
        cluster = case.make()
        self.real = cluster.real
        try:
            self.first = cluster.reset([case.episode()])
            for controls in self.asked:
                begin_s = time.monotonic()
                self.seen.append(cluster.step(controls))
                self.step_s.append(time.monotonic() - begin_s)
                self.outcomes.append(cluster.outcome())
            self.requests, self.ticks = cluster.logs()
            self.audit = cluster.audit()
        finally:
            cluster.close()
        cluster.close()
        self.end_s = case.trial.warmup_s + len(self.asked) * case.trial.control_s

    def after(self, phase: int) -> Observation:
        """Return what was seen at the end of the phase: 0 two replicas, 1 three, 2 the HPA, 3 two again."""
        return self.seen[(phase + 1) * self.case.settle - 1]


def service(name: str = "mobilenetv4-rtx3080") -> Service:
    """Return a stored service profile."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "service" / f"{name}.yaml"))
    kind = get_class(node.pop("_target_"))
    made: Service = record(node, kind, "service")
    return made


def configured(name: str, *overrides: str) -> tuple[type[Cluster], Any]:
    """Return class and checked configuration of conf/cluster/<name>.yaml."""
    from gpusched.job.build import typed

    config, _ = composed(f"cluster={name}", *overrides)
    node: Any = OmegaConf.to_container(config.cluster, resolve=True)
    return typed(node, Cluster, "cluster")  # type: ignore[type-abstract]
