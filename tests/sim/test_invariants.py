"""What must hold in every run of the compiled engine, whatever the service, the load and the controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import Scenario, arrivals, bare, closed, controls, episode, poisson, profile

from gpusched.core.controls import HPADirection, HPARule, HPASpec
from gpusched.core.fault import FaultPlan
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import EXECUTING, INACTIVE, INF, QUEUED, THINKING

QUICK: dict[str, Any] = {
    "schedule_min_s": 0.2, "schedule_max_s": 1.0, "start_s": 2.0, "probe_delay_s": 0.5, "probe_period_s": 2.0,
    "client_tail_median_s": 0.0,
}  # fmt: skip
DURATION_S, STEP_S = 45.0, 3.0

# --- what is drawn ---

services = st.fixed_dictionaries(
    {
        "sharing": st.sampled_from(["time_slicing", "mps"]),
        "gpus": st.integers(1, 3),
        "instances": st.integers(1, 3),
        "max_batch": st.sampled_from([1, 2, 8]),
        "queue_delay_s": st.sampled_from([0.0, 0.02, 0.3]),
        "preferred_batches": st.sampled_from([[], [1]]),
        "queue_size": st.sampled_from([0, 3, 256]),
        "queue_timeout_s": st.sampled_from([0.0, 0.1, 1.0]),
        "cpu_limit_cores": st.sampled_from([0.3, 1.0, 2.5]),
        "cfs_period_s": st.sampled_from([0.0, 0.1]),
        "host_alpha_s": st.sampled_from([0.0, 0.006, 0.4]),
        "gpu_alpha_s": st.sampled_from([0.003, 0.027, 0.5]),
        "pod_vram_bytes": st.sampled_from([1.5e9, 4.0e9, 8.0e9]),
        "connection_requests": st.sampled_from([0, 1, 4]),
        "prestop_s": st.sampled_from([0.0, 2.0]),
        "grace_s": st.sampled_from([0.0, 1.0, 30.0]),
        "endpoint_max_s": st.sampled_from([0.1, 1.5]),
    }
)
closed_loads = st.lists(st.integers(0, 40), min_size=1, max_size=5).map(
    lambda levels: closed(*[(9.0 * k, n) for k, n in enumerate(levels)], think=(0.2, 1.5))
)
open_loads = st.tuples(st.floats(0.5, 60.0), st.integers(0, 400), st.integers(0, 99)).map(
    lambda a: poisson(*a)
)
FAST = HPADirection(stabilization_s=0, policies=[HPARule(type="Pods", value=2, period_s=5)])
specs = st.builds(
    HPASpec, metric=st.sampled_from(["cpu", "queue", "in_flight"]), target=st.floats(0.5, 60.0),
    max_replicas=st.integers(1, 4), scale_up=st.sampled_from([None, FAST]), scale_down=st.sampled_from([None, FAST]),
)  # fmt: skip
one_control = st.one_of(
    st.builds(controls, st.integers(0, 4)),
    st.builds(lambda n, k: controls(n, instances=k), st.integers(0, 4), st.integers(1, 4)),
    st.builds(lambda c: controls(cpu_cores=c), st.floats(0.05, 3.0)),
    st.builds(lambda g: controls(gpu_share=g), st.floats(0.1, 1.0)),
    st.builds(lambda s, t: controls(hpa=s, hpa_target=t), specs, st.floats(1.0, 90.0)),
)
sequences = st.lists(st.tuples(st.integers(0, 14).map(lambda k: k * STEP_S), one_control), max_size=6).map(
    lambda asked: sorted(asked, key=lambda pair: pair[0])
)


@st.composite
def faults(draw: st.DrawFn) -> FaultPlan:
    """Any level at any time, and deaths."""
    moments = sorted(set(draw(st.lists(st.integers(0, 440), max_size=6))))
    levels = {
        "gpu_speed": [0.3, 1.0], "host_speed": [0.5, 1.0], "start_factor": [1.0, 4.0], "neighbours": [0.0, 1.0, 3.0],
        "stolen_cores": [0.0, 15.0, 20.0], "metrics_lost": [0.0, 1.0], "metric_delay_s": [0.0, 4.0, 20.0],
    }  # fmt: skip
    rows = {
        f"{name}_K": np.array(draw(st.lists(st.sampled_from(values), min_size=len(moments), max_size=len(moments))))
        for name, values in levels.items()
    }  # fmt: skip
    times = sorted(draw(st.lists(st.floats(0.0, DURATION_S), max_size=4)))
    draws = draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=len(times), max_size=len(times)))
    evicted = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(times), max_size=len(times)))
    return FaultPlan(
        from_s_K=np.array(moments) / 10.0, death_s_D=np.array(times), death_draw_D=np.array(draws),
        evicted_D=np.array(evicted), **rows,
    )  # fmt: skip


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    changes = draw(services)
    changes["cpu_request_cores"] = 0.5 * changes["cpu_limit_cores"]
    return Scenario(
        service=profile(**(QUICK | changes)), load=draw(st.one_of(closed_loads, open_loads)), asked=draw(sequences),
        until_s=DURATION_S, control_s=STEP_S, tick_s=1.0, start_replicas=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 1000)), clocks=Clocks(hpa_sync_s=5.0, metrics_server_s=5.0),
        fault=draw(st.one_of(st.none(), faults())),
    )  # fmt: skip


def start(scenario: Scenario, **how: Any) -> BatchSim:
    sim = scenario.compiled(**how)
    sim.reset([scenario.episode()], [0])
    return sim


def live(scenario: Scenario, sim: BatchSim | None = None) -> BatchSim:
    sim = sim or start(scenario)
    for until_s, asked in scenario.steps():
        for one in asked:
            sim.apply(one)
        sim.step(np.array([until_s]))
    return sim


def tables(sim: BatchSim, e: int = 0) -> bytes:
    """Everything one environment told, as bytes."""
    requests, ticks = sim.logs(e)
    columns = [requests.start_s_N, requests.latency_s_N, requests.status_N]
    columns += [getattr(ticks, name) for name in TickLog.columns()]
    return b"".join(np.ascontiguousarray(column).tobytes() for column in columns)


# --- conservation ---


def check_users(sim: BatchSim, scenario: Scenario) -> None:
    """Every user is in exactly one place, and every place knows how many it holds."""
    state, pods = sim.env.sim_E[0], sim.env.pods_EP[0]
    users = sim.env.users_EU[0]
    count = {name: int(np.sum(users["state"] == name)) for name in (INACTIVE, THINKING, QUEUED, EXECUTING)}
    held = pods[pods["state"] > 0]
    assert count[QUEUED] == held["queued"].sum()
    assert count[QUEUED] + count[EXECUTING] == held["in_flight"].sum() == state["in_flight"]
    assert count[EXECUTING] == sum(
        batch["size"]
        for p in np.flatnonzero(pods["state"] > 0)
        for batch in sim.env.instances_FI[0][p * sim.instances_max :][: pods[p]["instances"]]
    )
    if not scenario.load.is_open:
        assert count[THINKING] == state["events"]
        heap = sim.env.events_FU[0][: state["events"]]
        assert len(set(heap["user"])) == len(heap)
        assert np.all(heap["t"] >= state["t"])


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_nobody_is_lost(scenario: Scenario) -> None:
    sim = start(scenario)
    for until_s, asked in scenario.steps():
        for one in asked:
            sim.apply(one)
        sim.step(np.array([until_s]))
        check_users(sim, scenario)
    requests, ticks = sim.logs(0)
    state = sim.env.sim_E[0]
    status = requests.status_N
    assert np.sum(status == RequestLog.OK) == state["completed"] == ticks.completed_T.sum()
    assert np.sum(status == RequestLog.FAILED) == state["failed"] == ticks.failed_T.sum()
    assert np.sum(status == RequestLog.UNFINISHED) == state["in_flight"] == ticks.in_flight_T[-1]
    if scenario.load.arrivals_s_N is not None:
        half_s = 0.5 * scenario.service.client_s.value
        due = scenario.load.arrivals_s_N[scenario.load.arrivals_s_N + half_s <= DURATION_S]
        np.testing.assert_allclose(np.sort(requests.start_s_N), due, rtol=0.0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_latencies_and_waits_are_possible(scenario: Scenario) -> None:
    sim, s = live(scenario), scenario.service
    requests, ticks = sim.logs(0)
    least_s = sum(
        getattr(s, f"{part}_s").value
        for part in ("client", "host_alpha", "host_beta", "gpu_alpha", "gpu_beta")
    )
    done = requests.status_N == RequestLog.OK
    assert np.all(requests.latency_s_N[done] >= least_s - 1e-9)
    assert np.all(requests.latency_s_N[~done] >= -1e-9)
    assert np.all(requests.start_s_N >= -1e-9)
    assert np.all(ticks.queue_sum_s_T >= 0.0)
    np.testing.assert_allclose(ticks.latency_sum_s_T.sum(), requests.latency_s_N[done].sum(), rtol=1e-9)
    late = requests.latency_s_N[done] > 0.2
    assert ticks.slow_T.sum() == late.sum()
    assert np.all(ticks.batches_T * s.max_batch.value >= ticks.completed_T)


@settings(max_examples=20, deadline=None)
@given(scenarios())
def test_in_flight_at_each_tick_is_what_the_log_says(scenario: Scenario) -> None:
    """Little's law without its average: the requests inside at t are those that came and have not left."""
    requests, ticks = live(scenario).logs(0)
    half_s = 0.5 * scenario.service.client_s.value
    came, left = requests.start_s_N + half_s, requests.end_s_N - half_s
    left[requests.status_N == RequestLog.UNFINISHED] = INF
    for t, inside in zip(ticks.t_s_T, ticks.in_flight_T, strict=True):
        assert (
            np.sum((came <= t - 1e-9) & (left > t + 1e-9))
            <= inside
            <= np.sum((came <= t + 1e-9) & (left > t - 1e-9))
        )


