"""Prometheus, asked once a tick in one bounded round; what was read last, and how old it is."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_api_client import PrometheusConnect

from gpusched.core.errors import ClusterError
from gpusched.live import queries

log = logging.getLogger(__name__)

SHOWN = 160
"""Characters of an error's end that the log shows: its cause stands there, behind the whole query."""
LEVELS = {**queries.OBSERVED, **queries.NODE}


@dataclass(kw_only=True)
class Round:
    """One answer of Prometheus.

    levels    value by field of queries.OBSERVED and NODE, NaN where there is none
    counters  value by field of queries.COUNTED and pod
    stamps    time of the newest sample by field of queries.SCRAPED, on Prometheus' clock and on ours
    """

    levels: dict[str, float]
    counters: dict[tuple[str, str], float]
    stamps: dict[str, tuple[float, float]]


@dataclass
class Growth:
    """What counters of replicas that come, restart and go have grown by since they were first read.

    A replica seen later has counted from 0 while we watched, so all of it counts; one that restarted counts from 0. But
    Triton counts the batches of its own warm-up, so a new replica's batches count from its first reading on.
    What is not a finite number is no reading.
    """

    last: dict[tuple[str, str], float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)

    def add(self, counters: Mapping[tuple[str, str], float]) -> None:
        read = {key: value for key, value in counters.items() if math.isfinite(value)}
        first = {name for name, _ in read} - set(self.total)
        for key, value in read.items():
            name = key[0]
            unseen = value if name in first or name == "batches" else 0.0
            before = self.last.get(key, unseen)
            self.total[name] = self.total.get(name, 0.0) + (value - before if value >= before else value)
            self.last[key] = value

    def begin(self) -> None:
        """Count from the last reading on."""
        self.total = dict.fromkeys(self.total, 0.0)

    def of(self, name: str) -> float:
        """Return the growth of all replicas' counters together, NaN before the first reading."""
        return self.total.get(name, math.nan)


class Telemetry:
    """The last known readings. Times are seconds of time.monotonic().

    A round that fails, hangs or brings no newer sample changes nothing: values stay as they were and age.
    """

    def __init__(
        self,
        url: str,
        selectors: Mapping[str, str],
        *,
        window_s: float,
        cpu_window_s: float,
        timeout_s: float,
    ) -> None:
        self.url, self.selectors, self.timeout_s = url, selectors, timeout_s
        self.windows = {"window_s": window_s, "cpu_window_s": cpu_window_s}
        # No retries: the next tick asks again.
        self.prometheus = PrometheusConnect(url=url, disable_ssl=True, retry=0, timeout=timeout_s)
        every = {**LEVELS, **queries.SCRAPED, **queries.COUNTED}
        self.query = self._render(queries.combined(every))
        self.levels = dict.fromkeys(LEVELS, math.nan)
        self.growth = Growth()
        self.replicas = 0
        """Replicas in the last answer of which it had every counter that it had of any."""
        self.stamps = dict.fromkeys(queries.SCRAPED, (-math.inf, -math.inf))
        self.problem = ""
        self.answered = False
        """Prometheus has answered at least once, whatever it knows."""
        self._thread: threading.Thread | None = None
        self._answer: Round | Exception | None = None

    def _render(self, template: str) -> str:
        return queries.render(template, self.selectors, **self.windows)

    def sample(self, wait_s: float) -> None:
        """Take in what Prometheus says, waiting no longer than `wait_s`; an answer that comes later is the next call's."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, daemon=True, name="telemetry")
            self._thread.start()
        self._thread.join(wait_s)
        if self._thread.is_alive() and self._answer is None:
            self._answer = TimeoutError(f"no answer in {wait_s:g} s")
        answer, self._answer = self._answer, None
        if isinstance(answer, Round):
            self._take(answer)
        elif answer is not None:
            self._tell(f"{type(answer).__name__}: {str(answer)[-SHOWN:]}")

    @property
    def scraped_s(self) -> float:
        """When the newest sample of Triton was taken, -inf without one."""
        return self.stamps["scraped_s"][1]

    @property
    def gpu_scraped_s(self) -> float:
        """When the newest sample of the GPU was taken, -inf without one."""
        return self.stamps["gpu_scraped_s"][1]

    def _ask(self) -> None:
        try:
            self._answer = self._round()
        except Exception as error:  # refused, hung up, 5xx, no JSON, another shape: all the same to a policy
            self._answer = error

    def _round(self) -> Round:
        asked_s = time.monotonic()
        series = self.prometheus.custom_query(self.query)
        # In the middle of the call, give or take half of it.
        now_s = 0.5 * (asked_s + time.monotonic())
        fresh = Round(levels=dict.fromkeys(LEVELS, math.nan), counters={}, stamps={})
        for one in series:
            labels, (at, text) = one["metric"], one["value"]
            name, value = labels["field"], _finite(text)
            if name in queries.SCRAPED:
                # Age by Prometheus' own clock, which need not be ours.
                fresh.stamps[name] = value, now_s - (float(at) - value)
            elif name in queries.COUNTED:
                fresh.counters[name, labels.get("pod", "")] = value
            else:
                fresh.levels[name] = value
        return fresh

    def _take(self, fresh: Round) -> None:
        self.answered = True
        self._tell("" if "scraped_s" in fresh.stamps else "Triton's metrics are not there")
        gpu = {name: fresh.levels[name] for name in queries.OF_THE_DEVICE}
        if self._is_new(fresh, "scraped_s"):
            self.levels.update({name: value for name, value in fresh.levels.items() if name not in gpu})
            self.growth.add(fresh.counters)
            known = Counter(name for (name, _), value in fresh.counters.items() if math.isfinite(value))
            self.replicas = min(known.values(), default=0)
        if self._is_new(fresh, "gpu_scraped_s"):
            self.levels.update(gpu)

    def _is_new(self, fresh: Round, name: str) -> bool:
        """Take the time of a sample newer than the last; a rate of old samples would only shrink with time.

        An older one comes of a second Prometheus behind the same Service: its counters would look like restarts.
        """
        stamp = fresh.stamps.get(name)
        if stamp is None or not stamp[0] > self.stamps[name][0]:
            return False
        self.stamps[name] = stamp
        return True

    def _tell(self, problem: str) -> None:
        """Log the beginning and the end of an outage, once each."""
        if problem and not self.problem:
            log.warning("metrics of %s are lost: %s", self.url, problem)
        elif self.problem and not problem:
            log.info("metrics of %s are back", self.url)
        self.problem = problem

    def by_pod(self, name: str) -> dict[str, float]:
        """Return one reading per replica, asked now; InputError for a GPU reading."""
        query = self._render(queries.by_pod(name))
        try:
            series = self.prometheus.custom_query(query)
            return {one["metric"].get("pod", ""): _finite(one["value"][1]) for one in series}
        except Exception as error:
            raise ClusterError(f"Prometheus at {self.url} did not answer ({error}).") from None

    def close(self) -> None:
        self.prometheus.close()


def _finite(text: Any) -> float:
    """Return a sample's value; NaN for Inf, which is something divided by nothing."""
    value = float(text)
    return value if math.isfinite(value) else math.nan
