"""What a real cluster shows under a ladder of constant loads: latencies, and Triton's own count of each batch size."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls
from gpusched.core.errors import ClusterError, InputError
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.core.ports import Episode
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.job.setup import Setup
from gpusched.live.cluster import LiveCluster
from gpusched.live.state import Endpoint

Floats = NDArray[np.float64]

ASK_S = 5.0
LOOK_S = 0.02
PHASES = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Triton's cumulative counts of one replica.

    executions, held_s   executions and the time they held an instance, by batch size
    served, queue_s      requests answered well, and the time they waited
    """

    executions: dict[int, int]
    held_s: dict[int, float]
    served: int
    queue_s: float

    def since(self, before: Stats) -> Stats:
        """Return what has been added; ClusterError where a count has fallen."""
        counts = [(self.served, before.served)]
        counts += [(self.executions.get(b, 0), n) for b, n in before.executions.items()]
        if any(now < then for now, then in counts):
            raise ClusterError(
                "Triton's counts have fallen during the measurement: the server restarted, or loaded the model anew. "
                "See its log for the reason, and measure again."
            )
        return Stats(
            executions={b: n - before.executions.get(b, 0) for b, n in self.executions.items()},
            held_s={b: t - before.held_s.get(b, 0.0) for b, t in self.held_s.items()},
            served=self.served - before.served,
            queue_s=self.queue_s - before.queue_s,
        )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some seconds under a constant number of users.

    latency_s_N   client latencies of what was answered well
    cpu_s         CPU seconds of the replicas; memory_bytes of one; gpu_busy share of time, NaN without a GPU
    """

    users: int
    span_s: float
    latency_s_N: Floats
    failed: int
    stats: Stats
    cpu_s: float
    memory_bytes: float
    gpu_busy: float


def ask(endpoint: Endpoint) -> Stats:
    """Ask the replica behind the endpoint; it has to be the only one. Versions of the model add up."""
    url = f"http://{endpoint.urls[0]}/v2/models/{endpoint.model}/stats"
    page = _get(url)
    try:
        return _stats(page["model_stats"])
    except (LookupError, TypeError, ValueError) as error:
        raise ClusterError(
            f"{url}: the answer is not Triton's statistics of a model ({type(error).__name__}: {error}). "
            "Does Triton answer there, with the model loaded?"
        ) from None


def _stats(versions: Sequence[Any]) -> Stats:
    """Return the sum over the versions (server, docs/protocol/extension_statistics.md)."""
    if not versions:
        raise LookupError("no version of the model")
    executions, held_ns = Counter[int](), Counter[int]()
    for one in (batch for version in versions for batch in version["batch_stats"]):
        executions[int(one["batch_size"])] += int(one["compute_infer"]["count"])
        held_ns[int(one["batch_size"])] += sum(int(one[phase]["ns"]) for phase in PHASES)
    totals = [version["inference_stats"] for version in versions]
    return Stats(
        executions=dict(executions),
        held_s={b: 1e-9 * ns for b, ns in held_ns.items()},
        served=sum(int(total["success"]["count"]) for total in totals),
        queue_s=1e-9 * sum(int(total["queue"]["ns"]) for total in totals),
    )


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise ClusterError(f"{url}: Triton does not answer ({error}).") from None


def real(setup: Setup, service: Service, spec: TrialSpec) -> LiveCluster:
    """Return a real cluster for this profile and these times, whatever the setup's own are."""
    if not issubclass(setup.cluster_type, LiveCluster):
        raise InputError(
            f"cluster = {setup.names['cluster']!r}: is not real, so there is nothing to measure. "
            "Choose cluster=local or cluster=microk8s."
        )
    limits = replace(setup.limits, min_replicas=spec.min_replicas, max_replicas=spec.max_replicas)
    return setup.cluster_type(
        setup.cluster_config, service=service, trial=spec, limits=limits, slo_s=setup.reward.slo_s
    )


def ladder(
    cluster: LiveCluster, users: Sequence[int], repeats: int, seed: np.random.SeedSequence
) -> list[Stretch]:
    """Live through each number of users, without think time: one control interval to settle, `repeats` to measure.

    The cluster's spec must be `times(...)` of as many users and repeats. Every interval is a stretch.
    """
    step_s, warmup_s = cluster.trial.control_s, cluster.trial.warmup_s
    begins_s = [0.0, *(warmup_s + step_s * (1 + repeats) * k for k in range(1, len(users)))]
    plan = LoadPlan(from_s_K=np.array(begins_s), users_K=np.array(users), think_min_s=0.0, think_max_s=0.0)
    found: list[Stretch] = []
    hold = Controls.scale([1])
    try:
        cluster.reset([Episode(plan=plan, seed=seed)])
        endpoint = cluster.endpoint()
        for level in users:
            cluster.step(hold)
            for _ in range(repeats):
                before, begin_s = ask(endpoint), time.monotonic()
                cluster.step(hold)
                after, span_s = ask(endpoint), time.monotonic() - begin_s
                found.append(_stretch(cluster, level, span_s, after.since(before)))
    finally:
        cluster.close()
    return found


def times(users: Sequence[int], repeats: int, step_s: float) -> TrialSpec:
    """Return the times of a ladder."""
    steps = len(users) * (1 + repeats)
    return TrialSpec(
        duration_s=steps * step_s, warmup_s=step_s, control_s=step_s, tick_s=step_s,
        start_replicas=1, min_replicas=1, max_replicas=1,
    )  # fmt: skip


def _stretch(cluster: LiveCluster, users: int, span_s: float, stats: Stats) -> Stretch:
    requests, ticks = cluster.logs()
    end_s, begin_s = float(ticks.t_s_T[-1]), float(ticks.t_s_T[-1]) - cluster.trial.control_s
    inside_N = (requests.end_s_N > begin_s) & (requests.end_s_N <= end_s)
    return Stretch(
        users=users,
        span_s=span_s,
        latency_s_N=requests.latency_s_N[inside_N & (requests.status_N == RequestLog.OK)],
        failed=int(np.count_nonzero(inside_N & (requests.status_N == RequestLog.FAILED))),
        stats=stats,
        cpu_s=float(ticks.cpu_cores_used_T[-1]) * cluster.trial.control_s,
        memory_bytes=float(ticks.memory_bytes_T[-1] / ticks.replicas_alive_T[-1]),
        gpu_busy=float(ticks.gpu_busy_T[-1]),
    )


def starts(cluster: LiveCluster, repeats: int) -> list[float]:
    """Return the times from asking for a second replica until it is ready, one after the other, without load."""
    found = []
    try:
        cluster.held = True  # `close` gives back what `take` took
        cluster.take()
        for _ in range(repeats):
            begin_s = time.monotonic()
            _scale(cluster, 2)
            found.append(time.monotonic() - begin_s)
            _scale(cluster, 1)
    finally:
        cluster.close()
    return found


def _scale(cluster: LiveCluster, replicas: int) -> None:
    """Ask for replicas and wait until exactly these are there and ready."""
    begin_s = time.monotonic()
    cluster.apply(Controls.scale([replicas]), ASK_S)
    while True:
        state = cluster.state()
        if state.ready == state.alive == state.spec == replicas:
            return
        if time.monotonic() - begin_s > cluster.config.ready_timeout_s:
            raise ClusterError(
                f"{replicas} replicas were not ready within {cluster.config.ready_timeout_s:g} s."
            )
        time.sleep(LOOK_S)
