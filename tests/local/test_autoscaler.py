"""The HPA in wall time: what it asks for is what Kubernetes' rule says, ceil(ready · use / target)."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from gpusched.cluster.local.autoscaler import Autoscaler, Clocks
from gpusched.cluster.local.replica import Life
from gpusched.core.controls import HPADirection, HPASpec

REQUEST = 0.5
PHASES = {"input": 1, "infer": 6, "output": 1}
CLOCKS = Clocks(scrape_s=1.0, window_s=10.0, advisor_s=10.0, metrics_server_s=15.0, hpa_sync_s=15.0)


class Busy:
    """Processes that use a constant number of cores since their start."""

    def __init__(self, cores: float) -> None:
        self.cores, self.now_s = cores, 0.0

    def usage(self, pod: str) -> tuple[float, int]:
        return self.cores * self.now_s, 0


def pod(uid: int, busy: Busy, **more: Any) -> Any:
    own = {
        "uid": uid,
        "pod": f"replica-{uid}",
        "processes": busy,
        "created_s": 0.0,
        "ready_s": 1.0,
        "metrics_port": 0,
    }
    return SimpleNamespace(**{**own, "life": Life.READY, "active": True, **more})


def live(
    autoscaler: Autoscaler, pods: list[Any], busy: Busy, until_s: float, begin_s: float = 0.0
) -> tuple[int, list[float]]:
    """Look ten times a second; return what is wanted in the end and when that changed."""
    wanted, changes = len(pods), []
    for k in range(round(10 * begin_s), round(10 * until_s)):
        busy.now_s = now_s = k / 10
        autoscaler.look(now_s, pods)
        before, wanted = wanted, autoscaler.sync(now_s, pods, wanted)
        changes += [now_s] if wanted != before else []
    return wanted, changes


def text(values: dict[str, float], version: str = "1") -> bytes:
    """Return a metrics page of Triton."""
    return "".join(f'{k}{{model="m",version="{version}"}} {v}\n' for k, v in values.items()).encode()


def made(spec: HPASpec, clocks: Clocks = CLOCKS) -> Autoscaler:
    autoscaler = Autoscaler(clocks, REQUEST, "m", random.Random(1))
    autoscaler.set(spec, None, 0.0)
    return autoscaler


def test_a_new_hpa_is_looked_at_when_a_sync_period_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller's queue makes it wait like any other (podautoscaler/horizontal.go, enqueueHPA)."""
    names = ("nv_inference_queue_duration_us", "nv_inference_request_success")
    page = text(dict.fromkeys(names, 0.0) | {"nv_inference_pending_request_count": 12.0})
    monkeypatch.setattr("gpusched.cluster.local.autoscaler.get", lambda *_: (200, page))
    busy = Busy(0.0)
    spec = HPASpec(metric="in_flight", target=8.0, max_replicas=3)
    assert live(made(spec), [pod(1, busy), pod(2, busy)], busy, 20.0) == (3, [15.0])


@pytest.mark.parametrize("cores", [0.1, 0.4, 0.5, 0.9])
def test_it_asks_for_what_the_rule_says(cores: float) -> None:
    busy = Busy(cores)
    pods = [pod(1, busy), pod(2, busy)]
    wanted, _ = live(made(HPASpec(metric="cpu", target=70.0, max_replicas=6)), pods, busy, 120.0)
    ratio = math.ceil(cores * 1000) / (REQUEST * 1000) / 0.7
    # Down only after 300 s of a lower recommendation, up at once; 10 % around the target is tolerated.
    assert wanted == (math.ceil(2 * ratio) if ratio > 1.1 else 2)


def test_nothing_happens_before_the_pipeline_has_two_readings() -> None:
    """cAdvisor reads within 10 s and then every 10 to 20 s, metrics-server every 15 s, the HPA every 15 s."""
    busy = Busy(2.0)
    pods = [pod(1, busy)]
    wanted, changes = live(made(HPASpec(metric="cpu", target=50.0, max_replicas=6)), pods, busy, 90.0)
    assert wanted == 6 or changes
    assert 10.0 <= changes[0] <= 10.0 + 10.0 + 15.0 + 15.0 + 15.0


