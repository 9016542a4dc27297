"""Nothing of a local cluster outlives it: no process, no shared memory, no folder, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.local, pytest.mark.slow]

HERE = Path(__file__).parent
GONE_S = 15.0


@pytest.fixture
def holder(
    installed: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, HERE / "holder.py", request.param], stdout=subprocess.PIPE, text=True, cwd=HERE,
        env=os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"}, start_new_session=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    told = json.loads(line)
    yield process, told
    process.kill()
    process.communicate()
    shutil.rmtree(told["folder"], ignore_errors=True)  # nobody was left who could have


def alive(told: dict[str, Any]) -> list[str]:
    return [
        f"{pid} {name}"
        for pid, name in told["processes"].items()
        if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    ]


def left(told: dict[str, Any]) -> list[str]:
    """Return all that is still there of what the holder started."""
    shared = [str(path) for path in Path("/dev/shm").glob(f"*{told['prefix']}*")]
    return [*alive(told), *shared, *([told["folder"]] if Path(told["folder"]).exists() else [])]


def wait_gone(told: dict[str, Any]) -> list[str]:
    until_s = time.monotonic() + GONE_S
    while left(told) and time.monotonic() < until_s:
        time.sleep(0.1)
    return left(told)


def check_there(told: dict[str, Any]) -> None:
    """What is to be gone later must be there first: servers, their helpers, proxy, Prometheus, keeper, memory."""
    names = sorted(told["processes"].values())
    assert names.count("tritonserver") == 2
    assert sum("triton_python" in name for name in names) == 2
    assert "haproxy" in names
    assert "prometheus" in names
    assert list(Path("/dev/shm").glob(f"*{told['prefix']}*"))


@pytest.mark.parametrize("holder", ["end", "raise"], indirect=True)
def test_nothing_is_left_after_success_and_after_an_exception(holder: Any) -> None:
    process, told = holder
    process.wait(GONE_S)
    assert not left(told)


@pytest.mark.parametrize("holder", ["wait"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal_to_the_parent(holder: Any, number: signal.Signals) -> None:
    process, told = holder
    check_there(told)
    process.send_signal(number)
    process.wait(GONE_S)
    assert not wait_gone(told)


@pytest.mark.parametrize("holder", ["wait"], indirect=True)
def test_a_second_ctrl_c_during_the_clean_up_leaves_nothing_either(holder: Any) -> None:
    process, told = holder
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(GONE_S)
    assert not wait_gone(told)


@pytest.mark.parametrize("holder", ["wait"], indirect=True)
def test_a_killed_keepers_leftovers_go_with_the_parent(holder: Any) -> None:
    process, told = holder
    os.kill(told["keeper"], signal.SIGKILL)
    process.send_signal(signal.SIGINT)
    process.wait(GONE_S)
    assert not wait_gone(told)


@pytest.mark.parametrize("holder", ["wait"], indirect=True)
def test_a_killed_keeper_takes_its_processes_along(holder: Any) -> None:
    _, told = holder
    os.kill(told["keeper"], signal.SIGKILL)
    until_s = time.monotonic() + GONE_S
    others = {pid: name for pid, name in told["processes"].items() if int(pid) != told["keeper"]}
    while alive(told | {"processes": others}) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not alive(told | {"processes": others})
