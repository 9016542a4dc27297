"""job=fleet: services that share nodes and GPUs, each with its own load, under one policy or several, as one trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.cluster.sim import SimCluster
from gpusched.core.controls import Controls
from gpusched.core.errors import InputError, refuse
from gpusched.core.fleet import Fleet, FleetWindow, Tenant, fleet_kpis, pooled, service_kpis, summed
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation
from gpusched.core.ports import Episode, Policy
from gpusched.job import gates
from gpusched.job.build import check_room
from gpusched.job.record import artifacts
from gpusched.job.setup import Setup, digest
from gpusched.job.trial import Lived, TrialJob, circumstances, title, verdicts, window_of
from gpusched.policy.guard import Guard, told
from gpusched.tracking.run import Run

log = logging.getLogger(__name__)

REQUESTS_KEPT = 2_000_000
"""Requests of a fleet up to which their log is stored; KPIs are computed from all of them in any case."""
TOLD = 3
"""Failing services that a gate's verdict names."""


@dataclass(kw_only=True)
class Member:
    """One service of the fleet: its own setup (load, profile, start replicas), objective, and what it left."""

    name: str
    setup: Setup
    slo_s: float
    policy: Policy | None
    blind_T: list[bool] = field(default_factory=list)
    ready_at_start: float = 0.0
    kpis: dict[str, float] = field(default_factory=dict)
    gates: list[gates.Gate] = field(default_factory=list)
    good: int = 0
    overdue: int = 0

    @property
    def episode(self) -> Episode:
        """What it lives through."""
        return replace(self.setup.episode, service=self.setup.service, slo_s=self.slo_s,
                       start_replicas=self.setup.spec.start_replicas)  # fmt: skip


@dataclass(kw_only=True)
class Hand:
    """A policy, its guard, and the places of the services it controls."""

    policy: Policy
    guard: Guard
    places: list[int]

    def ask(self, seen: Observation) -> tuple[list[int], Controls, Observation]:
        """Return what it asks for, given what all services show, and the part that it saw."""
        own = Observation(**{f.name: getattr(seen, f.name)[self.places] for f in fields(Observation)})
        return self.places, self.guard.pass_on(self.policy.act(own), own), own


class FleetJob(TrialJob):
    """A trial of many services at once: one run in the store, with the fleet's KPIs and those of each service."""

    @dataclass(kw_only=True)
    class Config:
        fleet: Fleet

    config: Config

    def prepare(self, setup: Setup) -> Setup:
        """Return the setup with the fleet's name and configuration in it, once everything fits."""
        fleet = self.config.fleet
        if not issubclass(setup.cluster_type, SimCluster):
            raise refuse("cluster", setup.names["cluster"], "must be sim: a fleet is simulated")
        if setup.names.get("fault", "none") != "none":
            raise refuse("fault", setup.names["fault"], "must be none: a fleet's nodes and GPUs are shared")
        if setup.policy.hindsight:
            raise refuse(
                "policy", setup.names["policy"], "must be one that does not know the future of one service"
            )
        own = {key: value for key, value in setup.config["job"].items() if key != "_target_"}
        made = replace(
            setup,
            names={**setup.names, "load": fleet.name},
            load_name=fleet.name,
            config={**setup.config, "fleet": own["fleet"]},
        )
        if len(members(made, fleet)) == 1 and made.nodes == 1:
            raise refuse("job.fleet.services", fleet.services[0].name, "must be more than one, or the nodes must be", "One alone is what job=trial runs.")  # fmt: skip
        return made

    def key(self, setup: Setup) -> str:
        """Return a hash of everything the trial's numbers depend on, the users of every service among it."""
        return digest(setup.trial_key, *(m.setup.plan for m in members(setup, self.config.fleet)))

    def lived_through(self, run: Run, setup: Setup) -> dict[str, float]:
        """Live through the episode, store what it left and return the fleet's KPIs and mean reward."""
        fleet = members(setup, self.config.fleet)
        cluster = SimCluster(
            setup.cluster_config, service=setup.service, trial=setup.spec, limits=setup.limits, slo_s=setup.reward.slo_s,
            envs=len(fleet), services=len(fleet),
        )  # fmt: skip
        try:
            reward_T, decided_T = live(setup, fleet, cluster)
            nodes_T, window = read(setup, fleet, cluster)
        finally:
            cluster.close()
        values = {**fleet_kpis(window, [m.kpis for m in fleet]), "reward_mean": float(reward_T.mean())}
        keep(run, setup, fleet, window, values)
        keep_nodes(run, setup, nodes_T)
        for step, reward in enumerate(reward_T, start=1):
            run.metrics(round(step * setup.spec.control_s), {"reward": float(reward)})
        if setup.guard.shadow:
            run.json("decided.json", decided_T)
        return values


