"""Services that share nodes and GPUs: the scheduler by hand, queueing theory, and what must hold whatever happens."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import REPLICATIONS, z_score
from test_invariants import tables
from world import FleetScenario, bare, closed, controls, episode, profile

from gpusched.core.logs import RequestLog
from gpusched.sim import schedule
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import ACCOUNT, FLEET_TICK, PENDING, QUEUED, READY, THINKING

QUICK: dict[str, Any] = {
    "schedule_min_s": 0.5, "schedule_max_s": 1.5, "start_s": 3.0, "probe_delay_s": 1.0, "probe_period_s": 2.0,
}  # fmt: skip


# --- the scheduler, by hand ---


def test_least_allocated_is_the_mean_of_what_is_left_in_whole_percent() -> None:
    """1.5 of 4 cores leave 62 % (62.5 cut), 2 of 8 GB leave 75 %: 68 (68.5 cut). What does not fit leaves nothing."""
    assert schedule.least_allocated.py_func(1500, 4000, 2 * 10**9, 8 * 10**9) == 68
    assert schedule.least_allocated.py_func(5000, 4000, 0, 8 * 10**9) == 50


def test_balanced_allocation_is_what_the_deviation_leaves() -> None:
    """Shares 0.375 and 0.25 deviate by 0.0625: 93 (93.75 cut); shares beyond 1 count as 1."""
    assert schedule.balanced_allocation.py_func(1500, 4000, 2 * 10**9, 8 * 10**9) == 93
    assert schedule.balanced_allocation.py_func(8000, 4000, 8 * 10**9, 8 * 10**9) == 100


def test_topology_spread_of_three_nodes() -> None:
    """0, 1 and 2 matching pods on three nodes with room, ln 5 each, plus maxSkew - 1 = 2, rounded: 2, 4, 5."""
    raw = [schedule.spread_raw.py_func(count, np.log(5.0)) for count in range(3)]
    assert raw == [2, 4, 5]
    assert [100 * (max(raw) + min(raw) - one) // max(raw) for one in raw] == [100, 60, 40]


@pytest.mark.parametrize(
    ("nodes", "wanted"), [(1, 1), (99, 99), (100, 100), (150, 100), (250, 120), (5000, 500), (6000, 300)]
)
def test_a_search_ends_at_enough_nodes(nodes: int, wanted: int) -> None:
    """50 % less 1 % per 125 nodes, at least 5 % and 100 nodes: 250 nodes 48 %, 5000 nodes 10 %, 6000 nodes 5 %."""
    assert schedule.nodes_wanted.py_func(nodes) == wanted


def started(scenario: FleetScenario, **how: Any) -> BatchSim:
    sim = scenario.compiled(**how)
    fleets = sim.envs // sim.services
    sim.reset([one for f in range(fleets) for one in scenario.episodes(f)], range(sim.envs))
    return sim


def placed(sim: BatchSim, e: int) -> list[int]:
    """GPUs of a service's pods."""
    pods = sim.env.pods_EP[e]
    return sorted(int(g) for g in pods["gpu"][pods["state"] > PENDING])


