"""One trial: one policy, one load, one seed. Warm-up, episode, logs, KPIs, gates, store."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.audit import Audit
from gpusched.core.errors import ClusterError
from gpusched.core.gate import spoilt
from gpusched.core.kpi import RECOVERY_HOLD_S, Window, kpis
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.ports import Cluster
from gpusched.job import gates
from gpusched.job.record import artifacts, params, run_tags
from gpusched.job.setup import Job, Result, Setup
from gpusched.policy.guard import Guard, told
from gpusched.tracking.run import Run
from gpusched.tracking.store import Found, Store

log = logging.getLogger(__name__)

KPI, REWARD = "kpi/", "reward_mean"


@dataclass(kw_only=True)
class Lived:
    """What a trial left: all ticks, the window KPIs come from, the reward of each control step [T], and what gates ask.

    decided_T  what the policy asked for at each control step, in words, before its guard
    """

    ticks: TickLog
    window: Window
    reward_T: NDArray[np.float64]
    ready_at_start: float
    blind: bool
    audit: Audit
    decided_T: list[str]


class TrialJob(Job):
    """Runs the trial (`trial.episodes` of them), unless it is finished in the store and `resume` is set."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose: the trial has its own group of keys."""

    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        results = [
            self._episode(replace(setup, repeat=repeat), store, parent)
            for repeat in range(setup.spec.episodes)
        ]
        return results[0] if len(results) == 1 else _together(results)

    def _episode(self, setup: Setup, store: Store, parent: str | None) -> Result:
        begin_s = time.monotonic()
        result = Result(status="finished", names=setup.names, seed=setup.seed)
        key = self.key(setup)
        if setup.resume and (found := finished(setup, store, key)):
            log.info("%s: finished already (run %s), skipped", title(setup), found.id)
            values = {k.removeprefix(KPI): v for k, v in found.metrics.items() if k.startswith(KPI)}
            values |= {k: v for k, v in found.metrics.items() if k == REWARD}
            return replace(result, status="skipped", values=values, run_id=found.id)
        if setup.policy.trained:
            from gpusched.job.train import model

            setup.policy.load(str(model(setup, store, parent)))
        tags = {**run_tags(setup), "trial_key": key, "episode": str(setup.repeat)}
        with store.start(
            "trial", study=setup.study, name=title(setup), params=params(setup), tags=tags, parent=parent
        ) as run:
            values = self.lived_through(run, setup)
            run.metrics(0, {"wall_s": time.monotonic() - begin_s})
        return replace(result, values=values, run_id=run.id)

    def key(self, setup: Setup) -> str:
        """Return a hash of everything the trial's numbers depend on."""
        return setup.trial_key

    def lived_through(self, run: Run, setup: Setup) -> dict[str, float]:
        """Live through the episode, store what it left and return its KPIs and mean reward."""
        return keep(run, setup, live(setup))


def finished(setup: Setup, store: Store, key: str) -> Found | None:
    """Return the run with this trial's key, None where the trial must be run (again).

    Of a policy, load, seed and episode the report counts the newest run, so an older one is no result any more, nor is one
    under another label. On a real cluster what spoilt a run may have passed; a simulated one would only be spoilt again.
    """
    cell = {
        **{name: setup.names[name] for name in ("policy", "load")},
        "seed": str(setup.seed),
        "episode": str(setup.repeat),
    }
    kind = setup.names["cluster"].partition("[")[0]
    for found in store.find(setup.study, kind="trial", tags=cell):  # newest first
        if found.tags.get("cluster", "").partition("[")[0] == kind:
            may_pass = setup.cluster_type.real and not setup.guard.shadow and spoilt(found.tags)
            return found if found.tags.get("trial_key") == key and not may_pass else None
    return None


def _together(results: list[Result]) -> Result:
    """Return the mean over the episodes; the newest run stands for them."""
    names = set.intersection(*(set(r.values) for r in results))
    values = {name: float(np.mean([r.values[name] for r in results])) for name in sorted(names)}
    status = "skipped" if all(r.status == "skipped" for r in results) else "finished"
    return replace(results[-1], status=status, values=values)


