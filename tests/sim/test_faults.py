"""What each fault must do, worked out by hand or by theory, on the production engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from queues import REPLICATIONS, measure, pollaczek_khinchine_wait, z_score
from world import Scenario, bare, closed, controls, episode, poisson, profile

from gpusched.core.controls import HPADirection, HPASpec
from gpusched.core.errors import InputError
from gpusched.core.fault import FaultPlan
from gpusched.core.logs import RequestLog
from gpusched.core.observation import Observation
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import EXPONENTIAL, FREE, PENDING, READY

REQUESTS = 20_000
SURE: dict[str, Any] = {
    "schedule_min_s": 1.0, "schedule_max_s": 1.0, "start_s": 10.0, "start_cv": 0.0, "probe_delay_s": 2.0,
    "probe_period_s": 1e-3, "endpoint_min_s": 0.0, "endpoint_max_s": 0.0, "client_tail_median_s": 0.0,
}  # fmt: skip
"""A service whose pods take the same time to start, every time."""


def always(**levels: float) -> FaultPlan:
    """A level from the first moment on."""
    return FaultPlan(
        from_s_K=np.zeros(1), **{f"{name}_K": np.array([value]) for name, value in levels.items()}
    )


def crash(*times_s: float, draw: float = 0.0, evicted: float = 0.0) -> FaultPlan:
    return FaultPlan(
        death_s_D=np.array(times_s), death_draw_D=np.full(len(times_s), draw),
        evicted_D=np.full(len(times_s), evicted),
    )  # fmt: skip


def start(scenario: Scenario, record: bool = True) -> BatchSim:
    """Begin; without a record an engine can be stopped between two ticks."""
    sim = scenario.compiled(record=record)
    sim.reset([scenario.episode()], [0])
    return sim


def run(sim: BatchSim, until_s: float) -> Observation:
    sim.step(np.array([until_s]))
    return Observation.from_table(sim.seen_EF.copy())


def queue(rate: float, seed: int, service: Any, fault: FaultPlan | None, **more: Any) -> dict[str, Any]:
    plans = [poisson(rate, REQUESTS, 1000 * seed + e) for e in range(REPLICATIONS)]
    begin_s, end_s = 0.05 * REQUESTS / rate, 0.95 * REQUESTS / rate
    return measure(service, plans, begin_s=begin_s, end_s=end_s, seed=seed, fault=fault, **more)


# --- speeds, against queueing theory ---


def test_half_the_clock_is_twice_the_service_time() -> None:
    found = queue(0.35, 1, bare(), always(gpu_speed=0.5))
    wait_s = found["queue_sum_s"] / found["completed"]
    assert abs(z_score(wait_s, pollaczek_khinchine_wait(0.35, 0.0, 2.0))) < 4.0
    assert abs(z_score(found["gpu_busy_s"] / found["t"], 0.7)) < 4.0
    assert (
        z_score(wait_s, pollaczek_khinchine_wait(0.35, 0.0, 1.96)) > 4.0
    )  # and the check can tell 2 % apart


def test_half_the_host_speed_is_twice_the_cpu_time() -> None:
    service = bare(gpu_alpha_s=1e-9, host_alpha_s=1.0, cpu_limit_cores=1.0, cpu_request_cores=1.0)
    found = queue(0.35, 2, service, always(host_speed=0.5))
    wait_s = found["queue_sum_s"] / found["completed"]
    assert abs(z_score(wait_s, pollaczek_khinchine_wait(0.35, 0.0, 2.0))) < 4.0
    np.testing.assert_allclose(found["cpu_used_s"] / found["completed"], 2.0, rtol=1e-3)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_neighbours_take_equal_shares(neighbours: int) -> None:
    """M/M/1-PS with k permanent customers: (k + 1)·S / (1 - rho), insensitive; and the device is never idle."""
    found = queue(0.25, 3 + neighbours, bare(instances=16), always(neighbours=neighbours), dist=EXPONENTIAL)
    latency_s = found["latency_sum_s"] / found["completed"]
    assert abs(z_score(latency_s, (neighbours + 1) / 0.75)) < 4.0
    np.testing.assert_allclose(found["gpu_busy_s"] / found["t"], 1.0)


def test_a_neighbour_costs_the_switch_too() -> None:
    """Alone with one neighbour a batch gets half of what the switching leaves."""
    service = bare(gpu_slice_s=0.002, gpu_switch_s=0.001)
    sim = start(Scenario(load=poisson(1e-3, 30, 1), service=service, fault=always(neighbours=1), until_s=3e4))
    run(sim, 3e4)
    np.testing.assert_allclose(sim.logs(0)[0].latency_s_N, 2.0 * 1.5)


# --- starts and the scheduler ---


def test_a_slow_start_multiplies_the_start_and_nothing_else() -> None:
    sim = start(
        Scenario(
            load=closed(1), service=profile(**SURE), fault=FaultPlan.during(20.0, 40.0, start_factor=3.0)
        ),
        record=False,
    )
    took_s = []
    for at_s, replicas in ((5.0, 2), (25.0, 3), (45.0, 4)):
        run(sim, at_s)
        sim.apply(controls(replicas))
        run(sim, at_s + 1.0)
        pod = sim.env.pods_EP[0][replicas - 1]
        took_s.append(float(pod["up_s"] - pod["admitted_s"]))
    assert took_s == pytest.approx([10.0, 30.0, 10.0])


def test_pods_fit_into_what_others_leave() -> None:
    """A node of 16 cores, 14.6 taken: two requests of 0.5 fit, four when 13.9 are taken."""
    fault = FaultPlan(from_s_K=np.array([3.0, 60.0]), stolen_cores_K=np.array([14.6, 13.9]))
    service = profile(**SURE, node_cpu_cores=16)
    sim = start(Scenario(load=closed(1), service=service, fault=fault, max_replicas=6), record=False)
    run(sim, 5.0)
    sim.apply(controls(6))
    for until_s, fit in ((50.0, 2), (61.0, 4)):
        run(sim, until_s)
        state_P = sim.env.pods_EP[0]["state"]
        assert [int(np.sum(state_P == PENDING)), int(np.sum(state_P > PENDING))] == [6 - fit, fit]


# --- deaths ---


@pytest.mark.parametrize(("draw", "slot"), [(0.0, 0), (0.34, 1), (0.99, 2)])
@pytest.mark.parametrize("evicted", [0.0, 1.0])
def test_exactly_the_dead_pods_requests_fail(draw: float, slot: int, evicted: float) -> None:
    service = profile(**SURE, host_alpha_s=0.4, instances=2, max_batch=2, cpu_limit_cores=2.0)
    fault = crash(10.0, draw=draw, evicted=evicted)
    scenario = Scenario(load=closed(60, think=(0.2, 0.4)), service=service, fault=fault, start_replicas=3)
    sim = start(scenario, record=False)
    run(sim, 10.0 - 1e-6)
    inside_P = sim.env.pods_EP[0]["in_flight"][:3].copy()
    uid_P = sim.env.pods_EP[0]["uid"][:3].copy()
    assert inside_P.min() > 3
    run(sim, 10.0 + 1e-6)
    left_P = sim.env.pods_EP[0]["in_flight"][:3]
    assert left_P.tolist() == [0 if p == slot else n for p, n in enumerate(inside_P)]
    assert sim.env.sim_E["failed"][0] == inside_P[slot]
    run(sim, 60.0)
    pods = sim.env.pods_EP[0]
    assert np.sum(pods["state"] == READY) == 3
    same_pod = pods["uid"][slot] == uid_P[slot]
    assert same_pod == (not evicted)
    assert pods["restarts"][slot] == (0 if evicted else 1)


def test_connections_to_a_dead_pod_are_refused_until_kube_proxy_knows() -> None:
    service = profile(**SURE | {"endpoint_min_s": 3.0, "endpoint_max_s": 3.0}, gpu_alpha_s=1e-4, host_alpha_s=1e-4,
                      host_beta_s=0.0, gpu_beta_s=0.0)  # fmt: skip
    load = poisson(200.0, 8000, 1)
    sim = start(Scenario(load=load, service=service, fault=crash(10.0), start_replicas=2))
    run(sim, 40.0)
    requests, _ = sim.logs(0)
    refused_s = requests.start_s_N[requests.status_N == RequestLog.FAILED]
    assert 10.0 - 0.1 < refused_s.min() < 10.1
    assert 13.0 < refused_s.max() < 14.1  # noticed within one relist, then three seconds
    span = (requests.start_s_N > 10.0) & (requests.start_s_N < refused_s.max())
    assert np.mean(requests.status_N[span] == RequestLog.FAILED) == pytest.approx(0.5, abs=0.08)


def test_a_restarted_pod_is_not_the_one_a_connection_was_made_to() -> None:
    """Who thought all the while it was away must connect anew, and a third of them come back to it."""
    service = profile(**SURE | {"start_s": 1.0}, connection_requests=0)
    scenario = Scenario(
        load=closed(300, think=(40.0, 60.0)), service=service, fault=crash(100.0), start_replicas=3
    )
    sim = start(scenario, record=False)
    run(sim, 100.0 - 1e-6)
    users = sim.env.users_EU[0]
    mine = users["pod"] == 0
    run(sim, 106.0)
    assert sim.env.pods_EP[0]["state"][0] == READY
    sent = users["send_s"].copy()
    slept = mine & (sent < 100.0)
    run(sim, 200.0)
    assert slept.sum() > 50
    assert np.all(users["send_s"][slept] > sent[slept])
    back = np.mean(users["pod"][slept] == 0)
    assert abs(back - 1.0 / 3.0) < 4.0 * np.sqrt(2.0 / 9.0 / slept.sum())


def test_back_off_doubles_to_five_minutes_and_is_forgotten_after_ten_quiet_ones() -> None:
    crashes_s = [20.0, 50.0, 100.0, 170.0, 290.0, 500.0, 900.0, 1300.0, 2300.0, 2340.0]
    waits_s = [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 0.0, 10.0]
    sim = start(Scenario(load=closed(1), service=profile(**SURE), fault=crash(*crashes_s)), record=False)
    for at_s, wait_s in zip(crashes_s, waits_s, strict=True):
        run(sim, at_s + 1e-6)
        pod = sim.env.pods_EP[0][0]
        assert pod["endpoint"] == 0  # not yet known
        restart_s = float(pod["up_s"]) - 10.0
        if wait_s == 0.0:
            assert 0.0 < restart_s - at_s < 1.0  # the kubelet looks once a second
        else:
            assert restart_s - at_s == pytest.approx(wait_s)
    run(sim, 2400.0)
    assert sim.env.pods_EP[0]["state"][0] == READY
    assert sim.env.pods_EP[0]["restarts"][0] == len(crashes_s)


def test_a_crashed_pod_keeps_its_place_and_an_evicted_one_needs_a_new_one() -> None:
    """With the node full after the fact, the crashed pod comes back; the evicted one's successor stays pending."""
    for evicted, ready in ((0.0, 3), (1.0, 2)):
        fault = crash(10.0, evicted=evicted)
        fault = FaultPlan(from_s_K=np.array([5.0]), stolen_cores_K=np.array([15.0]), death_s_D=fault.death_s_D,
                          death_draw_D=fault.death_draw_D, evicted_D=fault.evicted_D)  # fmt: skip
        sim = start(Scenario(load=closed(1), service=profile(**SURE), fault=fault, start_replicas=3))
        run(sim, 100.0)
        assert np.sum(sim.env.pods_EP[0]["state"] == READY) == ready


