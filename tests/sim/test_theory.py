"""The production engine against exact queueing theory, with independent replications and standard errors.

A check passes within 4 standard errors; that the errors themselves are honest is checked over the whole battery:
replications that were copies of one another would give tiny errors and many large deviations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from queues import (
    REPLICATIONS,
    bulk_wait,
    erlang_c_wait,
    measure,
    mva,
    pollaczek_khinchine_wait,
    z_score,
)
from world import Scenario, bare, closed, episode, poisson, shipped

from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.sim.records import DETERMINISTIC, EXPONENTIAL, LOGNORMAL

REQUESTS = 40_000
"""Per replication of an open queue."""


def poissons(rate: float, seed: int, count: int = REQUESTS) -> list[LoadPlan]:
    return [poisson(rate, count, 1000 * seed + e) for e in range(REPLICATIONS)]


def span_s(rate: float, count: int = REQUESTS) -> tuple[float, ...]:
    """Measure from 5 % of the arrivals on, until surely before the last one."""
    return 0.05 * count / rate, 0.97 * count / rate


def waiting(rho: float, servers: int, dist: int, seed: int, cv: float = 0.0) -> tuple[float, ...]:
    """Mean wait of an open queue with `servers` instances, as a z-score."""
    rate = rho * servers
    begin_s, end_s = span_s(rate)
    found = measure(
        bare(instances=servers, gpu_cv=cv), poissons(rate, seed), begin_s=begin_s, end_s=end_s, seed=seed,
        capacity=float(servers), dist=dist,
    )  # fmt: skip
    exact = erlang_c_wait(rate, servers) if dist == EXPONENTIAL else pollaczek_khinchine_wait(rate, cv)
    return (z_score(found["queue_sum_s"] / found["completed"], exact),)


def sharing(dist: int, seed: int, cv: float = 0.0) -> tuple[float, ...]:
    """M/G/1-PS: response time 1 / (1 - rho) whatever the distribution; instances (16) never bind at rho = 0.5."""
    begin_s, end_s = span_s(0.5)
    found = measure(
        bare(instances=16, gpu_cv=cv), poissons(0.5, seed), begin_s=begin_s, end_s=end_s, seed=seed, dist=dist
    )
    busy = found["gpu_busy_s"] / (end_s - begin_s)
    return z_score(found["latency_sum_s"] / found["completed"], 2.0), z_score(busy, 0.5)


def repair(users: int, seed: int) -> tuple[float, ...]:
    """Closed M/M/1//N: response time and throughput by exact MVA; think times are uniform, which does not matter."""
    plan = closed(users, think=(4.0, 16.0))
    found = measure(
        bare(), [plan] * REPLICATIONS, begin_s=500.0, end_s=20_500.0, seed=seed, dist=EXPONENTIAL
    )  # fmt: skip
    throughput, response_s = mva([1.0], 10.0, users)
    latency_s = found["latency_sum_s"] / found["completed"]
    return z_score(latency_s, response_s), z_score(found["completed"] / 20_000.0, throughput)


def network(seed: int) -> tuple[float, ...]:
    """BCMP: 100 users, random routing to 3 pods, each with a CPU of its own, one GPU for all; both shared equally."""
    service = bare(
        host_alpha_s=0.025, gpu_alpha_s=0.009, gpu_cv=0.7, cpu_limit_cores=1.0, cpu_request_cores=1.0, instances=16,
        connection_requests=1,
    )  # fmt: skip
    plan = closed(100, think=(1.0, 2.0))
    found = measure(
        service, [plan] * REPLICATIONS, begin_s=30.0, end_s=330.0, seed=seed, replicas=3, dist=LOGNORMAL
    )
    assert np.all(found["queue_sum_s"] < 1e-3 * found["latency_sum_s"]), (
        "instances bind: not the network meant"
    )
    throughput, response_s = mva([0.025 / 3] * 3 + [0.009], 1.5, 100)
    latency_s = found["latency_sum_s"] / found["completed"]
    return z_score(latency_s, response_s), z_score(found["completed"] / 300.0, throughput)


def bulk(rate: float, largest: int, seed: int) -> tuple[float, ...]:
    """Bulk service: whoever waits goes together, up to the largest batch."""
    begin_s, end_s = span_s(rate)
    service = bare(gpu_alpha_s=0.4, gpu_beta_s=0.3, max_batch=largest)
    found = measure(service, poissons(rate, seed), begin_s=begin_s, end_s=end_s, seed=seed, dist=EXPONENTIAL)
    return (z_score(found["queue_sum_s"] / found["completed"], bulk_wait(rate, 0.4, 0.3, largest)),)


