"""The store of an emulated Kubernetes API server: versions, patches, defaults and who manages which field.

Follows the documented behaviour of the API (API concepts; server-side apply; autoscaling/v2 defaulting and
validation; pod resize), as far as gpusched uses it.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Obj = dict[str, Any]
Path = tuple[str, ...]
Key = tuple[str, str, str]

KINDS = {
    "namespaces": ("/api/v1", "Namespace", False),
    "nodes": ("/api/v1", "Node", False),
    "pods": ("/api/v1", "Pod", True),
    "services": ("/api/v1", "Service", True),
    "configmaps": ("/api/v1", "ConfigMap", True),
    "deployments": ("/apis/apps/v1", "Deployment", True),
    "horizontalpodautoscalers": ("/apis/autoscaling/v2", "HorizontalPodAutoscaler", True),
}
KEYED = ("containers", "initContainers", "env", "volumes")
"""Lists merged by `name`; any other list is one value."""
SYSTEM = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
    "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip


class Refusal(Exception):
    """An answer that is a Status object."""

    def __init__(
        self, code: int, reason: str, message: str, causes: list[Obj] | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.causes, self.retry_after = causes or [], retry_after

    def status(self) -> Obj:
        details: Obj = {"causes": self.causes} if self.causes else {}
        return {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": self.message,
            "reason": self.reason, "details": details, "code": self.code,
        }  # fmt: skip


class Store:
    """All objects, one version counter, and the history that watches read."""

    def __init__(self, tolerance: bool) -> None:
        self.tolerance = tolerance
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[Key, Obj] = {}
        self.history: list[tuple[int, Key, str, Obj]] = []
        self.version, self.oldest = 1, 0

    # --- reading ---

    def get(self, key: Key) -> Obj:
        with self.changed:
            if key not in self.objects:
                raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
            return copy.deepcopy(self.objects[key])

    def list(self, plural: str, namespace: str) -> list[Obj]:
        with self.changed:
            return [
                copy.deepcopy(o)
                for k, o in sorted(self.objects.items())
                if k[0] == plural and namespace in ("", k[1])
            ]

    def since(self, version: int) -> list[tuple[int, Key, str, Obj]]:
        with self.changed:
            return [event for event in self.history if event[0] > version]

    def compact(self) -> None:
        """Forget the history: versions up to now are too old to watch from."""
        with self.changed:
            self.version += 1
            self.history, self.oldest = [], self.version

    # --- writing ---

    def create(self, plural: str, namespace: str, body: Obj, manager: str) -> Obj:
        name = body.get("metadata", {}).get("name")
        if not name:
            raise Refusal(422, "Invalid", "metadata.name: Required value")
        key = (plural, namespace, name)
        with self.changed:
            self._namespace_open(plural, namespace)
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')
            new = copy.deepcopy(body)
            given = new["metadata"].pop("managedFields", [])
            new["metadata"] |= {
                "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": stamp(), "managedFields": [],
            }  # fmt: skip
            if namespace:
                new["metadata"]["namespace"] = namespace
            self.default(plural, new)
            new["metadata"]["managedFields"] = given
            own_changes(new, {}, manager, "")
            return self._put(key, new, "ADDED")

    def _namespace_open(self, plural: str, namespace: str) -> None:
        if not KINDS[plural][2]:
            return
        holder = self.objects.get(("namespaces", "", namespace))
        if holder is None:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        if holder["status"]["phase"] == "Terminating":
            why = f"namespace {namespace} is being terminated"
            raise Refusal(
                403, "Forbidden", f'{plural} is forbidden: unable to create new content in {why}',
                [{"reason": "NamespaceTerminating", "message": why, "field": "metadata.namespace"}],
            )  # fmt: skip

    def update(self, key: Key, new: Obj, manager: str, sub: str = "") -> Obj:
        """Replace an object; its version, when given, must be the newest."""
        with self.changed:
            old = self.objects.get(key)
            if old is None:
                raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
            self._check_version(key, old, new)
            new = copy.deepcopy(new)
            for name in ("uid", "creationTimestamp", "generation", "name", "deletionTimestamp"):
                if name in old["metadata"]:
                    new["metadata"][name] = old["metadata"][name]
            if sub != "status" and key[0] in ("deployments", "horizontalpodautoscalers"):
                new["status"] = copy.deepcopy(old.get("status", {}))
            self.default(key[0], new)
            own_changes(new, old, manager, sub)
            if finalizers(old) and not finalizers(new) and "deletionTimestamp" in old["metadata"]:
                return self.remove(key)
            return self._replace(key, old, new)

    def _check_version(self, key: Key, old: Obj, new: Obj) -> None:
        wanted = new["metadata"].get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise Refusal(
                409, "Conflict",
                f'Operation cannot be fulfilled on {key[0]} "{key[2]}": the object has been modified; please apply '
                "your changes to the latest version and try again",
            )  # fmt: skip

    def apply(self, key: Key, body: Obj, manager: str, force: bool) -> Obj:
        """Server-side apply: create, or merge what the manager says and drop what it no longer says."""
        with self.changed:
            self._namespace_open(key[0], key[1])
            old = self.objects.get(key)
            base = copy.deepcopy(old) if old else {
                "apiVersion": body["apiVersion"], "kind": body["kind"],
                "metadata": {"name": key[2], "namespace": key[1], "uid": str(uuid.uuid4()), "generation": 1,
                             "creationTimestamp": stamp(), "managedFields": []},
            }  # fmt: skip
            own = set(leaves(body))
            entries = base["metadata"].get("managedFields", [])
            mine = next((e for e in entries if (e["manager"], e["operation"]) == (manager, "Apply")), None)
            others = [e for e in entries if e is not mine]
            self._conflicts(base, body, own, others, force)
            held = set().union(*(fields_of(e) for e in others)) if others else set()
            new = merged(base, {k: v for k, v in body.items() if k not in ("apiVersion", "kind")})
            for path in (fields_of(mine) if mine else set()) - own - held:
                remove(new, path)
            new["metadata"]["managedFields"] = [*others, entry(manager, "Apply", "", own)]
            self.default(key[0], new)
            return self._replace(key, old, new) if old else self._put(key, new, "ADDED")

    def _conflicts(self, live: Obj, body: Obj, own: set[Path], others: list[Obj], force: bool) -> None:
        causes = []
        for other in others:
            fields = fields_of(other)
            fought = {p for p in own & fields if canonical_value(p, value(live, p)) != canonical_value(p, value(body, p))}  # fmt: skip
            causes += [
                {"reason": "FieldManagerConflict", "message": f'conflict with "{other["manager"]}"', "field": dotted(p)}
                for p in sorted(fought)
            ]  # fmt: skip
            if force:
                set_fields(other, fields - fought)
        others[:] = [o for o in others if fields_of(o)]
        if causes and not force:
            what = ", ".join(c["field"] for c in causes)
            raise Refusal(
                409, "Conflict", f"Apply failed with {len(causes)} conflict(s): {causes[0]['message']}: {what}", causes,
            )  # fmt: skip

    def delete(self, key: Key, preconditions: Obj) -> Obj:
        """Remove an object and return a Status, or where finalizers keep it return it, marked."""
        with self.changed:
            old = self.get(key)
            for name, wanted in preconditions.items():
                if old["metadata"].get(name) != wanted:
                    raise Refusal(409, "Conflict", f"Precondition failed: {name} in precondition: {wanted}")
            if key[0] == "namespaces":
                for inner in [k for k in self.objects if k[1] == key[2]]:
                    self.remove(inner)
            if not finalizers(old):
                self.remove(key)
                return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            if "deletionTimestamp" not in old["metadata"]:
                old["metadata"] |= {"deletionTimestamp": stamp(), "deletionGracePeriodSeconds": 0}
                self._put(key, old, "MODIFIED")
            return self.get(key)

    def remove(self, key: Key) -> Obj:
        """Take an object away at once."""
        with self.changed:
            gone = self.objects.pop(key)
            self.version += 1
            gone["metadata"]["resourceVersion"] = str(self.version)
            self.history.append((self.version, key, "DELETED", copy.deepcopy(gone)))
            self.changed.notify_all()
            return copy.deepcopy(gone)

    def _replace(self, key: Key, old: Obj, new: Obj) -> Obj:
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        same = {**new, "metadata": {**new["metadata"], "resourceVersion": ""}} == {
            **old, "metadata": {**old["metadata"], "resourceVersion": ""},
        }  # fmt: skip
        return copy.deepcopy(old) if same else self._put(key, new, "MODIFIED")

    def _put(self, key: Key, new: Obj, kind: str) -> Obj:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = new
        self.history.append((self.version, key, kind, copy.deepcopy(new)))
        self.changed.notify_all()
        return copy.deepcopy(new)

    # --- defaults and validation ---

    def default(self, plural: str, thing: Obj) -> None:
        if plural == "deployments":
            default_deployment(thing)
        elif plural == "horizontalpodautoscalers":
            default_hpa(thing, self.tolerance)
        elif plural == "namespaces":
            thing.setdefault("status", {"phase": "Active"})
        elif plural == "pods":
            default_containers(thing["spec"])


def finalizers(thing: Obj) -> list[str]:
    return thing["metadata"].get("finalizers") or []


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- quantities ---

SUFFIX = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9}


def quantity(text: Any) -> Decimal:
    word = str(text)
    for binary, power in (("Ki", 1), ("Mi", 2), ("Gi", 3)):
        if word.endswith(binary):
            return Decimal(word[:-2]) * 1024**power
    unit = word[-1] if word[-1] in SUFFIX else ""
    return Decimal(word.removesuffix(unit)) * Decimal(10) ** SUFFIX[unit]


def canonical(text: Any) -> str:
    """The server's spelling: the largest unit that leaves a whole number."""
    number = quantity(text)
    if str(text).endswith("i"):
        return str(text)
    for unit in ("G", "M", "k", "", "m", "u", "n"):
        scaled = number / Decimal(10) ** SUFFIX[unit]
        if scaled == scaled.to_integral_value():
            return f"{int(scaled)}{unit}" if number else "0"
    return str(text)


