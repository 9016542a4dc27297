"""Undo what a trial changed, from its journal: what is already as it was, or gone, is left alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from gpusched.cluster.microk8s.autoscalers import delete_hpa, kept
from gpusched.cluster.microk8s.client import FIRST_WAIT_S, Api, Deadline
from gpusched.cluster.microk8s.desired import env_of, template_patch
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.kinds import (
    DEPLOYMENTS,
    HPAS,
    MANAGER,
    RESIZE,
    SCALE,
    Dict,
    Kind,
    dig,
    made_by,
    name_of,
    uid_of,
)
from gpusched.cluster.microk8s.pods import one_container, pods_of, stays
from gpusched.cluster.microk8s.quantities import number
from gpusched.core.errors import ClusterError

log = logging.getLogger(__name__)

TRIES = 10
"""How often field ownership is given back while statuses keep changing the object."""


class Restorer:
    """Brings one namespace back to how `found` describes it, in the reverse of the order things were changed in.

    levers   environment variables of the pods that a trial may set
    resize   whether the server can resize pods in place
    """

    def __init__(self, api: Api, found: Dict, levers: list[str], resize: bool) -> None:
        self.api, self.found, self.levers, self.resize = api, found, levers, resize
        self.namespace = str(found["deployment"]["metadata"]["namespace"])
        self.name = str(found["deployment"]["metadata"]["name"])

    def run(self, deadline: Deadline) -> list[str]:
        """Undo everything that can be undone; returns what could not, [] when all is as it was."""
        left = []
        steps: list[tuple[str, Callable[[Deadline], None]]] = [
            ("HPA of the trial", self.remove_trial_hpa),
            ("pod template", self.template),
            ("replicas", self.replicas),
            ("HPA as found", self.found_hpa),
            ("pods' resources", self.pods),
            ("field ownership", self.ownership),
        ]
        for what, step in steps:
            try:
                step(deadline)
            except ClusterError as error:
                if isinstance(error, ApiFailure) and error.status == 404:
                    log.info("%s: gone while it was restored", what)
                    continue
                log.warning("restoring the %s failed: %s", what, error)
                left.append(f"{what}: {error}")
        return left

    def remove_trial_hpa(self, deadline: Deadline) -> None:
        """Delete the HPA a trial made; it would undo the replicas."""
        live = self.api.get(HPAS, self.namespace, self.name, deadline)
        if live is not None and made_by(live):
            delete_hpa(self.api, live, deadline)

    def _deployment(self, deadline: Deadline) -> Dict | None:
        """Return the Deployment if it is still the one that was found; nothing of another is ours to change."""
        live = self.api.get(DEPLOYMENTS, self.namespace, self.name, deadline)
        if live is not None and uid_of(live) == uid_of(self.found["deployment"]):
            return live
        log.warning(
            "Deployment %s: %s since the trial began; left as it is",
            self.name,
            "made anew" if live else "gone",
        )
        return None

    def template(self, deadline: Deadline) -> None:
        """Put back the containers' CPU and the variables that are levers."""
        live = self._deployment(deadline)
        if live is None:
            return
        for kind, was, now in _pairs(self.found["deployment"], live):
            resources = _cpu_patch(was.get("resources"), now.get("resources"))
            env = {k: env_of(was, k) for k in self.levers if env_of(was, k) != env_of(now, k)}
            if resources or env:
                body = template_patch(str(was["name"]), resources, env, kind)
                self.api.call(
                    "patch", DEPLOYMENTS, self.namespace, self.name, body=body, patch="strategic", deadline=deadline,
                )  # fmt: skip

    def replicas(self, deadline: Deadline) -> None:
        """Put back the replica count."""
        live, count = self._deployment(deadline), dig(self.found["deployment"], "spec", "replicas")
        if live is not None and dig(live, "spec", "replicas") != count:
            body = {"spec": {"replicas": count}}
            self.api.call("patch", SCALE, self.namespace, self.name, body=body, deadline=deadline)

    def found_hpa(self, deadline: Deadline) -> None:
        """Make the HPA again that was found, unless there is one."""
        was = self.found["hpa"]
        if was is None or self._deployment(deadline) is None:
            return
        live = self.api.get(HPAS, self.namespace, name_of(was), deadline)
        if live is not None:
            if dig(live, "metadata", "deletionTimestamp") is not None:
                raise kept(self.namespace, name_of(was), dig(live, "metadata", "finalizers") or [])
            return
        # The server makes a new uid and tracks owners of fields itself.
        metadata = {k: v for k, v in was["metadata"].items() if k not in ("uid", "managedFields")}
        body = {
            "apiVersion": HPAS.api_version,
            "kind": HPAS.kind,
            "metadata": metadata,
            "spec": was["spec"],
        }
        try:
            self.api.call("create", HPAS, self.namespace, body=body, query={"fieldManager": MANAGER}, deadline=deadline)  # fmt: skip
        except ApiFailure as refused:
            if "NamespaceTerminating" in refused.causes:
                log.warning("HPA %s: not made again, its namespace is being deleted", name_of(was))
            elif refused.reason != "AlreadyExists":
                raise

    def pods(self, deadline: Deadline) -> None:
        """Give the pods their size back: the one they were found with, or the template's for those that came later."""
        live = self._deployment(deadline) if self.resize else None
        if live is None:
            return
        template = {c["name"]: c.get("resources") for c in live["spec"]["template"]["spec"]["containers"]}
        for pod in pods_of(self.api, self.namespace, live, deadline):
            if not stays(pod):
                continue
            was = dig(self.found["pods"].get(uid_of(pod)), "containers") or template
            changed = [
                {"name": name, "resources": patch}
                for name, resources in was.items()
                if (patch := _cpu_patch(resources, one_container(pod, name).get("resources")))
            ]
            if changed:
                self._resize(name_of(pod), {"spec": {"containers": changed}}, deadline)

    def _resize(self, pod: str, body: Dict, deadline: Deadline) -> None:
        try:
            self.api.call(
                "patch", RESIZE, self.namespace, pod, body=body, patch="strategic", deadline=deadline
            )
        except ApiFailure as refused:
            if refused.status != 404:
                raise

    def ownership(self, deadline: Deadline) -> None:
        """Give the fields back to the managers that had them.

        Whoever changes a value becomes its manager. Left so, the next `kubectl apply --server-side` of the person
        who set the service up would meet a conflict with us.
        """
        for kind, was in ((DEPLOYMENTS, self.found["deployment"]), (HPAS, self.found["hpa"])):
            for attempt in range(TRIES):
                if was is None or self._give_fields_back(kind, was, deadline):
                    break
                time.sleep(min(FIRST_WAIT_S * attempt, max(deadline.left_s, 0.0)))

    def _give_fields_back(self, kind: Kind, was: Dict, deadline: Deadline) -> bool:
        """Return whether that is settled; False where another writer (a status) was faster."""
        live = self.api.get(kind, self.namespace, name_of(was), deadline)
        managers = _managers(was, live) if live else []
        if live is None or managers == dig(live, "metadata", "managedFields"):
            return True
        metadata = {
            "resourceVersion": dig(live, "metadata", "resourceVersion"),
            "managedFields": managers,
        }
        try:
            self.api.call(
                "patch", kind, self.namespace, name_of(was), body={"metadata": metadata}, exact=True, deadline=deadline,
            )  # fmt: skip
        except ApiFailure as refused:
            # The values are back already; who manages them is a courtesy.
            log.debug("field managers of %s %s not put back: %s", kind, name_of(was), refused)
            return refused.status != 409
        return True