def members(setup: Setup, fleet: Fleet) -> list[Member]:
    """Return the services of a fleet, each with a setup and random streams of its own; InputError where one cannot be."""
    found = []
    for k, (name, tenant) in enumerate(fleet.members()):
        try:
            found.append(_member(setup, fleet, name, tenant))
        except InputError as error:
            raise InputError(f"job.fleet: service {k + 1} ({name}): {error}") from None
    starts = sum(m.setup.spec.start_replicas for m in found)
    cores = sum(m.setup.spec.start_replicas * m.setup.service.cpu_request_cores.value for m in found)
    room = setup.nodes * setup.service.node_cpu_cores.value
    if cores > room:
        raise refuse("cluster.nodes", setup.nodes,
                     f"{starts} start replicas request {cores:g} cores, the nodes have {room:g}")  # fmt: skip
    return found


def _member(setup: Setup, fleet: Fleet, name: str, tenant: Tenant) -> Member:
    service = tenant.profile(setup.service)
    if tenant.policy is not None and (tenant.policy.trained or tenant.policy.hindsight):
        raise refuse(
            "policy", type(tenant.policy).__name__, "must be one that needs no training and no foresight"
        )
    spec = setup.spec
    if tenant.start_replicas is not None:
        spec = replace(spec, start_replicas=tenant.start_replicas)
    own = replace(setup, load=tenant.load, load_name=f"{fleet.name}/{name}", service=service, spec=spec)
    check_room(own)
    slo_s = setup.reward.slo_s if tenant.slo_s is None else tenant.slo_s
    own.plan.users_at(np.zeros(1))  # draws the load: a bad value is found before anything has started
    return Member(name=name, setup=own, slo_s=slo_s, policy=tenant.policy)


def hands(setup: Setup, fleet: Sequence[Member]) -> list[Hand]:
    """Return who controls whom: the trial's policy all services without one of their own."""
    joint = [k for k, member in enumerate(fleet) if member.policy is None]
    pairs = [(setup.policy, joint)] if joint else []
    pairs += [(member.policy, [k]) for k, member in enumerate(fleet) if member.policy is not None]
    found = []
    for policy, places in pairs:
        policy.reset(setup.limits, setup.policy_seed, len(places))
        guard = Guard(setup.guard, setup.limits, setup.spec.control_s)
        found.append(Hand(policy=policy, guard=guard, places=places))
    return found


def live(setup: Setup, fleet: Sequence[Member], cluster: SimCluster) -> tuple[NDArray[np.float64], list[str]]:
    """Let the policies control the fleet; returns the mean reward of each step [T], and what was decided, in words."""
    controlling = hands(setup, fleet)
    seen = cluster.reset([member.episode for member in fleet])
    for member, ready in zip(fleet, seen.replicas_ready_E, strict=True):
        member.ready_at_start = float(ready)
    rewards = []
    for _ in range(setup.spec.steps):
        asked = [hand.ask(seen) for hand in controlling]
        seen = cluster.step_each([(places, controls) for places, controls, _ in asked])
        for places, controls, _ in asked:
            for place in places:
                fleet[place].blind_T.append(gates.is_blind(controls, one(seen, place)))
        rewards.append(float(setup.reward.score(cluster.outcome()).mean()))
    return np.array(rewards), [told(c) for hand in controlling for c in hand.guard.decided]


def one(seen: Observation, place: int) -> Observation:
    """Return what one service shows."""
    return Observation(**{f.name: getattr(seen, f.name)[place : place + 1] for f in fields(Observation)})