QUANTITIES = ("f:cpu", "f:memory", "f:tolerance", "f:averageValue", "f:value")


def canonical_value(path: Path, found: Any) -> Any:
    if isinstance(found, list):
        return json.dumps(found, sort_keys=True)
    return (
        quantity(found)
        if path[-1] in QUANTITIES and isinstance(found, str) and found[:1].isdigit()
        else found
    )


# --- defaults ---


def default_containers(spec: Obj) -> None:
    for one in spec.get("containers", []) + spec.get("initContainers", []):
        one.setdefault("imagePullPolicy", "IfNotPresent")
        resources = one.setdefault("resources", {})
        for part in ("requests", "limits"):
            for name, found in resources.get(part, {}).items():
                resources[part][name] = canonical(found)


def default_deployment(thing: Obj) -> None:
    spec = thing["spec"]
    spec.setdefault("replicas", 1)
    if spec["replicas"] < 0:
        raise Refusal(422, "Invalid", "spec.replicas: must be greater than or equal to 0")
    spec.setdefault(
        "strategy", {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    )
    spec.setdefault("progressDeadlineSeconds", 600)
    default_containers(spec["template"]["spec"])


def default_hpa(thing: Obj, tolerance: bool) -> None:
    spec = thing["spec"]
    if spec.get("minReplicas") is None:
        spec["minReplicas"] = 1
    spec.setdefault("metrics", [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
    ])  # fmt: skip
    if spec.get("maxReplicas", 0) < spec["minReplicas"]:
        raise Refusal(422, "Invalid", "spec.maxReplicas: must be greater than or equal to `minReplicas`")
    for metric in spec["metrics"]:
        default_metric(metric)
    if spec.get("behavior") is None:
        spec.pop("behavior", None)
        return
    up, down = (spec["behavior"].setdefault(k, {}) for k in ("scaleUp", "scaleDown"))
    up.setdefault("stabilizationWindowSeconds", 0)
    pods = {"type": "Pods", "value": 4, "periodSeconds": 15}
    percent = {"type": "Percent", "value": 100, "periodSeconds": 15}
    up.setdefault("policies", [pods, dict(percent)])
    down.setdefault("policies", [dict(percent)])
    for rules in (up, down):
        rules.setdefault("selectPolicy", "Max")
        if not 0 <= rules.get("stabilizationWindowSeconds", 0) <= 3600:
            raise Refusal(422, "Invalid", "stabilizationWindowSeconds: must be at most 3600")
        if "tolerance" in rules:
            if tolerance:
                rules["tolerance"] = canonical(rules["tolerance"])
            else:
                del rules["tolerance"]  # a disabled gate drops the field without a word


def default_metric(metric: Obj) -> None:
    source = {"Resource": "resource", "Pods": "pods", "External": "external"}.get(metric.get("type", ""))
    if source is None or source not in metric:
        raise Refusal(
            422, "Invalid", "spec.metrics[0].type: must populate information for the given metric source"
        )
    target = metric[source]["target"]
    if target["type"] == "Utilization" and not isinstance(target.get("averageUtilization"), int):
        raise Refusal(400, "BadRequest", "averageUtilization: expected an integer")
    for name in ("value", "averageValue"):
        if name in target:
            target[name] = canonical(target[name])
            if quantity(target[name]) <= 0:
                raise Refusal(422, "Invalid", f"{name}: must be positive")


# --- patches ---


def merged(base: Any, patch: Any) -> Any:
    """Merge what an applier says: maps deeply, lists of named things by name, other lists as a whole."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(base)
    for key, new in patch.items():
        if key in KEYED and isinstance(new, list):
            result[key] = merge_named(result.get(key, []), new, merged)
        else:
            result[key] = merged(result.get(key), new)
    return result


def merge_named(base: list[Obj], patch: list[Obj], merge: Any) -> list[Obj]:
    result = [copy.deepcopy(one) for one in base]
    for new in patch:
        at = next((i for i, one in enumerate(result) if one["name"] == new["name"]), None)
        if new.get("$patch") == "delete":
            result = [one for one in result if one["name"] != new["name"]]
        elif at is None:
            result.append(copy.deepcopy(new))
        else:
            result[at] = merge(result[at], new)
    return result


def merge_patch(base: Any, patch: Any, strategic: bool = False) -> Any:
    """RFC 7386, or a strategic merge patch, which merges lists of named things by name."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(base) if isinstance(base, dict) else {}
    for key, new in patch.items():
        if new is None:
            result.pop(key, None)
        elif strategic and key in KEYED:
            result[key] = merge_named(result.get(key, []), new, lambda b, p: merge_patch(b, p, True))
        else:
            result[key] = merge_patch(result.get(key), new, strategic)
    return result


def json_patch(base: Obj, operations: list[Obj]) -> Obj:
    """RFC 6902, the operations test, add, replace and remove."""
    result = copy.deepcopy(base)
    for op in operations:
        *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in op["path"].lstrip("/").split("/")]
        node = result
        try:
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node[part]
            if op["op"] == "test" and node[last] != op["value"]:
                raise KeyError(last)
            if op["op"] in ("replace", "remove"):
                node[last]
        except (KeyError, IndexError):
            raise Refusal(
                422, "Invalid", f"the server rejected our request: {op['op']} {op['path']}"
            ) from None
        if op["op"] in ("add", "replace"):
            node[last] = op["value"]
        elif op["op"] == "remove":
            del node[last]
    return result


