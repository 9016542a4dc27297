"""The doctor: every line says what is wrong and how to mend it; a failed check fails the command."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from jobs import make

from gpusched.core.check import FAIL, OK, WARN, Check
from gpusched.core.errors import ClusterError
from gpusched.job import doctor
from gpusched.job.setup import Chore
from gpusched.job.sweep import Failed
from gpusched.live import machine

SMI = """#!/bin/sh
case "$1" in
  *compute-apps*) {apps} ;;
  *name,driver*) echo "NVIDIA GeForce RTX 3080, 570.86.15, 10240 MiB" ;;
  *throttle*) echo "{clocks}" ;;
esac
"""
CALM = "Not Active, Not Active, Not Active, Not Active"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Put an nvidia-smi of ours first in PATH that tells what a test says."""

    def put(apps: str = "true", clocks: str = CALM) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SMI.format(apps=apps, clocks=clocks))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return put


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_a_calm_gpu_passes(smi) -> None:  # type: ignore[no-untyped-def]
    smi(apps="echo '411, /opt/tritonserver/bin/tritonserver'")
    assert statuses(machine.gpu()) == {"driver": OK, "foreign processes": OK, "GPU clocks": OK}
    assert "RTX 3080" in machine.gpu()[0].detail


def test_a_foreign_process_is_named(smi) -> None:  # type: ignore[no-untyped-def]
    smi(apps="printf '411, tritonserver\\n977, /usr/bin/python3\\n'")
    check = machine.gpu()[1]
    assert check.status == FAIL
    assert "python3 (977)" in check.detail
    assert "411" not in check.detail
    assert check.cure


def test_lowered_clocks_fail(smi) -> None:  # type: ignore[no-untyped-def]
    smi(clocks="Not Active, Not Active, Active, Not Active")
    assert machine.throttled() == ["sw_thermal_slowdown"]
    assert machine.gpu()[2].status == FAIL


def test_without_a_driver_the_machine_may_still_steer_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (check,) = machine.gpu()
    assert check.status == WARN
    assert machine.gpu_processes() == []
    assert machine.throttled() == []


def test_a_tool_that_hangs_or_fails_is_as_good_as_missing(smi, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "COMMAND_S", 0.2)
    smi(apps="exec sleep 30")
    assert machine.gpu_processes() == []
    smi(apps="exit 3")
    assert machine.gpu_processes() == []


@pytest.mark.parametrize(("free", "status"), [(5e8, FAIL), (3e9, WARN), (1e11, OK)])
def test_disk(free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage)
    assert machine.disk(tmp_path).status == status


@pytest.mark.slow
def test_a_sound_machine_and_store_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job, setup = make("job=doctor", "job.json=out/doctor.json", f"tracking.uri=sqlite:///{tmp_path}/db.db")
    assert isinstance(job, Chore)
    assert job.do(setup).status == "finished"
    told = {line["name"]: line["status"] for line in json.loads(Path("out/doctor.json").read_text())}
    assert told["tracking store"] == OK
    assert not list(tmp_path.glob("**/*.tmp"))


def test_what_is_broken_fails_the_command_and_is_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "db.db").write_text("no database")
    job, setup = make("job=doctor", "job.json=doctor.json", f"tracking.uri=sqlite:///{tmp_path}/db.db")
    with pytest.raises(Failed, match="tracking store"):
        job.run(setup, None, None)  # type: ignore[arg-type]
    told = {line["name"]: line for line in json.loads(Path("doctor.json").read_text())}
    assert told["tracking store"]["status"] == FAIL
    assert told["disk"]["status"] in (OK, WARN)


def test_a_cluster_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> list[Check]:
        raise ClusterError("no cluster at https://10.0.0.1. Start it.")

    (check,) = doctor.guarded("cluster", look)
    assert (check.name, check.status) == ("cluster", FAIL)
    assert "10.0.0.1" in check.detail
