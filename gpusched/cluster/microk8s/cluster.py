"""A Kubernetes cluster behind the Cluster port: one Deployment is scaled, sized and autoscaled, and given back."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gpusched.cluster.microk8s import address, checks
from gpusched.cluster.microk8s.actuator import Target
from gpusched.cluster.microk8s.client import Access, Api, Deadline
from gpusched.cluster.microk8s.desired import wanted
from gpusched.cluster.microk8s.failures import Unreachable
from gpusched.cluster.microk8s.hold import Hold
from gpusched.cluster.microk8s.hpa import MetricNames
from gpusched.core.audit import Audit
from gpusched.core.check import FAIL, Check
from gpusched.core.controls import Controls
from gpusched.core.errors import ClusterError, refuse
from gpusched.live import machine
from gpusched.live.checks import metrics
from gpusched.live.cluster import LiveCluster
from gpusched.live.state import Endpoint, ReplicaState

log = logging.getLogger(__name__)

STATE_S = 0.6
"""What looking at the replicas may take: a fraction of the second between two looks."""


class Microk8sCluster(LiveCluster):
    """Any conformant Kubernetes from 1.28 on; the name says what install.sh sets up.

    Changes only objects labelled app.kubernetes.io/part-of=gpusched in one namespace, and puts them back.
    """

    makes_servers: ClassVar[bool] = False

    @dataclass(kw_only=True)
    class Config(LiveCluster.Config):
        """Where the service is, and what its levers are called there; "" = found out.

        kubeconfig       "" = $KUBECONFIG, ~/.kube/config, the pod's service account, MicroK8s' own file
        instances_env    variable of the pods that sets Triton's instance count
        instances_value  its value, with {} for the count
        metrics          names in the custom and external metrics APIs
        url              Triton's HTTP as the users reach it, host:port; "" = the Service's address
        prometheus       Prometheus' URL
        call_timeout_s   silence after which one call to the API server is given up and tried again
        restore_s        longest time giving the cluster back may take
        """

        namespace: str
        deployment: str
        container: str
        service: str
        kubeconfig: str = ""
        context: str = ""
        instances_env: str = "TRITON_CONFIG"
        instances_value: str = "instances-{}"
        metrics: MetricNames = field(default_factory=MetricNames)
        url: str = ""
        prometheus: str = ""
        call_timeout_s: float = 5.0
        restore_s: float = 60.0

        def __post_init__(self) -> None:
            super().__post_init__()
            for key in ("namespace", "deployment", "container", "service", "instances_env"):
                if not getattr(self, key).strip():
                    raise refuse(key, getattr(self, key), "must be a name")
            if self.instances_value.count("{}") != 1 or self.instances_value.count("{") != 1:
                raise refuse(
                    "instances_value", self.instances_value, "must hold {} once, where the count stands"
                )
            for key in ("call_timeout_s", "restore_s"):
                if not getattr(self, key) > 0:
                    raise refuse(key, getattr(self, key), "must be greater than 0 s")

    config: Config

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(config, **more)
        self.hold = Hold(
            Access(
                kubeconfig=config.kubeconfig, context=config.context, call_timeout_s=config.call_timeout_s
            ),
            Target(
                namespace=config.namespace,
                deployment=config.deployment,
                container=config.container,
                instances_env=config.instances_env,
                instances_value=config.instances_value,
                metrics=config.metrics,
            ),
            trial=" ".join(sys.argv[1:])[:200],
        )
        self._silent_since_s = math.inf
        """When the first of the calls in a row that went unanswered began."""

    @property
    def _instances(self) -> int:
        return int(self.service.instances.value)

    def take(self) -> None:
        self.hold.take(self.config.restore_s)
        start = Controls(
            replicas_E=np.array([self.trial.start_replicas]),
            cpu_cores_E=np.array([self.service.cpu_limit_cores.value]),
            instances_E=np.array([self._instances]),
        )
        timeout_s = self.config.ready_timeout_s
        self.hold.apply(wanted(start, self.limits), Deadline(timeout_s), self._instances)
        self.hold.wait_ready(self.trial.start_replicas, timeout_s)

    def apply(self, controls: Controls, deadline_s: float) -> None:
        begun_s = time.monotonic()
        try:
            self.hold.apply(wanted(controls, self.limits), Deadline(deadline_s), self._instances)
        except Unreachable as lost:
            self._silent_since_s = min(self._silent_since_s, begun_s)
            silent_s = time.monotonic() - self._silent_since_s
            if silent_s > self.config.lost_metrics_s:
                raise ClusterError(f"{lost} Nothing could be set for {silent_s:.0f} s.") from lost
            raise TimeoutError(str(lost)) from lost
        self._silent_since_s = math.inf

    def state(self) -> ReplicaState:
        return self.hold.state(Deadline(STATE_S))

    def endpoint(self) -> Endpoint:
        c = self.config
        url = c.url or address.service_url(self.api, c.namespace, c.service, Deadline(c.call_timeout_s * 2))
        return self.at([url.removeprefix("http://").rstrip("/")])

    def prometheus_url(self) -> str:
        given = self.config.prometheus
        return given or address.prometheus_url(self.api, Deadline(self.config.call_timeout_s * 2))

    def selectors(self) -> dict[str, str]:
        c = self.config
        nodes = "|".join(re.escape(node) for node in self.hold.nodes(Deadline(c.call_timeout_s * 2)))
        # A Deployment's pods are named after it, its ReplicaSet's hash and a suffix of five.
        pods = f"{re.escape(c.deployment)}-[a-z0-9]+-[a-z0-9]{{5}}"
        return {"model": c.endpoint.model, "namespace": c.namespace, "pods": pods, "node": nodes}

    def checks(self) -> list[Check]:
        c = self.config
        found = checks.run(self.hold, c.service, c.url, self.limits.max_replicas)
        if found[0].status == FAIL:
            return found
        found.append(checks.profile(self.hold, self.service))
        try:
            times = {"scrape_s": c.scrape_s, "window_s": c.window_s, "cpu_window_s": c.cpu_window_s}
            return [*found, *metrics(self.prometheus_url(), self.selectors(), **times)]
        except ClusterError as error:
            return [*found, Check(name="Prometheus", status=FAIL, detail=str(error))]

    def audit_more(self, audit: Audit) -> Audit:
        """The GPU is this machine's where MicroK8s runs on it; elsewhere there is nothing to tell."""
        audit.foreign_gpu_processes = len(machine.foreign_gpu_processes())
        audit.throttled = bool(machine.throttled())
        return audit

    @property
    def api(self) -> Api:
        return self.hold.api

    def give_back(self) -> None:
        self.hold.give_back(self.config.restore_s)

    def restore(self) -> list[str]:
        """Undo what a dead trial left, and nothing else; returns what was done, in words."""
        return self.hold.restore(self.config.restore_s)