# --- metrics ---


def test_lost_metrics_grow_old_and_then_are_none() -> None:
    clocks = Clocks()
    sim = start(
        Scenario(load=closed(20), fault=FaultPlan.during(100.0, 200.0, metrics_lost=1.0), clocks=clocks)
    )
    before = run(sim, 100.0)
    ages, gpu_ages = [], []
    for until_s in np.arange(105.0, 200.1, 5.0):
        seen = run(sim, float(until_s))
        ages.append(seen.age_s_E[0])
        gpu_ages.append(seen.gpu_age_s_E[0])
        # rate() needs two samples: the window of 30 s holds them for five more scrapes
        assert np.isfinite(seen.rate_rps_E[0]) == (until_s <= 125.0)
        assert np.isnan(seen.in_flight_E[0])  # a gauge goes stale with the first failed scrape
        assert until_s == 105.0 or np.isnan(seen.gpu_utilization_E[0])
        assert seen.replicas_spec_E[0] == seen.replicas_ready_E[0] == 1.0  # Kubernetes itself still answers
    np.testing.assert_allclose(np.diff(ages), 5.0)
    np.testing.assert_allclose(np.diff(gpu_ages[1:]), 5.0)
    assert ages[0] == pytest.approx(before.age_s_E[0] + 5.0)
    after = run(sim, 215.0)
    assert after.age_s_E[0] <= clocks.scrape_s
    assert np.isfinite(after.rate_rps_E[0])
    assert np.isfinite(after.gpu_utilization_E[0])


