"""Who holds a lock is known again, and is not mistaken for another."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from gpusched.core.process import Process, started_s


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_a_process_lives_until_it_is_killed(other: subprocess.Popen[bytes]) -> None:
    me = Process.me()
    holder = replace(me, pid=other.pid, started_s=started_s(other.pid))
    assert me.alive(me) and holder.alive(me)
    other.kill()
    other.wait()
    assert holder.alive(me) is False


def test_a_zombie_is_dead(other: subprocess.Popen[bytes]) -> None:
    me = Process.me()
    holder = replace(me, pid=other.pid, started_s=started_s(other.pid))
    other.kill()
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert holder.alive(me) is False


def test_another_process_with_its_number_is_not_it(other: subprocess.Popen[bytes]) -> None:
    me = Process.me()
    assert replace(me, pid=other.pid, started_s=started_s(other.pid) - 2.0).alive(me) is False


def test_a_process_of_another_machine_cannot_be_told() -> None:
    me = Process.me()
    assert replace(me, machine="another boot pid:[1]").alive(me) is None
    assert replace(me, machine=" ").alive(replace(me, machine=" ")) is None


def test_the_start_is_counted_from_the_boot_whatever_the_clock_says() -> None:
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    begin_s = started_s(psutil.Process().pid)
    assert 0.0 < begin_s <= uptime_s
    assert begin_s == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=3.0)


def test_a_process_that_is_gone_has_no_start() -> None:
    with pytest.raises(psutil.NoSuchProcess):
        started_s(2**22 + 1)
