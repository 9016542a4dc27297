"""The controllers and the kubelet of the emulated cluster: pods come, get ready, are resized, and go."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from emulated import KINDS, Key, Obj, Refusal, Store, quantity, stamp

CONTROLLER = "kube-controller-manager"


@dataclass
class Times:
    """How long things take, seconds."""

    schedule_s: float = 0.0
    ready_s: float = 0.03
    terminate_s: float = 0.03
    resize_s: float = 0.02


@dataclass
class World:
    """What tests may turn while the cluster runs."""

    times: Times = field(default_factory=Times)
    never_ready: bool = False
    quota: str = ""
    """Why no pod can be created, in admission's words."""
    rejected: int = 0
    """So many pods to come are refused by their node's device plugin."""
    kubelets: bool = True
    node_cores: float = 16.0
    hpa_controller: bool = False


class Controllers:
    """Deployment controller, kubelet and (on demand) the HPA controller's bounds, all in one thread."""

    def __init__(self, store: Store, world: World) -> None:
        self.store, self.world = store, world
        self.since_s: dict[str, float] = {}
        self.busy = False
        """Something becomes due without anything else changing: a start, an end, a resize."""
        self.random = random.Random(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        """Look at everything when something has changed or is on its way, and now and then for what tests turn."""
        version, looked_s = -1, 0.0
        while not self._stop.wait(0.005):
            now_s = time.monotonic()
            with self.store.changed:
                if self.store.version == version and not self.busy and now_s - looked_s < 0.05:
                    continue
                version, looked_s, self.busy = self.store.version, now_s, False
                # A namespace that is going takes no new pod: the controllers try again.
                with suppress(Refusal):
                    self.look()

    def look(self) -> None:
        """One round of all controllers."""
        for thing in self.store.list("deployments", ""):
            self.deployment(thing)
        for pod in self.store.list("pods", ""):
            self.kubelet(pod)
        if self.world.hpa_controller:
            for hpa in self.store.list("horizontalpodautoscalers", ""):
                self.bounds(hpa)

    # --- Deployment ---

    def deployment(self, thing: Obj) -> None:
        meta, spec = thing["metadata"], thing["spec"]
        code = template_hash(spec["template"])
        pods = self.active_of(thing)
        new = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == code]
        old = [p for p in pods if p not in new]
        self.roll(thing, code, new, old)
        pods = self.active_of(thing)
        fresh = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == code]
        ready = sum(map(is_ready, pods))
        status = {
            "observedGeneration": meta["generation"], "replicas": len(pods), "updatedReplicas": len(fresh),
            "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": max(0, spec["replicas"] - ready),
        }  # fmt: skip
        if self.world.quota and len(fresh) < spec["replicas"]:
            status["conditions"] = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": self.world.quota}]  # fmt: skip
        status = {k: v for k, v in status.items() if v}  # the API leaves zeros out
        if thing.get("status") != status:
            self.write("deployments", {**thing, "status": status})

    def roll(self, thing: Obj, code: str, new: list[Obj], old: list[Obj]) -> None:
        """One step of a rolling update, or of plain scaling where every pod is new."""
        want = thing["spec"]["replicas"]
        rolling = thing["spec"]["strategy"].get("rollingUpdate", {})
        surge = share(rolling.get("maxSurge", "25%"), want, math.ceil)
        unavailable = share(rolling.get("maxUnavailable", "25%"), want, math.floor)
        if surge == unavailable == 0:
            unavailable = 1
        room = want + surge - len(new) - len(old)
        for _ in range(max(0, min(want - len(new), room if old else want))):
            self.make_pod(thing, code)
        for pod in sorted(new, key=is_ready)[: max(0, len(new) - want)]:
            self.terminate(pod)
        spare = sum(map(is_ready, new + old)) - (want - unavailable)
        for pod in sorted(old, key=is_ready):
            if not is_ready(pod):
                self.terminate(pod)
            elif spare > 0:
                self.terminate(pod)
                spare -= 1

    def pods_of(self, thing: Obj) -> list[Obj]:
        """The pods of the Deployment's ReplicaSets, and no other that has their labels."""
        pods = self.store.list("pods", thing["metadata"]["namespace"])
        names = {
            f"{thing['metadata']['name']}-{p['metadata'].get('labels', {}).get('pod-template-hash')}"
            for p in pods
        }
        return [p for p in pods if names & {o["name"] for o in p["metadata"].get("ownerReferences", [])}]

    def active_of(self, thing: Obj) -> list[Obj]:
        """Those that count as replicas: what has failed stays, and another takes its place."""
        pods = self.pods_of(thing)
        return [
            p for p in pods if "deletionTimestamp" not in p["metadata"] and p["status"]["phase"] != "Failed"
        ]

    def make_pod(self, thing: Obj, code: str) -> None:
        if self.world.quota:
            return
        meta, template = thing["metadata"], copy.deepcopy(thing["spec"]["template"])
        suffix = "".join(self.random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        labels = {**template["metadata"]["labels"], "pod-template-hash": code}
        pod = {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {
                "name": f"{meta['name']}-{code}-{suffix}", "labels": labels,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{meta['name']}-{code}",
                                     "uid": f"{meta['uid']}-{code}", "controller": True, "blockOwnerDeletion": True}],
            },
            "status": {"phase": "Pending"},
        }  # fmt: skip
        pod["status"]["qosClass"] = qos(pod["spec"])
        made = self.store.create("pods", meta["namespace"], pod, CONTROLLER)
        self.since_s[made["metadata"]["uid"]] = time.monotonic()

    def terminate(self, pod: Obj) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = stamp()
            self.since_s[pod["metadata"]["uid"]] = time.monotonic()
            self.write("pods", pod)

    # --- kubelet ---

    def kubelet(self, pod: Obj) -> None:
        uid, times = pod["metadata"]["uid"], self.world.times
        age_s = time.monotonic() - self.since_s.setdefault(uid, time.monotonic())
        self.busy |= "deletionTimestamp" in pod["metadata"] or (self.world.kubelets and not is_ready(pod))
        if "deletionTimestamp" in pod["metadata"]:
            if age_s >= times.terminate_s or "nodeName" not in pod["spec"]:
                self.store.remove(key_of("pods", pod))
            return
        if not self.world.kubelets or pod["status"]["phase"] == "Failed":
            return
        before = copy.deepcopy(pod)
        if "nodeName" not in pod["spec"] and age_s >= times.schedule_s:
            pod["spec"]["nodeName"] = "node-1"
            if self.world.rejected > 0:
                self.world.rejected -= 1
                pod["status"] |= {"phase": "Failed", "reason": "UnexpectedAdmissionError",
                                  "message": "Pod Allocate failed due to no healthy devices present"}  # fmt: skip
        if pod["status"]["phase"] != "Failed" and "nodeName" in pod["spec"]:
            self.containers(pod, age_s)
        if pod != before:
            self.write("pods", pod)

    def containers(self, pod: Obj, age_s: float) -> None:
        ready = is_ready(pod) or (age_s >= self.world.times.ready_s and not self.world.never_ready)
        status = pod["status"]
        statuses = {s["name"]: s for s in status.get("containerStatuses", [])}
        status["phase"] = "Running"
        conditions = [{"type": "Ready", "status": "True" if ready else "False", "reason": "ContainersNotReady",
                       "message": "containers with unready status: [triton]"}]  # fmt: skip
        for one in pod["spec"]["containers"]:
            seen = statuses.setdefault(
                one["name"], {"name": one["name"], "resources": copy.deepcopy(one["resources"])}
            )
            if seen["resources"] != one["resources"]:
                self.resize(pod, one, seen, conditions)
        status["conditions"] = conditions
        status["containerStatuses"] = list(statuses.values())

    def resize(self, pod: Obj, one: Obj, seen: Obj, conditions: list[Obj]) -> None:
        if quantity(one["resources"]["limits"]["cpu"]) > self.world.node_cores:
            conditions.append({
                "type": "PodResizePending", "status": "True", "reason": "Infeasible",
                "message": "Node didn't have enough capacity: cpu",
            })  # fmt: skip
            return
        self.busy = True
        at = f"{pod['metadata']['uid']} {json.dumps(one['resources'], sort_keys=True)}"
        if time.monotonic() - self.since_s.setdefault(at, time.monotonic()) >= self.world.times.resize_s:
            seen["resources"] = copy.deepcopy(one["resources"])
            self.since_s.pop(at)

    # --- HPA ---

    def bounds(self, hpa: Obj) -> None:
        """What the HPA controller does without any metric: the bounds, and a condition that says so."""
        ref, spec = hpa["spec"]["scaleTargetRef"], hpa["spec"]
        target = self.store.objects.get(("deployments", hpa["metadata"]["namespace"], ref["name"]))
        if target is None:
            return
        now = target["spec"]["replicas"]
        want = min(max(now, spec["minReplicas"]), spec["maxReplicas"]) if now else 0
        if want != now:
            changed = copy.deepcopy(target)
            changed["spec"]["replicas"] = want
            self.store.update(key_of("deployments", target), changed, CONTROLLER, "scale")
        condition = {"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric"}
        if hpa.get("status", {}).get("conditions") != [condition]:
            self.write("horizontalpodautoscalers", {**hpa, "status": {"conditions": [condition]}})

    def write(self, plural: str, thing: Obj) -> None:
        thing = copy.deepcopy(thing)
        thing["metadata"].pop("resourceVersion")
        try:
            self.store.update(key_of(plural, thing), thing, CONTROLLER, "status")
        except Refusal as refused:
            if refused.code != 404:
                raise


def key_of(plural: str, thing: Obj) -> Key:
    meta = thing["metadata"]
    return plural, meta["namespace"] if KINDS[plural][2] else "", meta["name"]


def template_hash(template: Obj) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def is_ready(pod: Obj) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def share(given: Any, want: int, rounding: Any) -> int:
    return rounding(want * int(given.rstrip("%")) / 100) if isinstance(given, str) else int(given)


def qos(spec: Obj) -> str:
    """The pod's quality of service class, from its containers' CPU and memory."""
    pairs = [
        (c["resources"].get("requests", {}).get(r), c["resources"].get("limits", {}).get(r))
        for c in spec["containers"]
        for r in ("cpu", "memory")
    ]
    if not any(request or limit for request, limit in pairs):
        return "BestEffort"
    equal = all(request and limit and quantity(request) == quantity(limit) for request, limit in pairs)
    return "Guaranteed" if equal else "Burstable"
