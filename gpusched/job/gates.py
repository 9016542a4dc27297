"""Gates: what must hold for a result to mean anything. A failing one marks the run; only the first one refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.core.audit import Audit
from gpusched.core.controls import Controls
from gpusched.core.errors import GateError
from gpusched.core.kpi import Window
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation
from gpusched.core.ports import Episode
from gpusched.core.seeds import stream
from gpusched.job.setup import Setup
from gpusched.policy.static import Static

CLIENT_CPU = 0.9
"""Share of a core beyond which a load process may itself be the bottleneck."""
SCHEDULE_LAG_S = 0.05
"""99th percentile of lateness beyond which the load was not the planned one."""
REAL_SHARE = 0.999
"""Least share of the answers that must be real inferences."""
LITTLE_TOLERANCE = 0.05
OFFERED_TOLERANCE = 0.01
SENSITIVITY = 0.01
"""Least mean difference between opposite constant choices, as a share of the reward's mean size."""
PROBE_PAIRS, PROBE_STEPS = 8, 20
VIOLATION_BORNE = 0.05
"""A policy may hold still while no more than this share of the requests is in violation."""

SEEN_AS = {"cpu": "cpu_utilization_E", "queue": "queue_s_E", "in_flight": "in_flight_E"}
"""Where an observation shows what an HPA scales on."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate's verdict and the figures it rests on."""

    name: str
    ok: bool
    detail: str


def action_sensitivity(setup: Setup) -> Gate:
    """Compare the reward of all levers at their least with all at their most, on the same users.

    Raises GateError where it makes no difference: whatever such a training learnt would be noise.
    """
    sizes = setup.action.sizes(setup.limits)
    choice_EA = np.repeat([[0] * len(sizes), [n - 1 for n in sizes]], PROBE_PAIRS, axis=0)
    reward_TE = _probe(setup, setup.action.decode(choice_EA, setup.limits))
    least_P, most_P = np.split(reward_TE.mean(axis=0), 2)
    difference, size = float(np.mean(np.abs(most_P - least_P))), float(np.mean(np.abs(reward_TE)))
    figures = f"mean reward {least_P.mean():.4f} at least, {most_P.mean():.4f} at most, |difference| {difference:.4f}"
    if not difference > SENSITIVITY * size:
        raise GateError(
            f"action = {setup.names['action']}: opposite constant choices earn the same reward ({figures}), "
            "so there is nothing to learn. Choose another action or reward, or offer wider choices."
        )
    return Gate(name="action_sensitivity", ok=True, detail=figures)


def _probe(setup: Setup, controls: Controls) -> NDArray[np.float64]:
    """Hold the controls over PROBE_PAIRS episodes, each lived through twice; return rewards [T, E]."""
    seeds = stream(setup.study, f"{setup.train_name}/probe", setup.seed, "train").spawn(PROBE_PAIRS)
    episodes = []
    for seed in seeds:
        plan = setup.train_load.plan(setup.spec.end_s, np.random.default_rng(seed))
        episodes.append(Episode(plan=plan, seed=seed))
    cluster = setup.simulator(envs=2 * PROBE_PAIRS)
    try:
        cluster.reset([*episodes, *episodes])
        rewards = []
        for _ in range(min(PROBE_STEPS, setup.spec.steps)):
            cluster.step(controls)
            rewards.append(setup.reward.score(cluster.outcome()))
    finally:
        cluster.close()
    return np.asarray(rewards)


def load_audit(w: Window, audit: Audit) -> Gate:
    """Check that the load was the one that was meant, and that the client was not what was measured."""
    law = _offered(w) if w.plan.is_open else _little(w)
    client = [
        (audit.client_cpu_share, CLIENT_CPU, ">", "client CPU {:.0%} of a core"),
        (audit.schedule_lag_p99_s, SCHEDULE_LAG_S, ">", "p99 of the schedule lag {:.3f} s"),
        (audit.real_share, REAL_SHARE, "<", "real inferences {:.2%} of the answers"),
    ]
    told = [words.format(value) for value, _, _, words in client if math.isfinite(value)]
    ok = not any(value > most if sign == ">" else value < most for value, most, sign, _ in client)
    return Gate(name="load_audit", ok=law.ok and ok, detail="; ".join([law.detail, *told]))


