"""The processes of a local cluster, all children of a keeper that outlives this process by seconds at most."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from gpusched.core.errors import ClusterError

KEEPER = Path(__file__).with_name("keeper.py")
END_S = 12.0
TAIL_LINES = 5


class Processes:
    """Starts and signals processes through the keeper. `folder` is removed with them."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.lock = threading.Lock()
        self.pids: dict[str, int] = {}
        # A session of its own, so that Ctrl-C in the terminal reaches this process alone, which then cleans up.
        self.keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", KEEPER, folder, prefix],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/",
        )  # fmt: skip

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Start a process and return its id; its output goes to the log of that name."""
        given = dict(os.environ if environment is None else environment)
        answer = self._ask(
            {
                "do": "start",
                "name": name,
                "argv": list(argv),
                "env": given,
                "log": str(self.folder / f"{name}.log"),
            }
        )
        if "error" in answer:
            raise ClusterError(f"{argv[0]}: cannot be started ({answer['error']}).")
        self.pids[name] = int(answer["pid"])
        return self.pids[name]

    def exits(self) -> dict[str, int]:
        """Return the exit codes of all that have ended, by name; negative: killed by that signal."""
        codes: dict[str, int] = self._ask({"do": "exits"})["codes"]
        return codes

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and, where it is SIGKILL, to its helpers."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pids[name], number)

    def tail(self, name: str) -> str:
        """Return the last lines a process wrote, in one line."""
        try:
            lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "it wrote nothing"
        return " | ".join(line.strip() for line in lines[-TAIL_LINES:]) or "it wrote nothing"

    def usage(self, name: str) -> tuple[float, int] | None:
        """Return CPU seconds used so far and bytes resident, helpers included; None where it has ended."""
        try:
            first = psutil.Process(self.pids[name])
            family = [first, *first.children(recursive=True)]
        except psutil.Error:
            return None
        cpu_s, memory_bytes = 0.0, 0
        for process in family:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                memory_bytes += process.memory_info().rss
        return cpu_s, memory_bytes

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            assert self.keeper.stdin and self.keeper.stdout
            try:
                self.keeper.stdin.write(json.dumps(command).encode() + b"\n")
                self.keeper.stdin.flush()
                line = self.keeper.stdout.readline()
            except (OSError, ValueError):
                line = b""
        if not line:
            raise ClusterError(
                "The keeper of the local cluster has ended, and with it every replica. Start again."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End every process and remove the folder; harmless when repeated."""
        with self.lock:
            for pipe in (self.keeper.stdin, self.keeper.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        try:
            self.keeper.wait(END_S)
        except subprocess.TimeoutExpired:
            self.keeper.kill()  # the kernel then kills the children
            self.keeper.wait()
        # The keeper's own last act, unless somebody killed it.
        for left in Path("/dev/shm").glob(f"{self.prefix}*"):
            left.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
