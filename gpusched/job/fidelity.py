"""Fidelity: the same load on a real cluster and on the simulator with that cluster's profile, side by side.

The profile must come from another run (`job=calibrate`); the random streams are others too. A case is a number of
users, replicas over time, and the largest batch. Real intervals are bootstraps over ticks, simulated ones over episodes.

The result is a run of its own in the store, tagged with the hash of the very service profile: the report of a study on
that profile shows it (gpusched/report/fidelity.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gpusched.cluster.sim import SimCluster
from gpusched.core.controls import Controls
from gpusched.core.errors import InputError, refuse
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster, Episode
from gpusched.core.seeds import child, stream
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.job import measure
from gpusched.job.agreement import (
    GOAL,
    MEASURES,
    Block,
    Case,
    Row,
    blocks,
    compare,
    markdown,
    measured,
    merged,
)
from gpusched.job.calibrate import emulated
from gpusched.job.profile import machine
from gpusched.job.record import artifacts, params, run_tags
from gpusched.job.setup import Job, Result, Setup
from gpusched.tracking.store import Store

log = logging.getLogger(__name__)

PURPOSE = "validate"
"""Random streams that no trial and no calibration draws from."""
SEARCH_EPISODES = 4
SATURATED = 1.01
"""Twice the users bring less than so much of the throughput: more cannot be had."""
OTHERS = ("policy", "load", "reward", "action", "fault", "fingerprint", "hypotheses", "hypotheses_hash")
"""Labels of a trial that mean nothing here: the load is the case's own, and nobody decides."""
JSON, MARKDOWN = "fidelity.json", "fidelity.md"


