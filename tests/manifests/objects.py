"""All objects of manifests/, each once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from kustomize_subset import build, documents, identity

Dict = dict[str, Any]

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = MANIFESTS / "overlays"
TRITON = ("microk8s", "time-slicing", "mps", "cpu", "reported-probes")
"""Overlays that hold the whole service."""


@cache
def built(folder: str) -> list[Dict]:
    """Return the objects of a kustomization; do not change them."""
    return build(MANIFESTS / folder)


def everything() -> dict[str, Dict]:
    """Return each different object by where it first appears."""
    folders = [
        path.parent.relative_to(MANIFESTS).as_posix()
        for path in sorted(MANIFESTS.rglob("kustomization.yaml"))
    ]
    found = [(folder, thing) for folder in folders for thing in built(folder)]
    found += [("model", thing) for thing in documents(MANIFESTS / "model" / "loader.yaml")]
    unique: dict[str, Dict] = {}
    seen: set[str] = set()
    for folder, thing in found:
        text = json.dumps(thing, sort_keys=True)
        if text not in seen:
            seen.add(text)
            unique[f"{folder}: {'/'.join(part for part in identity(thing) if part)}"] = thing
    return unique


def one(folder: str, kind: str, name: str) -> Dict:
    """Return an object of a kustomization."""
    (found,) = [t for t in built(folder) if (t["kind"], t["metadata"]["name"]) == (kind, name)]
    return found


def triton(folder: str) -> tuple[Dict, Dict, Dict]:
    """Return Triton's Deployment, pod spec and container."""
    deployment = one(folder, "Deployment", "triton")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return deployment, pod, container
