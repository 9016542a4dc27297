"""What a workload of ours must not do, as a lint: each rule is a sentence, broken ones come back as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kustomize_subset import containers, pod_spec

Dict = dict[str, Any]

VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim"}
TALK_TO_THE_API = {"gpusched-controller", "prometheus-adapter"}
"""Workloads that get a token."""

UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: str | int | float) -> float:
    """Return a Kubernetes quantity as a number."""
    digits = str(text).rstrip("mkMGKi")
    return float(digits) * UNITS[str(text)[len(digits) :]]


def problems(thing: Dict) -> list[str]:
    """Return the rules that an object breaks."""
    spec = pod_spec(thing)
    if spec is None:
        return list(_volume(thing))
    return [*_pod(thing, spec), *(text for one in containers(thing) for text in _container(one, spec))]


def _volume(thing: Dict) -> Iterator[str]:
    path = thing.get("spec", {}).get("hostPath") if thing["kind"] == "PersistentVolume" else None
    if path and (thing["metadata"]["name"], path["path"]) != ("gpusched-models", "/var/lib/gpusched/models"):
        yield f"hostPath {path['path']}: only the documented one"
    if path and path.get("type") != "Directory":
        yield "hostPath: must exist (type Directory), not be made"


def _pod(thing: Dict, spec: Dict) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "runs as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    token = spec.get("automountServiceAccountToken")
    if token is None or (token and thing["metadata"]["name"] not in TALK_TO_THE_API):
        yield "a token it does not need"
    if token and spec.get("serviceAccountName", "default") == "default":
        yield "the default service account"
    if spec.get("enableServiceLinks") is not False:
        yield "service links: every Service becomes environment variables"
    for volume in spec.get("volumes", []):
        kind = next(key for key in volume if key != "name")
        if kind not in VOLUMES:
            yield f"volume {volume['name']}: {kind}"
        elif kind == "emptyDir" and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']}: may fill the node's disk"


def _container(one: Dict, spec: Dict) -> Iterator[str]:
    context = one.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "root file system can be written"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if context.get("runAsUser", 1) == 0 or context.get("runAsNonRoot") is False:
        yield "runs as root"
    yield from _image(one["image"])
    yield from _resources(one.get("resources", {}))
    known = {volume["name"] for volume in spec.get("volumes", [])}
    for mount in one.get("volumeMounts", []):
        if mount["name"] not in known:
            yield f"mount {mount['name']}: no such volume"


def _image(image: str) -> Iterator[str]:
    last = image.rsplit("/", 1)[-1]
    tag = last.partition("@")[2] or last.partition(":")[2]
    if not tag or tag.endswith("latest"):
        yield f"image {image}: no fixed version"
    if "." not in image.partition("/")[0] and ":" not in image.partition("/")[0]:
        yield f"image {image}: no registry named"


def _resources(resources: Dict) -> Iterator[str]:
    for name in ("cpu", "memory"):
        request, limit = (resources.get(kind, {}).get(name) for kind in ("requests", "limits"))
        if request is None or limit is None:
            yield f"{name}: no request or no limit"
        elif quantity(request) > quantity(limit):
            yield f"{name}: request above its limit"
