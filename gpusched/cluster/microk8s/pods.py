"""The Deployment's pods: which live, how large they are, and how they are resized in place."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.desired import Cpu
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.kinds import PODS, RESIZE, Dict, dig, name_of, selector
from gpusched.cluster.microk8s.quantities import number
from gpusched.core.errors import ClusterError

log = logging.getLogger(__name__)

GONE = ("Succeeded", "Failed")


def pods_of(api: Api, namespace: str, deployment: Dict, deadline: Deadline) -> list[Dict]:
    """Return the Deployment's pods, terminating ones too; one made by hand with the same labels is none of them.

    Before an API server without controllers nobody owns a pod, and the labels are all there is.
    """
    found = api.list(PODS, namespace, deadline, labelSelector=selector(deployment))
    if not any(_controller(pod) for pod in found):
        return found
    return [pod for pod in found if _is_of(pod, name_of(deployment))]


def _controller(pod: Dict) -> Dict:
    owners = dig(pod, "metadata", "ownerReferences") or []
    return next((one for one in owners if one.get("controller")), {})


def _is_of(pod: Dict, deployment: str) -> bool:
    """Return whether the Deployment's ReplicaSet controls a pod: it is called by the template's hash."""
    owner, code = _controller(pod), dig(pod, "metadata", "labels", "pod-template-hash")
    return (owner.get("kind"), owner.get("name")) == ("ReplicaSet", f"{deployment}-{code}")


def stays(pod: Dict) -> bool:
    """Return whether a pod is neither terminating nor over."""
    return dig(pod, "metadata", "deletionTimestamp") is None and dig(pod, "status", "phase") not in GONE


def holds_resources(pod: Dict) -> bool:
    """Return whether a pod is bound to a node and not over; a terminating one holds its GPU until it is gone."""
    return bool(dig(pod, "spec", "nodeName")) and dig(pod, "status", "phase") not in GONE


def one_container(pod: Dict, name: str) -> Dict:
    """Return a pod's container by name, empty where it has none."""
    return next((c for c in dig(pod, "spec", "containers") or [] if c.get("name") == name), {})


def spec_cpu(pod: Dict, name: str) -> Cpu | None:
    """Return the CPU a pod asks for, None where it does not say."""
    resources = one_container(pod, name).get("resources")
    request, limit = dig(resources, "requests", "cpu"), dig(resources, "limits", "cpu")
    if request is None or limit is None:
        return None
    return Cpu(request=float(number(request)), limit=float(number(limit)))


def cpu_limit_cores(pods: Iterable[Dict], name: str) -> float:
    """Return the mean CPU limit really in force; NaN without a pod that has one.

    The kubelet reports it in the container's status (servers with in-place resize); before that the spec is all there is.
    """
    limits = []
    for pod in pods:
        statuses = dig(pod, "status", "containerStatuses") or []
        actual = next((dig(s, "resources", "limits", "cpu") for s in statuses if s.get("name") == name), None)
        limit = actual or dig(one_container(pod, name), "resources", "limits", "cpu")
        if limit is not None:
            limits.append(float(number(limit)))
    return sum(limits) / len(limits) if limits else math.nan


def resize(api: Api, namespace: str, pods: Iterable[Dict], name: str, cpu: Cpu, deadline: Deadline) -> int:
    """Give every living pod that has another size this one; returns how many were changed.

    A pod that is still being placed may refuse; the next call finds it again.
    Raises ClusterError where a node can never grant the size, or the server refuses it for a running pod.
    """
    changed = 0
    for pod in pods:
        if not stays(pod):
            continue
        if spec_cpu(pod, name) == cpu:
            _never_granted(pod, cpu)
            continue
        body = {"spec": {"containers": [{"name": name, "resources": cpu.as_resources()}]}}
        try:
            api.call(
                "patch", RESIZE, namespace, name_of(pod), body=body, patch="strategic", deadline=deadline
            )
            changed += 1
        except ApiFailure as refused:
            pending = dig(pod, "status", "phase") == "Pending"
            if refused.status == 404 or (pending and not refused.lacks_right):
                log.debug("pod %s not resized yet: %s", name_of(pod), refused)
                continue
            raise
    return changed


def _never_granted(pod: Dict, cpu: Cpu) -> None:
    """Raise ClusterError where the kubelet calls the resize infeasible (a deferred one may still come)."""
    pending = [c for c in dig(pod, "status", "conditions") or [] if c.get("type") == "PodResizePending"]
    reason = pending[0].get("reason") if pending else dig(pod, "status", "resize")
    if reason == "Infeasible":
        said = str(pending[0].get("message") if pending else "").rstrip(".")
        raise ClusterError(
            f"pod {name_of(pod)}: its node can never give it {cpu.limit:g} CPU cores ({said or 'resize Infeasible'}). "
            "Offer less in action.cpu_cores, or use a larger node."
        )
