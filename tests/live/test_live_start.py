"""What a trial's clock waits for: the counters of all start replicas, for a bounded time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_double import LiveDouble, cluster, episode, steady
from prometheus_double import StubPrometheus, say
from triton_double import TritonDouble

from gpusched.core.trial import TrialSpec

pytestmark = [pytest.mark.slow, pytest.mark.wall]

TRIAL = TrialSpec(duration_s=0.4, warmup_s=0.4, control_s=0.4, tick_s=0.2, start_replicas=2)
Reply = Callable[[Any], None]


def page(batches: dict[str, float]) -> str:
    """Return Prometheus' answer: a fresh sample, and one counter of some replicas."""
    now_s = time.time()
    series = [{"metric": {"field": "scraped_s"}, "value": [now_s, str(now_s - 0.01)]}]
    series += [
        {"metric": {"field": "batches", "pod": pod}, "value": [now_s, str(n)]} for pod, n in batches.items()
    ]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}})


@pytest.fixture
def made() -> Iterator[Callable[[Reply], LiveDouble]]:
    triton, stub, one = TritonDouble(), StubPrometheus(say(500, "")), list[LiveDouble]()

    def make(reply: Reply) -> LiveDouble:
        stub.reply = reply
        one.append(cluster(triton, stub.url, TRIAL))
        return one[0]

    yield make
    one[0].close()
    stub.stop()
    triton.stop()


def test_an_old_replica_whose_first_scrape_failed_does_not_count_from_its_start(
    made: Callable[[Reply], LiveDouble],
) -> None:
    rounds = iter([{"p1": 1000.0}, {"p1": 1004.0, "p2": 5e5}])
    last = {"p1": 1010.0, "p2": 5e5 + 2}
    one = made(lambda handler: say(200, page(next(rounds, last)))(handler))
    one.reset([episode(steady(0))])
    assert one.logs()[1].batches_T.tolist() == [8.0, 0.0]


def test_a_replica_that_prometheus_never_meets_is_told_and_does_not_stop_the_trial(
    made: Callable[[Reply], LiveDouble], caplog: pytest.LogCaptureFixture
) -> None:
    one = made(lambda handler: say(200, page({"p1": 1000.0}))(handler))
    begin_s = time.monotonic()
    one.reset([episode(steady(0))])
    assert time.monotonic() - begin_s < TRIAL.warmup_s + LiveDouble.COUNTED_S + 1.0
    assert [r for r in caplog.records if "1 of 2 replicas" in r.getMessage()]
