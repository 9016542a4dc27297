"""The ports: what a cluster, a policy, a load, a reward and an action each must do.

Each option is a class with a nested `Config` dataclass, the type of its YAML file, and is built as
`Option(config)`. Axis E counts environments; real clusters have E = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpusched.core.audit import Audit
from gpusched.core.check import Check
from gpusched.core.controls import Controls, Limits
from gpusched.core.fault import FaultPlan
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.seeds import child
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec


class Option:
    """Anything a config group chooses: built from the Config of its own class."""

    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        self.config = config


class Load(Option, ABC):
    """Draws users or arrivals before a trial."""

    @abstractmethod
    def plan(self, duration_s: float, rng: np.random.Generator) -> LoadPlan:
        """Return the load over [0, duration_s), warm-up included."""

    def source(self) -> bytes:
        """Return what plans are drawn from beside the configuration, such as the content of a file."""
        return b""


class Fault(Option):
    """Something that goes wrong after the warm-up, the same for every policy: it draws from the trial's stream.

    What is not overridden stays as it is. Times are seconds from the start of the warm-up.
    """

    simulated: ClassVar[bool] = True
    """True where only a simulator can let it happen."""

    def on_service(self, service: Service, rng: np.random.Generator) -> Service:
        """Return the service as it really behaves."""
        return service

    def on_plan(self, plan: LoadPlan, begin_s: float, end_s: float, rng: np.random.Generator) -> LoadPlan:
        """Return the load as it really comes."""
        return plan

    def timeline(self, begin_s: float, end_s: float, rng: np.random.Generator) -> FaultPlan:
        """Return what goes wrong between the end of the warm-up and the end of the trial."""
        return FaultPlan()

    def befall(
        self, episode: Episode, source: np.random.SeedSequence, service: Service, trial: TrialSpec
    ) -> Episode:
        """Return an episode as it really comes; each part draws from a stream of its own, so none moves another."""
        plan_rng, time_rng, service_rng = (np.random.default_rng(child(source, k)) for k in range(3))
        return replace(
            episode,
            plan=self.on_plan(episode.plan, trial.warmup_s, trial.end_s, plan_rng),
            fault=self.timeline(trial.warmup_s, trial.end_s, time_rng),
            service=self.on_service(service, service_rng),
        )


class Policy(Option, ABC):
    """Observation → controls. Sees no clock, no backend, no future."""

    trained: ClassVar[bool] = False
    """True where `load` must be given a trained model before `reset`."""

    hindsight: ClassVar[bool] = False
    """True for a bound that `foresee` must be told the episode before `reset`; never for a competitor."""

    def load(self, folder: str) -> None:
        """Take the trained model stored in `folder`; only called where `trained` is True."""

    def foresee(self, future: Future) -> None:
        """Take the episode that is about to be lived through; only called where `hindsight` is True."""

    @abstractmethod
    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode in every environment."""

    @abstractmethod
    def act(self, observation: Observation) -> Controls:
        """Return the controls to hold until the next control tick."""


class Reward(Option, ABC):
    """Turns the outcome of a control interval into the training signal. Never a KPI."""

    @property
    @abstractmethod
    def slo_s(self) -> float:
        """The latency objective, also the one KPIs are judged by."""

    @abstractmethod
    def score(self, outcome: Outcome) -> NDArray[np.float64]:
        """Return the reward of each environment, shape [E]."""


class Action(Option, ABC):
    """The levers a learning policy holds: a multi-discrete space and its meaning."""

    @abstractmethod
    def sizes(self, limits: Limits) -> list[int]:
        """Return the number of choices of each of the A levers."""

    @abstractmethod
    def decode(self, choice_EA: NDArray[np.int64], limits: Limits) -> Controls:
        """Return the controls that each row of choices stands for."""

    def expense(self, limits: Limits) -> NDArray[np.float64]:
        """Return how many replicas each choice costs more than its lever's cheapest, lever after lever, shape [C].

        All zero, as here, where the choices differ in no number of replicas.
        """
        return np.zeros(sum(self.sizes(limits)))


@dataclass(kw_only=True)
class Episode:
    """What one environment is to live through: its load, its own random stream, and in a simulator what goes wrong.

    `service` replaces the cluster's where it behaves otherwise than its profile says (same nodes and GPUs); `slo_s` and
    `start_replicas` replace the cluster's where each service of a fleet has its own.
    """

    plan: LoadPlan
    seed: np.random.SeedSequence
    fault: FaultPlan | None = None
    service: Service | None = None
    slo_s: float | None = None
    start_replicas: int | None = None


class Cluster(Option, ABC):
    """Where replicas run. Owns the clock: `step` returns at the next control tick.

    `record` False lets a simulator drop the logs of requests and ticks, which training never reads.
    """

    limits: Limits
    real: ClassVar[bool] = False
    """True where a step takes wall time; such a cluster has one environment."""
    makes_servers: ClassVar[bool] = True
    """True where it sets its servers up by the service profile; otherwise they are as somebody has set them up."""

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
    ) -> None:
        super().__init__(config)
        self.service, self.trial, self.limits = service, trial, limits
        self.slo_s, self.envs, self.record = slo_s, envs, record

    @abstractmethod
    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        """Start the given environments (all by default), live through the warm-up, return what all see.

        During the warm-up the start replicas serve the load and nobody scales.
        """

    @abstractmethod
    def step(self, controls: Controls) -> Observation:
        """Apply the controls and return what is seen one control interval later."""

    def branch(self, sources_E: NDArray[np.int64]) -> None:
        """Let every environment e go on from the present state of environment `sources_E[e]`; simulators only."""
        raise NotImplementedError(f"{type(self).__name__} cannot be branched")

    @abstractmethod
    def outcome(self) -> Outcome:
        """Return what really happened in the last control interval."""

    @abstractmethod
    def logs(self, env: int = 0) -> tuple[RequestLog, TickLog]:
        """Return the whole record of one environment since its reset, warm-up included."""

    def checks(self) -> list[Check]:
        """Return the doctor's checks of this cluster; changes nothing in it."""
        return []

    def audit(self) -> Audit:
        """Return what the cluster and its load generator tell of themselves since the reset."""
        return Audit()

    def close(self) -> None:
        """Leave everything as it was found."""


@dataclass(kw_only=True)
class Future:
    """What a bound is told in advance: the episode, and the means to live through it before the trial does.

    `make_cluster(envs)` makes a cluster like the trial's with that many environments, without a record.
    """

    episode: Episode
    limits: Limits
    reward: Reward
    make_cluster: Callable[[int], Cluster]
