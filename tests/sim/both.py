"""The compiled engine and the reference side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from world import FleetScenario, Scenario

from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation


def rows(log: RequestLog) -> np.ndarray[Any, Any]:
    """Requests by the time they were sent; the order of completion is a matter of ties."""
    table = np.stack([log.start_s_N, log.latency_s_N, log.status_N.astype(np.float64)], axis=1)
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def assert_same_requests(compiled: RequestLog, reference: RequestLog) -> None:
    a, b = rows(compiled), rows(reference)
    assert len(a) == len(b)
    np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(a[:, 2], b[:, 2])


def assert_same_ticks(compiled: TickLog, reference: TickLog) -> None:
    for name in TickLog.columns():
        x, y = getattr(compiled, name), getattr(reference, name)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=name)


def lockstep(scenario: Scenario) -> tuple[RequestLog, TickLog]:
    """Run both engines, compare what a policy sees at every step and the logs at the end; returns the logs."""
    compiled, reference = scenario.compiled(), scenario.reference()
    compiled.reset([scenario.episode()], [0])
    reference.reset(scenario.episode())
    for until_s, asked in scenario.steps():
        for one in asked:
            compiled.apply(one)
            reference.apply(one)
        compiled.step(np.array([until_s]))
        reference.step(until_s)
        seen, expected = compiled.seen_EF[0], reference.observe()
        for name, x, y in zip(Observation.columns(), seen, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=f"{name} at {until_s} s")
        assert compiled.overdue_E[0] == reference.overdue()
    requests, ticks = compiled.logs(0)
    expected_requests, expected_ticks = reference.logs()
    assert_same_ticks(ticks, expected_ticks)
    assert_same_requests(requests, expected_requests)
    return requests, ticks


def fleet_lockstep(scenario: FleetScenario) -> tuple[list[tuple[RequestLog, TickLog]], np.ndarray[Any, Any]]:
    """As `lockstep`, for services that share nodes; returns the logs of each, and the fleet's own ticks [T, C]."""
    compiled, reference = scenario.compiled(), scenario.reference()
    S = len(scenario.loads)
    compiled.reset(scenario.episodes(), range(S))
    reference.reset(scenario.episodes())
    for until_s, asked in scenario.steps():
        for place, one in asked:
            compiled.apply(one, [place])
            reference.services[place].apply(one)
        compiled.step(np.full(S, until_s))
        reference.step(until_s)
        for e, service in enumerate(reference.services):
            for name, x, y in zip(Observation.columns(), compiled.seen_EF[e], service.observe(), strict=True):
                np.testing.assert_allclose(
                    x, y, rtol=1e-6, atol=1e-6, err_msg=f"{name} of {e} at {until_s} s"
                )
            assert compiled.overdue_E[e] == service.overdue()
    logs = [compiled.logs(e) for e in range(S)]
    for (requests, ticks), service in zip(logs, reference.services, strict=True):
        expected_requests, expected_ticks = service.logs()
        assert_same_ticks(ticks, expected_ticks)
        assert_same_requests(requests, expected_requests)
    np.testing.assert_allclose(compiled.fleet_ticks(), np.array(reference.ticks), rtol=1e-6, atol=1e-6)
    return logs, compiled.fleet_ticks()


def failed(log: RequestLog) -> int:
    return int(np.sum(log.status_N == RequestLog.FAILED))
