"""Everything one job works with, typed and checked; and what a job is."""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpusched
from gpusched.core.controls import Limits
from gpusched.core.hypotheses import Hypotheses
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Action, Cluster, Episode, Fault, Future, Load, Option, Policy, Reward
from gpusched.core.seeds import child, stream
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.fault.none import NoFault
from gpusched.policy.guard import GuardConfig

if TYPE_CHECKING:
    from gpusched.tracking.store import Store

PACKAGE = Path(gpusched.__file__).parent
DECIDING = ("core", "live", "sim", "cluster", "load", "fault", "reward", "action", "policy", "rl")
"""The rooms whose code decides a trial's numbers; the others only write them down, the room `job` in part:"""
DECIDING_JOBS = ("build", "setup", "trial", "fleet", "train", "tune")
ASIDE = ("tracking", "resume", "job", "hypotheses")
"""Configuration that changes no number of a trial."""


@dataclass(kw_only=True)
class Setup:
    """One job's configuration as objects.

    names       how runs are labelled: option per group, with the values set on the command line
    load_name   the load option's name, from which random streams come
    train_name  the same of the load a learning policy trains on, "" where nothing is trained
    config      the resolved configuration in plain values
    repeat      which of the `trial.episodes` of this seed
    """

    seed: int
    study: str
    resume: bool
    uri: str
    artifacts: str | None
    spec: TrialSpec
    limits: Limits
    policy: Policy
    guard: GuardConfig
    hypotheses: Hypotheses
    load: Load
    fault: Fault
    reward: Reward
    action: Action
    service: Service
    cluster_type: type[Cluster]
    cluster_config: Any
    simulator_type: type[Cluster]
    simulator_config: Any
    names: dict[str, str]
    load_name: str
    train_name: str
    config: dict[str, Any]
    repeat: int = 0

    def cluster(self, envs: int = 1, record: bool = True) -> Cluster:
        """Return a new cluster with `envs` environments, for a trial."""
        return self._made(self.cluster_type, self.cluster_config, envs, record)

    def simulator(self, envs: int = 1) -> Cluster:
        """Return a new cluster for what a method learns or is tuned on: a simulated one, wherever the trial runs."""
        return self._made(self.simulator_type, self._roomy(self.simulator_config), envs, record=False)

    def _roomy(self, config: Any) -> Any:
        """Return a simulator's configuration with nodes for as many replicas as may be asked for."""
        if not hasattr(config, "nodes"):
            return config
        most, service = self.limits.max_replicas, self.service
        by_cpu = most * max(self.limits.cpu_cores) / service.node_cpu_cores.value
        needed = max(math.ceil(most / service.replicas_bound), math.ceil(by_cpu - 1e-9))
        return replace(config, nodes=max(config.nodes, needed))

    def _made(self, kind: type[Cluster], config: Any, envs: int, record: bool) -> Cluster:
        return kind(
            config,
            service=self.service,
            trial=self.spec,
            limits=self.limits,
            slo_s=self.reward.slo_s,
            envs=envs,
            record=record,
        )

    @property
    def nodes(self) -> int:
        """Nodes of the cluster; a real one's are its own affair, and the profile describes one."""
        return int(getattr(self.cluster_config, "nodes", 1))

    @cached_property
    def _streams(self) -> list[np.random.SeedSequence]:
        """One stream each for the load, the cluster, the policy and the fault; no policy's name enters."""
        own = stream(self.study, self.load_name, self.seed, "trial")
        # The first episode has the children 0..3 of the seed's stream, each later one a child's children.
        return (child(own, 3 + self.repeat) if self.repeat else own).spawn(4)

    @property
    def plan(self) -> LoadPlan:
        """The users or arrivals of the trial, warm-up included."""
        return self.episode.plan

    @cached_property
    def episode(self) -> Episode:
        """What the trial's environment lives through."""
        return self.fault.befall(self.calm, self._streams[3], self.service, self.spec)

    @cached_property
    def calm(self) -> Episode:
        """The same if nothing went wrong."""
        plan = self.load.plan(self.spec.end_s, np.random.default_rng(self._streams[0]))
        return Episode(plan=plan, seed=self._streams[1])

    @property
    def future(self) -> Future:
        """What a bound is told of the trial in advance."""
        return Future(
            episode=self.episode,
            limits=self.limits,
            reward=self.reward,
            make_cluster=lambda envs: self.cluster(envs, record=False),
        )

    @property
    def policy_seed(self) -> np.random.SeedSequence:
        return self._streams[2]

    @property
    def train_load(self) -> Load:
        """The load a learning policy trains on."""
        load: Load = self.policy.config.train_load
        return load

    @property
    def trouble(self) -> Callable[[Episode, np.random.SeedSequence], Episode] | None:
        """What goes wrong in the episodes a learning policy trains on; None where nothing does."""
        fault: Fault | None = getattr(self.policy.config, "train_fault", None)
        if fault is None or isinstance(fault, NoFault):
            return None
        return partial(fault.befall, service=self.service, trial=self.spec)

    @property
    def config_hash(self) -> str:
        """Hash of everything configured, where results are stored aside."""
        return digest({key: value for key, value in self.config.items() if key not in ASIDE})

    @property
    def trial_key(self) -> str:
        """Hash of everything the trial's numbers depend on: configuration, drawn load, code."""
        more = [self.fingerprint] if self.policy.trained else []
        own = {
            "cluster": self.config["cluster"],
            "fault": self.config["fault"],
            "guard": asdict(self.guard),
            "repeat": self.repeat,
        }
        if "fleet" in self.config:
            own["fleet"] = self.config["fleet"]
        return digest(self._shared, own, self.config["load"], self.load_name, self.plan, *more)

    @property
    def fingerprint(self) -> str:
        """Hash of everything a training depends on; the trial's own load and cluster are not among it."""
        rng = np.random.default_rng(0)
        load = self.train_load
        # Without a cluster of its own it learns on the trial's.
        where = [] if self.config["policy"].get("train_cluster") else [self.config["cluster"]]
        return digest(self._shared, *where, self.train_name, load.plan(self.spec.end_s, rng), load.source())

    @property
    def _shared(self) -> dict[str, Any]:
        keys = ("study", "seed", "reward", "action", "service")
        guarded = asdict(self.guard)
        return {
            **{key: self.config[key] for key in keys},
            "policy": {key: value for key, value in self.config["policy"].items() if key not in guarded},
            "trial": {key: value for key, value in self.config["trial"].items() if key != "episodes"},
            "code": code_hash(),
        }


