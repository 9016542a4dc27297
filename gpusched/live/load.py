"""The parent's side of the load: starts the processes of gpusched.live.users, reads their records, ends them."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

import gpusched
from gpusched.core.errors import ClusterError
from gpusched.live.plan import UsersPlan
from gpusched.live.records import RECORD, Rows, Tail

READY_S = 60.0
"""Longest start of a load process; importing locust takes about a second."""
STOP_S = 2.0
LOG_LINES = 15
PREFIX = "gpusched-load-"
"""Of the folder with plans, records and logs; the process' number follows."""


def sweep() -> None:
    """Remove the folders of trials that were killed and could not."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


class LoadProcess:
    """One process of users: its plan, its record, its log."""

    def __init__(self, plan: UsersPlan, folder: Path) -> None:
        self.plan, self.log = plan, folder / f"users-{plan.part}.log"
        records, plan_path = folder / f"users-{plan.part}.bin", folder / f"users-{plan.part}.json"
        plan.write(plan_path)
        self.tail = Tail(records)
        words = [sys.executable, "-m", "gpusched.live.users", str(plan_path), "--records", str(records)]
        paths = [str(Path(gpusched.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        # A session of its own: Ctrl-C in the terminal is for the parent, whose end ends the child.
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )

    def wait_ready(self, until_s: float) -> None:
        """Wait for the process to say that it can begin; ClusterError where it does not by then."""
        assert self.process.stdout is not None
        left_s = max(until_s - time.monotonic(), 0.0)
        if not select.select([self.process.stdout], [], [], left_s)[0]:
            raise ClusterError(f"the load did not start within {READY_S:g} s.{self.last_lines()}")
        if self.process.stdout.readline() != b"ready\n":
            self.process.wait()
            self.check()

    def begin(self, t0_s: float) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"begin {t0_s!r}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.process.wait()
            self.check()

    def check(self) -> None:
        """Raise ClusterError where the process has ended."""
        if (code := self.process.poll()) is not None:
            raise ClusterError(f"the load process ended with code {code}.{self.last_lines()}")

    def last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "".join(f"\n  {line}" for line in lines) or " It logged nothing."

    def stop(self) -> None:
        """End the process and wait for it; harmless where it has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Load:
    """The users of a trial, spread over `processes`. A plan without users needs no process at all."""

    def __init__(self, plan: UsersPlan, processes: int = 1) -> None:
        silent = plan.arrivals_s is None and max(plan.users) == 0
        self.plans = [] if silent else [replace(plan, part=p, parts=processes) for p in range(processes)]
        self.processes: list[LoadProcess] = []
        self.folder: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.plans)

    def start(self) -> None:
        """Start the processes and wait until each can begin; ClusterError where one cannot."""
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        until_s = time.monotonic() + READY_S
        for plan in self.plans:
            self.processes.append(LoadProcess(plan, self.folder))
        for process in self.processes:
            process.wait_ready(until_s)

    def begin(self, t0_s: float) -> None:
        """Let the load begin at `t0_s` of time.monotonic()."""
        for process in self.processes:
            process.begin(t0_s)

    def check(self) -> None:
        """Raise ClusterError with the last lines of its log where a process has ended."""
        for process in self.processes:
            process.check()

    def tail(self) -> Rows:
        """Return the rows written since the last call, those of each process in order."""
        return np.concatenate([process.tail.read() for process in self.processes] or [np.zeros(0, RECORD)])

    def stop(self) -> None:
        """End all processes and drop their files. Idempotent."""
        try:
            for process in self.processes:
                process.stop()
        finally:
            self.processes = []
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder = None
