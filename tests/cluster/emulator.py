"""An HTTP emulator of the Kubernetes API, for tests of the adapter without a cluster.

It answers as the API's documentation says: versions and conflicts, four kinds of patch, field ownership, list and
watch with bookmarks and expiry, scale and resize subresources, discovery, tokens, refusals as Status objects. The
PyPI package kmock was tried first: it has no field ownership, returns the parent object for a subresource, and
serves neither /version nor discovery. Faults are injected by `fault`.
"""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rbac
import yaml
from emulated import KINDS, Key, Obj, Refusal, Store, json_patch, merge_patch
from emulated_control import Controllers, World, qos
from emulated_http import ROUTE, Fault, Seen, Server, kind_of, selected


@dataclass
class Emulator:
    """One API server on a free port of this machine. A context manager."""

    version: tuple[int, int] = (1, 35)
    resize: bool = True
    tolerance: bool = True
    tokens: set[str] | None = None
    tls: tuple[str, str] | None = None
    admin: bool = False
    rules: list[Obj] | None = None
    """The rules of the caller's Role in the namespace gpusched; None allows everything but `forbid`."""
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.store = Store(self.tolerance)
        self.controllers = Controllers(self.store, self.world)
        self.more: dict[str, Any] = {}
        """What other APIs answer, by path."""
        self.faults: list[Fault] = []
        self.forbidden: set[tuple[str, str, str]] = set()
        self.cut = 0
        """So many connections to come are closed as soon as they are there, before TLS."""
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def __enter__(self) -> Emulator:
        self.server = Server(self)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.controllers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.controllers.stop()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, token_file: Path | None = None, **cluster: str) -> Path:
        """Write a kubeconfig for it; `cluster` adds to what it says of the server."""
        user = {"tokenFile": str(token_file)} if token_file else {}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "emulated",
            "clusters": [{"name": "emulated", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "tester", "user": user}],
            "contexts": [{"name": "emulated", "context": {"cluster": "emulated", "user": "tester"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    def fault(self, verb: str = "", kind: str = "", **more: Any) -> Fault:
        made = Fault(verb=verb, kind=kind, **more)
        with self.lock:
            self.faults.append(made)
        return made

    def forbid(self, verb: str, kind: str, namespace: str = "") -> None:
        """Take a right away, everywhere or in one namespace: kind as `kind_of` has it."""
        self.forbidden.add((verb, kind, namespace))

    def allows(self, verb: str, kind: str, namespace: str, name: str) -> bool:
        """What the Role's rules allow; without rules everything but what only administrators may."""
        if self.forbidden & {(verb, kind, ""), (verb, kind, namespace)}:
            return False
        if self.rules is not None:
            return namespace == "gpusched" and any(
                rbac.allows(rule, (verb, kind, name)) for rule in self.rules
            )
        administrators = kind in ("secrets", "pods/exec") or (verb, kind) == ("delete", "deployments")
        return self.admin or not administrators

    def review(self, asked: Obj) -> bool:
        """Answer a SelfSubjectAccessReview."""
        root = f"/apis/{asked['group']}/v1" if asked["group"] else "/api/v1"
        kind = kind_of(root, asked["resource"], asked["subresource"])
        return self.allows(asked["verb"], kind, asked["namespace"], asked["name"])

    def count(self, verb: str, kind: str) -> int:
        with self.lock:
            return sum((s.verb, s.kind) == (verb, kind) for s in self.seen)

    def writes(self) -> list[Seen]:
        """Requests that may change something, the journal's aside."""
        with self.lock:
            changing = [s for s in self.seen if s.verb in ("create", "update", "patch", "delete")]
        return [s for s in changing if s.kind != "configmaps"]

    def settle(self, name: str = "triton", namespace: str = "gpusched", timeout_s: float = 5.0) -> None:
        """Wait until the Deployment has rolled out and no pod terminates."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            one = self.store.objects[("deployments", namespace, name)]
            status, want = one.get("status", {}), one["spec"]["replicas"]
            counts = [status.get(k, 0) for k in ("replicas", "updatedReplicas", "readyReplicas")]
            pods = self.controllers.pods_of(one)
            sizes = [s["resources"] == c["resources"] for p in pods
                     for s, c in zip(p["status"].get("containerStatuses", []), p["spec"]["containers"], strict=False)]  # fmt: skip
            if counts == [want] * 3 and len(pods) == want and all(sizes):
                return
            time.sleep(0.01)
        raise AssertionError(f"{name} does not settle: {status}")

    # --- answering ---

    def answer(
        self, method: str, path: str, query: dict[str, str], content: str, body: Any
    ) -> tuple[int, Any]:
        if path == "/version":
            return 200, {
                "major": str(self.version[0]),
                "minor": f"{self.version[1]}+",
                "gitVersion": "v0-emulated",
            }
        if path == "/api/v1":
            names = [p for p, (root, _, _) in KINDS.items() if root == "/api/v1"]
            more = ["pods/status"] + (["pods/resize"] if self.resize else [])
            return 200, {"kind": "APIResourceList", "resources": [{"name": n} for n in names + more]}
        if path in self.more:
            return 200, self.more[path]
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return 201, {**body, "status": {"allowed": self.review(body["spec"]["resourceAttributes"])}}
        route = ROUTE.match(path)
        if route is None or route["plural"] not in KINDS or KINDS[route["plural"]][0] != route["root"]:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return self.resource(method, route, query, content, body)

    def resource(
        self, method: str, route: Any, query: dict[str, str], content: str, body: Any
    ) -> tuple[int, Any]:
        plural, name, sub = route["plural"], route["name"], route["sub"] or ""
        namespace = route["ns"] or ""
        manager = query.get("fieldManager", "unknown")
        key: Key = (plural, namespace, name or "")
        if method == "GET":
            return 200, self.read(key, sub) if name else self.collection(plural, namespace, query)
        if method == "POST":
            return 201, self.store.create(plural, namespace, body, manager)
        if method == "DELETE":
            return 200, self.remove(key, (body or {}).get("preconditions") or {})
        if method == "PATCH" and content == "application/apply-patch+yaml":
            if "fieldManager" not in query:
                raise Refusal(422, "Invalid", "fieldManager: Required value: is required for apply patch")
            existed = key in self.store.objects
            return 200 if existed else 201, self.store.apply(key, body, manager, query.get("force") == "true")
        with self.store.changed:
            return 200, self.patch(key, sub, content, body, manager)

    def read(self, key: Key, sub: str) -> Obj:
        return scale_of(self.store.get(key)) if sub == "scale" else self.store.get(key)

    def remove(self, key: Key, preconditions: Obj) -> Obj:
        if key[0] == "deployments":
            for pod in self.controllers.pods_of(self.store.get(key)):
                self.controllers.terminate(pod)
        return self.store.delete(key, preconditions)

    def patch(self, key: Key, sub: str, content: str, body: Any, manager: str) -> Obj:
        live = self.store.get(key)
        shown = scale_of(live) if sub == "scale" else live
        if sub == "scale" and content == "application/strategic-merge-patch+json":
            content = "application/merge-patch+json"
        new = patched(shown, content, body)
        if not (isinstance(body, dict) and body.get("metadata", {}).get("resourceVersion")):
            new["metadata"].pop("resourceVersion", None)
        if sub == "scale":
            changed = copy.deepcopy(live)
            changed["metadata"].pop("resourceVersion")
            changed["spec"]["replicas"] = new["spec"]["replicas"]
            return scale_of(self.store.update(key, changed, manager, "scale"))
        if key[0] == "pods":
            self.check_pod(live, new, sub)
        return self.store.update(key, new, manager, sub)

    def check_pod(self, old: Obj, new: Obj, sub: str) -> None:
        """A pod's spec changes by resize only, and only CPU and memory that stand there already."""
        name = old["metadata"]["name"]
        if sub != "resize":
            if new["spec"] != old["spec"]:
                raise Refusal(
                    422,
                    "Invalid",
                    f'Pod "{name}" is invalid: spec: Forbidden: pod updates may not change fields',
                )
            return
        if not self.resize:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        for was, now in zip(old["spec"]["containers"], new["spec"]["containers"], strict=True):
            if {k: v for k, v in was.items() if k != "resources"} != {
                k: v for k, v in now.items() if k != "resources"
            }:
                raise Refusal(422, "Invalid", "only cpu and memory resources are mutable")
            for part in ("requests", "limits"):
                if set(was["resources"].get(part, {})) != set(now["resources"].get(part, {})):
                    raise Refusal(422, "Invalid", f"resource {part} cannot be added or removed")
        if qos(new["spec"]) != qos(old["spec"]):
            raise Refusal(
                422,
                "Invalid",
                f'Pod "{name}" is invalid: Pod QOS Class may not change as a result of resizing',
            )

    def collection(self, plural: str, namespace: str, query: dict[str, str]) -> Obj:
        with self.store.changed:
            items = [o for o in self.store.list(plural, namespace) if selected(o, query)]
            return {
                "kind": KINDS[plural][1] + "List", "items": items,
                "metadata": {"resourceVersion": str(self.store.version)},
            }  # fmt: skip


def patched(live: Obj, content: str, body: Any) -> Obj:
    if content == "application/json-patch+json":
        return json_patch(live, body)
    if content not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
        raise Refusal(
            415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content}"
        )
    return merge_patch(live, body, strategic="strategic" in content)


def scale_of(thing: Obj) -> Obj:
    meta = {
        k: thing["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }
    labels = ",".join(f"{k}={v}" for k, v in thing["spec"]["selector"]["matchLabels"].items())
    return {
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta,
        "spec": {"replicas": thing["spec"]["replicas"]},
        "status": {"replicas": thing.get("status", {}).get("replicas", 0), "selector": labels},
    }  # fmt: skip
