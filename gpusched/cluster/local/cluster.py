"""cluster=local: replicas are Triton processes on loopback ports; everything else is what `live` does anywhere."""

from __future__ import annotations

import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpusched.cluster.local import parts, repository
from gpusched.cluster.local.autoscaler import Autoscaler, Clocks
from gpusched.cluster.local.control import ControlPlane, Order, Parts
from gpusched.cluster.local.front import Front
from gpusched.cluster.local.processes import Processes
from gpusched.cluster.local.replica import Probes
from gpusched.cluster.local.scraping import NAMESPACE, Exporter, Prometheus
from gpusched.core.audit import Audit
from gpusched.core.check import FAIL, OK, Check
from gpusched.core.controls import UNSET, Controls, Limits
from gpusched.core.errors import ClusterError, InputError, refuse
from gpusched.live.cluster import LiveCluster
from gpusched.live.state import Endpoint, ReplicaState

PREFIX = "gpusched"
STOP_S = 3.0
"""What Triton needs to stop once nobody is connected; it gives up on connections so long before it is killed."""
HELPERS_S, LOOK_S = 30.0, 0.05
"""How long HAProxy and Prometheus may take; Prometheus looks for new targets every five seconds."""


class LocalCluster(LiveCluster):
    """Wall time on this host. The profile says how replicas are configured, not how fast they are."""

    @dataclass(kw_only=True)
    class Config(LiveCluster.Config):
        """What the host needs beside what every real cluster does.

        triton            virtual environment that holds Triton, made by `make local`
        onnx              model file; "" = MobileNetV4-conv-small with random weights, made by `make local`
        threads           threads of one Triton instance
        emulate_alpha_s   unless this and the next are 0, nothing is inferred: a batch of b sleeps alpha + beta·b,
        emulate_beta_s    which leaves the cores to everything else; such a run is no result, and its audit says so
        advisor_s         CPU of a replica is read after one to two of these, as cAdvisor does
        metrics_server_s  how often these readings are collected for the HPA
        hpa_sync_s        how often the HPA decides
        """

        triton: str
        onnx: str
        threads: int
        emulate_alpha_s: float
        emulate_beta_s: float
        advisor_s: float
        metrics_server_s: float
        hpa_sync_s: float

        def __post_init__(self) -> None:
            LiveCluster.Config.__post_init__(self)
            for key in ("advisor_s", "metrics_server_s", "hpa_sync_s"):
                if not getattr(self, key) > 0:
                    raise refuse(key, getattr(self, key), "must be greater than 0 s")
            for key in ("emulate_alpha_s", "emulate_beta_s"):
                if not 0 <= getattr(self, key) <= 10:
                    raise refuse(key, getattr(self, key), "must lie in 0..10 s")
            if not 1 <= self.threads <= 64:
                raise refuse("threads", self.threads, "must lie in 1..64")

    config: Config

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(config, **more)
        _refuse_levers(self.limits)
        self.processes: Processes | None = None
        self.exporter: Exporter | None = None
        self.plane: ControlPlane | None = None

    # --- the hooks of a real cluster ---

    def take(self) -> None:
        triton = parts.triton(Path(self.config.triton).absolute())
        onnx = parts.network(Path(self.config.triton), self.config.onnx)
        for name in ("haproxy", "prometheus"):
            parts.program(name, name)
        self.prefix = f"{PREFIX}{os.getpid()}x{secrets.token_hex(3)}"
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        self.processes = Processes(folder, self.prefix)
        c = self.config
        told = {"onnx": onnx, "threads": c.threads, "alpha_s": c.emulate_alpha_s, "beta_s": c.emulate_beta_s}
        at = repository.write(folder, triton, self.service, c.endpoint, told)
        self.front = Front(self.processes, slots=2 * self.limits.max_replicas + 2)
        self.exporter = Exporter(self._usage)
        self.prometheus = Prometheus(self.processes, self.exporter, self.config.scrape_s)
        self.plane = self._plane(triton, at)
        self._until(
            lambda: self.front.answers() and self.prometheus.answers(),
            "HAProxy or Prometheus does not answer",
        )
        self.plane.scale(Order(replicas=self.trial.start_replicas))
        self.plane.wait_ready(self.config.ready_timeout_s)
        wanted = self.trial.start_replicas
        self._until(lambda: self.prometheus.scraped() >= wanted, "Prometheus has no metrics of the replicas")

    def checks(self) -> list[Check]:
        venv = Path(self.config.triton).absolute()
        looks: dict[str, Callable[[], object]] = {
            "Triton": lambda: parts.triton(venv).told,
            "model": lambda: parts.network(venv, self.config.onnx),
            "HAProxy": lambda: parts.program("haproxy", "haproxy"),
            "Prometheus": lambda: parts.program("prometheus", "prometheus"),
        }
        return [_looked_at(name, look) for name, look in looks.items()]

    def apply(self, controls: Controls, deadline_s: float) -> None:
        _refuse_controls(controls, self.service.constants())
        replicas = int(controls.replicas_E[0])
        target_E = controls.hpa_target_E
        order = Order(
            replicas=None if replicas == UNSET else replicas,
            spec=controls.hpa,
            target=None if target_E is None else float(target_E[0]),
        )
        self._running.scale(order)

    def state(self) -> ReplicaState:
        return self._running.state()

    def endpoint(self) -> Endpoint:
        return self.at([self.front.url])

    def prometheus_url(self) -> str:
        return self.prometheus.url

    def selectors(self) -> dict[str, str]:
        return {"model": self.config.endpoint.model, "namespace": NAMESPACE, "pods": "replica-.*", "node": ""}

    def give_back(self) -> None:
        plane, exporter, processes = self.plane, self.exporter, self.processes
        self.plane = self.exporter = self.processes = None
        try:
            if plane:
                plane.end()
            if exporter:
                exporter.close()
        finally:
            if processes:
                processes.end()

    def audit_more(self, audit: Audit) -> Audit:
        """An emulated answer is none, whatever the clients made of it."""
        return replace(audit, real_share=0.0) if self.emulated else audit

    # --- parts ---

    @property
    def emulated(self) -> bool:
        return self.config.emulate_alpha_s > 0 or self.config.emulate_beta_s > 0

    @property
    def _running(self) -> ControlPlane:
        if self.plane is None:
            raise ClusterError(
                "The local cluster is not running: it has not been started, or was given back."
            )
        return self.plane

    def _usage(self) -> Any:
        return self.plane.usage() if self.plane else {}

    def _plane(self, triton: parts.Triton, at: repository.Repository) -> ControlPlane:
        assert self.processes
        value = {name: constant.value for name, constant in self.service.constants().items()}
        c, rng = self.config, random.Random()
        probes = Probes(
            delay_s=value["probe_delay_s"],
            period_s=value["probe_period_s"],
            prestop_s=value["prestop_s"],
            grace_s=value["grace_s"],
        )
        clocks = Clocks(
            scrape_s=c.scrape_s,
            window_s=c.window_s,
            advisor_s=c.advisor_s,
            metrics_server_s=c.metrics_server_s,
            hpa_sync_s=c.hpa_sync_s,
        )
        return ControlPlane(
            Parts(
                processes=self.processes,
                front=self.front,
                prometheus=self.prometheus,
                autoscaler=Autoscaler(clocks, value["cpu_request_cores"], c.endpoint.model, rng),
                probes=probes,
                command=partial(
                    repository.command, triton, at, exit_s=value["grace_s"] - value["prestop_s"] - STOP_S
                ),
                environment=dict(triton.environment),
                prefix=self.prefix,
                rng=rng,
            )
        )

    def _until(self, until: Callable[[], bool], else_told: str) -> None:
        assert self.processes
        until_s = time.monotonic() + HELPERS_S
        while not until():
            codes = self.processes.exits()
            self.front.check(codes)
            self.prometheus.check(codes)
            if time.monotonic() > until_s:
                raise ClusterError(f"{else_told} within {HELPERS_S:g} s. Is the host overloaded?")
            time.sleep(LOOK_S)


