"""Which process of which machine: what a lock's holder is known by after it has died."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = "/proc/self/ns/pid"
SAME_S = 1.0
"""Two readings of one process's start time differ by less."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process; `machine` is the boot and the PID namespace within which `pid` means something.

    A host's name would not do: clones of a machine share it, and containers of one pod. `started_s` counts from the boot,
    so that setting the clock does not make a living process look like another one with its number.
    """

    machine: str
    pid: int
    started_s: float

    @classmethod
    def me(cls) -> Process:
        """Return this process."""
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        space = os.readlink(PID_NAMESPACE) if os.path.exists(PID_NAMESPACE) else ""
        pid = os.getpid()
        return cls(machine=f"{boot} {space}", pid=pid, started_s=started_s(pid))

    def same_process(self, other: Process) -> bool:
        """Return whether both are one process, whatever else is told of it."""
        same_start = abs(self.started_s - other.started_s) < SAME_S
        return (self.machine, self.pid) == (other.machine, other.pid) and same_start

    def alive(self, here: Process) -> bool | None:
        """Return whether the process lives, None where that cannot be told from `here` (another machine or namespace)."""
        if self.machine != here.machine or not here.machine.strip():
            return None
        try:
            dead = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return not dead and abs(started_s(self.pid) - self.started_s) < SAME_S
        except psutil.NoSuchProcess:
            return False


def started_s(pid: int) -> float:
    """Return when a process began, in seconds since the boot (proc_pid_stat(5), field 22); psutil.NoSuchProcess if it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return psutil.Process(pid).create_time()  # no /proc: since the epoch; or the process is gone
    return int(words[19]) / os.sysconf("SC_CLK_TCK")
