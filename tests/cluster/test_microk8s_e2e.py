"""The end-to-end suite itself, on the emulator: it must not rot where there is no cluster to run it on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_control import World
from emulator import Emulator
from scene import node

ROOT = Path(__file__).parents[2]
QUICK = {"GPUSCHED_E2E_READY_S": "10", "GPUSCHED_E2E_HPA_S": "10", "GPUSCHED_E2E_STAY_S": "1"}


def suite(kubeconfig: str) -> tuple[int, dict[str, int], str]:
    """Run it; returns the exit code, what is counted, and what was said."""
    environment = {**os.environ, **QUICK, "KUBECONFIG": kubeconfig}
    command = [sys.executable, "-m", "pytest", "tests/e2e/test_kubernetes.py", "-m", "cluster", "-q", "-rs", "-p", "no:cacheprovider"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return done.returncode, counts, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kubelets", [True, False])
def test_it_passes_with_and_without_kubelets(tmp_path: Path, kubelets: bool) -> None:
    with Emulator(world=World(hpa_controller=True, kubelets=kubelets)) as emulator:
        if kubelets:
            ready = node()
            ready["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
            emulator.store.create("nodes", "", ready, "kubelet")
        code, counts, said = suite(str(emulator.kubeconfig(tmp_path / "kubeconfig")))
        assert code == 0, said
        assert "the server has no RBAC" in said
        assert ("no Ready node" in said) is not kubelets
        assert counts["skipped"] == (2 if kubelets else 5)
        assert counts["passed"] >= 19
        left = [name for plural, _, name in emulator.store.objects if plural == "namespaces"]
        assert left == [], "every test's namespace is removed"


@pytest.mark.slow
def test_it_says_so_where_there_is_no_cluster() -> None:
    code, counts, said = suite("")
    assert code == 0, said
    assert set(counts) == {"skipped"}
    assert "KUBECONFIG names no cluster" in said
