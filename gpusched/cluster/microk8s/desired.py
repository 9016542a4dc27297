"""Controls → what the Deployment, its pods and the HPA shall be. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpusched.cluster.microk8s.hpa import with_target
from gpusched.cluster.microk8s.kinds import Dict, dig
from gpusched.cluster.microk8s.quantities import milli, number
from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.errors import ClusterError

MPS_ENV = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
"""Read by CUDA at a process's start: its share of the GPU's threads under MPS, percent."""


@dataclass(kw_only=True)
class Wanted:
    """The controls of the one environment, None where a lever stays as it is."""

    replicas: int | None = None
    hpa: HPASpec | None = None
    cpu_cores: float | None = None
    instances: int | None = None
    gpu_share: float | None = None


def wanted(controls: Controls, limits: Limits) -> Wanted:
    """Read the controls; replicas stay inside the limits, and an HPA owns them where there is one."""
    replicas = _first(controls.replicas_E)
    cpu, instances, share = (
        _first(values) for values in (controls.cpu_cores_E, controls.instances_E, controls.gpu_share_E)
    )
    spec = None
    if controls.hpa is not None:
        spec = with_target(controls.hpa, _first(controls.hpa_target_E))
        replicas = None
    return Wanted(
        replicas=None
        if replicas is None
        else int(np.clip(replicas, limits.min_replicas, limits.max_replicas)),
        hpa=spec,
        cpu_cores=cpu,
        instances=None if instances is None else int(instances),
        gpu_share=share,
    )


def _first(values_E: Any) -> float | None:
    """Return the only environment's value, None where it is not given or UNSET."""
    if values_E is None or not float(values_E[0]) > 0:
        return None
    return float(values_E[0])


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A container's CPU request and limit, cores."""

    request: float
    limit: float

    def as_resources(self) -> Dict:
        """Return the part of a container's `resources`."""
        return {"requests": {"cpu": milli(self.request)}, "limits": {"cpu": milli(self.limit)}}

    def scaled(self, limit: float) -> Cpu:
        """Return the same container with another limit.

        The request keeps its share of the limit, as in the simulator, so that an HPA's CPU target means the same
        at every size. Equal stays equal and less stays less, because a resize may not change the pod's QoS class.
        Both are whole thousandths, as the API keeps them; else a size would differ from what was sent for ever.
        """
        limit = float(number(milli(limit)))
        request = (
            limit if self.request == self.limit else min(limit * self.request / self.limit, limit - 0.001)
        )
        return Cpu(request=max(round(request, 3), 0.001), limit=limit)


def container(template: Dict, name: str, where: str) -> Dict:
    """Return a container of a pod spec by its name; ClusterError names those there are."""
    known = dig(template, "spec", "containers") or []
    for one in known:
        if one.get("name") == name:
            return dict(one)
    names = ", ".join(str(one.get("name")) for one in known) or "none"
    raise ClusterError(
        f"{where}: has no container {name!r} (containers: {names}). Say which one serves: cluster.container=NAME."
    )


def cpu_of(one: Dict, where: str) -> Cpu:
    """Return a container's CPU request and limit; both must stand in the Deployment, because a resize cannot add them."""
    request, limit = (dig(one, "resources", part, "cpu") for part in ("requests", "limits"))
    if request is None or limit is None:
        part = "limits" if limit is None else "requests"
        raise ClusterError(
            f"{where}: container {one.get('name')!r} has no resources.{part}.cpu. An HPA's CPU target is a share of "
            "the request and a pod's size is its limit: set both in the Deployment (manifests/base does)."
        )
    return Cpu(request=float(number(request)), limit=float(number(limit)))


def env_of(one: Dict, name: str) -> str | None:
    """Return the plain value of a container's environment variable, None where it has none."""
    found = [entry for entry in one.get("env") or [] if entry.get("name") == name]
    if found and "valueFrom" in found[0]:
        return None
    return str(found[0].get("value", "")) if found else None


def template_patch(name: str, resources: Dict | None = None, env: dict[str, str | None] | None = None, kind: str = "containers") -> Dict:  # fmt: skip
    """Return a strategic merge patch of one container of the template; a variable set to None is removed."""
    one: Dict = {"name": name}
    if resources is not None:
        one["resources"] = resources
    if env:
        one["env"] = [
            {"name": key, "$patch": "delete"} if value is None else {"name": key, "value": value}
            for key, value in env.items()
        ]
    return {"spec": {"template": {"spec": {kind: [one]}}}}
