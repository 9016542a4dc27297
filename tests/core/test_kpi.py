"""KPIs against answers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gpusched.core.kpi import HEADLINE, KPIS, Window, kpis
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog, TickLog

SLO_S = 0.2


def ticks(rows: int, **columns: list[float]) -> TickLog:
    """Ticks of 5 s with zeros but for the given columns."""
    table = {name: np.zeros(rows) for name in TickLog.columns()}
    table["t_s_T"] = 5.0 * np.arange(1, rows + 1)
    table["latency_p95_s_T"] = np.full(rows, 0.1)
    table |= {name: np.array(values, dtype=float) for name, values in columns.items()}
    return TickLog(**table)


def window(requests: list[tuple[float, float, int]], log: TickLog, begin_s: float = 10.0, end_s: float = 30.0,
           levels: tuple[tuple[float, int], ...] = ((0.0, 5),)) -> Window:  # fmt: skip
    start, latency, status = (np.array(column) for column in zip(*requests, strict=True))
    plan = LoadPlan(from_s_K=np.array([t for t, _ in levels]), users_K=np.array([n for _, n in levels]))
    return Window(
        requests=RequestLog(start_s_N=start, latency_s_N=latency, status_N=status.astype(np.int8)),
        ticks=log, plan=plan, begin_s=begin_s, end_s=end_s, slo_s=SLO_S,
        gpus=2, gpu_vram_bytes=10e9, node_memory_bytes=64e9,
    )  # fmt: skip


REQUESTS = [
    (9.8, 0.1, RequestLog.OK),  # answered before the window begins
    (9.9, 0.15, RequestLog.OK),  # sent before, answered inside
    (12.0, 0.1, RequestLog.OK),
    (13.0, 0.3, RequestLog.OK),  # late
    (14.0, 0.05, RequestLog.FAILED),
    (29.95, 0.1, RequestLog.OK),  # answered after the window
    (29.5, 0.5, RequestLog.UNFINISHED),  # open and overdue
    (29.9, 0.1, RequestLog.UNFINISHED),  # open, still in time
]


def test_request_kpis_by_hand() -> None:
    got = kpis(window(REQUESTS, ticks(6)))
    assert got["latency_mean_s"] == pytest.approx((0.15 + 0.1 + 0.3) / 3)
    assert got["latency_p50_s"] == pytest.approx(0.15)
    assert got["throughput_rps"] == pytest.approx(3 / 20)
    assert got["goodput_rps"] == pytest.approx(2 / 20)
    assert got["success_rate"] == pytest.approx(3 / 4)
    # judged: three answered, one failed, one overdue; two of them were good
    assert got["qos_violation_rate"] == pytest.approx(3 / 5)


def test_quantiles_come_from_raw_requests() -> None:
    rows = [(10.0 + 0.01 * k, 0.001 * k, RequestLog.OK) for k in range(1, 101)]
    got = kpis(window(rows, ticks(6)))
    assert got["latency_p95_s"] == pytest.approx(0.09505)
    assert got["latency_p99_s"] == pytest.approx(0.09901)


def test_tick_kpis_are_time_averages_over_the_window_only() -> None:
    log = ticks(
        6,
        replicas_alive_T=[9, 9, 1, 2, 3, 4],
        replicas_spec_T=[1, 1, 2, 2, 3, 2],
        gpu_busy_T=[1, 1, 0.1, 0.2, 0.3, 0.4],
        cpu_cores_used_T=[9, 9, 1, 1, 1, 1],
        cpu_cores_limit_T=[9, 9, 2, 2, 4, 4],
        vram_bytes_T=[0, 0, 5e9, 5e9, 5e9, 5e9],
        memory_bytes_T=[0, 0, 16e9, 16e9, 16e9, 16e9],
    )
    got = kpis(window(REQUESTS, log))
    assert got["replicas_mean"] == pytest.approx(2.5)
    assert got["replica_seconds"] == pytest.approx(50)
    assert got["gpu_utilization"] == pytest.approx(0.25)
    assert got["gpu_seconds"] == pytest.approx(2 * 0.25 * 20)
    assert got["goodput_per_gpu_s"] == pytest.approx(2 / 10)
    assert got["cpu_utilization"] == pytest.approx(4 / 12)
    assert got["vram_utilization"] == pytest.approx(0.25)
    assert got["memory_utilization"] == pytest.approx(0.25)
    assert got["scale_events"] == 3  # the one in the first tick of the window is one too


def test_recovery_counts_from_the_start_and_from_each_rise() -> None:
    late, good = 0.5, 0.1
    p95 = [good] * 2 + [late] * 2 + [good] * 8 + [late] * 4 + [good] * 8
    levels = ((0.0, 5), (70.0, 50), (100.0, 5))
    got = kpis(window(REQUESTS, ticks(24, latency_p95_s_T=p95), end_s=120.0, levels=levels))
    # start: late until 20 s, that is 10 s after 10 s; rise at 70 s: late until 80 s
    assert got["recovery_s"] == pytest.approx((10 + 10) / 2)


def test_no_recovery_counts_the_whole_time() -> None:
    got = kpis(window(REQUESTS, ticks(6, latency_p95_s_T=[0.5] * 6)))
    assert got["recovery_s"] == pytest.approx(20)
    assert got["slo_attainment"] == 0


@pytest.mark.parametrize("dead", [{"failed_T": [3.0] * 14}, {"in_flight_T": [9.0] * 14}])
def test_a_service_that_answers_nothing_has_not_recovered(dead: dict[str, list[float]]) -> None:
    silent: dict[str, list[float]] = {"latency_p95_s_T": [math.nan] * 14, "completed_T": [0.0] * 14}
    assert kpis(window(REQUESTS, ticks(14, **silent, **dead), end_s=70.0))["recovery_s"] == pytest.approx(60)
    assert kpis(window(REQUESTS, ticks(14, **silent), end_s=70.0))["recovery_s"] == 0, "nobody asked"


def test_without_a_request_latency_is_unknown_not_zero() -> None:
    got = kpis(window([(1.0, 0.1, RequestLog.OK)], ticks(6, latency_p95_s_T=[math.nan] * 6)))
    assert math.isnan(got["latency_p95_s"])
    assert math.isnan(got["qos_violation_rate"])
    assert math.isnan(got["slo_attainment"])
    assert got["throughput_rps"] == 0


def test_a_second_is_responsive_when_one_request_of_it_was_answered_in_time() -> None:
    ok, failed, open_ = RequestLog.OK, RequestLog.FAILED, RequestLog.UNFINISHED
    rows = [
        (4.9, 0.1, ok),  # before the episode
        (5.1, 0.1, ok),
        (5.2, 0.9, ok),  # second 0: one in time is enough
        (6.1, 0.9, ok),
        (6.9, 0.1, failed),  # second 1: late, and failed
        (8.0, 0.1, failed),
        (8.99, 0.5, ok),  # second 3: exactly the SLO; nothing was sent in second 2
    ]
    assert kpis(responsive([*rows, (9.7, 0.3, open_)]))["responsive_share"] == pytest.approx(2 / 3)
    assert kpis(responsive([*rows, (9.3, 0.7, open_)]))["responsive_share"] == pytest.approx(2 / 4)
    assert math.isnan(kpis(responsive([(4.0, 0.1, ok)]))["responsive_share"])


def responsive(rows: list[tuple[float, float, int]]) -> Window:
    """Requests in an episode from 5 to 10 s whose SLO is 0.5 s."""
    start_s_N, latency_s_N, status_N = (np.array(column) for column in zip(*rows, strict=True))
    ticks = TickLog.from_table(np.zeros((1, len(TickLog.columns()))))
    ticks.t_s_T[:] = 10.0
    return Window(
        requests=RequestLog(start_s_N=start_s_N, latency_s_N=latency_s_N, status_N=status_N.astype(np.int8)),
        ticks=ticks, plan=LoadPlan(from_s_K=np.zeros(1), users_K=np.array([1])), begin_s=5.0, end_s=10.0, slo_s=0.5,
        gpus=1, gpu_vram_bytes=1, node_memory_bytes=1,
    )  # fmt: skip


def test_the_manual_defines_every_kpi() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name, kpi in KPIS.items():
        cell = f"**`{name}`**" if name in HEADLINE else f"`{name}`"
        direction = {1: "higher", -1: "lower", 0: "-"}[kpi.better]
        assert f"| {cell} | {kpi.unit} | {direction} | {kpi.meaning} |" in manual