@dataclass(kw_only=True)
class Result:
    """How a job ended, in plain values: what a sweep's table is made from."""

    status: str
    names: dict[str, str]
    seed: int
    values: dict[str, float] = field(default_factory=dict)
    run_id: str = ""
    error: str = ""

    def write(self, folder: Path) -> None:
        """Write status.json into the folder; it appears whole or not at all."""
        new = folder / f".new.{STATUS}"
        new.write_text(json.dumps(asdict(self), indent=1))
        os.replace(new, folder / STATUS)

    @classmethod
    def read(cls, path: Path) -> Result | None:
        """Read a status.json; None where it cannot be, as after a power failure."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


STATUS = "status.json"


class Job(Option, ABC):
    """Something `run.py` can be asked to do."""

    def prepare(self, setup: Setup) -> Setup:
        """Return the setup as this job takes it, to be called first; InputError for what it cannot do."""
        return setup

    @abstractmethod
    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        """Do it, and record it in the store below the run `parent` if there is one."""


class Chore(Job):
    """A job that leaves nothing in the store and needs none."""

    @abstractmethod
    def do(self, setup: Setup) -> Result:
        """Do it."""

    def run(self, setup: Setup, store: Store | None, parent: str | None) -> Result:
        """Do it; the store stays as it is."""
        return self.do(setup)


def digest(*parts: Any) -> str:
    """Hash plain values, bytes and load plans to 16 hex digits, the same on every machine."""
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, LoadPlan):
            arrays = (
                part.from_s_K,
                part.users_K,
                part.arrivals_s_N,
                np.array([part.think_min_s, part.think_max_s]),
            )
            hasher.update(b"|".join(a.tobytes() for a in arrays if a is not None))
        elif isinstance(part, bytes):
            hasher.update(part)
        else:
            hasher.update(json.dumps(_plain(part), sort_keys=True).encode())
    return hasher.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return plain values in which 15 and 15.0 are the same."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def code_hash() -> str:
    """Hash the source of everything that decides a trial's numbers."""
    hasher = hashlib.sha256(gpusched.__version__.encode())
    paths = [p for room in DECIDING for p in (PACKAGE / room).rglob("*.py")]
    for path in sorted([*paths, *(PACKAGE / "job" / f"{name}.py" for name in DECIDING_JOBS)]):
        hasher.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return hasher.hexdigest()[:16]
