"""Gates: each passes a sound result and fails the fault it is there for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from double import FAST_S
from jobs import make

from gpusched.core.audit import Audit
from gpusched.core.errors import GateError
from gpusched.core.kpi import Window
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.job import gates
from gpusched.job.setup import Setup
from gpusched.job.trial import live, verdicts

NONE = np.zeros(1)


def window(setup: Setup, requests: RequestLog, ticks: TickLog, plan: LoadPlan) -> Window:
    spec, service = setup.spec, setup.service
    return Window(requests=requests, ticks=ticks, plan=plan, begin_s=spec.warmup_s, end_s=spec.end_s, slo_s=0.2, gpus=1,
                  gpu_vram_bytes=service.gpu_vram_bytes.value, node_memory_bytes=1e9)  # fmt: skip


def ticks(setup: Setup, **columns: Any) -> TickLog:
    t_s_T = np.arange(setup.spec.tick_s, setup.spec.end_s + 1, setup.spec.tick_s)
    table = {name: np.zeros(len(t_s_T)) for name in TickLog.columns()} | {"t_s_T": t_s_T}
    return TickLog(
        **{**table, **{name: np.broadcast_to(value, len(t_s_T)) for name, value in columns.items()}}
    )


def requests(start_s_N: Any, latency_s: float = 0.05) -> RequestLog:
    start_s_N = np.asarray(start_s_N, dtype=float)
    return RequestLog(start_s_N=start_s_N, latency_s_N=np.full(len(start_s_N), latency_s),
                      status_N=np.zeros(len(start_s_N), dtype=np.int8))  # fmt: skip


def test_little_s_law_holds_on_the_double_and_fails_for_lost_users() -> None:
    _, setup = make("policy=static", "policy.replicas=3")
    lived = live(setup)
    assert gates.load_audit(lived.window, lived.audit).ok
    some = requests(lived.window.requests.start_s_N[::2], FAST_S)
    audit = gates.load_audit(window(setup, some, lived.ticks, setup.plan), Audit())
    assert not audit.ok
    assert "X(R+Z)/N = 0.49" in audit.detail  # 0.499: the double rounds requests per tick


def test_little_s_law_is_silent_without_users() -> None:
    _, setup = make("load=low", "load.users=0")
    assert gates.load_audit(live(setup).window, Audit()).ok


@pytest.mark.parametrize(("lost", "ok"), [(0, True), (1, True), (50, False)])
def test_every_planned_arrival_must_have_been_sent(lost: int, ok: bool) -> None:
    _, setup = make()
    arrivals_s_N = np.linspace(0, setup.spec.end_s - 1, 1000)
    plan = LoadPlan(from_s_K=NONE, users_K=NONE.astype(np.int64), arrivals_s_N=arrivals_s_N)
    seen = window(setup, requests(arrivals_s_N[: len(arrivals_s_N) - lost]), ticks(setup), plan)
    assert gates.load_audit(seen, Audit()).ok == ok


@pytest.mark.parametrize(
    ("told", "ok"),
    [
        ({"client_cpu_share": 0.5, "schedule_lag_p99_s": 0.01, "real_share": 1.0}, True),
        ({"client_cpu_share": 0.97}, False),
        ({"schedule_lag_p99_s": 0.2}, False),
        ({"real_share": 0.5}, False),
    ],
)
def test_a_client_that_was_the_bottleneck_or_got_no_inferences_fails_the_audit(
    told: dict[str, Any], ok: bool
) -> None:
    lived = live(make("policy=static", "policy.replicas=3")[1])
    assert gates.load_audit(lived.window, Audit(**told)).ok == ok


@pytest.mark.parametrize("told", [{"foreign_gpu_processes": 1}, {"throttled": True}])
def test_a_gpu_that_others_use_or_that_slows_down_is_not_ready(told: dict[str, Any]) -> None:
    assert not gates.readiness(2, make()[1], Audit(**told)).ok


def test_a_policy_that_lost_its_metrics_is_told_from_one_that_had_them() -> None:
    assert gates.telemetry(Audit(telemetry_lost_s=20.0)).ok
    gate = gates.telemetry(Audit(telemetry_lost_s=75.0, fell_back=True))
    assert not gate.ok
    assert "75 s" in gate.detail


def test_a_shadow_run_is_no_result() -> None:
    _, setup = make("policy=static", "policy.replicas=3", "policy.shadow=true")
    lived = live(setup)
    assert {gate.name: gate.ok for gate in verdicts(setup, lived)}["shadow"] is False
    assert lived.decided_T == ["3 replicas"] * setup.spec.steps
    assert set(lived.ticks.replicas_spec_T) == {setup.spec.start_replicas}


@pytest.mark.parametrize(("ready", "ok"), [(2, True), (1, False), (float("nan"), False)])
def test_all_start_replicas_must_be_ready(ready: float, ok: bool) -> None:
    assert gates.readiness(ready, make()[1], Audit()).ok == ok


@pytest.mark.parametrize(
    ("policy", "load", "spec", "latency_s", "ok"),
    [
        ("hpa", "mixed", 2, 0.5, False),  # held still while every request was late
        ("hpa", "high", 2, 0.5, True),  # the load never changed: two replicas may be the best there is
        ("hpa", "mixed", 2, 0.05, True),  # nothing to do
        ("static", "mixed", 2, 0.5, True),  # by design
        ("hpa", "mixed", None, 0.5, True),  # acted, once
    ],
)
def test_who_never_acts_though_the_service_suffers_is_degenerate(
    policy: str, load: str, spec: int | None, latency_s: float, ok: bool
) -> None:
    _, setup = make(f"policy={policy}", f"load={load}")
    log = ticks(setup)
    warm_T = log.t_s_T <= setup.spec.warmup_s
    log.replicas_spec_T = np.where(warm_T, 2.0, 3.0 if spec is None else spec)
    seen = window(setup, requests(np.linspace(31, 140, 500), latency_s), log, setup.plan)
    assert gates.degenerate(seen, log, setup, blind=False).ok == ok
    assert not gates.degenerate(seen, log, setup, blind=True).ok


def test_an_hpa_without_its_metric_is_blind() -> None:
    assert not live(make("policy=hpa")[1]).blind
    _, setup = make("policy=hpa", "policy.metric=queue")
    cluster = setup.cluster()
    cluster.reset([setup.episode])
    seen = cluster.step(setup.policy.act(cluster._seen()))  # type: ignore[attr-defined]
    assert not gates.is_blind(setup.policy.act(seen), seen)
    seen.queue_s_E = np.array([np.nan])
    assert gates.is_blind(setup.policy.act(seen), seen)


def test_sensitive_actions_pass_and_idle_ones_refuse_to_train() -> None:
    gate = gates.action_sensitivity(make("policy=ppo")[1])
    assert gate.ok
    with pytest.raises(
        GateError, match=r"action = hpa_target: opposite constant choices earn the same reward"
    ):
        gates.action_sensitivity(make("policy=ppo", "action=hpa_target")[1])  # the double has no HPA