def _managers(was: Dict, live: Dict) -> list[Dict]:
    """Return the live object's managers as they would be without the trial.

    We go, and so does who scaled meanwhile (the trial's HPA did, through its controller); the others have their
    fields of before beside those they took since. Statuses stay as they are.
    """
    before = {_key(entry): entry for entry in dig(was, "metadata", "managedFields") or []}
    entries = {}
    for entry in dig(live, "metadata", "managedFields") or []:
        of_the_trial = entry.get("manager") == MANAGER or entry.get("subresource") == "scale"
        if entry.get("subresource") == "status":
            entries[_key(entry)] = entry
        elif _key(entry) in before:
            old = before[_key(entry)]
            fields = _union(old.get("fieldsV1") or {}, {} if of_the_trial else entry.get("fieldsV1") or {})
            entries[_key(entry)] = old if fields == old.get("fieldsV1") else {**entry, "fieldsV1": fields}
        elif not of_the_trial:
            entries[_key(entry)] = entry
    missing = {k: v for k, v in before.items() if k not in entries and v.get("subresource") != "status"}
    return [*entries.values(), *missing.values()]


def _union(one: Dict, other: Dict) -> Dict:
    """Return the fields of both: fieldsV1 is a tree of keys."""
    return {k: _union(one.get(k) or {}, other.get(k) or {}) for k in {**one, **other}}


def _pairs(was: Dict, live: Dict) -> Iterator[tuple[str, Dict, Dict]]:
    """Yield (list, container as found, container as it is) for those the template still has."""
    for kind in ("initContainers", "containers"):
        now = {c["name"]: c for c in dig(live, "spec", "template", "spec", kind) or []}
        for one in dig(was, "spec", "template", "spec", kind) or []:
            if one["name"] in now:
                yield kind, one, now[one["name"]]


def _cpu_patch(was: Dict | None, now: Dict | None) -> Dict | None:
    """Return the patch of `resources` that brings CPU back, None where it is as it was."""
    patch: Dict = {}
    for part in ("requests", "limits"):
        before, after = dig(was, part, "cpu"), dig(now, part, "cpu")
        if (before is None) != (after is None) or (before is not None and number(before) != number(after)):
            patch[part] = {"cpu": before}
    return patch or None


def _key(entry: Dict) -> tuple[str, ...]:
    """Return what tells one entry of managedFields from another."""
    return tuple(str(entry.get(k, "")) for k in ("manager", "operation", "apiVersion", "subresource"))
