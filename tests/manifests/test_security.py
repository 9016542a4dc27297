"""No workload may more than it needs; the lint that says so is tested rule by rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kustomize_subset import pod_spec
from objects import everything, one
from security_lint import problems, quantity

EVERYTHING = everything()
Break = Any


@pytest.mark.parametrize("where", EVERYTHING)
def test_breaks_no_rule(where: str) -> None:
    assert problems(EVERYTHING[where]) == []


def test_there_are_workloads_to_look_at() -> None:
    assert {t["metadata"]["name"] for t in EVERYTHING.values() if pod_spec(t)} == {
        "triton",
        "prometheus-adapter",
        "locust-master",
        "locust-workers",
        "gpusched-controller",
        "model-loader",
    }


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda pod, c: pod["securityContext"].update(runAsNonRoot=False), "runs as root"),
        (lambda pod, c: pod["securityContext"].update(runAsUser=0), "runs as root"),
        (lambda pod, c: c["securityContext"].update(runAsUser=0), "runs as root"),
        (lambda pod, c: pod["securityContext"].pop("seccompProfile"), "no seccomp profile"),
        (lambda pod, c: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}), "no seccomp profile"),
        (lambda pod, c: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod, c: pod.update(hostIPC=True), "hostIPC"),
        (lambda pod, c: pod.update(automountServiceAccountToken=True), "a token it does not need"),
        (lambda pod, c: pod.pop("automountServiceAccountToken"), "a token it does not need"),
        (lambda pod, c: pod.pop("enableServiceLinks"), "service links: every Service becomes environment variables"),
        (lambda pod, c: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x: hostPath"),
        (lambda pod, c: pod["volumes"].append({"name": "x", "emptyDir": {}}), "volume x: may fill the node's disk"),
        (lambda pod, c: c["securityContext"].update(allowPrivilegeEscalation=True), "may gain privileges"),
        (lambda pod, c: c["securityContext"].update(privileged=True), "may gain privileges"),
        (lambda pod, c: c["securityContext"].pop("readOnlyRootFilesystem"), "root file system can be written"),
        (lambda pod, c: c["securityContext"].update(capabilities={}), "keeps capabilities"),
        (lambda pod, c: c["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "keeps capabilities"),
        (lambda pod, c: c.update(image="nvcr.io/nvidia/tritonserver:latest"), "image nvcr.io/nvidia/tritonserver:latest: no fixed version"),
        (lambda pod, c: c.update(image="nvcr.io/nvidia/tritonserver"), "image nvcr.io/nvidia/tritonserver: no fixed version"),
        (lambda pod, c: c.update(image="localhost:32000/gpusched"), "image localhost:32000/gpusched: no fixed version"),
        (lambda pod, c: c.update(image="gpusched/gpusched:0.1.0"), "image gpusched/gpusched:0.1.0: no registry named"),
        (lambda pod, c: c["resources"]["limits"].pop("memory"), "memory: no request or no limit"),
        (lambda pod, c: c["resources"]["requests"].pop("cpu"), "cpu: no request or no limit"),
        (lambda pod, c: c["resources"]["requests"].update(cpu="1500m"), "cpu: request above its limit"),
        (lambda pod, c: c["volumeMounts"].append({"name": "y", "mountPath": "/y"}), "mount y: no such volume"),
    ],
)  # fmt: skip
def test_the_lint_sees_it(change: Break, rule: str) -> None:
    thing = copy.deepcopy(one("base", "Deployment", "triton"))
    pod = thing["spec"]["template"]["spec"]
    change(pod, pod["containers"][0])
    assert problems(thing) == [rule]


def test_the_lint_sees_another_host_path() -> None:
    thing = copy.deepcopy(one("overlays/microk8s", "PersistentVolume", "gpusched-models"))
    thing["spec"]["hostPath"] = {"path": "/etc", "type": "DirectoryOrCreate"}
    assert len(problems(thing)) == 2


def test_the_lint_looks_into_init_containers() -> None:
    thing = copy.deepcopy(one("base", "Deployment", "triton"))
    pod = thing["spec"]["template"]["spec"]
    pod["initContainers"] = [copy.deepcopy(pod["containers"][0]) | {"securityContext": {}}]
    assert problems(thing) == ["may gain privileges", "root file system can be written", "keeps capabilities"]


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("1", 1), (2, 2), ("3Gi", 3 * 2**30), ("1200M", 1.2e9)]
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value)