class FidelityJob(Job):
    """Compares; takes (warmup_s + duration_s + about 10 s) per case."""

    @dataclass(kw_only=True)
    class Config:
        """The grid, and how long each case lasts.

        levels        load as a share of the calibrated capacity
        replicas      constant numbers of replicas
        batches       largest batches; 1 = without batching
        scaling       also scale up and down in the middle
        think_min_s   users' think time
        duration_s    of a case, after warmup_s
        step_s        one control step
        episodes      simulated episodes per case
        folder        where fidelity.json and fidelity.md go
        """

        levels: list[float]
        replicas: list[int]
        batches: list[int]
        scaling: bool
        think_min_s: float
        think_max_s: float
        warmup_s: float
        duration_s: float
        step_s: float
        episodes: int
        folder: str

        def __post_init__(self) -> None:
            if not self.levels or not all(0 < level < 2 for level in self.levels):
                raise refuse("levels", self.levels, "must be shares of the capacity, each in 0..2")
            for key in ("replicas", "batches"):
                if not getattr(self, key) or min(getattr(self, key)) < 1:
                    raise refuse(key, getattr(self, key), "must be whole numbers of at least 1")
            if not 0 <= self.think_min_s <= self.think_max_s:
                raise refuse("think_min_s", self.think_min_s, "must lie in 0..think_max_s")
            if self.episodes < 2:
                raise refuse("episodes", self.episodes, "must be at least 2")

    config: Config

    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        check_measured(setup)
        self.check_batches(setup)
        # Begun before half an hour of measuring, so that a store that cannot be written is noticed now.
        with store.start(
            "fidelity", study=setup.study, name=f"simulator against {setup.names['cluster']}, {setup.service.name}",
            params=params(setup), tags=tags(setup), parent=parent,
        ) as run:  # fmt: skip
            artifacts(run, setup)
            self.compared(setup)
            folder = Path(self.config.folder)
            print((folder / MARKDOWN).read_text())
            for path in (folder / JSON, folder / MARKDOWN):
                run.file(path)
            values = worst(json.loads((folder / JSON).read_text())["rows"])
            run.metrics(0, values)
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values, run_id=run.id)

    def check_batches(self, setup: Setup) -> None:
        """Raise InputError for batches that the servers are not set up for: two things would be compared."""
        served = int(setup.service.max_batch.value)
        if not setup.cluster_type.makes_servers and set(self.config.batches) != {served}:
            raise refuse("job.batches", self.config.batches,
                         f"must be [{served}] on cluster={setup.names['cluster']}, whose servers have the largest batch they were set up with")  # fmt: skip

    def compared(self, setup: Setup) -> None:
        """Live through every case; what has been found is written after each, so that a kill loses one case only."""
        seed = stream(f"{setup.study}/fidelity", setup.load_name, setup.seed, PURPOSE)
        rows: list[Row] = []
        notes: list[dict[str, Any]] = []
        cases = self.cases(setup)
        for k, case in enumerate(cases):
            log.info("case %d of %d: %s, %d users", k + 1, len(cases), case.name, case.users)
            real, note = lived(self.real(setup, case), self.plan(case), child(seed, 2 * k), case)
            simulated = self.simulated(setup, case, self.config.episodes, child(seed, 2 * k + 1))
            rows += compare(case, real, simulated)
            notes.append({**asdict(case), **note})
            self.write(setup, rows, notes)

    # --- cases ---

    def cases(self, setup: Setup) -> list[Case]:
        """Return the grid, then a scale-up of an almost saturated replica and a scale-down to a busy one."""
        c, steps = self.config, round(self.config.duration_s / self.config.step_s)
        made = [
            self.case(setup, f"{level:.0%}, {n} replica{'s' * (n > 1)}, batch ≤ {b}", level, b, (n,) * steps)
            for b in c.batches
            for n in c.replicas
            for level in c.levels
        ]
        if c.scaling:
            b, half = max(c.batches), steps // 2
            rest = steps - half
            up, down = (1,) * half + (2,) * rest, (2,) * half + (1,) * rest
            made.append(self.case(setup, f"95% of 1, scaled up to 2, batch ≤ {b}", 0.95, b, up))
            made.append(self.case(setup, f"70% of 1, scaled down from 2, batch ≤ {b}", 0.7, b, down))
        return made

    def case(
        self, setup: Setup, name: str, level: float, max_batch: int, replicas_S: tuple[int, ...]
    ) -> Case:
        """Return the case with as many users as give this share of the capacity in the simulator.

        Raises InputError where no number of users does: with a queue delay Triton's batches need not be full.
        """
        fewest = replicas_S if len(set(replicas_S)) == 1 else (1,) * len(replicas_S)
        draft = Case(name=name, level=level, max_batch=max_batch, users=1, replicas_S=fewest)
        wanted_rps = level * capacity_rps(with_batch(setup.service, max_batch), fewest[0])
        seed = stream(f"{setup.study}/fidelity/users", setup.load_name, setup.seed, PURPOSE)

        def throughput_rps(users: int) -> float:
            found = self.simulated(setup, replace(draft, users=users), SEARCH_EPISODES, seed)
            return measured(found)["throughput_rps"]

        high = max(2, round(wanted_rps * (self.config.think_max_s + 0.1)))
        while (found_rps := throughput_rps(high)) < wanted_rps:
            high *= 2
            if throughput_rps(high) < SATURATED * found_rps:
                raise InputError(
                    f"levels = {self.config.levels}: {name} is {wanted_rps:.0f} requests/s, and with this profile no number "
                    f"of users gets more than about {found_rps:.0f}. Choose lower levels."
                )
        low = 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if throughput_rps(middle) >= wanted_rps else (middle + 1, high)
        return replace(draft, users=high, replicas_S=replicas_S)

    def plan(self, case: Case) -> LoadPlan:
        c = self.config
        return LoadPlan(
            from_s_K=np.zeros(1),
            users_K=np.array([case.users]),
            think_min_s=c.think_min_s,
            think_max_s=c.think_max_s,
        )

    def spec(self, case: Case) -> TrialSpec:
        c = self.config
        return TrialSpec(
            duration_s=c.step_s * len(case.replicas_S), warmup_s=c.warmup_s, control_s=c.step_s, tick_s=c.step_s,
            start_replicas=case.replicas_S[0], min_replicas=1, max_replicas=max(case.replicas_S),
        )  # fmt: skip

    # --- both sides ---

    def real(self, setup: Setup, case: Case) -> Cluster:
        return measure.real(setup, with_batch(setup.service, case.max_batch), self.spec(case))

    def simulated(self, setup: Setup, case: Case, episodes: int, seed: np.random.SeedSequence) -> list[Block]:
        """Return one block per simulated episode."""
        spec = self.spec(case)
        limits = replace(setup.limits, min_replicas=1, max_replicas=spec.max_replicas)
        # No HPA looks at these in here, so how metrics are made does not matter.
        config = SimCluster.Config(
            scrape_s=5.0, window_s=30.0, metrics_server_s=15.0, hpa_sync_s=15.0, dcgm_s=5.0, dcgm_window_s=1.0,
            api_delay_s=0.05, nodes=1, threads=0,
        )  # fmt: skip
        cluster = SimCluster(
            config, service=with_batch(setup.service, case.max_batch), trial=spec, limits=limits,
            slo_s=setup.reward.slo_s, envs=episodes,
        )  # fmt: skip
        plan = self.plan(case)
        try:
            cluster.reset([Episode(plan=plan, seed=child(seed, e)) for e in range(episodes)])
            for replicas in case.replicas_S:
                cluster.step(Controls.scale([replicas] * episodes))
            return [merged(blocks(*cluster.logs(e), spec)) for e in range(episodes)]
        finally:
            cluster.close()

    def write(self, setup: Setup, rows: list[Row], notes: list[dict[str, Any]]) -> None:
        """Write fidelity.json and fidelity.md of the cases so far."""
        folder = Path(self.config.folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "came_from": tags(setup), "goal": GOAL, "cores": os.cpu_count(), "cases": notes,
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        for name, text in ((JSON, json.dumps(told, indent=1)), (MARKDOWN, markdown(rows, notes))):
            (folder / f".{name}").write_text(text)
            os.replace(folder / f".{name}", folder / name)


def check_measured(setup: Setup) -> None:
    """Raise InputError where the profile's times are not measured: they would be compared with nothing."""
    assumed = [
        n
        for n in ("host_alpha_s", "host_beta_s", "client_s")
        if getattr(setup.service, n).status != "measured"
    ]
    if assumed:
        raise InputError(
            f"service = {setup.names['service']!r}: {', '.join(assumed)} not measured, so nothing can be compared. "
            "Make a profile with job=calibrate and choose it with service=NAME."
        )


def tags(setup: Setup) -> dict[str, str]:
    """Return what a comparison is of: the profile and its hash, the real cluster, the machine, the commit."""
    label = {key: value for key, value in run_tags(setup).items() if key not in OTHERS}
    return {**label, "machine": machine(), "emulated": str(emulated(setup)).lower()}


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest error of each measure over all cases, without those that have none."""
    found: dict[str, float] = {}
    for name in MEASURES:
        errors = [abs(row["error"]) for row in rows if row["measure"] == name and math.isfinite(row["error"])]
        found |= {f"worst_error/{name}": max(errors)} if errors else {}
    return found


def with_batch(service: Service, max_batch: int) -> Service:
    """Return the service with another largest batch."""
    fitting = [b for b in service.preferred_batches if b <= max_batch]
    return replace(
        service, max_batch=replace(service.max_batch, value=float(max_batch)), preferred_batches=fitting
    )


def capacity_rps(service: Service, replicas: int) -> float:
    """Return what the profile says replicas with full batches answer per second, if they disturb each other nowhere."""
    b = service.max_batch.value
    host_s = service.host_alpha_s.value + service.host_beta_s.value * b
    gpu_s = service.gpu_alpha_s.value + service.gpu_beta_s.value * b
    alone_rps = replicas * service.instances.value * b / (host_s + gpu_s)
    return min(alone_rps, service.gpus.value * b / gpu_s) if gpu_s else alone_rps


def lived(
    cluster: Cluster, plan: LoadPlan, seed: np.random.SeedSequence, case: Case
) -> tuple[list[Block], dict[str, Any]]:
    """Live through a case on a real cluster; return its ticks as blocks, and how the machine was."""
    try:
        cluster.reset([Episode(plan=plan, seed=seed)])
        before = psutil.cpu_times()
        for replicas in case.replicas_S:
            cluster.step(Controls.scale([replicas]))
        after = psutil.cpu_times()
        found, audit = blocks(*cluster.logs(), cluster.trial), cluster.audit()
    finally:
        cluster.close()
    span_s = sum(b.span_s for b in found)
    idle = after.idle - before.idle + after.iowait - before.iowait
    busy = (sum(after) - sum(before) - idle) / span_s
    return found, {
        "host_busy_cores": busy,
        "replicas_busy_cores": sum(b.cpu_s for b in found) / span_s,
        "client_cpu_share": audit.client_cpu_share,
        "schedule_lag_p99_s": audit.schedule_lag_p99_s,
        "real_share": audit.real_share,
    }
