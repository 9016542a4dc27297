"""The part of kustomize that manifests/ uses: resources, patches (strategic merge, JSON 6902), images.

Tests run where no kustomize is; where `kubectl` is, test_kustomize.py compares the two. Anything else in a
kustomization is refused, so manifests/ cannot come to use what this does not know.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Dict = dict[str, Any]

MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that a strategic merge patch merges, by the key of their entries; any other list is replaced."""

KNOWN = {"apiVersion", "kind", "resources", "patches", "images"}


def documents(path: Path) -> list[Dict]:
    """Return the YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def build(folder: Path) -> list[Dict]:
    """Return what `kubectl kustomize folder` prints, as objects."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    if unknown := set(kustomization) - KNOWN:
        raise ValueError(f"{folder}/kustomization.yaml: {', '.join(sorted(unknown))} is not in the subset")
    things = [thing for entry in kustomization["resources"] for thing in _resource(folder / entry)]
    if len({identity(thing) for thing in things}) < len(things):
        raise ValueError(f"{folder}: an object is there twice")
    for entry in kustomization.get("patches", []):
        _patch(things, entry, folder)
    for entry in kustomization.get("images", []):
        _retag(things, entry)
    return things


def identity(thing: Dict) -> tuple[str, str, str]:
    """Return what makes an object one of its own."""
    return thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def _resource(path: Path) -> list[Dict]:
    return build(path) if path.is_dir() else documents(path)


def _patch(things: list[Dict], entry: Dict, folder: Path) -> None:
    changes = documents(folder / entry["path"]) if "path" in entry else [yaml.safe_load(entry["patch"])]
    for change in changes:
        if isinstance(change, list):
            target = entry["target"]
            _json_6902(_find(things, target["kind"], target["name"]), change)
        else:
            found = _find(things, change["kind"], change["metadata"]["name"])
            merged = merge(found, change)
            found.clear()
            found.update(merged)


def _find(things: list[Dict], kind: str, name: str) -> Dict:
    found = [thing for thing in things if (thing["kind"], thing["metadata"]["name"]) == (kind, name)]
    if len(found) != 1:
        raise ValueError(f"a patch of {kind} {name} meets {len(found)} objects")
    return found[0]


def merge(old: Any, new: Any, key: str = "") -> Any:
    """Return the strategic merge of `new` into `old`; null removes."""
    if isinstance(old, dict) and isinstance(new, dict):
        kept = {name: copy.deepcopy(value) for name, value in old.items() if new.get(name, "") is not None}
        given = {name: value for name, value in new.items() if value is not None and name != "$patch"}
        merged = kept | {name: merge(kept.get(name), value, name) for name, value in given.items()}
        return {name: value for name, value in merged.items() if value != {} or old.get(name) == {}}
    if isinstance(old, list) and isinstance(new, list) and key in MERGE_KEYS:
        return _merge_lists(old, new, MERGE_KEYS[key])
    return copy.deepcopy(new)


def _merge_lists(old: list[Dict], new: list[Dict], by: str) -> list[Dict]:
    changes = {entry[by]: entry for entry in new}
    gone = {name for name, entry in changes.items() if entry.get("$patch") == "delete"}
    kept = [merge(entry, changes.get(entry[by], {})) for entry in old if entry[by] not in gone]
    added = [
        entry for name, entry in changes.items() if name not in gone and name not in {e[by] for e in old}
    ]
    return added + kept  # kustomize puts new entries first


def _json_6902(thing: Dict, operations: list[Dict]) -> None:
    for operation in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        node: Any = thing
        for part in way:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if operation["op"] == "remove":
            del node[last]
        elif operation["op"] in ("add", "replace"):
            node[last] = operation["value"]
        else:
            raise ValueError(f"operation {operation['op']} is not in the subset")


def _retag(things: list[Dict], entry: Dict) -> None:
    for container in (c for thing in things for c in containers(thing)):
        name, _, tag = (
            container["image"].rpartition(":") if ":" in container["image"] else (container["image"], "", "")
        )
        if name == entry["name"]:
            container["image"] = f"{entry.get('newName', name)}:{entry.get('newTag', tag)}"


def pod_spec(thing: Dict) -> Dict | None:
    """Return the pod spec of a workload, None for any other object."""
    if thing["kind"] == "Pod":
        return thing["spec"]
    return (
        thing.get("spec", {}).get("template", {}).get("spec") if isinstance(thing.get("spec"), dict) else None
    )


def containers(thing: Dict) -> list[Dict]:
    """Return the containers of a workload, init containers too."""
    spec = pod_spec(thing) or {}
    return [*spec.get("initContainers", []), *spec.get("containers", [])]