def _little(w: Window) -> Gate:
    """Little's law over the users' cycle: X·(R + Z) must equal N."""
    r = w.requests
    done_N = (r.status_N != RequestLog.UNFINISHED) & (r.end_s_N > w.begin_s) & (r.end_s_N <= w.end_s + 1e-9)
    rate_rps = np.count_nonzero(done_N) / w.duration_s
    mean_s = float(r.latency_s_N[done_N].mean()) if done_N.any() else 0.0
    users = w.plan.mean_users(w.begin_s, w.end_s)
    ratio = rate_rps * (mean_s + w.plan.think_mean_s) / users if users else float("nan")
    detail = f"X = {rate_rps:.2f}/s, R = {mean_s:.3f} s, Z = {w.plan.think_mean_s:.2f} s, N = {users:.1f}: X(R+Z)/N = {ratio:.3f}"
    return Gate(name="load_audit", ok=bool(users == 0 or abs(ratio - 1) <= LITTLE_TOLERANCE), detail=detail)


def _offered(w: Window) -> Gate:
    """Every planned arrival must have been sent, whatever became of it."""
    assert w.plan.arrivals_s_N is not None
    planned, sent = (
        int(np.count_nonzero((t_s_N > w.begin_s) & (t_s_N <= w.end_s)))
        for t_s_N in (w.plan.arrivals_s_N, w.requests.start_s_N)
    )
    ok = abs(sent - planned) <= max(1.0, OFFERED_TOLERANCE * planned)
    return Gate(name="load_audit", ok=ok, detail=f"{sent} requests sent of {planned} planned")


def readiness(ready_at_start: float, setup: Setup, audit: Audit) -> Gate:
    """All start replicas must be ready when the episode begins, and nobody else may use or slow the GPU."""
    want = setup.spec.start_replicas
    detail = f"{ready_at_start:g} of {want} start replicas ready at the start"
    if audit.foreign_gpu_processes:
        detail += f"; {audit.foreign_gpu_processes} foreign processes on the GPU"
    if audit.throttled:
        detail += "; the GPU lowered its clocks"
    ok = ready_at_start >= want and not audit.foreign_gpu_processes and not audit.throttled
    return Gate(name="readiness", ok=ok, detail=detail)


def telemetry(audit: Audit) -> Gate:
    """The policy must have had metrics to decide on; a result with a fallback in it is marked."""
    detail = f"longest time without fresh metrics {audit.telemetry_lost_s:.0f} s"
    if audit.fell_back:
        detail += "; the configured HPA took over from the policy"
    return Gate(name="telemetry", ok=not audit.fell_back, detail=detail)


def shadowed() -> Gate:
    """In shadow mode the KPIs are those of whoever else runs the service."""
    return Gate(name="shadow", ok=False, detail="policy.shadow=true: the policy decided and changed nothing")


def degenerate(w: Window, ticks: TickLog, setup: Setup, blind: bool) -> Gate:
    """A policy that never acts while the load changes and the service suffers, or an HPA without its metric.

    Under a constant load the start replicas may be the right answer; whether a policy held still under every
    load of a study is for the report to see. `static` holds still by design.
    """
    if blind:
        return Gate(name="degenerate", ok=False, detail="the HPA's metric was absent throughout")
    # from the last tick before the policy's first action
    t = ticks.between(w.begin_s - setup.spec.tick_s, w.end_s)
    controls = (t.replicas_spec_T, t.hpa_target_T, t.cpu_cores_T, t.instances_T, t.gpu_share_T)
    if any(len(np.unique(column_T[np.isfinite(column_T)])) > 1 for column_T in controls):
        return Gate(name="degenerate", ok=True, detail="acted")
    constant = not w.plan.is_open and len(np.unique(w.plan.users_at(w.ticks.t_s_T))) <= 1
    bad = 1 - w.good / w.judged if w.judged else 0.0
    if constant or isinstance(setup.policy, Static) or bad <= VIOLATION_BORNE:
        return Gate(name="degenerate", ok=True, detail=f"held still, {bad:.1%} of the requests in violation")
    return Gate(
        name="degenerate",
        ok=False,
        detail=f"never acted while the load changed and {bad:.1%} of the requests were in violation",
    )


def is_blind(controls: Controls, seen: Observation) -> bool:
    """True where the replicas are an HPA's and its metric has no value."""
    return controls.hpa is not None and not bool(
        np.isfinite(getattr(seen, SEEN_AS[controls.hpa.metric])).any()
    )