# --- bounds ---


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_resources_stay_within_bounds(scenario: Scenario) -> None:
    sim, s = live(scenario), scenario.service
    _, ticks = sim.logs(0)
    tiny = 1e-6
    assert np.all(ticks.vram_bytes_T <= s.gpus.value * s.usable_vram_bytes * (1.0 + 1e-9))
    assert np.all(ticks.replicas_ready_T <= ticks.replicas_alive_T + tiny)
    assert np.all(ticks.replicas_alive_T * s.pod_vram_bytes.value <= ticks.vram_bytes_T * (1.0 + 1e-9) + tiny)
    assert np.all(ticks.gpu_busy_T >= 0.0)
    assert np.all(ticks.gpu_busy_T <= 1.0 + tiny)
    # A period's quota can be used at both ends of a tick, so a tick may hold one period's quota more than its share;
    # and a resize, or a new container, begins a fresh one.
    slack = s.cfs_period_s.value / scenario.tick_s * ticks.cpu_cores_T.max() * ticks.replicas_alive_T.max()
    assert np.all(ticks.cpu_cores_used_T >= -1e-12)  # a difference of sums
    assert np.all(ticks.cpu_cores_used_T <= ticks.cpu_cores_limit_T + 2.0 * slack + tiny)
    used, allowed = ticks.cpu_cores_used_T.sum(), ticks.cpu_cores_limit_T.sum()
    fresh = 1.0 + len(scenario.asked) + (len(scenario.fault.death_s_D) if scenario.fault else 0)
    assert used * scenario.tick_s <= allowed * scenario.tick_s + fresh * slack * scenario.tick_s + tiny


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_replicas_stay_within_what_was_asked(scenario: Scenario) -> None:
    """Whatever dies, nobody asks for more or fewer replicas than the policy or the HPA's bounds let him."""
    _, ticks = live(scenario).logs(0)
    wanted = [int(c.replicas_E[0]) for _, c in scenario.asked if c.hpa is None and c.replicas_E[0] >= 0]
    specs = [c.hpa for _, c in scenario.asked if c.hpa is not None]
    most = max([scenario.start_replicas, *wanted, *[spec.max_replicas for spec in specs]])
    least = min([scenario.start_replicas, *wanted, *[spec.min_replicas for spec in specs]])
    assert least <= ticks.replicas_spec_T.min()
    assert ticks.replicas_spec_T.max() <= most
    assert ticks.replicas_alive_T.max() <= 2 * scenario.max_replicas + 1 + 1e-9