def test_it_scales_down_after_the_stabilisation_of_the_spec() -> None:
    busy = Busy(0.05)
    pods = [pod(1, busy), pod(2, busy)]
    down = HPADirection(stabilization_s=60)
    spec = HPASpec(metric="cpu", target=70.0, max_replicas=6, scale_down=down)
    wanted, changes = live(made(spec), pods, busy, 150.0)
    assert wanted == 1
    assert changes[0] >= 60.0


def test_without_an_hpa_nothing_is_changed_and_a_new_one_knows_no_past() -> None:
    busy = Busy(2.0)
    pods = [pod(1, busy)]
    autoscaler = made(HPASpec(metric="cpu", target=50.0))
    autoscaler.set(None, None, 0.0)
    assert live(autoscaler, pods, busy, 90.0) == (1, [])
    assert math.isnan(autoscaler.target)
    autoscaler.set(HPASpec(metric="cpu", target=50.0), 80.0, 90.0)
    assert autoscaler.target == 80.0
    assert live(autoscaler, pods, busy, 106.0, begin_s=90.0)[1][0] <= 105.0


@pytest.mark.parametrize("waiting", [[12.0], [12.0, 0.0], [5.0, 7.0]])
def test_it_scales_on_the_requests_that_wait_for_any_version(
    monkeypatch: pytest.MonkeyPatch, waiting: list[float]
) -> None:
    names = ("nv_inference_queue_duration_us", "nv_inference_request_success")
    still = dict.fromkeys(names, 0.0)
    pages = [
        text(still | {"nv_inference_pending_request_count": n}, str(v)) for v, n in enumerate(waiting, 1)
    ]
    monkeypatch.setattr("gpusched.cluster.local.autoscaler.get", lambda *_: (200, b"".join(pages)))
    busy = Busy(0.0)
    spec = HPASpec(metric="in_flight", target=8.0, max_replicas=6)
    assert live(made(spec), [pod(1, busy), pod(2, busy)], busy, 20.0)[0] == 3  # ceil(24 / 8)


def test_requests_that_execute_are_in_flight_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight seconds of execution per second are eight requests; nobody waits."""
    busy = Busy(0.0)

    def page(*_: Any) -> tuple[int, bytes]:
        us = 1e6 * busy.now_s
        values = {f"nv_inference_compute_{k}_duration_us": n * us for k, n in PHASES.items()}
        values |= {"nv_inference_queue_duration_us": 0.0, "nv_inference_pending_request_count": 0.0}
        return 200, text(values)

    monkeypatch.setattr("gpusched.cluster.local.autoscaler.get", page)
    pods = [pod(1, busy), pod(2, busy)]
    assert live(made(HPASpec(metric="in_flight", target=4.0, max_replicas=6)), pods, busy, 20.0)[0] == 4
    assert (
        live(made(HPASpec(metric="in_flight", target=2.0, max_replicas=6)), pods, busy, 35.0)[0] == 6
    )  # doubled, twice


def test_it_scales_on_the_mean_time_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 ms per request against a target of 20 ms doubles the replicas."""
    busy = Busy(0.0)

    def page(*_: Any) -> tuple[int, bytes]:
        done = 100 * busy.now_s
        values = {"nv_inference_request_success": done, "nv_inference_queue_duration_us": 40e3 * done}
        return 200, text(values)

    monkeypatch.setattr("gpusched.cluster.local.autoscaler.get", page)
    spec = HPASpec(metric="queue", target=20.0, max_replicas=6)
    assert live(made(spec), [pod(1, busy), pod(2, busy)], busy, 20.0)[0] == 4


def test_without_an_answer_of_triton_an_hpa_on_its_metrics_holds_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any) -> Any:
        raise OSError("refused")

    monkeypatch.setattr("gpusched.cluster.local.autoscaler.get", refused)
    busy = Busy(0.0)
    for metric in ("queue", "in_flight"):
        assert live(made(HPASpec(metric=metric, target=1.0)), [pod(1, busy)], busy, 40.0) == (1, [])