def _looked_at(name: str, look: Callable[[], object]) -> Check:
    try:
        return Check(name=name, status=OK, detail=str(look()))
    except ClusterError as error:
        what, _, cure = str(error).rpartition(". ")
        return Check(name=name, status=FAIL, detail=f"{what}.", cure=cure)


def _refuse_levers(limits: Limits) -> None:
    """Raise InputError for an action whose levers processes of a host do not have."""
    for key, offered in (("cpu_cores", limits.cpu_cores), ("instances", limits.instances), ("gpu_shares", limits.gpu_shares)):  # fmt: skip
        if len(offered) > 1:
            raise InputError(
                f"action.{key} = {offered}: cluster=local runs plain processes and can change their number only. "
                "Choose action=replicas or action=hpa_target, or another cluster."
            )


def _refuse_controls(controls: Controls, constants: Any) -> None:
    """Raise ClusterError for a value that differs from the one the processes were started with."""
    given = {
        "cpu_cores": (controls.cpu_cores_E, constants["cpu_limit_cores"].value),
        "instances": (controls.instances_E, constants["instances"].value),
        "gpu_share": (controls.gpu_share_E, 1.0),
    }
    for name, (asked_E, now) in given.items():
        if asked_E is not None and not np.allclose(asked_E, now):
            raise ClusterError(f"{name} = {asked_E[0]:g}: cluster=local cannot change it, it is {now:g}.")
