"""A GPU of this machine under load: processes that run batches on it, and what nvidia-smi says meanwhile."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusched.core.errors import ClusterError, InputError
from gpusched.live.machine import asked

WORKER = Path(__file__).with_name("gpu_worker.py")
SAMPLE_S = 0.1
"""nvidia-smi shows the share of time at which a kernel ran over its last sample period, 1/6 s to 1 s."""
ANSWER_S = 300.0
"""Longest wait for a worker: TensorRT builds its engine when it first sees a batch size."""
MEBI = 2**20


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU as nvidia-smi describes it."""

    index: int
    name: str
    memory_bytes: float
    used_bytes: float
    busy: float


def look(index: int) -> GPU:
    """Return the GPU's state; InputError where there is none."""
    fields = "name,memory.total,memory.used,utilization.gpu"
    told = asked("nvidia-smi", f"--id={index}", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    cells = [cell.strip() for cell in (told or "").split(",")]
    if len(cells) != 4 or not all(cell.isdigit() for cell in cells[1:]):
        raise InputError(
            f"gpu = {index}: nvidia-smi shows no such GPU on this machine, or not its memory and utilisation (as with MIG). "
            "Run this on the machine that has it, or choose another with job.gpu=NUMBER."
        )
    total, used, busy = (float(cell) for cell in cells[1:])
    return GPU(index=index, name=cells[0], memory_bytes=total * MEBI, used_bytes=used * MEBI, busy=busy / 100)


def held_bytes(pid: int) -> float:
    """Return the memory a process holds of the GPUs, 0 where nvidia-smi does not say (as under MPS)."""
    told = asked("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits") or ""
    rows = [line.split(",") for line in told.splitlines() if line.count(",") == 1]
    found = [float(used) for p, used in rows if p.strip() == str(pid) and used.strip().isdigit()]
    return sum(found) * MEBI


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some seconds of processes that run batches of one size back to back.

    batches    that ended, of all processes
    span_s     how long it lasted
    mean_s, var_s2   of one batch's time in its process
    busy       share of the time at which a kernel ran
    """

    processes: int
    size: int
    batches: int
    span_s: float
    mean_s: float
    var_s2: float
    busy: float


class Workers:
    """Processes on the GPU, each with its own context."""

    def __init__(self, count: int, command: Sequence[str], gpu: int, environment: Mapping[str, str]) -> None:
        self.gpu = gpu
        # CUDA numbers the fastest GPU first unless told; nvidia-smi goes by the bus.
        chosen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)}
        own = {**os.environ, **chosen, **environment}
        # A file: a pipe that nobody reads would stop a library that logs much. It lives as long as the processes.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._all: list[subprocess.Popen[str]] = []
        try:
            for _ in range(count):
                self._all.append(
                    subprocess.Popen(
                        command,
                        env=own,
                        text=True,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=self._errors,
                    )
                )
            self.said = [self._hear(one)["ready"] for one in self._all]
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self._all]

    def prepare(self, size: int) -> None:
        """Let every process run batches of this size until they run at full speed."""
        self._ask({"batch": size, "processes": len(self._all)})

    def stretch(self, size: int, settle_s: float, span_s: float) -> Stretch:
        """Let all run together, and return what happened after `settle_s`."""
        begin_s = time.monotonic() + settle_s
        told: list[dict[str, Any]] = []
        with busy_share(self.gpu, begin_s, begin_s + span_s) as seen:
            told = self._ask({"begin_s": begin_s, "end_s": begin_s + span_s})
        batches = sum(int(one["batches"]) for one in told)
        if not batches:
            raise ClusterError(
                f"no batch of {size} ended within {span_s:g} s. Choose a longer job.stretch_s."
            )
        mean_s = sum(one["sum_s"] for one in told) / batches
        var_s2 = max(sum(one["squares"] for one in told) / batches - mean_s**2, 0.0)
        return Stretch(
            processes=len(self._all), size=size, batches=batches, span_s=span_s, mean_s=mean_s, var_s2=var_s2,
            busy=sum(seen) / len(seen) if seen else float("nan"),
        )  # fmt: skip

    def _ask(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        for one in self._all:
            assert one.stdin
            try:
                one.stdin.write(json.dumps(line) + "\n")
                one.stdin.flush()
            except OSError:
                self._hear(one)  # it has ended, and says why
        return [self._hear(one) for one in self._all]

    def _hear(self, one: subprocess.Popen[str]) -> dict[str, Any]:
        assert one.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(one.stdout, selectors.EVENT_READ)
            line = one.stdout.readline() if selector.select(ANSWER_S) else ""
        if line:
            told: dict[str, Any] = json.loads(line)
            return told
        one.kill()
        one.wait()
        self._errors.seek(0)
        why = self._errors.read().strip().splitlines()
        raise ClusterError(
            f"a process on the GPU gave no answer: {why[-1] if why else f'none within {ANSWER_S:g} s'}. "
            "The libraries it needs are in job.python's environment: make gpu installs them."
        )

    def close(self) -> None:
        """End all processes."""
        for one in self._all:
            one.kill()
        for one in self._all:
            one.wait()
            for pipe in (one.stdin, one.stdout):
                if pipe:
                    pipe.close()
        self._errors.close()


@contextmanager
def busy_share(index: int, begin_s: float, end_s: float) -> Iterator[list[float]]:
    """Collect nvidia-smi's readings between two moments of the monotonic clock, from a thread of its own."""
    seen: list[float] = []

    def watch() -> None:
        while (now_s := time.monotonic()) < end_s:
            if now_s >= begin_s:
                told = asked(
                    "nvidia-smi",
                    f"--id={index}",
                    "--query-gpu=utilization.gpu",
                    "--format=csv,noheader,nounits",
                )
                if told and told.strip().isdigit():
                    seen.append(float(told) / 100)
            time.sleep(SAMPLE_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        thread.join()


@contextmanager
def mps() -> Iterator[dict[str, str] | None]:
    """Run an MPS daemon of our own; yields the environment its clients need, None where the machine has no MPS."""
    if shutil.which("nvidia-cuda-mps-control") is None:
        yield None
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpusched-mps-"))
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run(["nvidia-cuda-mps-control", "-d"], env={**os.environ, **own}, check=False)
        if started.returncode:
            yield None
            return
        try:
            yield own
        finally:
            subprocess.run(
                ["nvidia-cuda-mps-control"],
                input="quit\n",
                text=True,
                env={**os.environ, **own},
                check=False,
                timeout=60,
            )