NOW = HPADirection(stabilization_s=0)


def replicas_at(
    times_s: list[float], fault: FaultPlan | None, load: Any, spec: HPASpec, at_first: int
) -> list[int]:
    service = profile(**SURE)
    sim = start(Scenario(load=load, service=service, fault=fault, start_replicas=at_first, max_replicas=6))
    sim.apply(controls(hpa=spec))
    return [int(run(sim, t).replicas_spec_E[0]) for t in times_s]


@pytest.mark.parametrize("metric", ["cpu", "in_flight"])
def test_an_hpa_without_its_metric_does_nothing(metric: str) -> None:
    """Nobody is there any more from 100 s on: it scales down, unless it cannot see that; then it does so later."""
    load = closed((0.0, 30), (100.0, 0))
    spec = HPASpec(
        metric=metric, target={"cpu": 40.0, "in_flight": 0.8}[metric], max_replicas=6, scale_down=NOW
    )
    times_s = [100.0, 115.0, 290.0, 400.0]  # what metrics-server had is gone after 15 s
    seeing = replicas_at(times_s, None, load, spec, 4)
    blind = replicas_at(times_s, FaultPlan.during(95.0, 300.0, metrics_lost=1.0), load, spec, 4)
    assert seeing[0] > 1
    assert seeing[2:] == [1, 1]
    assert blind[1] > 1
    assert blind[2:] == [blind[1], 1]


