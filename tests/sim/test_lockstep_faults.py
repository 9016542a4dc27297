"""Both engines suffer the same faults and must tell the same story; see test_lockstep for what a difference means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from both import failed, lockstep
from world import Scenario, closed, controls, poisson, profile

from gpusched.core.controls import HPADirection, HPARule, HPASpec
from gpusched.core.fault import LEVELS, FaultPlan
from gpusched.sim.batch import Clocks

CALM = (6.0, 10.0)
QUICK: dict[str, Any] = {
    "schedule_min_s": 0.5, "schedule_max_s": 1.5, "start_s": 3.0, "probe_delay_s": 1.0, "probe_period_s": 2.0,
}  # fmt: skip


def deaths(*pairs: tuple[float, float], evicted: bool = False, **levels: Any) -> FaultPlan:
    """Pods that die: (time, draw)."""
    times_s, draws = np.array(pairs).T
    return FaultPlan(
        death_s_D=times_s, death_draw_D=draws, evicted_D=np.full(len(pairs), float(evicted)), **levels
    )


def steps(*rows: tuple[float, float], level: str) -> FaultPlan:
    """One level over time: (from_s, value)."""
    from_s_K, value_K = np.array(rows).T
    return FaultPlan(from_s_K=from_s_K, **{f"{level}_K": value_K})


# --- speeds ---


@pytest.mark.parametrize("sharing", ["time_slicing", "mps"])
def test_gpu_speed(sharing: str) -> None:
    """Clocks change while jobs are under way; under MPS the share of a pod scales with them."""
    service = profile(sharing=sharing, gpus=2, pod_vram_bytes=4.1e9, **QUICK)
    fault = steps((7.3, 0.5), (14.1, 0.77), (21.9, 1.0), level="gpu_speed")
    asked = [(10.0, controls(gpu_share=0.6))] if sharing == "mps" else []
    lockstep(
        Scenario(
            load=closed(12, think=(0.5, 1.5)),
            service=service,
            fault=fault,
            asked=asked,
            start_replicas=3,
            until_s=40.0,
        )
    )


def test_host_speed() -> None:
    fault = steps((8.0, 0.6), (20.0, 1.0), level="host_speed")
    service = profile(cpu_limit_cores=0.7, cpu_request_cores=0.5)
    _, ticks = lockstep(
        Scenario(load=closed(14), service=service, fault=fault, start_replicas=2, until_s=30.0)
    )
    assert ticks.cpu_cores_used_T[2:4].mean() > 1.3 * ticks.cpu_cores_used_T[5]


@pytest.mark.parametrize("sharing", ["time_slicing", "mps"])
def test_neighbours(sharing: str) -> None:
    """Foreign processes come and go while our batches are on the GPU, and while it is idle."""
    rows = [
        (3.0, 1.0),
        (4.5, 0.0),
        (6.2, 2.0),
        (9.0, 1.0),
        (11.7, 3.0),
        (11.9, 0.0),
        (16.0, 4.0),
        (25.0, 0.0),
    ]
    _, ticks = lockstep(
        Scenario(
            load=closed(8, think=(0.5, 1.5)),
            service=profile(sharing=sharing),
            fault=steps(*rows, level="neighbours"),
            start_replicas=2,
            until_s=30.0,
        )
    )
    assert ticks.gpu_busy_T[4] == pytest.approx(1.0)  # 20 to 25 s: never idle


def test_a_batch_torn_out_of_a_shared_gpu() -> None:
    """Pods are killed, and crash, with work on a GPU that foreign processes use."""
    service = profile(prestop_s=0.5, grace_s=0.7, host_alpha_s=0.1, gpu_alpha_s=0.8, instances=3, max_batch=2,
                      cpu_limit_cores=4.0, **QUICK)  # fmt: skip
    fault = deaths(
        (12.0, 0.1), (13.5, 0.9), from_s_K=np.array([2.0, 25.0]), neighbours_K=np.array([2.0, 0.0])
    )
    requests, _ = lockstep(
        Scenario(load=closed(12), service=service, fault=fault, asked=[(9.0, controls(2))], start_replicas=3,
                 until_s=40.0, control_s=1.0)
    )  # fmt: skip
    assert failed(requests) > 5


# --- starts and the scheduler ---


def test_slow_start() -> None:
    fault = steps((9.0, 3.5), (40.0, 1.0), level="start_factor")
    asked = [(5.0, controls(2)), (10.0, controls(3)), (42.0, controls(4))]
    lockstep(
        Scenario(load=closed(5, think=CALM), service=profile(**QUICK), fault=fault, asked=asked, until_s=70.0)
    )


def test_stolen_cores_leave_pods_pending_until_they_are_given_back() -> None:
    fault = steps((8.0, 14.8), (30.0, 15.3), (45.0, 0.0), level="stolen_cores")
    _, ticks = lockstep(
        Scenario(
            load=closed(5, think=CALM), service=profile(**QUICK), fault=fault, asked=[(10.0, controls(4))]
        )
    )
    assert ticks.replicas_alive_T[7] == pytest.approx(2.0)
    assert ticks.replicas_alive_T[-1] == pytest.approx(4.0)


# --- deaths ---


@pytest.mark.parametrize("per_connection", [0, 1, 4])
def test_crash(per_connection: int) -> None:
    """Requests to the dead pod fail until kube-proxy knows; kept-alive connections to it are gone for good."""
    service = profile(connection_requests=per_connection, endpoint_min_s=2.0, endpoint_max_s=3.5,
                      **QUICK | {"start_s": 12.0})  # fmt: skip
    requests, ticks = lockstep(
        Scenario(load=closed(24, think=(0.3, 1.2)), service=service, fault=deaths((6.1, 0.9)), start_replicas=3,
                 until_s=35.0, seed=2)
    )  # fmt: skip
    assert failed(requests) >= 3
    assert ticks.replicas_ready_T[3] == pytest.approx(2.0)
    assert ticks.replicas_alive_T[3] == pytest.approx(3.0)
    assert ticks.replicas_ready_T[-1] == pytest.approx(3.0)


def test_crash_loop() -> None:
    """The only pod dies as soon as it is ready again, and once after ten quiet minutes."""
    fault = deaths(*[(t, 0.0) for t in (5.0, 20.0, 50.0, 90.0, 160.0, 880.0, 900.0)])
    _, ticks = lockstep(
        Scenario(
            load=closed(3, think=CALM), service=profile(**QUICK), fault=fault, until_s=930.0, control_s=10.0
        )
    )
    assert ticks.replicas_alive_T.min() == pytest.approx(1.0)


def test_nobody_ready_nobody_dies() -> None:
    fault = deaths((5.0, 0.3), (5.5, 0.3), (7.0, 0.99))
    lockstep(Scenario(load=closed(3), service=profile(**QUICK), fault=fault, until_s=30.0))


def test_eviction() -> None:
    """An evicted pod is replaced by a new one."""
    _, ticks = lockstep(
        Scenario(load=closed(10, think=(1.0, 3.0)), service=profile(**QUICK),
                 fault=deaths((10.0, 0.7), (10.0, 0.2), (30.0, 0.5), evicted=True), start_replicas=3, until_s=50.0)
    )  # fmt: skip
    assert ticks.replicas_alive_T.min() < 3.0
    assert ticks.replicas_ready_T[-1] == pytest.approx(3.0)


def test_crashed_pods_are_the_first_to_go() -> None:
    """Scaling down takes the pod that waits for its restart, and a rolling update passes over it."""
    asked = [(12.0, controls(3)), (40.0, controls(instances=2)), (41.0, controls(2)), (60.0, controls(4))]
    fault = deaths((9.0, 0.3), (11.5, 0.5), (39.9, 0.1), (43.0, 0.6), (59.0, 0.9))
    lockstep(
        Scenario(load=closed(8, think=CALM), service=profile(**QUICK), fault=fault, asked=asked, start_replicas=4,
                 max_replicas=5, until_s=100.0, control_s=1.0)
    )  # fmt: skip


# --- metrics ---

FAST = HPADirection(stabilization_s=20, policies=[HPARule(type="Pods", value=1, period_s=15)])
SPECS = [
    HPASpec(metric="cpu", target=10.0, max_replicas=4, scale_down=FAST),
    HPASpec(metric="in_flight", target=0.5, max_replicas=4, scale_up=FAST, scale_down=FAST),
    HPASpec(metric="queue", target=0.05, max_replicas=3, scale_down=FAST),
]
MONITORING = {
    "lost": FaultPlan.during(101.0, 173.0, metrics_lost=1.0),
    "flapping": steps((80.0, 1.0), (86.0, 0.0), (97.0, 1.0), (123.0, 0.0), (300.0, 1.0), level="metrics_lost"),
    "delayed": FaultPlan.during(95.0, 250.0, metric_delay_s=47.0),
    "delayed more, then less": steps((60.0, 20.0), (120.0, 90.0), (230.0, 35.0), (300.0, 0.0), level="metric_delay_s"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.metric)
@pytest.mark.parametrize("fault", MONITORING.values(), ids=list(MONITORING))
def test_hpa_without_metrics_in_time(spec: HPASpec, fault: FaultPlan) -> None:
    slow = {"host_alpha_s": 0.21} if spec.metric == "in_flight" else {}
    _, ticks = lockstep(
        Scenario(
            load=closed((0.0, 3), (90.0, 18), (200.0, 2), think=(3.0, 5.0)),
            service=profile(**QUICK, **slow),
            asked=[(30.0, controls(hpa=spec))],
            fault=fault,
            until_s=360.0,
            control_s=15.0,
        )
    )
    assert ticks.replicas_spec_T.max() > 1


def test_metrics_of_pods_that_come_and_go_and_crash() -> None:
    """Slots are used again while old samples are still under way."""
    asked = [(5.0, controls(4)), (30.0, controls(1)), (55.0, controls(3))]
    asked += [(80.0, controls(hpa=spec)) for spec in SPECS[:1]] + [(130.0, controls(hpa=SPECS[1]))]
    fault = deaths(
        (20.0, 0.5), (70.0, 0.1), (150.0, 0.9), from_s_K=np.array([10.0, 180.0]), metric_delay_s_K=np.array([33.0, 0.0])
    )  # fmt: skip
    lockstep(
        Scenario(load=closed(9, think=(3.0, 5.0)), service=profile(**QUICK), fault=fault, asked=asked, until_s=240.0,
                 clocks=Clocks(hpa_sync_s=7.0, metrics_server_s=10.0))
    )  # fmt: skip


def test_cpu_metric_of_containers_that_restart_between_two_scrapes() -> None:
    """A point before the restart and one after it are no pair."""
    fault = deaths(*[(40.0 + 37.0 * k, 0.21 * k) for k in range(5)])
    lockstep(
        Scenario(load=closed(8, think=(3.0, 5.0)), service=profile(**QUICK), fault=fault, start_replicas=2,
                 asked=[(30.0, controls(hpa=SPECS[0]))], until_s=260.0, control_s=10.0)
    )  # fmt: skip


# --- all together ---


def everything(seed: int, end_s: float, rows: int = 12) -> FaultPlan:
    """Every level at once, and deaths of both kinds."""
    rng = np.random.default_rng(seed)
    levels = {
        "gpu_speed": rng.uniform(0.4, 1.0, rows), "host_speed": rng.uniform(0.5, 1.0, rows),
        "start_factor": rng.uniform(1.0, 3.0, rows), "neighbours": rng.integers(0, 3, rows).astype(float),
        "stolen_cores": rng.choice([0.0, 15.0], rows), "metrics_lost": rng.integers(0, 2, rows).astype(float),
        "metric_delay_s": rng.choice([0.0, 12.0], rows),
    }  # fmt: skip
    assert set(levels) == set(LEVELS)
    return FaultPlan(
        from_s_K=np.sort(rng.uniform(0.0, end_s, rows)),
        death_s_D=np.sort(rng.uniform(0.0, end_s, 4)),
        death_draw_D=rng.random(4),
        evicted_D=rng.integers(0, 2, 4).astype(float),
        **{f"{name}_K": value_K for name, value_K in levels.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_everything_at_once(seed: int) -> None:
    load = poisson(4.0, 300, seed) if seed % 2 else closed((0.0, 4), (30.0, 12), (60.0, 3), think=(2.0, 4.0))
    spec = SPECS[seed % 3]
    asked = [(10.0, controls(3)), (35.0, controls(hpa=spec)), (75.0, controls(2))]
    lockstep(
        Scenario(load=load, service=profile(**QUICK, gpus=1 + seed % 2), fault=everything(seed, 80.0), asked=asked,
                 start_replicas=2, until_s=100.0, control_s=2.5, tick_s=2.5, seed=seed,
                 clocks=Clocks(hpa_sync_s=5.0, metrics_server_s=5.0))
    )  # fmt: skip


# --- what else is mirrored ---


def test_a_resize_wakes_a_throttled_pod() -> None:
    """A request that has spent its quota goes on with the new one, not with the next period."""
    service = profile(
        cpu_limit_cores=0.1, cpu_request_cores=0.1, cfs_period_s=20.0, resize_s=1.0, host_alpha_s=3.0
    )
    requests, _ = lockstep(
        Scenario(
            load=closed(1),
            service=service,
            asked=[(10.0, controls(cpu_cores=1.0))],
            until_s=40.0,
            control_s=1.0,
        )
    )
    first = np.argmin(requests.start_s_N)
    # 2 of its 3 s of CPU time are spent by the end of the first quota; the other one begins at 11 s.
    assert requests.end_s_N[first] == pytest.approx(12.0, abs=0.2)


def test_overdue_requests_are_counted_where_they_hang() -> None:
    service = profile(host_alpha_s=30.0, host_beta_s=0.0, instances=2, max_batch=2, cpu_limit_cores=4.0)
    requests, _ = lockstep(Scenario(load=closed(9), service=service, until_s=20.0))
    assert len(requests.start_s_N) == 9
