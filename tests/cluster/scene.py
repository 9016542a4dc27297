"""What the emulated cluster holds when a test begins: Triton's Deployment as manifests/base sets it up."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from emulator import Emulator

from gpusched.cluster.microk8s.actuator import Target
from gpusched.cluster.microk8s.client import Access, Deadline
from gpusched.cluster.microk8s.desired import wanted
from gpusched.cluster.microk8s.hold import Hold
from gpusched.core.controls import Controls, Limits

OURS = {"app.kubernetes.io/part-of": "gpusched", "app.kubernetes.io/name": "triton"}
LIMITS = Limits(
    min_replicas=1, max_replicas=6, cpu_cores=[0.5, 1.0, 2.0], instances=[1, 2], gpu_shares=[0.25, 0.5]
)
INSTANCES_KNOWN = 1

CONTAINER: dict[str, Any] = {
    "name": "triton",
    "image": "triton:1",
    "env": [{"name": "TRITON_CONFIG", "value": "instances-1"}, {"name": "OTHER", "value": "x"}],
    "resources": {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"cpu": "1", "memory": "2Gi"},
    },
}
SIDECAR: dict[str, Any] = {
    "name": "exporter",
    "image": "exporter:1",
    "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "50m"}},
}


def deployment(replicas: int = 1, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "triton", "labels": dict(OURS), "annotations": {"note": "by hand"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "triton"}},
            "template": {
                "metadata": {"labels": dict(OURS)},
                "spec": {"containers": [{**copy.deepcopy(CONTAINER), **container}, copy.deepcopy(SIDECAR)]},
            },
        },
    }


def old_hpa() -> dict[str, Any]:
    """The HPA somebody set up before the trial: CPU and memory, with a behaviour."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "triton", "labels": dict(OURS), "annotations": {"team": "inference"}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "triton"},
            "minReplicas": 2,
            "maxReplicas": 5,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": name, "target": {"type": "Utilization", "averageUtilization": 60}},
                }
                for name in ("cpu", "memory")
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 120}},
        },
    }


def node(**labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-1", "labels": labels},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]},
    }


@contextmanager
def cluster(*things: tuple[str, dict[str, Any]], **more: Any) -> Iterator[Emulator]:
    """An emulated cluster with the namespace, a node, and the things given (the Deployment by default)."""
    with Emulator(**more) as emulator:
        store = emulator.store
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gpusched"}}
        store.create("namespaces", "", namespace, "kubectl-create")
        given = dict(things)
        store.create("nodes", "", given.pop("nodes", node()), "kubelet")
        for plural, thing in {"deployments": deployment(), **given}.items():
            store.create(plural, "gpusched", thing, "kubectl-client-side-apply")
        emulator.settle()
        yield emulator


def hold(emulator: Emulator, folder: Path, trial: str = "t", timeout_s: float = 0.5, **target: Any) -> Hold:
    access = Access(kubeconfig=str(emulator.kubeconfig(folder / "kubeconfig")), call_timeout_s=timeout_s)
    names = {
        "namespace": "gpusched",
        "deployment": "triton",
        "container": "triton",
    }
    return Hold(access, Target(**{**names, **target}), trial)


def act(one: Hold, controls: Controls, seconds: float = 3.0) -> None:
    one.apply(wanted(controls, LIMITS), Deadline(seconds), INSTANCES_KNOWN)


def scale(replicas: int, **more: float) -> Controls:
    """Controls of one environment: cpu_cores, instances, gpu_share."""
    controls = Controls.scale([replicas])
    for name, value in more.items():
        setattr(controls, f"{name}_E", np.array([value]))
    return controls


VOLATILE = ("resourceVersion", "generation", "uid", "creationTimestamp")


def picture(emulator: Emulator, managers: bool = True) -> dict[str, Any]:
    """Everything a trial could leave behind: objects without what the server counts, and the living pods' sizes."""
    seen: dict[str, Any] = {}
    for plural in ("deployments", "horizontalpodautoscalers", "configmaps", "services", "nodes"):
        for thing in emulator.store.list(plural, ""):
            meta = {k: v for k, v in thing["metadata"].items() if k not in (*VOLATILE, "managedFields")}
            if managers:
                meta["managers"] = sorted(
                    (e["manager"], e["operation"], e.get("subresource", ""), str(e["fieldsV1"]))
                    for e in thing["metadata"]["managedFields"]
                    if e.get("subresource") != "status"
                )
            seen[f"{plural}/{meta['name']}"] = {
                "metadata": meta,
                "spec": thing.get("spec"),
                "data": thing.get("data"),
            }
    living = [p for p in emulator.store.list("pods", "") if "deletionTimestamp" not in p["metadata"]]
    seen["pods"] = sorted(str([c["resources"] for c in p["spec"]["containers"]]) for p in living)
    return seen