def test_an_hpa_without_its_metric_does_not_scale_up_either() -> None:
    load = closed((0.0, 2), (100.0, 60))
    spec = HPASpec(metric="cpu", target=40.0, max_replicas=6)
    times_s = [100.0, 200.0, 300.0]
    seeing = replicas_at(times_s, None, load, spec, 1)
    blind = replicas_at(times_s, FaultPlan.during(95.0, 210.0, metrics_lost=1.0), load, spec, 1)
    assert seeing[0] == blind[0] == blind[1] == 1
    assert seeing[1] > 1
    assert blind[2] > 1


def test_metrics_server_forgets_what_a_scrape_misses() -> None:
    """After a loss a container needs two new points, 10 to 20 s apart: the HPA stays blind for a while longer."""
    sim = start(
        Scenario(load=closed(5), service=profile(**SURE), fault=FaultPlan.during(100.0, 130.0, metrics_lost=1.0),
                 clocks=Clocks(metrics_server_s=1.0)),
        record=False,
    )  # fmt: skip
    has_T = []
    for until_s in np.arange(90.0, 170.0, 1.0):
        run(sim, float(until_s))
        has_T.append(sim.env.meters_EP[0][0]["older_s"] > -np.inf)
    back_s = 90.0 + np.flatnonzero(has_T)[np.flatnonzero(has_T) > 20][0]
    assert all(has_T[:10])
    assert not any(has_T[12:40])
    # the first new scrape finds the last reading of the outage, so one more of them is needed
    assert 130.0 < back_s <= 152.0


