"""The compiled engine and the plain-Python reference live through the same seconds and must tell the same story.

Closed loops are chaotic: an answer one rounding error later moves its user's next request, that one's batch, and so
on, tenfold every few seconds under load. So scenarios are short where the service is busy, long where it is not.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from both import assert_same_requests, failed, lockstep, rows
from world import Scenario, arrivals, closed, controls, episode, poisson, profile

from gpusched.core.controls import HPADirection, HPARule, HPASpec

CALM = (6.0, 10.0)
"""Think times at which requests seldom meet, so that rounding never spreads."""
QUICK: dict[str, Any] = {
    "schedule_min_s": 0.5, "schedule_max_s": 1.5, "start_s": 3.0, "probe_delay_s": 1.0, "probe_period_s": 2.0,
}  # fmt: skip
"""A service that is up in 5 to 8 s."""


# --- data plane ---


def test_steady_closed_load() -> None:
    requests, _ = lockstep(Scenario(load=closed(30), start_replicas=2, until_s=40.0))
    assert len(requests.start_s_N) > 600


def test_one_busy_replica_forms_batches() -> None:
    _, ticks = lockstep(Scenario(load=closed(40), until_s=30.0))
    assert ticks.completed_T.sum() > 1.5 * ticks.batches_T.sum()


def test_levels_up_and_down() -> None:
    """Users go inactive, some while thinking, and the same ones come back."""
    load = closed((0.0, 8), (30.0, 3), (32.0, 6), (60.0, 0), (75.0, 8), (76.5, 2), (77.0, 8))
    _, ticks = lockstep(Scenario(load=load, until_s=120.0))
    assert list(ticks.users_T[[0, 6, 12, 16]]) == [8, 6, 0, 8]


@pytest.mark.parametrize("dist", [0.0, 0.4])
def test_gpu_scatter(dist: float) -> None:
    lockstep(Scenario(load=closed(20), service=profile(gpu_cv=dist), start_replicas=2, until_s=30.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"queue_delay_s": 0.03},
        {"queue_delay_s": 0.05, "preferred_batches": [2, 4]},
        {"preferred_batches": [3]},
        {"max_batch": 64},
        {"preferred_batches": [2, 64], "max_batch": 64},
        {"queue_delay_s": 0.4, "preferred_batches": [4, 6], "max_batch": 6},
        {"max_batch": 1},
        {"host_alpha_s": 0.0, "host_beta_s": 0.0, "queue_delay_s": 0.02},
    ],
)
def test_dynamic_batching(changes: dict[str, Any]) -> None:
    lockstep(Scenario(load=closed(20), service=profile(**changes), start_replicas=1, until_s=25.0))


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"queue_delay_s": 0.005, "preferred_batches": [4, 8]},
        {"queue_delay_s": 0.03},
        {"queue_delay_s": 0.15, "preferred_batches": [2, 3]},
        {"preferred_batches": [4, 8]},
        {"preferred_batches": [3]},
        {"queue_delay_s": 0.06, "preferred_batches": [1, 5], "max_batch": 6},
        {"queue_delay_s": 0.02, "max_batch": 1},
        {"queue_delay_s": 0.02, "max_batch": 64, "preferred_batches": [2, 64]},
    ],
    ids=str,
)
def test_batches_ahead_of_time(changes: dict[str, Any], instances: int) -> None:
    """Without a queue policy Triton's batcher closes batches while the instances work."""
    service = profile(queue_size=0, instances=instances, **changes)
    lockstep(Scenario(load=closed(20), service=service, start_replicas=1, until_s=25.0))


def test_batches_ahead_of_time_are_lost_with_their_process() -> None:
    """Pods killed at the end of their grace, and started again in the same slots."""
    service = profile(queue_size=0, queue_delay_s=0.3, preferred_batches=[3, 5], prestop_s=0.5, grace_s=0.7,
                      host_alpha_s=0.9, gpu_alpha_s=0.8, instances=2, cpu_limit_cores=4.0)  # fmt: skip
    asked = [(t, controls(n)) for t, n in ((9.0, 1), (14.0, 3), (55.0, 2), (58.0, 0))]
    requests, _ = lockstep(
        Scenario(load=closed(40), service=service, asked=asked, start_replicas=3, until_s=65.0, control_s=1.0)
    )
    assert failed(requests) > 10


