"""Exact results of queueing theory, and how the compiled engine is made to be each queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve
from world import episode

from gpusched.core.load import LoadPlan
from gpusched.core.service import Service
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import ACCOUNT

REPLICATIONS = 20


def erlang_c_wait(rate: float, servers: int, service_s: float = 1.0) -> float:
    """Mean wait of M/M/c."""
    a = rate * service_s
    waiting = a**servers / math.factorial(servers) / (1.0 - a / servers)
    empty = sum(a**k / math.factorial(k) for k in range(servers)) + waiting
    return waiting / empty * service_s / (servers - a)


def pollaczek_khinchine_wait(rate: float, service_cv: float, service_s: float = 1.0) -> float:
    """Mean wait of M/G/1."""
    rho = rate * service_s
    return rho * service_s * (1.0 + service_cv**2) / (2.0 * (1.0 - rho))


def mva(demands_s: Sequence[float], think_s: float, users: int) -> tuple[float, float]:
    """Throughput and response time of a closed product-form network: queueing stations and one delay."""
    demand_K = np.array(demands_s)
    length_K = np.zeros(len(demand_K))
    throughput = response = 0.0
    for n in range(1, users + 1):
        response_K = demand_K * (1.0 + length_K)
        response = float(response_K.sum())
        throughput = n / (think_s + response)
        length_K = throughput * response_K
    return throughput, response


def bulk_wait(rate: float, alpha_s: float, beta_s: float, largest: int, room: int = 400) -> float:
    """Mean wait before a single server that takes up to `largest` at once, exponential with mean alpha + beta·b.

    States: (waiting, in service); idle is (0, 0). Arrivals beyond `room` waiting are lost, which must not matter.
    """

    def index(waiting: int, serving: int) -> int:
        return 0 if serving == 0 else 1 + waiting * largest + serving - 1

    size = 1 + (room + 1) * largest
    moves: list[tuple[int, int, float]] = [(0, index(0, 1), rate)]
    for waiting in range(room + 1):
        for serving in range(1, largest + 1):
            here, done = index(waiting, serving), 1.0 / (alpha_s + beta_s * serving)
            if waiting < room:
                moves.append((here, index(waiting + 1, serving), rate))
            following = min(waiting, largest)
            moves.append((here, index(waiting - following, following), done))
    a, b, r = (np.array(column) for column in zip(*moves, strict=True))
    generator = sparse.coo_matrix((r, (b, a)), shape=(size, size)).tolil()
    generator -= sparse.diags(np.bincount(a, r, size))
    generator[0, :] = 1.0
    chance = spsolve(generator.tocsc(), np.eye(1, size).ravel())
    waiting_N = np.concatenate([[0], np.repeat(np.arange(room + 1), largest)])
    assert chance[waiting_N == room].sum() < 1e-9
    return float(chance @ waiting_N / rate)


def measure(
    service: Service, plans: Sequence[LoadPlan], *, begin_s: float, end_s: float, seed: int, replicas: int = 1,
    capacity: float = 1.0, dist: int | None = None, **more: Any,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Run one replication per plan on the production engine; returns ACCOUNT differences, shape [E] each.

    `more` goes into every episode: a fault, or another service.
    """
    E = len(plans)
    sim = BatchSim(
        service, envs=E, max_replicas=replicas, clocks=Clocks(scrape_s=1e6, metrics_server_s=1e6, dcgm_s=1e6), slo_s=0.2,
        start_replicas=replicas, record=False,
    )  # fmt: skip
    sim.reset([episode(plan, seed, e, **more) for e, plan in enumerate(plans)], list(range(E)))
    sim.env.resources_FR["capacity"][:, sim.pod_slots :] = capacity
    if dist is not None:
        sim.env.sim_E["gpu_dist"] = dist
    for until_s in (begin_s, end_s):
        sim.step(np.full(E, until_s))
    assert not sim.env.sim_E["failed"].any()
    return {name: sim.interval_EC[:, c].copy() for c, name in enumerate(ACCOUNT)}


def z_score(values_E: NDArray[Any], expected: float) -> float:
    """Deviation of the replications' mean from the exact value, in standard errors."""
    error = float(np.std(values_E, ddof=1)) / math.sqrt(len(values_E))
    assert error > 0.0, "replications that do not differ are copies"
    return (float(np.mean(values_E)) - expected) / error