def test_late_metrics_are_those_of_earlier() -> None:
    """What is seen d later is what was to be seen d before, to the last bit; nothing new comes at first."""
    delay_s, load = 40.0, closed((0.0, 10), (60.0, 30), (100.0, 5))
    on_time = start(Scenario(load=load))
    then = {float(t): run(on_time, float(t)) for t in np.arange(5.0, 200.1, 5.0)}
    late = start(Scenario(load=load, fault=FaultPlan.during(90.0, 180.0, metric_delay_s=delay_s)))
    names = ("rate_rps_E", "latency_p95_s_E", "queue_s_E", "in_flight_E", "cpu_cores_E", "gpu_utilization_E")
    for t in np.arange(5.0, 200.1, 5.0):
        seen = run(late, float(t))
        source_s = t if t <= 90.0 or t >= 180.0 else max(90.0, t - delay_s)
        for name in names:
            assert getattr(seen, name)[0] == pytest.approx(getattr(then[source_s], name)[0], nan_ok=True), (
                name,
                t,
            )
        assert seen.age_s_E[0] == pytest.approx(then[source_s].age_s_E[0] + t - source_s)
        assert seen.replicas_ready_E[0] == then[t].replicas_ready_E[0]


def test_an_hpa_acts_on_late_metrics_later() -> None:
    load = closed((0.0, 2), (100.0, 60))
    spec = HPASpec(metric="cpu", target=40.0, max_replicas=6)
    times_s = [float(t) for t in np.arange(100.0, 300.0, 5.0)]
    first = {}
    for delay_s in (0.0, 60.0):
        fault = FaultPlan.during(1.0, 400.0, metric_delay_s=delay_s)
        spec_T = replicas_at(times_s, fault, load, spec, 1)
        first[delay_s] = times_s[next(k for k, n in enumerate(spec_T) if n > 1)]
    assert 40.0 <= first[60.0] - first[0.0] <= 80.0


def test_a_delay_beyond_what_is_kept_is_refused() -> None:
    with pytest.raises(InputError, match="metric_delay_s = 500"):
        start(Scenario(load=closed(1), fault=always(metric_delay_s=500.0)))


# --- before, after, and without ---


def history(fault: FaultPlan | None, until_s: float, read_s: float) -> bytes:
    sim = start(Scenario(load=closed(30), fault=fault, start_replicas=2))
    sim.apply(controls(hpa=HPASpec(target=40.0, max_replicas=4)))
    run(sim, until_s)
    requests, _ = sim.logs(0)
    past = requests.end_s_N <= read_s
    return requests.start_s_N[past].tobytes() + requests.latency_s_N[past].tobytes()


def test_a_fault_changes_nothing_before_it_begins() -> None:
    fault = FaultPlan(from_s_K=np.array([50.0]), gpu_speed_K=np.array([0.3]), death_s_D=np.array([51.0]),
                      death_draw_D=np.array([0.4]))  # fmt: skip
    assert history(fault, 100.0, 50.0) == history(None, 100.0, 50.0)
    assert history(fault, 100.0, 60.0) != history(None, 100.0, 60.0)


def test_an_empty_plan_and_a_plan_of_nothing_are_no_plan() -> None:
    quiet = FaultPlan.during(20.0, 30.0)
    assert history(None, 60.0, 60.0) == history(FaultPlan(), 60.0, 60.0) == history(quiet, 60.0, 60.0)