def test_queue_limit() -> None:
    service = profile(queue_size=2, max_batch=2)
    requests, _ = lockstep(Scenario(load=closed(60), service=service, until_s=20.0))
    assert failed(requests) > 50


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_queue_timeout(delay_s: float) -> None:
    service = profile(queue_timeout_s=0.12, max_batch=2, queue_delay_s=delay_s)
    requests, _ = lockstep(Scenario(load=closed(60), service=service, until_s=20.0))
    assert failed(requests) > 20


@pytest.mark.parametrize("per_connection", [0, 1, 5])
def test_connections(per_connection: int) -> None:
    """Three pods, one of them replaced by two others: connections move only when they must."""
    service = profile(connection_requests=per_connection, **QUICK)
    asked = [(20.0, controls(2)), (30.0, controls(4))]
    load = closed(12, think=(2.0, 4.0))
    lockstep(Scenario(load=load, service=service, asked=asked, start_replicas=3, until_s=80.0))


@pytest.mark.parametrize("period_s", [0.1, 0.0])
def test_several_instances(period_s: float) -> None:
    """Two threads on a limit of 1.3 cores: the quota binds in some periods and not in others."""
    service = profile(instances=2, cpu_limit_cores=1.3, cpu_request_cores=0.5, cfs_period_s=period_s)
    lockstep(Scenario(load=closed(25), service=service, until_s=25.0))


def test_quota_spent_by_two_threads_stops_the_one_that_is_left() -> None:
    """Two threads spend most of a quota of one core, so that the last one must stop before the period ends."""
    service = profile(instances=2, max_batch=1, host_alpha_s=0.043, host_beta_s=0.0, gpu_alpha_s=0.011)
    _, ticks = lockstep(Scenario(load=closed(25), service=service, until_s=20.0))
    assert np.all(ticks.cpu_cores_used_T <= ticks.cpu_cores_limit_T * (1.0 + 0.1 / 5.0) + 1e-9)


@pytest.mark.parametrize("gpus", [2, 3])
def test_several_gpus(gpus: int) -> None:
    service = profile(gpus=gpus, pod_vram_bytes=4.1e9, **QUICK)
    asked = [(10.0, controls(6)), (35.0, controls(2))]
    load = closed(10, think=(2.0, 4.0))
    _, ticks = lockstep(
        Scenario(load=load, service=service, asked=asked, start_replicas=3, max_replicas=6, until_s=70.0)
    )
    assert ticks.replicas_alive_T.max() <= 2 * gpus + 1e-9


def test_mps() -> None:
    """Interference between processes, and a share that a rolling update changes while the GPU works."""
    service = profile(sharing="mps", **QUICK)
    asked = [(10.0, controls(gpu_share=0.37)), (45.0, controls(gpu_share=0.8))]
    load = closed(8, think=(0.3, 0.9))
    _, ticks = lockstep(Scenario(load=load, service=service, asked=asked, start_replicas=2, until_s=75.0))
    assert {0.37, 0.8, 1.0} == set(ticks.gpu_share_T)


def test_open_arrivals() -> None:
    requests, _ = lockstep(Scenario(load=poisson(20.0, 900, 3), start_replicas=2, until_s=50.0))
    assert len(requests.start_s_N) == 900


def test_open_arrivals_beyond_the_slots_fail() -> None:
    """More requests at once than the client has slots: the rest fail at once, and the log says so."""
    times_s = np.concatenate([np.linspace(0.1, 0.9, 6000), [8.123]])
    service = profile(queue_size=0, host_alpha_s=0.0011, host_beta_s=0.0, gpu_alpha_s=0.003, gpu_beta_s=0.0)
    requests, ticks = lockstep(Scenario(load=arrivals(times_s), service=service, until_s=10.0))
    assert failed(requests) == ticks.failed_T.sum() > 300


# --- control plane ---


def test_scale_up_and_down() -> None:
    """Start-up, readiness, endpoints, draining: the profile's own times."""
    asked = [(30.0, controls(4)), (120.0, controls(1)), (140.0, controls(3)), (150.0, controls(2))]
    load = closed(10, think=CALM)
    _, ticks = lockstep(Scenario(load=load, asked=asked, until_s=240.0, control_s=10.0))
    assert ticks.replicas_ready_T.max() == pytest.approx(4.0)


