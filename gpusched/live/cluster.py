"""A trial in wall time: users, telemetry, tick record and the way back, for every cluster of real replicas."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from gpusched.core.audit import Audit
from gpusched.core.controls import Controls, HPASpec
from gpusched.core.errors import ClusterError, GpuschedError, InputError, refuse
from gpusched.core.logs import RequestLog, TickLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Cluster, Episode
from gpusched.live.book import Book, Mean
from gpusched.live.ledger import Ledger
from gpusched.live.load import Load
from gpusched.live.plan import UsersPlan
from gpusched.live.state import Endpoint, ModelIO, ReplicaState
from gpusched.live.telemetry import Telemetry

log = logging.getLogger(__name__)

STATE_S = 1.0
"""The replicas are asked about this often."""
START_S = 0.2
"""From the order to begin until the clock's 0, so that every load process has heard it."""
PATIENCE, PATIENCE_S = 0.4, 2.0
"""Longest wait for Prometheus: a share of the tick, and seconds."""
SILENT_S = 30.0
"""A load process that has not written its beat of one second for this long hangs."""
APPLY_SHARE, LEAST_S = 0.9, 0.05
"""Time given to set the controls: a share of what is left of the tick, and at least this many seconds."""


class LiveCluster(Cluster):
    """One environment in wall time. A subclass says how replicas are taken, changed, seen and given back.

    Every hook is called from the thread that called `reset`, `step` or `close`, never two at once.
    """

    real: ClassVar[bool] = True
    COUNTED_S: ClassVar[float] = 45.0
    """Longest wait for Prometheus to know new replicas: 5 s until they are targets, cAdvisor's 20 s, two scrapes."""

    @dataclass(kw_only=True)
    class Config:
        """What every real cluster needs to know beside its own keys.

        scrape_s           how often Prometheus scrapes
        window_s           what a policy sees are rates and quantiles over this long
        cpu_window_s       range of the CPU rate; cAdvisor reads a container every 10 to 20 s only
        lost_metrics_s     age of the last scrape after which the HPA `fallback` replaces the policy
        ready_timeout_s    longest wait for the start replicas
        users_processes    processes the users are spread over
        request_timeout_s  a request without an answer for this long has failed
        endpoint           the model the users call
        fallback           the HPA that takes over when metrics are lost
        """

        scrape_s: float = 5.0
        window_s: float = 30.0
        cpu_window_s: float = 60.0
        lost_metrics_s: float = 60.0
        ready_timeout_s: float = 180.0
        users_processes: int = 1
        request_timeout_s: float = 10.0
        endpoint: ModelIO
        fallback: HPASpec = field(default_factory=lambda: HPASpec(metric="cpu", target=70.0))

        def __post_init__(self) -> None:
            for key in ("scrape_s", "lost_metrics_s", "ready_timeout_s", "request_timeout_s"):
                if not getattr(self, key) > 0:
                    raise refuse(key, getattr(self, key), "must be greater than 0 s")
            for key in ("window_s", "cpu_window_s"):
                if not getattr(self, key) >= 2 * self.scrape_s:
                    raise refuse(
                        key, getattr(self, key), f"must be at least twice scrape_s ({self.scrape_s} s)"
                    )
            if not 1 <= self.users_processes <= 64:
                raise refuse("users_processes", self.users_processes, "must lie in 1..64")

    config: Config

    # --- what a subclass must give ---

    @abstractmethod
    def take(self) -> None:
        """Take hold: check, restore what a dead trial left, write the journal, wait until the start replicas are ready.

        Brings `self.trial.start_replicas` up with the service profile's resources and without an HPA, within
        `self.config.ready_timeout_s`. Raises ClusterError otherwise; `give_back` is called then too.
        """

    @abstractmethod
    def apply(self, controls: Controls, deadline_s: float) -> None:
        """Set the desired state; returns as soon as it is set, within `deadline_s` seconds from the call.

        Idempotent, does not wait for pods. `replicas_E` is within the limits or UNSET already. With `hpa` None an
        HPA of ours must be gone before the replicas are set.
        Raises TimeoutError where it could not be done in time: it is called again with the same controls after
        the next tick. Raises ClusterError where it never can.
        """

    @abstractmethod
    def state(self) -> ReplicaState:
        """Return the replicas as the control plane shows them; asked about once a second, so cheap.

        Must not block longer than a fraction of a second: where the control plane does not answer, return the last
        known state.
        """

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Return where users send; asked once, after `take`. See `at`."""

    @abstractmethod
    def prometheus_url(self) -> str:
        """Return Prometheus' address, "http://host:port"; asked once, after `take`."""

    @abstractmethod
    def selectors(self) -> dict[str, str]:
        """Return the values the templates in live/queries.py need (`queries.SELECTORS`); asked once, after `take`."""

    @abstractmethod
    def give_back(self) -> None:
        """Restore everything `take` and `apply` changed. Idempotent; must not raise on what is already gone.

        Called once from `close`, after the users have stopped, whether or not `take` succeeded.
        """

    def audit_more(self, audit: Audit) -> Audit:
        """Return the audit with what only this cluster knows: foreign GPU processes, throttling."""
        return audit

    # --- the port ---

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(config, **more)
        if self.envs != 1:
            raise InputError(
                f"a real cluster has one environment, {self.envs} were asked for. "
                "A learning policy trains on the cluster policy.train_cluster."
            )
        self.held = False
        self.load: Load | None = None
        self.book: Book | None = None
        self.asked: Controls | None = None

    def at(self, urls: list[str]) -> Endpoint:
        """Return the configured model at these addresses."""
        return Endpoint(**asdict(self.config.endpoint), urls=urls)

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        self.close()
        self.held = True
        with self._given_back():
            self.take()
            self._begin(episodes[0])
            self._live(self.trial.warmup_s)
        return self._told.observation(self.now_s)

    def step(self, controls: Controls) -> Observation:
        with self._given_back():
            self.asked = self._checked(controls)
            self.interval_s = self.now_s
            self._decide()
            self._live(self.now_s + self.trial.control_s)
        return self._told.observation(self.now_s)

    def outcome(self) -> Outcome:
        return self._told.outcome(self.interval_s, self.now_s)

    def logs(self, env: int = 0) -> tuple[RequestLog, TickLog]:
        self._hear()
        return self._told.ledger.log(self.now_s), self._told.final_ticks()

    def audit(self) -> Audit:
        ledger = self._told.ledger
        return self.audit_more(
            Audit(
                client_cpu_share=ledger.cpu_share,
                schedule_lag_p99_s=ledger.lag_p99_s,
                real_share=ledger.real_share,
                telemetry_lost_s=self.lost_s,
                fell_back=self.fell_back,
            )
        )

    def close(self) -> None:
        """Stop the users and give everything back, once; also after a failed or interrupted reset or step."""
        if not self.held:
            return
        self.held = False
        with ExitStack() as rest:
            rest.callback(self.give_back)
            if self.book is not None:
                rest.callback(self.book.telemetry.close)
            if self.load is not None:
                rest.callback(self.load.stop)
                self._hear()

    @contextmanager
    def _given_back(self) -> Iterator[None]:
        """Close on any way out but the good one: Ctrl-C and SIGTERM's SystemExit too."""
        try:
            yield
        except BaseException:
            try:
                self.close()
            except GpuschedError as left:  # the first error, or Ctrl-C, is the one to tell
                log.error("%s", left)
            raise

    @property
    def _told(self) -> Book:
        if self.book is None:
            raise RuntimeError("the cluster has not been reset")
        return self.book

    # --- wall clock ---

    def _begin(self, episode: Episode) -> None:
        """Start users and telemetry, and set the clock: every later time is on its grid, so nothing drifts."""
        c = self.config
        users = UsersPlan.made(
            episode.plan,
            episode.seed,
            self.endpoint(),
            connection_requests=int(self.service.connection_requests.value),
            timeout_s=c.request_timeout_s,
        )
        self.load = load = Load(users, c.users_processes)
        telemetry = Telemetry(
            self.prometheus_url(),
            self.selectors(),
            window_s=c.window_s,
            cpu_window_s=c.cpu_window_s,
            timeout_s=self._patience_s,
        )
        load.start()
        self._meet(telemetry)
        self.t0_s = time.monotonic() + START_S
        self.now_s = self.interval_s = self.lost_s = 0.0
        self.ticks = 0
        self.asked = None
        self.unset = self.fell_back = self.in_fallback = False
        load.begin(self.t0_s)
        self.book = Book(
            service=self.service,
            limits=self.limits,
            slo_s=self.slo_s,
            plan=episode.plan,
            window_s=c.window_s,
            ledger=Ledger(self.t0_s, self.slo_s),
            telemetry=telemetry,
            mean=Mean(self.state(), 0.0),
            loaded=bool(load),
        )
        self._wait(0.0)

    def _meet(self, telemetry: Telemetry) -> None:
        """Ask until the counters of all start replicas are known: what they show so far is not this trial's."""
        wanted, until_s = self.trial.start_replicas, time.monotonic() + self.COUNTED_S
        telemetry.sample(self._patience_s)
        while telemetry.replicas < wanted and time.monotonic() < until_s:
            time.sleep(0.5 * self.config.scrape_s)
            self.state()  # which also renews what tells others that the cluster is held
            telemetry.sample(self._patience_s)
        if telemetry.replicas < wanted:
            log.warning(
                "Prometheus has the counters of %d of %d replicas after %g s: those it meets later count from their start. "
                "Let it scrape every replica and the kubelet.", telemetry.replicas, wanted, self.COUNTED_S
            )  # fmt: skip
        telemetry.growth.begin()

    @property
    def _patience_s(self) -> float:
        """Longest wait for Prometheus in a tick."""
        return min(PATIENCE_S, PATIENCE * self.trial.tick_s)

    def _clock_s(self) -> float:
        return time.monotonic() - self.t0_s

    def _wait(self, t_s: float) -> None:
        time.sleep(max(t_s - self._clock_s(), 0.0))

    def _live(self, until_s: float) -> None:
        """Live through the ticks up to a time."""
        for _ in range(round((until_s - self.now_s) / self.trial.tick_s)):
            self._tick()

    def _tick(self) -> None:
        """Wait for the end of a tick, asking for the state on the way, and write its row."""
        begin_s, book = self.now_s, self._told
        self.ticks += 1
        end_s = self.ticks * self.trial.tick_s
        parts = max(1, round(self.trial.tick_s / STATE_S))
        for part in range(1, parts + 1):
            self._wait(begin_s + self.trial.tick_s * part / parts)
            if self.load is not None:
                self.load.check()
            book.mean.add(self.state(), self._clock_s())
        book.telemetry.sample(self._patience_s)
        self._hear()
        self._check_alive(end_s)
        book.tick(begin_s, end_s)
        self.now_s = end_s
        self.lost_s = max(self.lost_s, min(book.age_s(end_s), end_s))
        book.cross_check(end_s, self.config.lost_metrics_s)
        if self.asked is not None and (self.unset or self._is_blind() != self.in_fallback):
            self._decide()

    def _check_alive(self, now_s: float) -> None:
        """Raise ClusterError where a load process has long been silent, though it has not ended."""
        if self.load and now_s - max(self._told.ledger.beaten_s, 0.0) > SILENT_S:
            raise ClusterError(
                f"the load process has shown no sign of life for {SILENT_S:g} s: the machine is overloaded. "
                "Lower the load, or give cluster.users_processes more of them."
            )

    def _hear(self) -> None:
        """Take in what the load processes have written."""
        if self.load is not None and self.book is not None:
            self.book.ledger.add(self.load.tail())

    # --- controls ---

    def _checked(self, controls: Controls) -> Controls:
        """Return the controls within the limits; InputError for what no cluster of this service can do."""
        shares, instances, hpa = controls.gpu_share_E, controls.instances_E, controls.hpa
        if shares is not None and self.service.sharing != "mps":
            raise InputError(
                "action gpu_share: the GPU is shared by time-slicing, which has no shares. "
                "Set service.sharing=mps, or action.gpu_shares=[1.0]."
            )
        if instances is not None and instances.max() > max(self.limits.instances):
            raise refuse("instances", int(instances.max()), f"must be one of {self.limits.instances}")
        if hpa is not None and hpa.max_replicas > self.limits.max_replicas:
            raise refuse("max_replicas", hpa.max_replicas,
                         f"must be at most trial.max_replicas ({self.limits.max_replicas})")  # fmt: skip
        asked_E = np.asarray(controls.replicas_E, dtype=np.int64)
        inside_E = np.clip(asked_E, self.limits.min_replicas, self.limits.max_replicas)
        return replace(controls, replicas_E=np.where(asked_E < 0, asked_E, inside_E))

    def _is_blind(self) -> bool:
        """True where the policy decides by metrics that are lost. An HPA left alone has the control plane's own."""
        asked = self.asked
        if asked is None or (asked.hpa is not None and _sets_only_hpa(asked)):
            return False
        return min(self._told.age_s(self.now_s), self.now_s) > self.config.lost_metrics_s

    def _decide(self) -> None:
        """Set what the policy asked for, or the fallback's HPA while its metrics are lost."""
        assert self.asked is not None
        self.in_fallback = self._is_blind()
        if self.in_fallback and not self.fell_back:
            log.warning(
                "metrics are lost for more than %g s: the HPA `fallback` takes over",
                self.config.lost_metrics_s,
            )
        self.fell_back |= self.in_fallback
        controls = Controls.autoscale(self._fallback(), 1) if self.in_fallback else self.asked
        # The next tick must not be late: less than the time that is left until then.
        left_s = self.now_s + self.trial.tick_s - self._clock_s()
        try:
            self.apply(controls, max(APPLY_SHARE * left_s, LEAST_S))
            self.unset = False
        except TimeoutError as error:
            log.warning("the controls are not set yet (%s); asked again after the next tick", error)
            self.unset = True

    def _fallback(self) -> HPASpec:
        spec, limits = self.config.fallback, self.limits
        return replace(
            spec,
            min_replicas=min(max(spec.min_replicas, limits.min_replicas), limits.max_replicas),
            max_replicas=max(min(spec.max_replicas, limits.max_replicas), limits.min_replicas),
        )


def _sets_only_hpa(controls: Controls) -> bool:
    """True where nothing but the HPA's spec is set, once and for all."""
    return all(
        getattr(controls, name) is None
        for name in ("hpa_target_E", "cpu_cores_E", "instances_E", "gpu_share_E")
    )
