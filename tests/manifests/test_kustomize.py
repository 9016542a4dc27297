"""Every kustomization builds, and builds to what kustomize itself makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kustomize_subset import build, identity, merge

MANIFESTS = Path(__file__).parents[2] / "manifests"
FOLDERS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))


def name(folder: Path) -> str:
    return folder.relative_to(MANIFESTS).as_posix()


@cache
def with_kustomize() -> str | None:
    """Return kubectl where it brings kustomize 5; Debian 12's own is years older."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    said = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, timeout=60).stdout
    return kubectl if "Kustomize Version: v5." in said else None


def canonical(things: list[dict[str, Any]]) -> dict[str, str]:
    return {" ".join(identity(thing)): json.dumps(thing, sort_keys=True, indent=1) for thing in things}


def test_there_are_the_overlays_that_the_documentation_names() -> None:
    assert {name(folder) for folder in FOLDERS} == {
        "base",
        "monitoring",
        "monitoring/dcgm",
        *(
            f"overlays/{overlay}"
            for overlay in (
                "controller",
                "cpu",
                "keda",
                "load-balancer",
                "locust",
                "microk8s",
                "mps",
                "prometheus-adapter",
                "reported-probes",
                "time-slicing",
            )
        ),
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_builds_to_what_kustomize_makes_of_it(folder: Path) -> None:
    ours = build(folder)
    assert ours
    kubectl = with_kustomize()
    if kubectl is None:
        pytest.skip(
            "no kubectl with kustomize 5 here: only that it builds was tested, not that kustomize agrees"
        )
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    theirs = [thing for thing in yaml.safe_load_all(done.stdout) if thing]
    assert canonical(ours) == canonical(theirs)


def test_every_file_is_in_a_kustomization_or_stands_alone_on_purpose() -> None:
    alone = {"model/loader.yaml", "values/gpu-operator.yaml", "values/observability.yaml"}
    used = set()
    for folder in FOLDERS:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for entry in [
            *kustomization["resources"],
            *(p.get("path", "") for p in kustomization.get("patches", [])),
        ]:
            if entry and (folder / entry).is_file():
                used.add((folder / entry).resolve().relative_to(MANIFESTS.resolve()).as_posix())
        used.add(name(folder) + "/kustomization.yaml")
    files = {path.relative_to(MANIFESTS).as_posix() for path in MANIFESTS.rglob("*.yaml")}
    assert files == used | alone


def test_a_feature_outside_the_subset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        build(tmp_path)


def test_a_patch_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\npatches: [{path: p.yaml}]\n")
    (tmp_path / "p.yaml").write_text("{kind: Service, metadata: {name: nobody}}")
    with pytest.raises(ValueError, match="Service nobody meets 0 objects"):
        build(tmp_path)


def test_strategic_merge() -> None:
    old = {
        "a": 1,
        "args": [1, 2],
        "probe": {"x": 1},
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
    }
    new = {
        "args": [3],
        "probe": None,
        "env": [{"name": "A", "$patch": "delete"}, {"name": "B", "value": "3"}, {"name": "C"}],
    }
    assert merge(old, new) == {"a": 1, "args": [3], "env": [{"name": "C"}, {"name": "B", "value": "3"}]}