BATTERY: dict[str, Callable[[], tuple[float, ...]]] = {
    **{f"M/M/{c} rho {rho}": functools.partial(waiting, rho, c, EXPONENTIAL, 10 * c + k)
       for c in (1, 3) for k, rho in enumerate((0.3, 0.5, 0.7))},
    "M/D/1 rho 0.5": functools.partial(waiting, 0.5, 1, DETERMINISTIC, 41),
    "M/D/1 rho 0.7": functools.partial(waiting, 0.7, 1, DETERMINISTIC, 42),
    "M/G/1 cv 0.8": functools.partial(waiting, 0.6, 1, LOGNORMAL, 43, 0.8),
    "M/G/1 cv 1.5": functools.partial(waiting, 0.4, 1, LOGNORMAL, 44, 1.5),
    "M/D/1-PS": functools.partial(sharing, DETERMINISTIC, 51),
    "M/M/1-PS": functools.partial(sharing, EXPONENTIAL, 52),
    "M/G/1-PS": functools.partial(sharing, LOGNORMAL, 53, 1.2),
    "M/M/1//8": functools.partial(repair, 8, 61),
    "M/M/1//20": functools.partial(repair, 20, 62),
    "BCMP network": functools.partial(network, 71),
    "bulk, at most 8": functools.partial(bulk, 1.9, 8, 81),
    "bulk, at most 4": functools.partial(bulk, 0.9, 4, 82),
}  # fmt: skip


@functools.cache
def scores(name: str) -> tuple[float, ...]:
    return BATTERY[name]()


@pytest.mark.parametrize("name", list(BATTERY))
def test_agrees_with_theory(name: str) -> None:
    assert all(abs(z) < 4.0 for z in scores(name)), scores(name)


def test_the_errors_are_honest() -> None:
    """Of all deviations about 5 % lie beyond 2 standard errors, and about a third beyond 1."""
    z = np.array([z for name in BATTERY for z in scores(name)])
    assert np.sum(np.abs(z) > 2.1) <= 4
    assert 0.1 < np.mean(np.abs(z) > 1.0) < 0.6
    assert 0.5 < float(np.sqrt(np.mean(z**2))) < 1.5


def test_the_battery_can_fail() -> None:
    """A service 3 % slower than the theory thinks is found out."""
    rate = 0.7
    begin_s, end_s = span_s(rate)
    found = measure(
        bare(gpu_alpha_s=1.03), poissons(rate, 7), begin_s=begin_s, end_s=end_s, seed=7, dist=EXPONENTIAL
    )
    assert z_score(found["queue_sum_s"] / found["completed"], erlang_c_wait(rate, 1)) > 4.0


# --- random streams ---


def tail_draws(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    """Normal draws of one user, as its latencies show them."""
    service = bare(gpu_alpha_s=1e-9, client_tail_median_s=1.0, client_tail_sigma=0.5)
    scenario = Scenario(load=closed(1, think=(0.0, 1.0)), service=service, until_s=6000.0, tick_s=100.0)
    sim = scenario.compiled()
    sim.reset([episode(scenario.load, seed)], [0])
    sim.step(np.array([scenario.until_s]))
    return np.log(sim.logs(0)[0].latency_s_N[:3000]) / 0.5


def test_streams_of_neighbouring_seeds_are_unrelated() -> None:
    """Also not shifted copies: a counter seeded with seed·constant gives seed + 1 the same stream one draw on."""
    draws = [tail_draws(seed) for seed in range(4)]
    for k in range(3):
        for lag in range(-4, 5):
            a = draws[k][max(lag, 0) : 2900 + min(lag, 0)]
            b = draws[k + 1][max(-lag, 0) : 2900 - max(lag, 0)]
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.0 / math.sqrt(len(a)), (k, lag)
    everything = np.concatenate(draws)
    assert abs(np.mean(everything)) < 4.0 / math.sqrt(len(everything))
    assert np.std(everything) == pytest.approx(1.0, abs=0.04)


# --- the calibration ---


def test_sequential_client_of_the_reported_experiment() -> None:
    """One client without think time: 72 ms mean, 74 ms p95, 81 ms p99, 13 to 14 req/s, GPU utilisation 43 %."""
    scenario = Scenario(load=closed(1, think=(0.0, 0.0)), service=shipped(), until_s=1500.0, tick_s=50.0)
    sim = scenario.compiled()
    sim.reset([episode(scenario.load, 1)], [0])
    sim.step(np.array([scenario.until_s]))
    requests, ticks = sim.logs(0)
    latency_ms = 1000.0 * requests.latency_s_N[requests.status_N == RequestLog.OK]
    assert np.mean(latency_ms) == pytest.approx(72.0, abs=0.7)
    assert np.quantile(latency_ms, 0.95) == pytest.approx(74.0, abs=1.0)
    assert np.quantile(latency_ms, 0.99) == pytest.approx(81.0, abs=2.0)
    assert 13.0 <= len(latency_ms) / 1500.0 <= 14.0
    assert np.mean(ticks.gpu_busy_T) == pytest.approx(0.43, abs=0.01)
