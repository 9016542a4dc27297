"""The doctor's checks of what all real clusters share: metrics there and fresh, and a load generator that keeps up."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from gpusched.core.check import FAIL, OK, WARN, Check
from gpusched.core.load import LoadPlan
from gpusched.live import capacity
from gpusched.live.queries import OF_THE_DEVICE
from gpusched.live.state import ModelIO
from gpusched.live.telemetry import Telemetry

WAIT_S = 5.0
CALM, BUSY = 0.6, 0.9
"""Shares of a load process' core: below, its own delays are small; above, it is what would be measured."""
FROM_CONTAINERS = ("cpu_cores", "memory_bytes")


def metrics(
    url: str, selectors: Mapping[str, str], *, scrape_s: float, window_s: float, cpu_window_s: float
) -> list[Check]:
    """Ask Prometheus once for all a policy sees, and judge what is there and how old it is."""
    seen = Telemetry(url, selectors, window_s=window_s, cpu_window_s=cpu_window_s, timeout_s=WAIT_S)
    try:
        seen.sample(WAIT_S)
    finally:
        seen.close()
    if seen.problem and not seen.answered:
        cure = "Start Prometheus, or name the right one."
        return [Check(name="Prometheus", status=FAIL, detail=f"{url}: {seen.problem}", cure=cure)]
    now_s = time.monotonic()
    return [
        Check(name="Prometheus", status=OK, detail=f"{url} answers"),
        _fresh("Triton's metrics", now_s - seen.scraped_s, scrape_s, FAIL,
               "Start a replica, and let Prometheus scrape port 8002 of the pods with labels pod and namespace."),
        _present(seen, FROM_CONTAINERS, "container metrics", "Let Prometheus scrape the kubelet's cAdvisor."),
        # dcgm-exporter's own default interval is 30 s.
        _fresh("GPU metrics", now_s - seen.gpu_scraped_s, max(scrape_s, 30.0), WARN,
               f"Install dcgm-exporter; without it {' and '.join(OF_THE_DEVICE)} stay empty."),
    ]  # fmt: skip


def _fresh(name: str, age_s: float, scrape_s: float, absent: str, cure: str) -> Check:
    if not math.isfinite(age_s):
        return Check(name=name, status=absent, detail="Prometheus has none", cure=cure)
    if age_s > 3 * scrape_s:
        return Check(name=name, status=WARN, detail=f"the newest sample is {age_s:.0f} s old",
                     cure=f"Scrape every {scrape_s:g} s, as cluster.scrape_s says.")  # fmt: skip
    return Check(name=name, status=OK, detail=f"the newest sample is {age_s:.1f} s old")


def _present(seen: Telemetry, names: tuple[str, ...], what: str, cure: str) -> Check:
    absent = [name for name in names if math.isnan(seen.levels[name])]
    if absent:
        return Check(name=what, status=WARN, detail=f"no {' and no '.join(absent)}", cure=cure)
    return Check(name=what, status=OK, detail=", ".join(names))


def load(plan: LoadPlan, model: ModelIO, processes: int, connection_requests: int) -> Check:
    """Measure what a load process can send (some seconds) and compare it with what the load can ask for."""
    cost_s = capacity.cpu_per_request_s(model, connection_requests)
    if not cost_s > 0:
        return Check(name="load generator", status=FAIL, detail="it sent nothing in a trial of its own",
                     cure="Look for what keeps processes from running on this machine.")  # fmt: skip
    return judged(cost_s, capacity.asked_rps(plan), processes)


def judged(cost_s: float, asked_rps: float, processes: int) -> Check:
    """Return the verdict on a load of so many requests per second at so much CPU time each."""
    share = asked_rps * cost_s / processes
    detail = (
        f"{1e3 * cost_s:.2f} ms of CPU per request; at most {asked_rps:.0f} requests/s "
        f"take {share:.0%} of a core in each of {processes} processes"
    )
    if share <= CALM:
        return Check(name="load generator", status=OK, detail=detail)
    need = math.ceil(asked_rps * cost_s / CALM) if math.isfinite(share) else 0
    cure = f"Set cluster.users_processes={need}." if need else "Let users think."
    return Check(name="load generator", status=FAIL if share > BUSY else WARN, detail=detail, cure=cure)