def test_more_replicas_than_memory_holds_stay_pending() -> None:
    """Two fit; the third comes when one of them is gone, which takes its preStop wait."""
    service = profile(pod_vram_bytes=4.7e9, **QUICK)
    asked = [
        (10.0, controls(4)),
        (40.0, controls(1)),
        (42.0, controls(4)),
        (80.0, controls(0)),
        (90.0, controls(2)),
    ]
    _, ticks = lockstep(
        Scenario(
            load=closed(10, think=CALM),
            service=service,
            asked=asked,
            until_s=130.0,
            control_s=2.5,
            tick_s=2.5,
        )
    )
    assert ticks.replicas_alive_T.max() == pytest.approx(2.0)
    assert ticks.replicas_spec_T.max() == 4


def test_node_without_cpu_leaves_pods_pending() -> None:
    service = profile(node_cpu_cores=1.2, **QUICK)
    _, ticks = lockstep(Scenario(load=closed(5, think=CALM), service=service, asked=[(5.0, controls(4))]))
    assert ticks.replicas_alive_T.max() == pytest.approx(2.0)


def test_killed_at_the_end_of_the_grace() -> None:
    """A pod whose work outlasts the grace breaks its requests, in the queue, on the CPU and on the GPU."""
    service = profile(prestop_s=0.5, grace_s=0.7, host_alpha_s=0.9, gpu_alpha_s=0.8, instances=3, max_batch=2,
                      cpu_limit_cores=4.0)  # fmt: skip
    asked = [(t, controls(n)) for t, n in ((9.0, 1), (14.0, 3), (55.0, 2), (58.0, 0))]
    requests, _ = lockstep(
        Scenario(load=closed(20), service=service, asked=asked, start_replicas=3, until_s=65.0, control_s=1.0)
    )
    assert failed(requests) > 10


def test_drained_by_timeouts_a_pod_leaves_before_the_grace_ends() -> None:
    """The last requests of a terminating pod time out; it must not wait for SIGKILL."""
    service = profile(
        prestop_s=0.1, grace_s=25.0, host_alpha_s=2.0, host_beta_s=0.0, max_batch=1, queue_timeout_s=0.5,
        endpoint_min_s=3.0, endpoint_max_s=4.0, connection_requests=0,
    )  # fmt: skip
    times_s = [1.0, 1.05, 1.1, 1.15, 1.2, 1.25]
    _, ticks = lockstep(
        Scenario(load=arrivals(times_s), service=service, asked=[(2.0, controls(0))], until_s=20.0, control_s=1.0,
                 tick_s=1.0)
    )  # fmt: skip
    assert ticks.replicas_alive_T[-1] == 0


def test_new_instance_count_is_a_rolling_update() -> None:
    service = profile(**QUICK)
    asked = [(10.0, controls(instances=2)), (60.0, controls(3, instances=1)), (66.0, controls(1))]
    _, ticks = lockstep(
        Scenario(load=closed(10, think=CALM), service=service, asked=asked, start_replicas=2, until_s=120.0)
    )
    assert ticks.replicas_alive_T.max() >= 3  # surge


def test_scaled_down_in_the_middle_of_a_rolling_update() -> None:
    """Scaling down during a rollout must not take more ready pods than may be unavailable."""
    service = profile(**QUICK, pod_vram_bytes=0.9e9)
    asked = [(10.0, controls(instances=2)), (24.0, controls(2)), (31.0, controls(4)), (34.0, controls(1))]
    lockstep(
        Scenario(load=closed(10, think=CALM), service=service, asked=asked, start_replicas=4, max_replicas=6,
                 until_s=90.0, control_s=1.0)
    )  # fmt: skip


def test_rolling_update_without_room() -> None:
    """Memory for two: with three replicas or fewer the surge pod stays pending and nothing moves."""
    service = profile(pod_vram_bytes=4.0e9, instance_vram_bytes=0.5e9, **QUICK)
    _, ticks = lockstep(
        Scenario(load=closed(6, think=CALM), service=service, asked=[(10.0, controls(instances=2))], start_replicas=2,
                 until_s=60.0)
    )  # fmt: skip
    assert ticks.replicas_ready_T[-1] == 2


