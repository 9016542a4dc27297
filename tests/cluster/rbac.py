"""The Role that manifests/base gives a trial, and what its rules allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RBAC = Path(__file__).parents[2] / "manifests" / "base" / "rbac.yaml"
GROUPS = {"deployments": "apps", "horizontalpodautoscalers": "autoscaling"}
Right = tuple[str, str, str]
"""Verb, kind as `emulated_http.kind_of` has it, name or "" where the request names none."""


def rules() -> list[dict[str, Any]]:
    """Return the Role's rules."""
    things = [thing for thing in yaml.safe_load_all(RBAC.read_text()) if thing]
    (role,) = [t for t in things if (t["kind"], t["metadata"]["name"]) == ("Role", "gpusched")]
    return list(role["rules"])


def resource(kind: str) -> tuple[str, str]:
    """Return (group, resource) of a kind: "pods.metrics.k8s.io/x" is ("metrics.k8s.io", "pods/x")."""
    dotted, _, sub = kind.partition("/")
    plural, _, group = dotted.partition(".")
    return group or GROUPS.get(plural, ""), plural + (f"/{sub}" if sub else "")


def allows(rule: dict[str, Any], right: Right) -> bool:
    """A rule with names allows nothing to a request without one, such as create, list and watch."""
    verb, kind, name = right
    group, what = resource(kind)
    return (
        group in rule["apiGroups"]
        and what in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or name in rule["resourceNames"])
    )