# --- who manages which field ---


def leaves(thing: Any, path: Path = ()) -> Iterator[Path]:
    """Every field of an object that has a manager; `f:` names a key, `k:` an entry of a named list."""
    if not isinstance(thing, dict) or (not thing and path):
        yield path
        return
    for key, inner in thing.items():
        if not path and key in ("apiVersion", "kind", "status"):
            continue
        if path == ("f:metadata",) and key in SYSTEM:
            continue
        here = (*path, f"f:{key}")
        if key in KEYED and isinstance(inner, list):
            for one in inner:
                rest = {k: v for k, v in one.items() if k != "name"}
                yield from leaves(rest or "alone", (*here, f'k:{{"name":"{one["name"]}"}}'))
        elif inner is not None and (inner or not isinstance(inner, dict) or here != ("f:metadata",)):
            yield from leaves(inner, here)


def step_in(node: Any, part: str) -> Any:
    if part.startswith("k:"):
        name = json.loads(part[2:])["name"]
        return next((one for one in node or [] if one["name"] == name), None)
    return node.get(part[2:]) if isinstance(node, dict) else None


def value(thing: Any, path: Path) -> Any:
    for part in path:
        thing = step_in(thing, part)
    return "alone" if path and path[-1].startswith("k:") and thing is not None else thing