@pytest.mark.parametrize("cores", [0.37, 0.11, 2.3])
def test_resize_in_place(cores: float) -> None:
    """Below one core the CFS quota throttles single requests."""
    asked = [(10.0, controls(cpu_cores=cores)), (45.0, controls(cpu_cores=0.63))]
    load = closed(4, think=(2.0, 4.0))
    _, ticks = lockstep(Scenario(load=load, asked=asked, start_replicas=2, until_s=80.0))
    assert cores in ticks.cpu_cores_T
    assert 0.63 in ticks.cpu_cores_T


# --- HPA ---

FAST = HPADirection(stabilization_s=20, policies=[HPARule(type="Pods", value=1, period_s=15)])
LOAD_FOR_HPA = closed((0.0, 3), (90.0, 18), (200.0, 2), think=(3.0, 5.0))


@pytest.mark.parametrize(
    "spec",
    [
        HPASpec(metric="cpu", target=8.0, max_replicas=4),
        HPASpec(metric="cpu", target=10.0, max_replicas=4, scale_down=FAST),
        HPASpec(metric="in_flight", target=0.5, max_replicas=4, scale_up=FAST, scale_down=FAST),
        HPASpec(metric="queue", target=0.05, max_replicas=3, scale_down=FAST),
    ],
    ids=lambda spec: f"{spec.metric}-{'legacy' if spec.scale_down is None else 'behavior'}",
)
def test_hpa(spec: HPASpec) -> None:
    slow = {"host_alpha_s": 0.21} if spec.metric == "in_flight" else {}
    asked = [(30.0, controls(hpa=spec)), (330.0, controls(hpa=spec, hpa_target=2.0 * spec.target))]
    _, ticks = lockstep(
        Scenario(
            load=LOAD_FOR_HPA, service=profile(**QUICK, **slow), asked=asked, until_s=420.0, control_s=15.0
        )
    )
    assert ticks.replicas_spec_T.max() > 1


def test_hpa_from_the_first_second() -> None:
    """The start replicas have run for an hour: their CPU metric is there, and it is low."""
    spec = HPASpec(metric="cpu", target=40.0, max_replicas=4, scale_down=FAST)
    lockstep(
        Scenario(
            load=closed(4, think=CALM), asked=[(0.0, controls(hpa=spec))], start_replicas=3, until_s=90.0
        )
    )


def test_a_new_hpa_is_looked_at_when_a_sync_period_has_passed() -> None:
    """Its least replicas are asked for at the first sync, whatever the metrics (podautoscaler/horizontal.go)."""
    spec = HPASpec(metric="cpu", target=40.0, min_replicas=3, max_replicas=4)
    asked = [(0.0, controls(hpa=spec))]
    _, ticks = lockstep(Scenario(load=closed(1, think=CALM), asked=asked, until_s=20.0, tick_s=0.5))
    assert list(ticks.replicas_spec_T[[0, 29, 30]]) == [1, 1, 3]  # 15.0 s, 15.5 s


def test_hpa_switched_off_and_on_forgets() -> None:
    spec = HPASpec(metric="cpu", target=8.0, max_replicas=4, scale_down=FAST)
    asked = [(30.0, controls(hpa=spec)), (120.0, controls(2)), (150.0, controls(hpa=spec))]
    lockstep(
        Scenario(load=LOAD_FOR_HPA, service=profile(**QUICK), asked=asked, until_s=300.0, control_s=15.0)
    )


def test_the_comparison_can_fail() -> None:
    """One constant moved by 0.1 % in one engine only is seen."""
    scenario = Scenario(load=closed(10), until_s=10.0)
    compiled, reference = scenario.compiled(), scenario.reference()
    reference.value["gpu_alpha_s"] *= 1.001
    compiled.reset([episode(scenario.load, 1)], [0])
    reference.reset(episode(scenario.load, 1))
    compiled.step(np.array([10.0]))
    reference.step(10.0)
    with pytest.raises(AssertionError):
        assert_same_requests(compiled.logs(0)[0], reference.logs()[0])
    starts = [rows(log)[:, 0] for log in (compiled.logs(0)[0], reference.logs()[0])]
    assert all(np.all(b - a >= 0.0) for s in starts for a, b in pairwise(s))
