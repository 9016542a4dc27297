"""Every fault: drawn from the trial's stream alone, after the warm-up, and what it says it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gpusched.cluster.sim import SimCluster
from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError
from gpusched.core.fault import LEVELS, FaultPlan
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.core.ports import Episode, Fault
from gpusched.core.service import Constant, Service
from gpusched.core.trial import TrialSpec
from gpusched.job.build import option

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "fault").glob("*.yaml"))
TIMED = [name for name in NAMES if name not in ("none", "service_shift")]
BEGIN_S, END_S = 120.0, 1320.0


def node(name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((CONF / "fault" / f"{name}.yaml").read_text()) | changes


def build(name: str, **changes: Any) -> Fault:
    made: Fault = option(node(name, **changes), Fault, "fault")
    return made


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def service() -> Service:
    tree = yaml.safe_load((CONF / "service" / "mobilenetv4-rtx3080.yaml").read_text())
    tree.pop("_target_")
    return Service(**{
        key: Constant(**{**value, "value": float(value["value"])}) if isinstance(value, dict) else value
        for key, value in tree.items()
    })  # fmt: skip


def closed() -> LoadPlan:
    return LoadPlan(from_s_K=np.array([0.0, 500.0, 900.0]), users_K=np.array([10, 40, 5]))


def opened(rate: float = 5.0) -> LoadPlan:
    times_s_N = np.cumsum(rng(9).exponential(1.0 / rate, 8000))
    none = np.zeros(1)
    return LoadPlan(from_s_K=none, users_K=none.astype(np.int64), arrivals_s_N=times_s_N[times_s_N < END_S])


def columns(plan: FaultPlan) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {name: value for name, value in vars(plan).items() if isinstance(value, np.ndarray)}


# --- all of them ---


@pytest.mark.parametrize("name", NAMES)
def test_the_same_stream_draws_the_same_fault(name: str) -> None:
    fault, again = build(name), build(name)
    a, b, other = (
        columns(f.timeline(BEGIN_S, END_S, rng(k))) for f, k in ((fault, 1), (again, 1), (again, 2))
    )
    assert all(np.array_equal(a[key], b[key]) for key in a)
    if name in TIMED and name != "flash_crowd":
        assert any(not np.array_equal(a[key], other[key]) for key in a)
    for plan in (closed(), opened()):
        one, two = (f.on_plan(plan, BEGIN_S, END_S, rng(3)) for f in (fault, again))
        assert np.array_equal(one.users_K, two.users_K)
        assert one.arrivals_s_N is None or np.array_equal(one.arrivals_s_N, two.arrivals_s_N)  # type: ignore[arg-type]
    assert fault.on_service(service(), rng(4)) == again.on_service(service(), rng(4))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_goes_wrong_in_the_warm_up_or_after_the_end(name: str) -> None:
    fault, before_s = build(name), np.arange(0.0, BEGIN_S)
    for seed in range(20):
        plan = fault.timeline(BEGIN_S, END_S, rng(seed))
        for times_s in (plan.from_s_K, plan.death_s_D):
            assert np.all((times_s >= BEGIN_S) & (times_s <= END_S))
        assert np.all((plan.death_draw_D >= 0.0) & (plan.death_draw_D < 1.0))
        for level, resting in LEVELS.items():  # everything has come to rest by the end
            assert len(plan.from_s_K) == 0 or getattr(plan, f"{level}_K")[-1] == resting
        load = fault.on_plan(closed(), BEGIN_S, END_S, rng(seed))
        assert np.array_equal(load.users_at(before_s), closed().users_at(before_s))


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_touches_only_what_it_is_about(name: str) -> None:
    about = {
        "metric_loss": {"metrics_lost"}, "metric_delay": {"metric_delay_s"}, "slow_start": {"start_factor"},
        "gpu_throttle": {"gpu_speed"}, "noisy_neighbour": {"neighbours"}, "node_pressure": {"stolen_cores", "host_speed"},
    }.get(name, set())  # fmt: skip
    fault = build(name)
    plan = fault.timeline(BEGIN_S, END_S, rng(5))
    assert {
        level for level, resting in LEVELS.items() if np.any(getattr(plan, f"{level}_K") != resting)
    } == about
    assert len(plan.death_s_D) == {"pod_crash": 3, "node_pressure": 1}.get(name, 0)
    assert np.all(plan.evicted_D == (name == "node_pressure"))
    assert (fault.on_service(service(), rng(5)) == service()) == (name != "service_shift")
    same = np.array_equal(fault.on_plan(closed(), BEGIN_S, END_S, rng(5)).from_s_K, closed().from_s_K)
    assert same == (name != "flash_crowd")
    assert fault.simulated == (name not in ("none", "flash_crowd"))


@pytest.mark.parametrize("name", TIMED)
def test_it_begins_where_it_may(name: str) -> None:
    """Between the two shares of the episode, and all of that range is used."""
    fault = build(name, first_share=0.2, last_share=0.4, lasts_s=60.0)
    begins = []
    for seed in range(60):
        if name == "flash_crowd":
            plan = fault.on_plan(closed(), BEGIN_S, END_S, rng(seed))
            begins.append(float(np.setdiff1d(plan.from_s_K, closed().from_s_K)[0]))
        else:
            spans = fault.timeline(BEGIN_S, END_S, rng(seed)).spans(END_S)
            begins.append(spans[0][0])
            assert spans[-1][1] <= begins[-1] + 60.0 + 1e-6
    low_s, high_s = BEGIN_S + 0.2 * 1200.0, BEGIN_S + 0.4 * 1200.0
    slack_s = 60.0 if name == "pod_crash" else 1.0  # the first crash comes within the span
    assert low_s - 1.0 <= min(begins) < low_s + 30.0 + slack_s
    assert high_s - 30.0 < max(begins) <= high_s + slack_s


@pytest.mark.parametrize("name", TIMED)
def test_a_trial_shorter_than_the_fault_ends_it(name: str) -> None:
    fault = build(name)
    plan = fault.timeline(30.0, 90.0, rng(1))
    assert all(30.0 <= a <= b <= 90.0 + 1e-3 for a, b in plan.spans(90.0))
    fault.on_plan(closed(), 30.0, 90.0, rng(1))


# --- single ones ---


def test_the_neighbour_is_busy_as_often_as_it_says() -> None:
    fault = build(
        "noisy_neighbour", first_share=0.0, last_share=0.0, lasts_s=20_000.0, busy_share=0.3, burst_s=4.0
    )
    plan = fault.timeline(0.0, 20_000.0, rng(1))
    length_s_K = np.diff(plan.from_s_K)
    busy_K = plan.neighbours_K[:-1] > 0
    share = length_s_K[busy_K].sum() / length_s_K.sum()
    bursts = int(busy_K.sum())
    # on and off are exponential: the share's standard error is 0.3·0.7·sqrt(2 / bursts)
    assert abs(share - 0.3) < 4.0 * 0.3 * 0.7 * np.sqrt(2.0 / bursts)
    assert length_s_K[busy_K].mean() == pytest.approx(4.0, rel=4.0 / np.sqrt(bursts))


def test_a_neighbour_that_never_pauses() -> None:
    plan = build("noisy_neighbour", busy_share=1.0, processes=2).timeline(BEGIN_S, END_S, rng(1))
    assert plan.neighbours_K.tolist() == [2.0, 0.0]


def test_a_flash_crowd_multiplies_the_users_for_a_while() -> None:
    fault = build("flash_crowd", first_share=0.3, last_share=0.3, lasts_s=300.0, factor=2.5)
    t_s = np.arange(END_S)
    users, before = fault.on_plan(closed(), BEGIN_S, END_S, rng(1)).users_at(t_s), closed().users_at(t_s)
    inside = (t_s >= 480.0) & (t_s < 780.0)  # 120 + 0.3 * 1200; the load's own step at 500 s stays
    assert np.array_equal(users[~inside], before[~inside])
    assert np.array_equal(users[inside], np.rint(2.5 * before[inside]))
    assert set(users[inside]) == {25, 100}


def test_a_flash_crowd_multiplies_arrivals_for_a_while() -> None:
    fault = build("flash_crowd", first_share=0.3, last_share=0.3, lasts_s=300.0, factor=3.0)
    before, after = opened().arrivals_s_N, fault.on_plan(opened(), BEGIN_S, END_S, rng(1)).arrivals_s_N
    assert before is not None
    assert after is not None
    assert np.all(np.diff(after) >= 0.0)
    hit = np.sum((before >= 480.0) & (before < 780.0))
    assert len(after) - len(before) == 2 * hit
    added = np.setdiff1d(after, before)
    assert added.min() >= 480.0
    assert added.max() < 781.0
    assert np.isin(before, after).all()


def test_a_shifted_service_stays_within_its_spread() -> None:
    fault, given = build("service_shift"), service()
    names = node("service_shift")["constants"]
    factors = np.array([
        [fault.on_service(given, rng(seed)).constants()[n].value / given.constants()[n].value for n in names]
        for seed in range(200)
    ])  # fmt: skip
    assert factors.min() >= 0.7
    assert factors.max() <= 1.3
    assert np.all(np.abs(factors.mean(axis=0) - 1.0) < 4.0 * 0.6 / np.sqrt(12.0 * 200))
    assert np.all(np.abs(np.corrcoef(factors.T) - np.eye(len(names))) < 0.3)  # each has a draw of its own
    shifted = fault.on_service(given, rng(1))
    for name, one in shifted.constants().items():
        assert (one == given.constants()[name]) == (name not in names)
        assert name not in names or (one.status == "assumed" and "times the profile's" in one.source)


def test_spans_join_what_overlaps() -> None:
    """Also what lies closer together than a gap, as bursts do."""
    plan = FaultPlan(
        from_s_K=np.array([10.0, 20.0, 30.0, 50.0]), gpu_speed_K=np.array([0.5, 1.0, 1.0, 1.0]),
        neighbours_K=np.array([0.0, 1.0, 0.0, 2.0]), death_s_D=np.array([5.0, 15.0, 40.0]),
        death_draw_D=np.zeros(3),
    )  # fmt: skip
    assert plan.spans(60.0) == [(5.0, 5.0), (10.0, 30.0), (40.0, 40.0), (50.0, 60.0)]
    assert plan.spans(60.0, gap_s=6.0) == [(5.0, 30.0), (40.0, 40.0), (50.0, 60.0)]
    assert FaultPlan().spans(60.0) == []
    assert FaultPlan().quiet


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"from_s_K": np.array([2.0, 1.0])}, "increase"),
        ({"from_s_K": np.array([1.0]), "gpu_speed_K": np.ones(2)}, "gpu_speed_K"),
        ({"death_s_D": np.ones(2), "death_draw_D": np.ones(1)}, "death_draw_D"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaultPlan(**arrays)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("metric_loss", {"lasts_s": 0.0}, "lasts_s"),
        ("metric_loss", {"first_share": -0.1}, "first_share"),
        ("metric_loss", {"last_share": 1.1}, "last_share"),
        ("metric_loss", {"first_share": 0.9, "last_share": 0.1}, "at least first_share"),
        ("metric_delay", {"delay_s": -1.0}, "delay_s"),
        ("slow_start", {"factor": 0.5}, "factor"),
        ("pod_crash", {"crashes": 0}, "crashes"),
        ("node_pressure", {"host_speed": 0.0}, "host_speed"),
        ("node_pressure", {"evictions": -1}, "evictions"),
        ("node_pressure", {"cores": float("inf")}, "cores"),
        ("gpu_throttle", {"speed": 1.5}, "speed"),
        ("noisy_neighbour", {"processes": 9}, "processes"),
        ("noisy_neighbour", {"busy_share": 0.0}, "busy_share"),
        ("noisy_neighbour", {"burst_s": 0.0}, "burst_s"),
        ("flash_crowd", {"factor": 0.9}, "factor"),
        ("service_shift", {"spread": 1.0}, "spread"),
        ("service_shift", {"constants": []}, "constants"),
        ("none", {"lasts_s": 3.0}, "no such key"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **changes)


def test_a_constant_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="gpu_alpha_s"):
        build("service_shift", constants=["gpu_alfa_s"]).on_service(service(), rng(1))


# --- in a trial ---


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_lives_through_it(name: str) -> None:
    """On the simulated cluster: every request is accounted for, and replicas stay within the limits."""
    spec = TrialSpec(duration_s=300.0, warmup_s=60.0)
    given, fault = service(), build(name, **({} if name in ("none", "service_shift") else {"lasts_s": 120.0}))
    load = LoadPlan(from_s_K=np.array([0.0, 150.0]), users_K=np.array([10, 60]))
    plan = fault.on_plan(load, spec.warmup_s, spec.end_s, rng(1))
    config = yaml.safe_load((CONF / "cluster" / "sim.yaml").read_text())
    config.pop("_target_")
    cluster = SimCluster(
        SimCluster.Config(**config), service=given, trial=spec, limits=Limits(max_replicas=6), slo_s=0.2
    )
    cluster.reset([
        Episode(
            plan=plan, seed=np.random.SeedSequence(1), fault=fault.timeline(spec.warmup_s, spec.end_s, rng(2)),
            service=fault.on_service(given, rng(3)),
        )
    ])  # fmt: skip
    for step in range(spec.steps):
        cluster.step(Controls.scale([2 + step % 5]))
        assert np.isfinite(cluster.outcome().gpu_busy_E).all()
    requests, ticks = cluster.logs()
    cluster.close()
    assert ticks.completed_T.sum() == np.sum(requests.status_N == RequestLog.OK) > 1000
    assert ticks.failed_T.sum() == np.sum(requests.status_N == RequestLog.FAILED)
    assert ticks.in_flight_T[-1] == np.sum(requests.status_N == RequestLog.UNFINISHED)
    assert 2 <= ticks.replicas_spec_T.min() <= ticks.replicas_spec_T.max() <= 6
    assert (ticks.failed_T.sum() > 0) == (name in ("pod_crash", "node_pressure"))
