"""The machine the trials run on: what can be read of it without a cluster, and the doctor's checks of it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpusched.core.check import FAIL, OK, WARN, Check

COMMAND_S = 10.0
"""Longest a tool of the system may take to answer."""
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1e9, 5e9
MEMORY_WARN_BYTES = 2e9
SERVERS = ("tritonserver", "triton_python_backend_stub", "nvidia-cuda-mps-server")
"""Processes on the GPU that are the service's own."""
SLOW_REASONS = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
"""nvidia-smi's reasons for lowered clocks that spoil a measurement; idling and the power cap of normal work do not."""


@dataclass(frozen=True, kw_only=True)
class GPUProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: str

    @property
    def ours(self) -> bool:
        return Path(self.name).name.startswith(SERVERS)


def asked(*command: str) -> str | None:
    """Return what a command of the system prints, None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def gpu_processes() -> list[GPUProcess]:
    """Return the processes that compute on this machine's GPUs; none where there is no driver."""
    text = asked("nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader") or ""
    rows = [line.split(",", 1) for line in text.splitlines() if "," in line]
    return [GPUProcess(pid=int(pid), name=name.strip()) for pid, name in rows if pid.strip().isdigit()]


def foreign_gpu_processes() -> list[GPUProcess]:
    """Return the processes on the GPUs that are not the service's."""
    return [process for process in gpu_processes() if not process.ours]


def throttled() -> list[str]:
    """Return why a GPU has lowered its clocks: heat or a failing supply; empty where it has not, or cannot be asked."""
    query = ",".join(f"clocks_throttle_reasons.{reason}" for reason in SLOW_REASONS)
    text = asked("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader") or ""
    found = [
        reason
        for line in text.splitlines()
        for reason, state in zip(SLOW_REASONS, line.split(","), strict=False)
        if state.strip() == "Active"
    ]
    return sorted(set(found))


def checks(folder: Path, gpu_needed: bool) -> list[Check]:
    """Return the doctor's checks of this machine; `folder` is where results are written."""
    return [disk(folder), memory(), clock(), *(gpu() if gpu_needed else [])]


def disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    status = FAIL if free < DISK_FAIL_BYTES else WARN if free < DISK_WARN_BYTES else OK
    cure = "Free some space, or run in another folder." if status != OK else ""
    return Check(name="disk", status=status, detail=f"{free / 1e9:.1f} GB free under {folder}", cure=cure)


def memory() -> Check:
    free = psutil.virtual_memory().available
    status = WARN if free < MEMORY_WARN_BYTES else OK
    cure = "Close other programs: swapping spoils every latency." if status != OK else ""
    return Check(name="memory", status=status, detail=f"{free / 1e9:.1f} GB available", cure=cure)


def clock() -> Check:
    """Metrics carry the time of the machine that took them, so clocks that disagree make samples look stale."""
    told = asked("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if told == "yes":
        return Check(name="clock", status=OK, detail="synchronised")
    if told == "no":
        return Check(name="clock", status=WARN, detail="not synchronised",
                     cure="sudo timedatectl set-ntp true")  # fmt: skip
    return Check(name="clock", status=WARN, detail="cannot be asked (no timedatectl)",
                 cure="See to it that the clocks of this machine and of the nodes agree within a second.")  # fmt: skip


def gpu() -> list[Check]:
    """Check the driver, who else is on the GPU, and its clocks."""
    told = asked("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if told is None:
        return [Check(name="driver", status=WARN, detail="nvidia-smi is missing or fails on this machine",
                      cure="Fine where the GPUs are in other nodes; else install the driver (docs/install.md).")]  # fmt: skip
    found = [Check(name="driver", status=OK, detail="; ".join(told.splitlines()))]
    foreign = foreign_gpu_processes()
    names = ", ".join(f"{p.name} ({p.pid})" for p in foreign)
    found.append(
        Check(name="foreign processes", status=FAIL, detail=f"on the GPU: {names}",
              cure="Stop them: they take GPU time and memory from what is measured.")
        if foreign else Check(name="foreign processes", status=OK, detail="nobody else is on the GPU")
    )  # fmt: skip
    reasons = throttled()
    found.append(
        Check(name="GPU clocks", status=FAIL, detail=f"lowered: {', '.join(reasons)}",
              cure="Let it cool, see to the airflow and the power supply, and look again.")
        if reasons else Check(name="GPU clocks", status=OK, detail="not lowered by heat or supply")
    )  # fmt: skip
    return found
