"""Bring one Deployment, its HPA and its pods to what is wanted; only what differs is sent."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass, field

from gpusched.cluster.microk8s import hpa as hpas
from gpusched.cluster.microk8s.autoscalers import delete_hpa, scales
from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.desired import (
    MPS_ENV,
    Cpu,
    Wanted,
    container,
    cpu_of,
    env_of,
    template_patch,
)
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.gpu import STRATEGY, check_share
from gpusched.cluster.microk8s.kinds import (
    DEPLOYMENTS,
    HPAS,
    NODES,
    SCALE,
    Dict,
    dig,
    made_by,
    name_of,
)
from gpusched.cluster.microk8s.pods import pods_of, resize
from gpusched.cluster.microk8s.server import TOLERANCE_SINCE, Server
from gpusched.core.controls import HPASpec
from gpusched.core.errors import ClusterError

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Target:
    """The one Deployment a trial changes, and what its levers are called there.

    A container whose variable `instances_env` is `instances_value` with a number in it runs that many instances.
    """

    namespace: str
    deployment: str
    container: str
    instances_env: str = "TRITON_CONFIG"
    instances_value: str = "instances-{}"
    metrics: hpas.MetricNames = field(default_factory=hpas.MetricNames)

    def instances(self, text: str) -> float:
        """Return the number of instances a variable's value stands for; NaN for another value."""
        pattern = re.escape(self.instances_value).replace(re.escape("{}"), r"(\d+)")
        found = re.fullmatch(pattern, text)
        return float(found[1]) if found else math.nan

    def __str__(self) -> str:
        return f"Deployment {self.deployment} in namespace {self.namespace}"


