"""Which process holds the cluster, and whether it still lives."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from gpusched.core.errors import ClusterError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = "/proc/self/ns/pid"
SAME_S = 1.0
"""Two readings of one process's start time differ by less."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process: `machine` is the boot and the PID namespace within which `pid` means something."""

    host: str
    machine: str
    pid: int
    started_s: float
    trial: str = ""

    @classmethod
    def me(cls, trial: str = "") -> Owner:
        """Return this process."""
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        space = os.readlink(PID_NAMESPACE) if os.path.exists(PID_NAMESPACE) else ""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(), machine=f"{boot} {space}", pid=pid,
            started_s=psutil.Process(pid).create_time(), trial=trial,
        )  # fmt: skip

    @classmethod
    def read(cls, text: str) -> Owner:
        """Read what `write` wrote; ClusterError where it is something else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ClusterError(
                f"the journal's owner cannot be read ({error}): {text[:100]!r}. Restore by hand what it tells, then remove "
                "it: kubectl get configmap gpusched-journal -o yaml"
            ) from None

    def write(self) -> str:
        """Return the owner as text."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def token(self) -> str:
        """What marks the owner's objects in the cluster."""
        return f"{self.host}/{self.pid}/{self.started_s:.2f}"

    def same_process(self, other: Owner) -> bool:
        """Return whether both are one process, whatever trial it is at."""
        return (self.machine, self.pid) == (other.machine, other.pid) and abs(
            self.started_s - other.started_s
        ) < SAME_S

    def alive(self, here: Owner) -> bool | None:
        """Return whether the process lives, None where only its heartbeat can tell (another machine or namespace)."""
        if self.machine != here.machine or not here.machine.strip():
            return None
        try:
            process = psutil.Process(self.pid)
            started_s = process.create_time()
            dead = process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        return not dead and abs(started_s - self.started_s) < SAME_S

    def __str__(self) -> str:
        trial = f" (trial {self.trial})" if self.trial else ""
        return f"process {self.pid} on {self.host}{trial}"
