"""What the API server can do: its version and the levers it has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.kinds import Kind
from gpusched.core.errors import ClusterError

OLDEST = (1, 28)
TOLERANCE_SINCE = (1, 33)
"""First version that knows behavior.scaleUp.tolerance (HPAConfigurableTolerance; on by default from 1.35)."""

VERSION = Kind(root="", plural="version", kind="Info", namespaced=False)
CORE = Kind(root="", plural="api/v1", kind="APIResourceList", namespaced=False)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Version and what depends on it; `resize` is discovered, because gates decide it before 1.35."""

    version: tuple[int, int]
    resize: bool

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def look(api: Api, deadline: Deadline) -> Server:
    """Ask the server; ClusterError where it is too old."""
    answer = api.call("get", VERSION, deadline=deadline)
    parts = [re.match(r"\d+", str(answer.get(key, ""))) for key in ("major", "minor")]
    if not all(parts):
        raise ClusterError(
            f"Kubernetes at {api.host}: /version tells no version ({answer}). Is it an API server?"
        )
    version = (int(parts[0].group()), int(parts[1].group()))  # type: ignore[union-attr]
    if version < OLDEST:
        raise ClusterError(
            f"Kubernetes at {api.host} is {version[0]}.{version[1]}; gpusched needs {OLDEST[0]}.{OLDEST[1]} or newer. "
            "Upgrade it (MicroK8s: snap refresh microk8s --channel=...)."
        )
    names = {str(one.get("name")) for one in api.call("get", CORE, deadline=deadline).get("resources") or []}
    return Server(version=version, resize="pods/resize" in names)
