"""Triton's dynamic batcher on timelines worked out by hand from its source (dynamic_batch_scheduler.cc).

One instance, 100 ms per batch whatever its size, no client: every latency tells when a request left and with whom.
`docs/fidelity.md` compares with a real server.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from world import Scenario, arrivals, bare, closed, profile

DELAY_S = 0.01


def latencies_s(times_s: list[float], **changes: Any) -> list[float]:
    """Latencies of requests that arrive at these times, in their order, of both engines."""
    given = {"gpu_alpha_s": 0.1, "max_batch": 8, "queue_delay_s": DELAY_S, "preferred_batches": [4, 8]}
    scenario = Scenario(load=arrivals(times_s), service=bare(**(given | changes)), until_s=5.0)
    compiled, reference = scenario.compiled(), scenario.reference()
    compiled.reset([scenario.episode()], [0])
    reference.reset(scenario.episode())
    compiled.step(np.array([5.0]))
    reference.step(5.0)
    answers = []
    for log in (compiled.logs(0)[0], reference.logs()[0]):
        answers.append(log.latency_s_N[np.argsort(log.start_s_N)])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-9)
    return [round(float(x), 6) for x in answers[0]]


def test_a_lone_request_waits_for_the_whole_delay() -> None:
    assert latencies_s([1.0]) == [0.11]


def test_a_preferred_size_leaves_at_once() -> None:
    assert latencies_s([1.0, 1.001, 1.002, 1.003]) == [0.103, 0.102, 0.101, 0.1]


def test_less_than_a_preferred_size_leaves_when_the_oldest_has_waited() -> None:
    assert latencies_s([1.0, 1.002, 1.004]) == [0.11, 0.108, 0.106]


def test_a_batch_closed_ahead_leaves_later_requests_behind() -> None:
    """A works from 1.010 to 1.110. B is closed at 1.030, alone: the batcher next looks for four (4 preferred, so from
    then on for three more), and C does not wake it. So B executes alone to 1.210 although C waits.

    When B has been taken, C is overdue and closed at once; D then wakes the batcher and joins C. E does not: two more
    would be needed. C and D execute to 1.310, and E alone to 1.410.
    """
    got = latencies_s([1.0, 1.02, 1.05, 1.15, 1.16])
    assert got == [0.11, 0.19, 0.26, 0.16, 0.25]


def test_with_a_queue_policy_nothing_happens_ahead_of_time() -> None:
    """The same arrivals: when A has ended, B and C leave together, and after them D and E."""
    got = latencies_s([1.0, 1.02, 1.05, 1.15, 1.16], queue_size=100)
    assert got == [0.11, 0.19, 0.16, 0.16, 0.15]


def test_an_overdue_batch_behind_is_merged_where_it_fits() -> None:
    """Largest batch 4, preferred 2. A works to 1.110. B and C are two and leave the queue at 1.021; D makes three, which
    is beyond all preferred sizes, so that batch is closed when E comes (1.024: two wait again). E is closed alone at
    1.034. When A ends, E is overdue and fits: B, C, D and E execute together.
    """
    got = latencies_s([1.0, 1.02, 1.021, 1.023, 1.024], max_batch=4, preferred_batches=[2])
    assert got == [0.11, 0.19, 0.189, 0.187, 0.186]


def test_an_overdue_batch_that_does_not_fit_is_frozen() -> None:
    """Largest batch 3: B, C and D as above, and E does not fit. From then on it cannot grow: F, who comes 5 ms before E
    has its turn, is in a batch of its own.
    """
    got = latencies_s([1.0, 1.02, 1.021, 1.023, 1.024, 1.205], max_batch=3, preferred_batches=[2])
    assert got == [0.11, 0.19, 0.189, 0.187, 0.286, 0.205]


def test_without_delay_a_preferred_size_is_never_exceeded_by_late_comers() -> None:
    """No delay: what waits is closed at every arrival, and a batch that has a preferred size is closed for good.

    A executes at once. B to E become a batch of four; F begins another, though eight would be allowed.
    """
    got = latencies_s([1.0, 1.01, 1.02, 1.03, 1.04, 1.05], queue_delay_s=0.0)
    assert got == [0.1, 0.19, 0.18, 0.17, 0.16, 0.25]


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_ahead_or_not_is_the_same_without_delay_and_preferred_sizes(instances: int) -> None:
    """The engine forms such batches on demand, which is faster; made to run ahead, it answers at the very same times."""
    scenario = Scenario(load=closed(30), service=profile(queue_size=0, instances=instances), until_s=30.0)
    on_demand, ahead = scenario.compiled(), scenario.compiled()
    for engine in (on_demand, ahead):
        engine.reset([scenario.episode()], [0])
    ahead.env.sim_E["prefetching"] = 1
    for engine in (on_demand, ahead):
        engine.step(np.array([30.0]))
    a, b = on_demand.logs(0)[0], ahead.logs(0)[0]
    np.testing.assert_array_equal(a.latency_s_N, b.latency_s_N)
    assert len(a.latency_s_N) > 300