@settings(max_examples=20, deadline=None)
@given(scenarios())
def test_observations_are_of_the_past_and_not_too_old(scenario: Scenario) -> None:
    sim, clocks = start(scenario), scenario.clocks
    for until_s, asked in scenario.steps():
        for one in asked:
            sim.apply(one)
        sim.step(np.array([until_s]))
        seen = Observation.from_table(sim.seen_EF)
        fault = scenario.fault or FaultPlan()
        late_s = fault.metric_delay_s_K.max(initial=0.0) + until_s * fault.metrics_lost_K.any()
        assert seen.age_s_E[0] >= 0.0
        assert seen.gpu_age_s_E[0] >= 0.0
        if until_s >= 2.0 * clocks.scrape_s + late_s:
            assert seen.age_s_E[0] <= clocks.scrape_s + late_s
        if until_s >= 2.0 * clocks.dcgm_s + late_s:
            assert seen.gpu_age_s_E[0] <= clocks.dcgm_s + late_s + 1e-9
            assert fault.metrics_lost_K.any() or 0.0 <= seen.gpu_utilization_E[0] <= 1.0 + 1e-9
        scraped = sim.env.sim_E["scraped"][0, :, 0]
        assert np.all(scraped <= until_s)
        assert until_s - scraped.max() <= clocks.scrape_s or scraped.max() == 0.0


