"""The doctor's checks of metrics and of the load generator."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from live_double import MODEL, steady
from prometheus_double import StubPrometheus, say, vector

from gpusched.core.check import FAIL, OK, WARN, Check
from gpusched.core.load import LoadPlan
from gpusched.live import capacity, checks
from gpusched.live.state import ModelIO

NAMES = {"model": "m", "namespace": "", "pods": ".*", "node": ""}


def judged(reply: str, code: int = 200) -> dict[str, Check]:
    stub = StubPrometheus(say(code, reply))
    try:
        found = checks.metrics(stub.url, NAMES, scrape_s=5.0, window_s=30.0, cpu_window_s=60.0)
    finally:
        stub.stop()
    return {check.name: check for check in found}


def test_metrics_that_are_there_and_fresh_are_ok() -> None:
    found = judged(
        vector(scraped_s=(100, 97), gpu_scraped_s=(100, 80), cpu_cores=(100, 1), memory_bytes=(100, 1e9))
    )
    assert {name: check.status for name, check in found.items()} == {
        "Prometheus": OK, "Triton's metrics": OK, "container metrics": OK, "GPU metrics": OK,
    }  # fmt: skip
    assert "3.0 s old" in found["Triton's metrics"].detail


def test_what_is_absent_or_old_is_told_with_its_cure() -> None:
    found = judged(vector(scraped_s=(100, 60), memory_bytes=(100, 1e9)))
    assert {name: check.status for name, check in found.items()} == {
        "Prometheus": OK, "Triton's metrics": WARN, "container metrics": WARN, "GPU metrics": WARN,
    }  # fmt: skip
    assert "40 s old" in found["Triton's metrics"].detail
    assert "no cpu_cores" in found["container metrics"].detail
    assert all(check.cure for check in found.values() if check.status != OK)
    assert judged(vector())["Triton's metrics"].status == FAIL


def test_a_prometheus_that_does_not_answer_is_the_only_finding() -> None:
    found = judged("", 503)
    assert list(found) == ["Prometheus"]
    assert found["Prometheus"].status == FAIL
    assert "503" in found["Prometheus"].detail


@pytest.mark.parametrize(
    ("cost_s", "rps", "processes", "status", "cure"),
    [
        (0.001, 500.0, 1, OK, ""),
        (0.001, 700.0, 1, WARN, "users_processes=2"),
        (0.001, 950.0, 1, FAIL, "users_processes=2"),
        (0.001, 950.0, 2, OK, ""),
        (0.001, math.inf, 1, FAIL, "think"),
    ],
)
def test_a_load_is_compared_with_what_can_be_sent(
    cost_s: float, rps: float, processes: int, status: str, cure: str
) -> None:
    check = checks.judged(cost_s, rps, processes)
    assert check.status == status
    assert cure in check.cure


def test_the_most_a_load_can_ask_for() -> None:
    assert capacity.asked_rps(steady(30, think_s=1.5)) == pytest.approx(20.0)
    assert capacity.asked_rps(steady(5, think_s=0.0)) == math.inf
    burst_s_N = np.concatenate([np.linspace(0, 99, 100), np.linspace(50.0, 50.5, 200)])
    drawn = LoadPlan(from_s_K=np.zeros(0), users_K=np.zeros(0, int), arrivals_s_N=np.sort(burst_s_N))
    assert capacity.asked_rps(drawn) == pytest.approx(21.0, abs=0.1)


@pytest.mark.slow
def test_the_cost_of_a_request_is_measured() -> None:
    begin_s = time.monotonic()
    check = checks.load(steady(5), ModelIO(**MODEL), processes=1, connection_requests=1)
    assert time.monotonic() - begin_s < 15
    assert check.status == OK, check.detail
    cost_ms = float(check.detail.split()[0])
    assert 0.05 < cost_ms < 20.0