def read(
    setup: Setup, fleet: Sequence[Member], cluster: SimCluster
) -> tuple[dict[str, NDArray[np.float64]], FleetWindow]:
    """Judge every service, and pool what is left of all; a service's requests are dropped once they are in the pool."""
    requests: list[RequestLog] = []
    ticks: list[TickLog] = []
    for place, member in enumerate(fleet):
        own_requests, own_ticks = cluster.logs(place)
        cluster.forget(place)
        judge(member, own_requests, own_ticks, cluster)
        requests.append(own_requests)
        ticks.append(own_ticks)
    nodes_T = cluster.fleet_ticks()
    busy_T = np.diff(nodes_T["gpu_busy"], prepend=0.0) / np.diff(nodes_T["t"], prepend=0.0)
    window = FleetWindow(
        requests=pooled(requests), ticks=summed(ticks, busy_T), slo_s=float("nan"),
        good_requests=sum(m.good for m in fleet), overdue_requests=sum(m.overdue for m in fleet), **circumstances(setup),
    )  # fmt: skip
    return nodes_T, window


def judge(member: Member, requests: RequestLog, ticks: TickLog, cluster: SimCluster) -> None:
    """Take a service's KPIs and gates from its logs."""
    window = window_of(member.setup, requests, ticks, member.slo_s)
    member.kpis, member.good, member.overdue = service_kpis(window), window.good, window.overdue
    lived = Lived(
        ticks=ticks, window=window, reward_T=np.zeros(0), ready_at_start=member.ready_at_start,
        blind=all(member.blind_T), audit=cluster.audit(), decided_T=[],
    )  # fmt: skip
    own = member.setup if member.policy is None else replace(member.setup, policy=member.policy)
    member.gates = verdicts(own, lived)


def keep(
    run: Run, setup: Setup, fleet: Sequence[Member], window: FleetWindow, values: dict[str, float]
) -> None:
    """Store KPIs, gates, ticks, and the requests of a fleet that is not too large."""
    run.kpis({name: value for name, value in values.items() if name != "reward_mean"})
    run.metrics(0, {"reward_mean": values["reward_mean"]})
    for member in fleet:
        run.metrics(0, {f"{member.name}/{name}": value for name, value in member.kpis.items()})
    for gate in together(fleet):
        run.gate(gate.name, gate.ok, gate.detail)
        if not gate.ok:
            log.warning("%s: gate %s failed: %s", title(setup), gate.name, gate.detail)
    artifacts(run, setup)
    run.json("services.json", {member.name: member.kpis for member in fleet})
    run.ticks(window.ticks, setup.spec.warmup_s)
    count = len(window.requests.status_N)
    run.tags({"services": str(len(fleet)), "nodes": str(setup.nodes), "requests": str(count)})
    if count <= REQUESTS_KEPT:
        run.requests(window.requests, setup.spec.warmup_s)


def keep_nodes(run: Run, setup: Setup, nodes_T: dict[str, NDArray[np.float64]]) -> None:
    """Store the nodes' own ticks as nodes.csv, and their means over the episode."""
    inside_T = nodes_T["t"] > setup.spec.warmup_s + 5e-4
    mean = {name: float(column_T[inside_T].mean()) for name, column_T in nodes_T.items()}
    run.metrics(0, {
        "fleet/fragmentation": mean["vram_fragmented"] / max(mean["vram_free"], 1.0),
        "fleet/cores_stranded": mean["cores_stranded"] / max(mean["cores_free"], 1e-9),
        "fleet/pods_pending": mean["pods_pending"],
    })  # fmt: skip
    rows = zip(*nodes_T.values(), strict=True)
    lines = [",".join(nodes_T), *(",".join(f"{value:.9g}" for value in row) for row in rows)]
    run.text("nodes.csv", "\n".join(lines) + "\n")


def together(fleet: Sequence[Member]) -> list[gates.Gate]:
    """Return each gate's verdict on the fleet: it holds where it holds for every service."""
    found = []
    for k, first in enumerate(fleet[0].gates):
        bad = [(m.name, m.gates[k].detail) for m in fleet if not m.gates[k].ok]
        named = "; ".join(f"{name}: {detail}" for name, detail in bad[:TOLD])
        more = f"; and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        detail = f"{named}{more}" if bad else f"all {len(fleet)} services; {fleet[0].name}: {first.detail}"
        found.append(gates.Gate(name=first.name, ok=not bad, detail=detail))
    return found
