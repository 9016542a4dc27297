"""The HPAs of a Deployment: which object is one, and how one is removed."""

from __future__ import annotations

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.kinds import DEPLOYMENTS, HPAS, Dict, dig, name_of, uid_of
from gpusched.core.errors import ClusterError

FORGET_S = 16.0
"""The controller keeps an HPA's recommendations by namespace and name until the first sync that misses it
(HorizontalController.reconcileKey): 15 s (--horizontal-pod-autoscaler-sync-period), and one for that sync itself."""


def scales(hpa: Dict, deployment: str) -> bool:
    """Return whether an HPA has this Deployment as its target."""
    ref = dig(hpa, "spec", "scaleTargetRef") or {}
    return (ref.get("kind"), ref.get("name")) == (DEPLOYMENTS.kind, deployment)


def delete_hpa(api: Api, live: Dict, deadline: Deadline) -> None:
    """Delete exactly this HPA; one that somebody made in its place stays.

    Raises ClusterError where finalizers keep it: it goes on scaling until they are gone.
    """
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid_of(live)}}
    namespace, name = str(dig(live, "metadata", "namespace")), name_of(live)
    try:
        left = api.call("delete", HPAS, namespace, name, body=body, exact=True, deadline=deadline)
    except ApiFailure as refused:
        if refused.status not in (404, 409):
            raise
        return
    if finalizers := dig(left, "metadata", "finalizers"):
        raise kept(namespace, name, finalizers)


def kept(namespace: str, name: str, finalizers: list[str]) -> ClusterError:
    """Return the error for an HPA that its finalizers keep."""
    return ClusterError(
        f"HorizontalPodAutoscaler {name} in namespace {namespace}: its finalizers ({', '.join(finalizers)}) keep it, and "
        "its scaling, after it is deleted. Remove what sets them, then "
        f'kubectl patch hpa {name} -n {namespace} --type=merge -p \'{{"metadata":{{"finalizers":null}}}}\''
    )