def test_replicas_are_spread_over_nodes_and_then_over_gpus() -> None:
    """Six replicas on three nodes with two GPUs each: one on every GPU, whichever node is drawn first."""
    sim = started(
        FleetScenario(loads=[closed(1)] * 2, services=[profile(gpus=2)] * 2, nodes=3, start_replicas=[6, 3])
    )
    assert placed(sim, 0) == [0, 1, 2, 3, 4, 5]
    assert sorted(g // 2 for g in placed(sim, 1)) == [0, 1, 2]


def test_equal_nodes_are_drawn_with_equal_chance() -> None:
    """The first pod of 300 fleets on three empty nodes: chi-squared with 2 degrees of freedom below its 99.9 % point."""
    sim = started(FleetScenario(loads=[closed(1)], services=[profile()], nodes=3), fleets=300, record=False)
    count_N = np.bincount([placed(sim, e)[0] for e in range(300)], minlength=3)
    assert np.sum((count_N - 100.0) ** 2 / 100.0) < 13.8


def test_fragmentation_by_hand() -> None:
    """9.5 GB usable. Pods of 6 GB on two of two GPUs leave 3.5 GB each, of use for 1.5 GB pods and not for 6 GB ones.

    Weights are the replicas: 2 of 3 for the large service, 1 of 3 for the small one, whose pod is pending nowhere.
    """
    big, small = profile(pod_vram_bytes=6e9, gpus=2), profile(pod_vram_bytes=1.5e9, gpus=2)
    scenario = FleetScenario(loads=[closed(1)] * 2, services=[big, small], start_replicas=[2, 1])
    sim = started(scenario)
    sim.step(np.full(2, 5.0))
    row = dict(zip(FLEET_TICK, sim.fleet_ticks()[0], strict=True))
    assert row["vram_free"] == pytest.approx(2 * 3.5e9 - 1.5e9)
    assert row["vram_fragmented"] == pytest.approx(2 / 3 * (2 * 3.5e9 - 1.5e9))
    assert row["cores_free"] == pytest.approx(16 - 3 * 0.5)
    assert row["cores_stranded"] == pytest.approx(2 / 3 * (16 - 3 * 0.5))


# --- theory ---


def multiclass_mva(
    demand_s: tuple[float, float], think_s: float, users: tuple[int, int]
) -> list[tuple[float, float]]:
    """Throughput and response time of each class at one processor-sharing station, exact (Reiser, Lavenberg 1980)."""
    length: dict[tuple[int, ...], float] = {(0, 0): 0.0}
    found: list[tuple[float, float]] = []
    for n in itertools.product(range(users[0] + 1), range(users[1] + 1)):
        if n == (0, 0):
            continue
        found = []
        for c in (0, 1):
            if n[c] == 0:
                found.append((0.0, 0.0))
                continue
            before = tuple(k - (i == c) for i, k in enumerate(n))
            response_s = demand_s[c] * (1.0 + length[before])
            found.append((n[c] / (think_s + response_s), response_s))
        length[n] = sum(x * r for x, r in found)
    return found


def test_two_services_on_one_gpu_are_a_closed_network_of_two_classes() -> None:
    """BCMP: different GPU times per class, processor sharing; the distribution of the GPU time does not matter."""
    demand_s, users = (0.4, 1.1), (7, 4)
    services = [bare(gpu_alpha_s=d, gpu_cv=0.7, instances=16) for d in demand_s]
    loads = [closed(n, think=(2.0, 8.0)) for n in users]
    scenario = FleetScenario(loads=loads, services=services, max_replicas=1, instances_max=16)
    sim = BatchSim(
        services[0], envs=2 * REPLICATIONS, services=2, max_replicas=1, instances_max=16, slo_s=0.2, record=False,
        clocks=Clocks(scrape_s=1e6, metrics_server_s=1e6, dcgm_s=1e6),
    )  # fmt: skip
    sim.reset([one for f in range(REPLICATIONS) for one in scenario.episodes(f)], range(sim.envs))
    for until_s in (300.0, 10_300.0):
        sim.step(np.full(sim.envs, until_s))
    done_E, latency_E, busy_E = (
        sim.interval_EC[:, ACCOUNT.index(name)] for name in ("completed", "latency_sum_s", "gpu_busy_s")
    )
    exact = multiclass_mva(demand_s, 5.0, users)
    for c, (throughput, response_s) in enumerate(exact):
        assert abs(z_score(done_E[c::2] / 10_000.0, throughput)) < 4.0
        assert abs(z_score(latency_E[c::2] / done_E[c::2], response_s)) < 4.0
    busy = sum(x * d for (x, _), d in zip(exact, demand_s, strict=True))
    assert abs(z_score(busy_E[::2] / 10_000.0, busy)) < 4.0
    np.testing.assert_allclose(busy_E[::2], busy_E[1::2], rtol=1e-9)  # both see the one device


def test_services_on_gpus_of_their_own_live_as_if_alone() -> None:
    """To the last bit: a GPU each, and a third service that comes and goes beside them."""
    small = {"pod_vram_bytes": 6e9, "gpus": 3, "node_cpu_cores": 64} | QUICK
    special: list[dict[str, Any]] = [{}, {"gpu_alpha_s": 0.05, "gpu_cv": 0.3}, {"max_batch": 2}]
    services = [profile(**small, **one) for one in special]
    loads = [closed((0.0, 20), (60.0, 30)), closed(12), closed(3)]
    asked = [(30.0, 2, controls(0)), (60.0, 2, controls(1))]
    scenario = FleetScenario(loads=loads, services=services, asked=asked, until_s=120.0)
    sim = started(scenario)
    for until_s, wanted in scenario.steps():
        for place, one in wanted:
            sim.apply(one, [place])
        sim.step(np.full(3, until_s))
    for e in (0, 1):
        alone = BatchSim(
            profile(**({**small, "gpus": 1} | special[e])), envs=1, max_replicas=scenario.max_replicas, clocks=Clocks(),
            slo_s=scenario.slo_s, instances_max=scenario.instances_max,
        )  # fmt: skip
        alone.reset([episode(loads[e], 1, e)], [0])
        for until_s, _ in scenario.steps():
            alone.step(np.array([until_s]))
        (requests, ticks), (own, own_ticks) = sim.logs(e), alone.logs(0)
        assert requests.latency_s_N.tobytes() == own.latency_s_N.tobytes()
        assert requests.start_s_N.tobytes() == own.start_s_N.tobytes()
        np.testing.assert_allclose(ticks.gpu_busy_T, own_ticks.gpu_busy_T, rtol=0.0, atol=1e-9)
        np.testing.assert_array_equal(ticks.cpu_cores_used_T, own_ticks.cpu_cores_used_T)


# --- what must hold whatever happens ---


@st.composite
def fleets(draw: Any) -> FleetScenario:
    """Two or three services on one to three nodes, with too little of something, and commands at random times."""
    count, nodes, gpus = draw(st.integers(2, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    node = {"gpus": gpus, "node_cpu_cores": draw(st.sampled_from([1.5, 4.0])), "node_memory_bytes": draw(
        st.sampled_from([3e9, 1e10]))}  # fmt: skip
    services, loads, asked = [], [], []
    for place in range(count):
        services.append(profile(**QUICK, **node, pod_vram_bytes=draw(st.sampled_from([1.5e9, 3.3e9, 6.0e9])),
                                gpu_alpha_s=draw(st.sampled_from([0.01, 0.05])), instances=draw(st.integers(1, 2)),
                                queue_size=draw(st.sampled_from([0, 3]))))  # fmt: skip
        loads.append(closed((0.0, draw(st.integers(0, 15))), (20.0, draw(st.integers(0, 15)))))
        for t in draw(st.lists(st.sampled_from([5.0, 10.0, 25.0, 40.0]), max_size=3, unique=True)):
            asked.append(
                (t, place, controls(draw(st.integers(0, 5)), cpu_cores=draw(st.sampled_from([0.5, 1.0]))))
            )
    return FleetScenario(loads=loads, services=services, nodes=nodes, asked=asked, until_s=60.0, max_replicas=5,
                         seed=draw(st.integers(0, 99)))  # fmt: skip


def check_fleet(sim: BatchSim, scenario: FleetScenario) -> None:
    """No GPU holds more VRAM than it has, no node more memory than it has, and nobody is lost."""
    env, S = sim.env, sim.services
    base = scenario.services[0]
    G, per_node = int(env.sim_E[0]["gpus"]), int(base.gpus.value)
    vram_G, memory_N = np.zeros(G), np.zeros(scenario.nodes)
    for e in range(S):
        holding = env.pods_EP[e][env.pods_EP[e]["state"] > PENDING]
        assert np.all((holding["gpu"] >= 0) & (holding["gpu"] < G))
        np.add.at(vram_G, holding["gpu"], holding["vram_bytes"])
        np.add.at(memory_N, holding["gpu"] // per_node, scenario.services[e].pod_memory_bytes.value)
        users, state = env.users_EU[e], env.sim_E[e]
        assert np.sum(users["state"] >= QUEUED) == state["in_flight"] == holding["in_flight"].sum()
        assert np.sum(env.pods_EP[e]["endpoint"] >= 0) == state["endpoints"]
    assert np.all(vram_G <= base.usable_vram_bytes + 1.0)
    assert np.all(memory_N <= base.node_memory_bytes.value + 1.0)
    heap = env.events_FU[0][: env.sim_E[0]["events"]]
    assert len(heap) == np.sum(env.users_EU["state"] == THINKING)
    assert len(set(heap["user"])) == len(heap)
    busy_s = env.resources_FR[0][S * sim.pod_slots :]["busy_s"]
    assert np.all(busy_s <= env.sim_E[0]["t"] + 1e-6)


@settings(max_examples=15, deadline=None)
@given(fleets())
def test_nothing_is_lost_and_nothing_given_twice(scenario: FleetScenario) -> None:
    sim = started(scenario)
    for until_s, asked in scenario.steps():
        for place, one in asked:
            sim.apply(one, [place])
        sim.step(np.full(sim.services, until_s))
        check_fleet(sim, scenario)
        row = dict(zip(FLEET_TICK, sim.fleet_ticks()[-1], strict=True))
        assert 0.0 <= row["vram_fragmented"] <= row["vram_free"] + 1e-3
        assert 0.0 <= row["cores_stranded"] <= row["cores_free"] + 1e-9
        assert row["gpu_busy"] <= row["t"] + 1e-6
    for e in range(sim.services):
        requests, ticks = sim.logs(e)
        assert np.sum(requests.status_N == RequestLog.OK) == ticks.completed_T.sum()
        assert np.sum(requests.status_N == RequestLog.FAILED) == ticks.failed_T.sum()
        assert np.all((ticks.gpu_busy_T >= 0.0) & (ticks.gpu_busy_T <= 1.0 + 1e-9))


def test_requests_on_a_node_never_exceed_its_cores() -> None:
    """Ten pods of half a core want to run on three nodes of 1.2 cores: two fit on each, the rest waits."""
    service = profile(**QUICK, node_cpu_cores=1.2)
    scenario = FleetScenario(loads=[closed(2)] * 2, services=[service] * 2, nodes=3, max_replicas=5)
    sim = started(scenario)
    sim.apply(controls(5), [0])
    sim.apply(controls(5), [1])
    sim.step(np.full(2, 60.0))
    ready = [int(np.sum(sim.env.pods_EP[e]["state"] == READY)) for e in (0, 1)]
    assert sum(ready) == 6
    for n in range(3):
        assert sum(g == n for e in (0, 1) for g in placed(sim, e)) == 2
    assert sim.fleet_ticks()[-1, FLEET_TICK.index("pods_pending")] == 4


def test_a_fleet_among_others_and_on_threads_is_the_same() -> None:
    """Three fleets on two threads give the bytes that each gives by itself, stepped one by one."""
    scenario = FleetScenario(loads=[closed(9), closed(5)], services=[profile(gpus=2)] * 2, nodes=2)
    together = started(scenario, fleets=3, threads=2)
    for until_s in (5.0, 10.0, 40.0):
        together.step(np.full(6, until_s))
    for f in range(3):
        single = scenario.compiled()
        single.reset(scenario.episodes(f), [0, 1])
        for until_s in (5.0, 10.0, 40.0):
            single.step(np.full(2, until_s))
        for k in (0, 1):
            assert tables(single, k) == tables(together, 2 * f + k)


def test_a_full_log_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = FleetScenario(loads=[closed(30), closed(20)], services=[profile()] * 2)
    whole = started(scenario)
    monkeypatch.setattr("gpusched.sim.batch.LOG_ROWS", 10)
    pieces = started(scenario)
    for sim in (whole, pieces):
        sim.step(np.full(2, 60.0))
    assert [tables(whole, e) for e in (0, 1)] == [tables(pieces, e) for e in (0, 1)]


def test_part_of_a_fleet_cannot_be_reset_or_branched() -> None:
    scenario = FleetScenario(loads=[closed(2)] * 2, services=[profile()] * 2)
    sim = scenario.compiled(record=False)
    with pytest.raises(ValueError, match="no whole fleet"):
        sim.reset(scenario.episodes()[:1], [0])
    with pytest.raises(ValueError, match="without the others"):
        sim.branch(np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match="no whole number of fleets"):
        BatchSim(profile(), envs=3, services=2, max_replicas=1, clocks=Clocks(), slo_s=0.2)
    other = profile(node_cpu_cores=3.0)
    with pytest.raises(ValueError, match="nodes, GPUs"):
        sim.reset([episode(closed(1), service=other), episode(closed(1))], [0, 1])
