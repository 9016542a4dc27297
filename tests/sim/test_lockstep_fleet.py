"""Services that share nodes and GPUs: the compiled engine and the plain-Python reference tell the same story."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from both import failed, fleet_lockstep
from world import FleetScenario, closed, controls, poisson, profile

from gpusched.core.controls import HPADirection, HPARule, HPASpec
from gpusched.sim.records import FLEET_TICK

CALM = (6.0, 10.0)
QUICK: dict[str, Any] = {
    "schedule_min_s": 0.5, "schedule_max_s": 1.5, "start_s": 3.0, "probe_delay_s": 1.0, "probe_period_s": 2.0,
}  # fmt: skip
PENDING = FLEET_TICK.index("pods_pending")


def test_three_services_on_one_gpu_under_scaling() -> None:
    """Different models, loads and replicas; one is scaled to nothing and back while the others go on."""
    services = [
        profile(**QUICK),
        profile(**QUICK, gpu_alpha_s=0.05, max_batch=4),
        profile(**QUICK, host_alpha_s=0.0),
    ]
    asked = [(10.0, 0, controls(3)), (20.0, 2, controls(0)), (30.0, 2, controls(2)), (45.0, 0, controls(1))]
    loads = [closed(8, think=CALM), closed((0.0, 4), (25.0, 9), think=CALM), closed(5, think=CALM)]
    logs, ticks = fleet_lockstep(FleetScenario(loads=loads, services=services, asked=asked, until_s=80.0))
    assert all(len(requests.start_s_N) > 40 for requests, _ in logs)
    assert np.all(ticks[:, PENDING] == 0)


def test_busy_services_share_gpus_of_several_nodes() -> None:
    service = profile(**QUICK, gpus=2, pod_vram_bytes=2.9e9)
    asked = [(5.0, 0, controls(4)), (5.0, 1, controls(3)), (15.0, 1, controls(1))]
    loads = [closed(20), closed(14)]
    fleet_lockstep(FleetScenario(loads=loads, services=[service] * 2, nodes=2, asked=asked, until_s=25.0))


def test_services_wait_for_what_another_gives_back() -> None:
    """Two nodes full of VRAM: pods of two services wait, and come in the order in which they were created."""
    big, small = profile(**QUICK, pod_vram_bytes=4.7e9), profile(**QUICK, pod_vram_bytes=1.9e9)
    asked = [(5.0, 0, controls(4)), (10.0, 1, controls(4)), (15.0, 2, controls(3)), (40.0, 0, controls(1)),
             (60.0, 1, controls(1)), (65.0, 2, controls(4))]  # fmt: skip
    loads = [closed(5, think=CALM)] * 3
    _, ticks = fleet_lockstep(
        FleetScenario(loads=loads, services=[big, small, big], nodes=2, asked=asked, until_s=110.0)
    )
    assert ticks[:, PENDING].max() >= 3
    assert ticks[-1, PENDING] < ticks[:, PENDING].max()
    assert ticks[:, FLEET_TICK.index("vram_fragmented")].max() > 0.0


def test_nodes_without_cpu_or_memory() -> None:
    """CPU is short for one service, host memory for the other; a resize makes room."""
    narrow = profile(**QUICK, node_cpu_cores=1.6, node_memory_bytes=3e9, pod_memory_bytes=1.2e9)
    heavy = profile(
        **QUICK, node_cpu_cores=1.6, node_memory_bytes=3e9, pod_memory_bytes=1.7e9, cpu_request_cores=0.1
    )
    asked = [
        (5.0, 0, controls(4)),
        (10.0, 1, controls(4)),
        (40.0, 0, controls(4, cpu_cores=0.5)),
        (60.0, 1, controls(1)),
    ]
    loads = [closed(4, think=CALM)] * 2
    _, ticks = fleet_lockstep(
        FleetScenario(loads=loads, services=[narrow, heavy], nodes=3, asked=asked, until_s=90.0)
    )
    assert ticks[:, PENDING].max() >= 2
    assert ticks[:, FLEET_TICK.index("cores_stranded")].min() == 0.0


def test_hpas_of_two_services_with_a_rolling_update_of_a_third() -> None:
    fast = HPADirection(stabilization_s=20, policies=[HPARule(type="Pods", value=1, period_s=15)])
    spec = HPASpec(metric="cpu", target=8.0, max_replicas=4, scale_down=fast)
    queue = HPASpec(metric="queue", target=0.05, max_replicas=3, scale_down=fast)
    asked = [
        (30.0, 0, controls(hpa=spec)),
        (40.0, 1, controls(hpa=queue)),
        (50.0, 2, controls(2, instances=2)),
    ]
    loads = [
        closed((0.0, 3), (60.0, 18), (150.0, 2), think=(3.0, 5.0)),
        closed(6, think=CALM),
        closed(3, think=CALM),
    ]
    logs, _ = fleet_lockstep(
        FleetScenario(loads=loads, services=[profile(**QUICK, gpus=2)] * 3, nodes=2, asked=asked, until_s=210.0,
                      control_s=15.0)
    )  # fmt: skip
    assert logs[0][1].replicas_spec_T.max() > 1


def test_open_and_closed_loads_share_a_gpu() -> None:
    loads = [poisson(4.0, 150, 3), closed(5, think=CALM), poisson(2.0, 60, 4)]
    logs, _ = fleet_lockstep(FleetScenario(loads=loads, services=[profile(**QUICK)] * 3, until_s=45.0))
    assert [len(logs[k][0].start_s_N) for k in (0, 2)] == [150, 60]


def test_mps_and_instances_across_services() -> None:
    service = profile(sharing="mps", instances=2, **QUICK)
    asked = [(5.0, 1, controls(gpu_share=0.4)), (12.0, 0, controls(2))]
    loads = [closed(8, think=CALM), closed(8, think=CALM)]
    fleet_lockstep(FleetScenario(loads=loads, services=[service] * 2, asked=asked, until_s=40.0))


def test_a_service_killed_on_a_shared_gpu_leaves_the_others_work_alone() -> None:
    """SIGKILL tears a batch out of a GPU where another service's batches run."""
    dying = profile(prestop_s=0.5, grace_s=0.7, host_alpha_s=0.3, gpu_alpha_s=0.8, instances=3, max_batch=2,
                    cpu_limit_cores=4.0)  # fmt: skip
    asked = [(9.0, 0, controls(1)), (20.0, 0, controls(0))]
    scenario = FleetScenario(
        loads=[closed(9, think=(2.0, 4.0)), closed(6, think=(2.0, 4.0))],
        services=[dying, profile(gpu_alpha_s=0.21)],
        asked=asked, start_replicas=[3, 1], until_s=26.0, control_s=1.0,
    )  # fmt: skip
    logs, _ = fleet_lockstep(scenario)
    assert failed(logs[0][0]) > 3
    assert failed(logs[1][0]) == 0


@pytest.mark.slow
def test_more_nodes_than_the_scheduler_looks_at() -> None:
    """With 250 nodes a search ends at 120 with room, and the next begins where it ended."""
    service = profile(**QUICK)
    asked = [(5.0 * k, k % 2, controls(1 + k)) for k in range(1, 8)]
    fleet_lockstep(
        FleetScenario(loads=[closed(2, think=CALM)] * 2, services=[service] * 2, nodes=250, asked=asked, until_s=45.0,
                      max_replicas=8)
    )  # fmt: skip