class Actuator:
    """Sets levers, idempotently.

    In-place resize changes running pods only: the template stays as it is, because changing it would roll every pod
    out anew. New pods start at the template's size and `resize_new` brings them to the wanted one as soon as they
    are seen. Without in-place resize the template is changed, and the rollout is the price.
    """

    def __init__(self, api: Api, server: Server, target: Target, deployment: Dict, holder: str) -> None:
        self.api, self.server, self.target, self.holder = api, server, target, holder
        self.start_cpu = cpu_of(self._container(deployment), str(target))
        self.cpu: Cpu | None = None
        self.hpa_target = math.nan
        self.hpa_from = Deadline(0.0)
        """No HPA is made before: one of the same name was removed, and the controller still remembers it."""
        self._hpa_sent: Dict | None = None
        self._share_checked: float | None = None

    def _container(self, deployment: Dict) -> Dict:
        return container(dig(deployment, "spec", "template"), self.target.container, str(self.target))

    def read(self, deadline: Deadline) -> Dict:
        """Return the Deployment as it is; ClusterError where it is gone."""
        t = self.target
        found = self.api.get(DEPLOYMENTS, t.namespace, t.deployment, deadline)
        if found is None:
            raise ClusterError(
                f"{t}: is gone; somebody deleted it or its namespace while the trial ran. Set the service up again "
                "(manifests/) and repeat the trial."
            )
        return found

    def apply(self, wanted: Wanted, deadline: Deadline, instances_known: int = 0) -> None:
        """Set what is wanted and return without waiting for pods.

        `instances_known` is what one replica runs where the Deployment has no lever for it.
        """
        deployment = self.read(deadline)
        hpa = self._hpa(deadline)
        if wanted.hpa is not None:
            self._autoscale(wanted.hpa, hpa, deadline)
        elif wanted.replicas is not None:
            self._scale(deployment, wanted.replicas, hpa, deadline)
        self._roll(deployment, wanted, instances_known, deadline)
        if wanted.cpu_cores is not None and self.server.resize:
            self.cpu = self.start_cpu.scaled(wanted.cpu_cores)
        self.resize_new(pods_of(self.api, self.target.namespace, deployment, deadline), deadline)

    def _hpa(self, deadline: Deadline) -> Dict | None:
        """Return the HPA of our name, None without one; ClusterError where one that is not ours scales the Deployment.

        Whatever deploys the service may make the one again that `take` set aside. It would scale against the policy;
        beside ours, neither would scale (AmbiguousSelector).
        """
        t, named = self.target, None
        for hpa in self.api.list(HPAS, t.namespace, deadline):
            if name_of(hpa) == t.deployment:
                named = hpa
            if scales(hpa, t.deployment) and (hpa is not named or made_by(hpa) != self.holder):
                raise self._not_ours(hpa)
        return named

    def _not_ours(self, hpa: Dict) -> ClusterError:
        name, namespace = name_of(hpa), self.target.namespace
        return ClusterError(
            f"HorizontalPodAutoscaler {name} in namespace {namespace}: appeared during the trial and is not ours. "
            f"Remove what made it, then repeat the trial: kubectl delete hpa {name} -n {namespace}"
        )

    def _scale(self, deployment: Dict, replicas: int, hpa: Dict | None, deadline: Deadline) -> None:
        """Set the replica count; an HPA of ours would undo it, so it goes first."""
        t = self.target
        if hpa is not None and made_by(hpa) == self.holder:
            delete_hpa(self.api, hpa, deadline)
        self.hpa_target = math.nan
        if dig(deployment, "spec", "replicas") != replicas:
            body = {"spec": {"replicas": replicas}}
            self.api.call("patch", SCALE, t.namespace, t.deployment, body=body, deadline=deadline)

    def _autoscale(self, spec: HPASpec, live: Dict | None, deadline: Deadline) -> None:
        """Create or change our HPA by server-side apply.

        `force` takes fields back that somebody else has changed in the HPA we made; it is never used on one that
        somebody else made, which is refused.
        """
        t = self.target
        wanted = hpas.manifest(spec, t.metrics, t.namespace, t.deployment, self.holder)
        if live is None:
            self._wait_to_make(deadline)
        elif made_by(live) != self.holder:
            raise self._not_ours(live)
        # `holds` does not see what is there beyond what is wanted: fields of our last one, which an apply takes away.
        if live is None or self._hpa_sent not in (None, wanted) or not hpas.holds(wanted, live):
            self._check_tolerance(spec)
            live = self.api.call(
                "patch", HPAS, t.namespace, t.deployment, body=wanted, patch="apply",
                query={"force": "false" if live is None else "true"}, deadline=deadline,
            )  # fmt: skip
            live = self._without_behavior(wanted, live, deadline)
            self._hpa_sent = wanted
        self._check_kept(wanted, live)
        self.hpa_target = spec.target

    def _wait_to_make(self, deadline: Deadline) -> None:
        """Return once an HPA may be made; TimeoutError where the deadline comes first."""
        wait_s = self.hpa_from.left_s
        if wait_s >= deadline.left_s:
            raise TimeoutError(
                f"an HPA of this name was removed, and its controller forgets it in {wait_s:.0f} s"
            )
        time.sleep(max(wait_s, 0.0))

    def _without_behavior(self, wanted: Dict, live: Dict, deadline: Deadline) -> Dict:
        """Remove a behaviour that an earlier spec left: what the API filled in itself belongs to nobody and stays."""
        if "behavior" in wanted["spec"] or dig(live, "spec", "behavior") is None:
            return live
        t = self.target
        body = {"spec": {"behavior": None}}
        return self.api.call("patch", HPAS, t.namespace, t.deployment, body=body, deadline=deadline)

    def _check_tolerance(self, spec: HPASpec) -> None:
        given = [d for d in (spec.scale_up, spec.scale_down) if d is not None and d.tolerance is not None]
        if given and self.server.version < TOLERANCE_SINCE:
            raise self._no_tolerance()

    def _check_kept(self, wanted: Dict, live: Dict) -> None:
        """Raise ClusterError where the server took the object but not all of it."""
        lost = list(hpas.lost(wanted["spec"], live.get("spec")))
        if any(path.endswith("tolerance") for path in lost):
            raise self._no_tolerance()
        if lost:
            raise ClusterError(
                f"HorizontalPodAutoscaler {self.target.deployment}: the server did not keep {', '.join(lost)}. Does "
                "an admission webhook or another controller change it?"
            )

    def _no_tolerance(self) -> ClusterError:
        return ClusterError(
            f"tolerance: Kubernetes {self.server} has no tolerance per HPA (feature gate HPAConfigurableTolerance, on by "
            "default from 1.35). Leave it out, or use a newer server."
        )

    def _roll(self, deployment: Dict, wanted: Wanted, instances_known: int, deadline: Deadline) -> None:
        """Change the pod template where a lever needs it: one patch, so one rollout."""
        t = self.target
        one = self._container(deployment)
        resources, env = None, {}
        if wanted.cpu_cores is not None and not self.server.resize:
            cpu = self.start_cpu.scaled(wanted.cpu_cores)
            resources = cpu.as_resources() if cpu != cpu_of(one, str(t)) else None
        if wanted.gpu_share is not None:
            self._check_share(wanted.gpu_share, deployment, deadline)
            env[MPS_ENV] = f"{100 * wanted.gpu_share:g}"
        patch = template_patch(t.container, resources, {k: v for k, v in env.items() if env_of(one, k) != v})
        if wanted.instances is not None:
            self._set_instances(patch, deployment, wanted.instances, instances_known)
        spec = patch["spec"]["template"]["spec"]
        if any(len(part) > 1 for parts in spec.values() for part in parts):
            self.api.call("patch", DEPLOYMENTS, t.namespace, t.deployment, body=patch, patch="strategic", deadline=deadline)  # fmt: skip

    def _check_share(self, share: float, deployment: Dict, deadline: Deadline) -> None:
        """Raise ClusterError unless the nodes share their GPUs by MPS; asked once per share."""
        if share == self._share_checked:
            return
        pods = pods_of(self.api, self.target.namespace, deployment, deadline)
        names = {str(name) for pod in pods if (name := dig(pod, "spec", "nodeName"))}
        try:
            nodes = [node for name in sorted(names) if (node := self.api.get(NODES, "", name, deadline))]
            check_share(share, nodes)
        except ApiFailure as refused:
            # A Role cannot allow reading nodes. Pods that may only run where there is MPS need no look at them.
            chosen = dig(deployment, "spec", "template", "spec", "nodeSelector") or {}
            if refused.status != 403 or chosen.get(STRATEGY) != "mps":
                raise
            log.warning("%s The largest share MPS can give is not checked.", refused)
        self._share_checked = share

    def _set_instances(self, patch: Dict, deployment: Dict, instances: int, known: int) -> None:
        """Add the instance count to the patch, wherever the template reads it (also an init container that writes the model's configuration)."""
        name, value = self.target.instances_env, self.target.instances_value.format(instances)
        readers = instance_readers(deployment, name)
        if not readers and instances != known:
            raise ClusterError(
                f"instances = {instances}: {self.target} reads no variable {name}, so its number of Triton instances cannot "
                "be set. Use manifests/base, say what the variable is called (cluster.instances_env=NAME), or leave "
                f"action.instances at [{known}]."
            )
        for kind, reader, now in readers:
            if now != value:
                parts = patch["spec"]["template"]["spec"].setdefault(kind, [])
                part = next((p for p in parts if p["name"] == reader), None)
                if part is None:
                    parts.append(part := {"name": reader})
                part.setdefault("env", []).append({"name": name, "value": value})

    def resize_new(self, pods: list[Dict], deadline: Deadline) -> None:
        """Give pods that started from the template since the last call the wanted size."""
        if self.cpu is not None:
            resize(self.api, self.target.namespace, pods, self.target.container, self.cpu, deadline)


def instance_readers(deployment: Dict, name: str) -> list[tuple[str, str, str]]:
    """Return (list, container, value) of every container of the template that has the variable as a plain value."""
    spec = dig(deployment, "spec", "template", "spec") or {}
    readers = []
    for kind in ("initContainers", "containers"):
        for one in spec.get(kind) or []:
            value = env_of(one, name)
            if value is not None:
                readers.append((kind, str(one["name"]), value))
    return readers