@pytest.mark.parametrize("window_s", [5.0, 1.0])
def test_a_busy_gpu_is_seen_busy(window_s: float) -> None:
    """Also where DCGM's sampling window fills its whole period."""
    scenario = Scenario(
        load=closed(40),
        service=profile(host_beta_s=0.0, gpu_alpha_s=0.5),
        until_s=30.0,
        clocks=Clocks(dcgm_window_s=window_s),
    )
    assert Observation.from_table(live(scenario).seen_EF).gpu_utilization_E[0] > 0.9


# --- order ---


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(5.0, 60.0), seed=st.integers(0, 10**6), delay_s=st.sampled_from([0.0, 0.05]))
def test_one_queue_answers_in_the_order_of_arrival(rate: float, seed: int, delay_s: float) -> None:
    service = profile(max_batch=1, client_tail_median_s=0.0, queue_delay_s=delay_s, gpu_cv=0.5, queue_size=0)
    requests, _ = live(Scenario(load=poisson(rate, 400, seed), service=service, until_s=30.0)).logs(0)
    by_start = np.argsort(requests.start_s_N[requests.status_N == RequestLog.OK])
    assert np.all(np.diff(requests.end_s_N[requests.status_N == RequestLog.OK][by_start]) >= -1e-9)


# --- the same again ---


@settings(max_examples=25, deadline=None)
@given(scenarios())
def test_same_seed_same_bytes(scenario: Scenario) -> None:
    sim = live(scenario)
    first = tables(sim)
    assert first == tables(live(scenario))
    sim.reset([scenario.episode()], [0])
    sim.apply(controls(scenario.start_replicas))  # an engine that is used again must remember nothing
    again = start(scenario)
    again.apply(controls(scenario.start_replicas))
    assert tables(live(scenario, sim)) == tables(live(scenario, again))


def test_another_seed_another_story() -> None:
    one, other = (tables(live(Scenario(load=closed(5), seed=seed, until_s=10.0))) for seed in (1, 2))
    assert one != other


@settings(max_examples=15, deadline=None)
@given(scenarios(), closed_loads, open_loads, st.sampled_from([1, 2]))
def test_alone_or_in_a_batch(scenario: Scenario, other: Any, third: Any, threads: int) -> None:
    """An environment does not notice its neighbours, nor the number of threads."""
    alone = tables(live(scenario))
    sim = scenario.compiled(envs=4, threads=threads)
    others = [episode(load, seed) for load, seed in ((other, 5), (third, 6), (other, 7))]
    sim.reset([others[0], scenario.episode(), *others[1:]], [0, 1, 2, 3])
    for until_s, asked in scenario.steps():
        for one in asked:
            sim.apply(repeated(one, 4))
        sim.step(np.full(4, until_s))
    assert tables(sim, 1) == alone


def repeated(one: Any, envs: int) -> Any:
    """The same controls for several environments."""
    arrays = {
        f"{name}_E": getattr(one, f"{name}_E")
        for name in ("replicas", "hpa_target", "cpu_cores", "instances", "gpu_share")
    }
    return type(one)(hpa=one.hpa, **{k: None if v is None else np.repeat(v, envs) for k, v in arrays.items()})


@pytest.mark.parametrize(
    "load", [closed((0.0, 20), (20.0, 5)), poisson(20.0, 300, 1)], ids=["closed", "open"]
)
def test_a_reset_next_door_changes_nothing(load: Any) -> None:
    """Environments end at different times; the arrays one of them needs more of grow under the others."""
    scenario = Scenario(load=load, until_s=40.0)
    alone = tables(live(scenario))
    sim = scenario.compiled(envs=2)
    sim.reset([episode(load, scenario.seed), episode(closed(3), 2)], [0, 1])
    for until_s, _ in scenario.steps():
        sim.step(np.array([until_s, until_s]), [0])
        bigger = (
            poisson(100.0, 300 + 50 * int(until_s), 3)
            if int(until_s) % 2
            else closed(*[(float(k), 50) for k in range(9)])
        )
        sim.reset([episode(bigger, 9)], [1])
    assert tables(sim) == alone


def test_recording_changes_nothing() -> None:
    scenario = Scenario(load=closed(20), until_s=30.0)
    spans = []
    for record in (True, False):
        sim = live(scenario, start(scenario, record=record))
        spans.append(np.append(sim.interval_EC[0], sim.seen_EF[0]))
    np.testing.assert_allclose(spans[0], spans[1], rtol=1e-6, atol=1e-9)


def test_a_log_longer_than_its_buffer_is_whole() -> None:
    times_s = np.arange(1, 150_001) * 1e-4
    service = bare(gpu_alpha_s=5e-5, queue_size=0)
    requests, ticks = live(Scenario(load=arrivals(times_s), service=service, until_s=20.0)).logs(0)
    np.testing.assert_allclose(np.sort(requests.start_s_N), times_s, atol=1e-9)
    assert ticks.completed_T.sum() == len(times_s)
