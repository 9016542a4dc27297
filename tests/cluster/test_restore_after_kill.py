"""A real process is killed in the middle of a trial; the cluster is as it was found afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator import Emulator
from scene import act, cluster, deployment, hold, old_hpa, picture, scale

from gpusched.core.errors import ClusterError

ROOT = Path(__file__).parents[2]
JOURNAL = ("configmaps", "gpusched", "gpusched-journal")
DEPLOYMENT = ("deployments", "gpusched", "triton")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

pytestmark = [pytest.mark.slow, pytest.mark.wall]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster(("horizontalpodautoscalers", old_hpa()), ("deployments", deployment(2))) as made:
        yield made


@pytest.fixture
def before(emulator: Emulator) -> dict[str, Any]:
    return picture(emulator)


def start(emulator: Emulator, folder: Path) -> subprocess.Popen[str]:
    kubeconfig = emulator.kubeconfig(folder / "kubeconfig")
    command = [sys.executable, str(Path(__file__).with_name("victim.py")), str(kubeconfig), "gpusched"]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def victim(emulator: Emulator, before: dict[str, Any], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the cluster and has used every lever."""
    process = start(emulator, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    assert picture(emulator) != before
    yield process
    process.kill()
    process.wait()


def as_found(emulator: Emulator, before: dict[str, Any]) -> None:
    emulator.settle()
    assert picture(emulator) == before
    assert JOURNAL not in emulator.store.objects


def test_after_sigkill_the_next_trial_restores_first(
    emulator: Emulator, before: dict[str, Any], victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    one = hold(emulator, tmp_path)
    with pytest.raises(ClusterError, match=rf"held by process {victim.pid} .*trial victim"):
        one.take(5)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert JOURNAL in emulator.store.objects
    one.take(5)
    assert emulator.store.get(DEPLOYMENT)["spec"]["replicas"] == 2
    act(one, scale(3))
    one.give_back(5)
    as_found(emulator, before)


@pytest.mark.parametrize(("sent", "codes"), [(signal.SIGINT, (1, -2, 130)), (signal.SIGTERM, (143,))])
def test_a_signal_that_can_be_heard_gives_back(
    emulator: Emulator,
    before: dict[str, Any],
    victim: subprocess.Popen[str],
    sent: signal.Signals,
    codes: tuple[int, ...],
) -> None:
    victim.send_signal(sent)
    out, _ = victim.communicate(timeout=20)
    assert out == "given back\n"
    assert victim.returncode in codes
    as_found(emulator, before)


def test_the_restore_job_does_only_that(
    emulator: Emulator, before: dict[str, Any], victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    """python run.py job=restore cluster=microk8s"""
    command = [
        sys.executable, str(ROOT / "run.py"), "job=restore", "cluster=microk8s",
        f"cluster.kubeconfig={tmp_path}/kubeconfig", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"hydra.run.dir={tmp_path}/out",
    ]  # fmt: skip

    def restore() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )

    refused = restore()
    assert refused.returncode == 2, refused.stderr
    assert f"held by process {victim.pid}" in refused.stderr
    assert "Traceback" not in refused.stderr
    victim.kill()
    victim.wait()
    done = restore()
    assert done.returncode == 0, done.stderr
    assert "given back as process" in done.stderr
    as_found(emulator, before)


def test_killed_at_any_moment_nothing_is_lost(
    emulator: Emulator, before: dict[str, Any], tmp_path: Path
) -> None:
    """The process is killed right after its n-th request that changes something, for every n."""

    def changes() -> int:
        return len(emulator.writes()) + emulator.count("create", "configmaps")

    for n in range(1, 7):  # journal, HPA away, replicas, rollout, resize, HPA
        already = changes()
        process = start(emulator, tmp_path)
        while changes() < already + n and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        time.sleep(0.1)  # what was on its way arrives
        assert JOURNAL in emulator.store.objects
        hold(emulator, tmp_path).restore(10)
        as_found(emulator, before)