def title(setup: Setup) -> str:
    """Return what a person calls the trial."""
    several = f", episode {setup.repeat}" if setup.spec.episodes > 1 else ""
    return f"{setup.names['policy']} on {setup.names['load']}, seed {setup.seed}{several}"


def live(setup: Setup) -> Lived:
    """Let the policy control the cluster for the whole trial."""
    cluster = setup.cluster()
    try:
        lived = _live(setup, cluster)
    except BaseException:
        cluster.close()
        raise
    try:
        cluster.close()
    except ClusterError as left:  # what was measured is whole; what is left behind waits for job=restore
        log.error("%s", left)
    return lived


def _live(setup: Setup, cluster: Cluster) -> Lived:
    spec, policy = setup.spec, setup.policy
    guard = Guard(setup.guard, setup.limits, spec.control_s)
    if policy.hindsight:
        policy.foresee(setup.future)
    policy.reset(setup.limits, setup.policy_seed)
    seen = cluster.reset([setup.episode])
    ready, blind_T, rewards = float(seen.replicas_ready_E[0]), [], []
    for _ in range(spec.steps):
        controls = guard.pass_on(policy.act(seen), seen)
        seen = cluster.step(controls)
        rewards.append(float(setup.reward.score(cluster.outcome())[0]))
        blind_T.append(gates.is_blind(controls, seen))
    requests, ticks = cluster.logs()
    window = window_of(setup, requests, ticks, setup.reward.slo_s)
    return Lived(
        ticks=ticks,
        window=window,
        reward_T=np.array(rewards),
        ready_at_start=ready,
        blind=all(blind_T),
        audit=cluster.audit(),
        decided_T=[told(controls) for controls in guard.decided],
    )


def window_of(setup: Setup, requests: RequestLog, ticks: TickLog, slo_s: float) -> Window:
    """Return what the KPIs of the setup's episode are computed from."""
    return Window(requests=requests, ticks=ticks, slo_s=slo_s, **circumstances(setup))


def circumstances(setup: Setup) -> dict[str, Any]:
    """Return what a window holds beside the logs and the objective."""
    spec, service, fault = setup.spec, setup.service, setup.episode.fault
    return {
        "plan": setup.plan,
        "begin_s": spec.warmup_s,
        "end_s": spec.end_s,
        "gpus": setup.nodes * int(service.gpus.value),
        "gpu_vram_bytes": service.gpu_vram_bytes.value,
        "node_memory_bytes": setup.nodes * service.node_memory_bytes.value,
        "faults": fault.spans(spec.end_s, RECOVERY_HOLD_S) if fault else [],
    }


def keep(run: Run, setup: Setup, lived: Lived) -> dict[str, float]:
    """Store everything a trial left and return its KPIs and mean reward."""
    values = {**kpis(lived.window), REWARD: float(lived.reward_T.mean())}
    run.kpis({name: value for name, value in values.items() if name != REWARD})
    run.metrics(0, {REWARD: values[REWARD]})
    for step, reward in enumerate(lived.reward_T, start=1):
        run.metrics(round(step * setup.spec.control_s), {"reward": float(reward)})
    for gate in verdicts(setup, lived):
        run.gate(gate.name, gate.ok, gate.detail)
        if not gate.ok:
            log.warning("%s: gate %s failed: %s", title(setup), gate.name, gate.detail)
    artifacts(run, setup)
    if setup.guard.shadow:
        run.json("decided.json", lived.decided_T)
    run.ticks(lived.ticks, setup.spec.warmup_s)
    run.requests(lived.window.requests, setup.spec.warmup_s)
    return values


def verdicts(setup: Setup, lived: Lived) -> list[gates.Gate]:
    """Return every gate's verdict on a trial."""
    return [
        gates.load_audit(lived.window, lived.audit),
        gates.readiness(lived.ready_at_start, setup, lived.audit),
        gates.degenerate(lived.window, lived.ticks, setup, lived.blind),
        *([gates.telemetry(lived.audit)] if setup.cluster_type.real else []),
        *([gates.shadowed()] if setup.guard.shadow else []),
    ]
