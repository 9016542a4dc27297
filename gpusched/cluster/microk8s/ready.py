"""Wait until the Deployment's pods are ready, and say why where they never are."""

from __future__ import annotations

from collections.abc import Callable

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.kinds import DEPLOYMENTS, Dict, dig, name_of
from gpusched.cluster.microk8s.pods import pods_of, stays
from gpusched.cluster.microk8s.watch import follow
from gpusched.core.errors import ClusterError

LOOK_S = 5.0
"""What looking at the pods may take once the wait is over."""


def rolled_out(deployment: Dict, replicas: int) -> bool:
    """Return whether exactly this many pods exist, all of the newest template and all ready.

    `observedGeneration` tells that the status is about the spec as it is now.
    """
    status = deployment.get("status") or {}
    counts = [
        status.get(key) or 0 for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    ]
    seen = (status.get("observedGeneration") or 0) >= (dig(deployment, "metadata", "generation") or 0)
    return seen and dig(deployment, "spec", "replicas") == replicas and set(counts) == {replicas}


def wait_ready(api: Api, namespace: str, name: str, replicas: int, timeout_s: float, between: Callable[[], None]) -> None:  # fmt: skip
    """Return once the Deployment is rolled out; ClusterError with the pods' own reasons after `timeout_s`."""
    deadline = Deadline(timeout_s)
    last: Dict | None = None
    for seen in follow(api, DEPLOYMENTS, namespace, name, deadline, between):
        if seen is None:
            raise ClusterError(
                f"Deployment {name} in namespace {namespace} was deleted while its pods came up."
            )
        last = seen
        if rolled_out(seen, replicas):
            return
    ready = (dig(last, "status", "readyReplicas") or 0) if last else 0
    why = "the API server did not answer"
    if last:
        why = reasons(last, pods_of(api, namespace, last, Deadline(LOOK_S)))
    raise ClusterError(
        f"Deployment {name} in namespace {namespace}: {ready} of {replicas} replicas ready after {timeout_s:g} s "
        f"({why}). See kubectl describe pods -n {namespace}; a slow start needs cluster.ready_timeout_s=SECONDS."
    )


def reasons(deployment: Dict, pods: list[Dict]) -> str:
    """Return why pods are not ready, or not there, in the control plane's own words; each reason once."""
    told = {
        str(c.get("message")): str(c.get("reason"))
        for c in dig(deployment, "status", "conditions") or []
        if c.get("type") == "ReplicaFailure" and c.get("status") == "True"
    }
    waiting = [pod for pod in pods if stays(pod) and not _is_ready(pod)]
    # What a node rejects stays as Failed beside the pods that replace it; old ones may have other reasons.
    failed = [pod for pod in pods if dig(pod, "status", "phase") == "Failed"]
    failed.sort(key=lambda pod: str(dig(pod, "metadata", "creationTimestamp")), reverse=True)
    for pod in waiting + failed:
        told.setdefault(_reason(pod), name_of(pod))
    lines = [f"{who}: {why}" for why, who in told.items()]
    return "; ".join(lines[:3]) or "no pod was created: see the Deployment's events"


def _is_ready(pod: Dict) -> bool:
    conditions = dig(pod, "status", "conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _reason(pod: Dict) -> str:
    if reason := dig(pod, "status", "reason"):  # the kubelet's, for a pod it rejected or evicted
        return ": ".join(filter(None, (reason, dig(pod, "status", "message"))))
    for status in dig(pod, "status", "containerStatuses") or []:
        if waiting := dig(status, "state", "waiting"):
            return " ".join(str(waiting[k]) for k in ("reason", "message") if waiting.get(k))
    for condition in dig(pod, "status", "conditions") or []:
        if condition.get("status") == "False" and condition.get("message"):
            return f"{condition.get('reason')}: {condition['message']}"
    return str(dig(pod, "status", "phase") or "not started")
