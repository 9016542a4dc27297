"""Where objects of each kind live in the Kubernetes API, and how RBAC calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Dict = dict[str, Any]
"""An API object, as JSON: a newer server's unknown fields survive a round trip."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One resource of the API; `sub` names a subresource, `kind` is what manifests call it."""

    root: str
    plural: str
    kind: str
    sub: str = ""
    namespaced: bool = True

    def path(self, namespace: str, name: str = "") -> str:
        """Return the URL path of the collection, or of one object."""
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (f"{self.root}{inside}/{self.plural}", name, self.sub) if part)

    @property
    def group(self) -> str:
        """The API group, "" for the core group."""
        return self.root.split("/")[2] if self.root.startswith("/apis/") else ""

    @property
    def api_version(self) -> str:
        """The `apiVersion` of a manifest."""
        return self.root.split("/", 2)[2]

    def __str__(self) -> str:
        dotted = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{dotted}/{self.sub}" if self.sub else dotted


DEPLOYMENTS = Kind(root="/apis/apps/v1", plural="deployments", kind="Deployment")
SCALE = Kind(root="/apis/apps/v1", plural="deployments", kind="Scale", sub="scale")
HPAS = Kind(root="/apis/autoscaling/v2", plural="horizontalpodautoscalers", kind="HorizontalPodAutoscaler")
PODS = Kind(root="/api/v1", plural="pods", kind="Pod")
RESIZE = Kind(root="/api/v1", plural="pods", kind="Pod", sub="resize")
SERVICES = Kind(root="/api/v1", plural="services", kind="Service")
CONFIGMAPS = Kind(root="/api/v1", plural="configmaps", kind="ConfigMap")
NODES = Kind(root="/api/v1", plural="nodes", kind="Node", namespaced=False)

MANAGER = "gpusched"
"""Our field manager: whose fields are ours."""
PART_OF = "app.kubernetes.io/part-of"
OURS = "gpusched"
"""Only objects labelled PART_OF=OURS are ever changed."""
HOLDER = "gpusched/holder"
"""Annotation of the objects a trial makes: which process made them."""


def dig(node: Any, *keys: str) -> Any:
    """Return what stands below the keys, None where one is missing."""
    for key in keys:
        if not isinstance(node, dict) or node.get(key) is None:
            return None
        node = node[key]
    return node


def ours(thing: Dict) -> bool:
    """Return whether an object carries our label."""
    return bool(dig(thing, "metadata", "labels", PART_OF) == OURS)


def made_by(thing: Dict) -> str:
    """Return which process made an object of a trial, "" for anything else."""
    return str((dig(thing, "metadata", "annotations") or {}).get(HOLDER, ""))


def name_of(thing: Dict) -> str:
    """Return an object's name."""
    return str(dig(thing, "metadata", "name") or "")


def uid_of(thing: Dict) -> str:
    """Return an object's uid, "" before it has one."""
    return str(dig(thing, "metadata", "uid") or "")


def selector(deployment: Dict) -> str:
    """Return a Deployment's pod selector as the API's query text."""
    chosen = dig(deployment, "spec", "selector") or {}
    parts = [f"{key}={value}" for key, value in sorted((chosen.get("matchLabels") or {}).items())]
    for rule in chosen.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or [])
        words = {"Exists": key, "DoesNotExist": f"!{key}"}
        parts.append(words.get(operator) or f"{key} {operator.lower()} ({values})")
    return ",".join(parts)