def test_nothing_is_left_of_a_fault() -> None:
    """Speeds, shares and neighbours are what they were; and so are the numbers of a queue that went through it."""
    fault = FaultPlan(
        from_s_K=np.array([5.0, 10.0, 15.0, 20.0]), gpu_speed_K=np.array([0.37, 0.61, 0.93, 1.0]),
        neighbours_K=np.array([1.0, 2.0, 1.0, 0.0]), host_speed_K=np.array([0.7, 0.3, 0.9, 1.0]),
        metric_delay_s_K=np.array([10.0, 30.0, 0.0, 0.0]), stolen_cores_K=np.array([3.0, 0.0, 9.0, 0.0]),
    )  # fmt: skip
    for sharing in ("time_slicing", "mps"):
        service = profile(sharing=sharing, gpus=2, pod_vram_bytes=4e9)
        hurt, well = (
            start(Scenario(load=closed(4, think=(1.0, 2.0)), service=service, fault=f, start_replicas=2))
            for f in (fault, None)
        )
        for sim in (hurt, well):
            run(sim, 40.0)
        for name in ("capacity", "per_job"):
            np.testing.assert_allclose(
                hurt.env.resources_FR[name][0], well.env.resources_FR[name][0], rtol=1e-12
            )
        for name in (
            "host_alpha_s",
            "host_beta_s",
            "start_factor",
            "neighbours",
            "stolen_cores",
            "metrics_lost",
        ):
            assert hurt.env.sim_E[name][0] == well.env.sim_E[name][0], name
        idle = hurt.env.resources_FR[0][hurt.pod_slots :]
        on_gpu = hurt.env.instances_FI["on_gpu"][0].sum()
        assert idle["jobs"].sum() == on_gpu


def test_a_simulator_used_again_forgets_its_fault() -> None:
    scenario = Scenario(
        load=closed(10), fault=always(gpu_speed=0.4, neighbours=2, metrics_lost=1, stolen_cores=9)
    )
    sim = start(scenario)
    run(sim, 30.0)
    sim.reset([episode(scenario.load, 1)], [0])
    run(sim, 30.0)
    fresh = start(Scenario(load=scenario.load))
    run(fresh, 30.0)
    a, b = sim.logs(0)[0], fresh.logs(0)[0]
    np.testing.assert_array_equal(a.latency_s_N, b.latency_s_N)


# --- another service than the simulator's ---


def test_an_episode_can_bring_a_service_of_its_own() -> None:
    """One environment twice as slow as its neighbour, with the same users."""
    fast, slow = bare(gpu_alpha_s=0.5), bare(gpu_alpha_s=1.0)
    scenario = Scenario(load=poisson(0.3, 200, 1), service=fast, until_s=600.0)
    sim = scenario.compiled(envs=2)
    sim.reset([episode(scenario.load, 1), episode(scenario.load, 1, service=slow)], [0, 1])
    sim.step(np.full(2, 600.0))
    alone = Scenario(load=scenario.load, service=slow, until_s=600.0).compiled()
    alone.reset([episode(scenario.load, 1)], [0])
    alone.step(np.full(1, 600.0))
    np.testing.assert_array_equal(sim.logs(1)[0].latency_s_N, alone.logs(0)[0].latency_s_N)
    assert [np.median(sim.logs(e)[0].latency_s_N) for e in (0, 1)] == pytest.approx([0.5, 1.0], abs=1e-9)


def test_a_service_the_simulator_has_no_room_for_is_refused() -> None:
    sim = Scenario(load=closed(1)).compiled()
    with pytest.raises(ValueError, match="GPUs"):
        sim.reset([episode(closed(1), 1, service=profile(gpus=2))], [0])


def test_slots_are_free_after_everything_died() -> None:
    """Every pod evicted at once: new ones take their place, and no slot leaks."""
    fault = crash(*[10.0 + 1e-3 * k for k in range(3)], evicted=1.0)
    scenario = Scenario(load=closed(9), service=profile(**SURE), fault=fault, start_replicas=3)
    sim = start(scenario, record=False)
    run(sim, 10.05)
    assert np.sum(sim.env.pods_EP[0]["state"] != FREE) == 0
    run(sim, 60.0)
    assert np.sum(sim.env.pods_EP[0]["state"] == READY) == 3