def remove(thing: Obj, path: Path) -> None:
    """Drop a field, and maps that are empty without it."""
    *parents, last = path
    nodes = [thing]
    for part in parents:
        inner = step_in(nodes[-1], part)
        if inner is None:
            return
        nodes.append(inner)
    if last.startswith("k:"):
        nodes[-1][:] = [one for one in nodes[-1] if one["name"] != json.loads(last[2:])["name"]]
    else:
        nodes[-1].pop(last[2:], None)
    for node, part in zip(reversed(nodes[:-1]), reversed(parents), strict=True):
        if isinstance(node, dict) and node.get(part[2:]) in ({}, []):
            del node[part[2:]]


def dotted(path: Path) -> str:
    return "." + ".".join(part[2:] for part in path)


def fields_of(one: Obj) -> set[Path]:
    found: set[Path] = set()

    def walk(node: Obj, path: Path) -> None:
        if not node:
            found.add(path)
        for key, inner in node.items():
            walk(inner, (*path, key))

    walk(one.get("fieldsV1", {}), ())
    return found - {()}


def set_fields(one: Obj, paths: set[Path]) -> None:
    tree: Obj = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    one["fieldsV1"] = tree


def entry(manager: str, operation: str, sub: str, paths: set[Path]) -> Obj:
    made: Obj = {
        "manager": manager,
        "operation": operation,
        "apiVersion": "v1",
        "time": stamp(),
        "fieldsType": "FieldsV1",
    }
    if sub:
        made["subresource"] = sub
    set_fields(made, paths)
    return made


def own_changes(new: Obj, old: Obj, manager: str, sub: str) -> None:
    """An update: the manager gets every field it changed, from whoever had it. Entries it sends replace the live ones."""
    sent = new["metadata"].get("managedFields")
    entries = copy.deepcopy(sent if sent else old.get("metadata", {}).get("managedFields", []))
    if sent == [{}]:
        entries = []
    before, after = set(leaves(old)) if old else set(), set(leaves(new))
    changed = {
        p
        for p in after
        if p not in before or canonical_value(p, value(old, p)) != canonical_value(p, value(new, p))
    }
    for one in entries:
        set_fields(one, fields_of(one) - changed - (before - after))
    if changed:
        key = (manager, "Update", sub)
        mine = next(
            (e for e in entries if (e["manager"], e["operation"], e.get("subresource", "")) == key), None
        )
        if mine is None:
            entries.append(entry(manager, "Update", sub, changed))
        else:
            set_fields(mine, fields_of(mine) | changed)
    new["metadata"]["managedFields"] = [e for e in entries if fields_of(e)]
