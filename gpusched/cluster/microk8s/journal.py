"""The journal: a ConfigMap that says who holds the cluster and how it was found.

It is written before the first change and deleted after the last one is undone, so a process that is killed leaves
it behind, and whoever comes next restores from it.
"""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.kinds import CONFIGMAPS, HOLDER, MANAGER, OURS, PART_OF, Dict, dig, uid_of
from gpusched.cluster.microk8s.owner import Owner
from gpusched.core.errors import ClusterError

log = logging.getLogger(__name__)

NAME = "gpusched-journal"
HEARTBEAT = "gpusched/heartbeat"
LEASE_S = 60.0
"""An owner that cannot be looked at is taken for dead after this long without a heartbeat."""
RENEW_S = 10.0


class Journal:
    """One namespace's journal, as `owner` sees it."""

    def __init__(self, api: Api, namespace: str, owner: Owner) -> None:
        self.api, self.namespace, self.owner = api, namespace, owner
        self._renewed_s = 0.0
        self.written: Dict | None = None
        """What `write` wrote, should somebody delete it."""

    def read(self, deadline: Deadline) -> Dict | None:
        """Return the ConfigMap, None where nobody holds the cluster."""
        return self.api.get(CONFIGMAPS, self.namespace, NAME, deadline)

    def write(self, found: Dict, deadline: Deadline) -> None:
        """Take the cluster: only one of several can create the journal; ClusterError for the others."""
        metadata = {
            "name": NAME, "namespace": self.namespace,
            "labels": {PART_OF: OURS, "app.kubernetes.io/managed-by": MANAGER}, "annotations": self._signature(),
        }  # fmt: skip
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"owner": self.owner.write(), "found": json.dumps(found, sort_keys=True)},
        }
        try:
            self.written = self.api.call("create", CONFIGMAPS, self.namespace, body=body, deadline=deadline)
        except ApiFailure as refused:
            # The answer to our own first try may have been lost on the way.
            existing = self.read(deadline) if refused.reason == "AlreadyExists" else None
            if existing is None:
                raise
            if dig(existing, "data", "owner") != self.owner.write():
                raise _taken(self.namespace, Owner.read(existing["data"]["owner"])) from None
            self.written = existing
        self._renewed_s = self.api.now_s()

    def renew(self, deadline: Deadline) -> None:
        """Write a heartbeat where one is due; ClusterError where somebody else has taken the cluster meanwhile."""
        if self.api.now_s() - self._renewed_s < RENEW_S:
            return
        body = [
            {"op": "test", "path": _pointer(HOLDER), "value": self.owner.token},
            {"op": "replace", "path": _pointer(HEARTBEAT), "value": self._signature()[HEARTBEAT]},
        ]
        try:
            self.api.call(
                "patch", CONFIGMAPS, self.namespace, NAME, body=body, patch="json", deadline=deadline
            )
        except ApiFailure as refused:
            if refused.status not in (404, 422):
                raise
            raise ClusterError(
                f"namespace {self.namespace}: the journal {NAME} is no longer ours; somebody restored the cluster or took "
                "it over while this trial ran, so its results mean nothing. Run one trial at a time."
            ) from None
        self._renewed_s = self.api.now_s()

    def claim(self, journal: Dict, deadline: Deadline) -> Dict:
        """Become the one who restores from a dead owner's journal; ClusterError where another was faster."""
        body = {
            "metadata": {
                "resourceVersion": dig(journal, "metadata", "resourceVersion"),
                "annotations": self._signature(),
            },
            "data": {"owner": self.owner.write()},
        }
        try:
            claimed = self.api.call(
                "patch", CONFIGMAPS, self.namespace, NAME, body=body, exact=True, deadline=deadline
            )
        except ApiFailure as refused:
            # A lost answer followed by our own retry looks like a race.
            now = self.read(deadline) if refused.status == 409 else None
            if now is None or dig(now, "data", "owner") != self.owner.write():
                if refused.status == 409:
                    raise _taken(self.namespace, None) from None
                raise
            claimed = now
        self._renewed_s = self.api.now_s()
        return claimed

    def delete(self, journal: Dict, deadline: Deadline) -> None:
        """Let go of the cluster; a journal that somebody else wrote meanwhile stays."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid_of(journal)}}
        try:
            self.api.call("delete", CONFIGMAPS, self.namespace, NAME, body=body, exact=True, deadline=deadline)  # fmt: skip
        except ApiFailure as refused:
            if refused.status not in (404, 409):
                raise

    def leave(self, left: str) -> None:
        """Write into the journal what could not be restored; without an answer the log has to do."""
        body, deadline = {"data": {"left": left}}, Deadline(self.api.access.call_timeout_s)
        try:
            self.api.call("patch", CONFIGMAPS, self.namespace, NAME, body=body, deadline=deadline)
        except ClusterError as error:
            log.warning("the journal does not say what is left to restore (%s)", error)

    def refuse_if_held(self, journal: Dict) -> None:
        """Raise ClusterError unless the journal's owner is dead, or is this process."""
        owner = Owner.read(journal["data"]["owner"])
        if owner.same_process(self.owner):
            return
        alive = owner.alive(self.owner)
        age_s = self.api.now_s() - float(dig(journal, "metadata", "annotations", HEARTBEAT) or 0.0)
        if alive is None:
            alive = age_s < LEASE_S
        if alive:
            raise _taken(self.namespace, owner, age_s)

    def _signature(self) -> dict[str, str]:
        return {HOLDER: self.owner.token, HEARTBEAT: f"{self.api.now_s():.1f}"}


def found_in(journal: Dict) -> Dict:
    """Return how the cluster was found."""
    found: Dict = json.loads(journal["data"]["found"])
    return found


def _taken(namespace: str, owner: Owner | None, age_s: float | None = None) -> ClusterError:
    who = f"by {owner}" if owner else "by another process"
    beat = f", heartbeat {age_s:.0f} s ago" if age_s is not None else ""
    return ClusterError(
        f"namespace {namespace}: held {who}{beat}. One trial at a time: wait for it, or end that process; once it is dead "
        f"(after {LEASE_S:g} s without a heartbeat if it ran elsewhere) the next trial or "
        "python run.py job=restore cluster=microk8s restores what it left."
    )


def _pointer(annotation: str) -> str:
    """Return the JSON pointer of an annotation."""
    return "/metadata/annotations/" + annotation.replace("~", "~0").replace("/", "~1")


def found(deployment: Dict, hpa: Dict | None, pods: list[Dict], levers: list[str]) -> Dict:
    """Return all that a trial may change, as it is now; `levers` are the variables of the pods that it may set."""
    return {
        "levers": levers,
        "deployment": _kept(deployment),
        "hpa": None if hpa is None else _kept(hpa),
        "pods": {
            dig(pod, "metadata", "uid"): {
                "name": dig(pod, "metadata", "name"),
                "containers": {c["name"]: c.get("resources") or {} for c in pod["spec"]["containers"]},
            }
            for pod in pods
        },
    }


KEPT = ("name", "namespace", "uid", "labels", "annotations", "ownerReferences", "finalizers", "managedFields")


def _kept(thing: Dict) -> Dict:
    """Return an object without its status and what only the server writes."""
    metadata: dict[str, Any] = {k: thing["metadata"][k] for k in KEPT if k in thing["metadata"]}
    return {"metadata": metadata, "spec": copy.deepcopy(thing["spec"])}
