"""What the API server answers when it refuses, told with what, where and the cure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpusched.cluster.microk8s.kinds import Dict, Kind, dig
from gpusched.core.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question to the API server, in RBAC's words."""

    verb: str
    kind: Kind
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        named = f" {self.name!r}" if self.name else ""
        where = f" in namespace {self.namespace}" if self.kind.namespaced and self.namespace else ""
        return f"{self.verb} {self.kind}{named}{where}"

    @property
    def can_i(self) -> str:
        """The kubectl command that asks whether this is allowed."""
        plain = str(self.kind).partition("/")[0]
        sub = f" --subresource={self.kind.sub}" if self.kind.sub else ""
        where = f" -n {self.namespace}" if self.kind.namespaced and self.namespace else ""
        return f"kubectl auth can-i {self.verb} {plain}{sub}{where}"


RIGHT = re.compile(r"cannot \S+ (resource|path) ")
"""How the authorizer refuses (apiserver's responsewriters.forbiddenMessage). Admission answers 403 as well
(admission.NewForbidden: quota, LimitRange, Pod Security), and no right cures that."""


class ApiFailure(ClusterError):
    """The API server refused, and trying again would not help; `said` is the server's own message."""

    def __init__(self, message: str, *, status: int, reason: str = "", said: str = "", causes: Sequence[str] = ()) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.reason, self.said, self.causes = status, reason, said, list(causes)

    @property
    def lacks_right(self) -> bool:
        """Whether RBAC refused."""
        return self.status == 403 and RIGHT.search(self.said) is not None


class Unreachable(ClusterError):
    """No usable answer within the deadline: connection lost or hung, or 429 and 5xx throughout.

    after_s  what the server asks to wait before the next try (Retry-After), seconds
    """

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


def failure(call: Call, status: int, answer: Dict) -> ApiFailure:
    """Return the error for a refusal; `answer` is the API's Status object."""
    causes = [str(cause.get("reason", "")) for cause in dig(answer, "details", "causes") or []]
    said = str(answer.get("message") or "no reason given").rstrip(".")
    reason = str(answer.get("reason") or "")
    text = f"Kubernetes refused to {call} ({status} {reason}): {said}. {_cure(call, status, said, causes)}"
    return ApiFailure(text.rstrip(), status=status, reason=reason, said=said, causes=causes)


def _cure(call: Call, status: int, said: str, causes: Sequence[str]) -> str:
    if "NamespaceTerminating" in causes:
        return (
            "Wait until the namespace is gone, set the service up again (manifests/), then start the trial."
        )
    if status == 401:
        return "The credentials are not accepted, even read anew: renew them (MicroK8s: microk8s config)."
    if status == 403 and RIGHT.search(said):
        return (
            f"Give the account this right (the Role in manifests/base has all that is needed): {call.can_i}"
        )
    if status == 403:
        where = f" -n {call.namespace}" if call.namespace else ""
        return f"Ask for less, or change the limit that admission keeps: kubectl describe quota,limits{where}"
    if status == 404 and call.kind.namespaced:
        return (
            "Set the service up (manifests/, docs/install.md), or say where it is: "
            "cluster.namespace=NAME cluster.deployment=NAME."
        )
    if "FieldManagerConflict" in causes:
        return "Somebody else manages these fields: let them go there, or remove the object before the trial."
    return ""
