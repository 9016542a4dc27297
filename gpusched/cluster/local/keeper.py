"""The keeper: one process, parent of all processes of a local cluster, that ends them when its own parent is gone.

`python -I -S keeper.py FOLDER PREFIX`, started by `processes.Processes`. It reads one JSON command per line and
answers each with one line: `start` (name, argv, env, log) → pid; `exits` → codes by name. When its input ends, be
it that the parent closed it, crashed or was killed with -9, it ends everything, takes away what the servers left in
/dev/shm under PREFIX, removes FOLDER and leaves. Should the keeper itself be killed, the kernel kills its children
(PR_SET_PDEATHSIG); that signal is tied to the thread that forked, which is why a process with one thread forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOOK_S, GRACE_S = 0.5, 4.0
"""How often it looks whether its parent is alive, and how long processes may take to end."""


class Keeper:
    """Starts processes, collects their exit codes, ends them."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None)
        # Helpers of a killed server become children of the keeper instead of init's, so they can be found.
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.parent = os.getppid()
        self.running: dict[int, str] = {}
        self.codes: dict[str, int] = {}

    def serve(self) -> None:
        """Obey until the input ends or the parent is another one."""
        rest = b""
        while os.getppid() == self.parent:
            self.collect()
            if not select.select([0], [], [], LOOK_S)[0]:
                continue
            given = os.read(0, 65536)
            if not given:
                return
            *lines, rest = (rest + given).split(b"\n")
            for line in lines:
                print(json.dumps(self.obey(json.loads(line))), flush=True)

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "exits":
            self.collect()
            return {"codes": self.codes}
        try:
            return {"pid": self.start(command)}
        except OSError as error:
            return {"error": str(error)}

    def start(self, command: dict[str, Any]) -> int:
        with open(command["log"], "ab") as out:
            process = subprocess.Popen(
                command["argv"], env=command["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=self.die_with_keeper,
            )  # fmt: skip
        process.returncode = 0  # `collect` reaps it
        self.running[process.pid] = command["name"]
        return process.pid

    def die_with_keeper(self) -> None:
        self.libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def collect(self) -> None:
        """Reap every child that has ended, helpers of helpers included."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                name = self.running.pop(pid, None)
                if name is not None:
                    self.codes[name] = os.waitstatus_to_exitcode(status)
                    self.signal_group(pid, signal.SIGKILL)  # what it left behind of its own session

    def end_all(self) -> None:
        """SIGTERM, then SIGKILL after the grace; every process leads a session, its helpers are in it."""
        for pid in self.running:
            self.signal_group(pid, signal.SIGTERM)
        until_s = time.monotonic() + GRACE_S
        while self.running and time.monotonic() < until_s:
            self.collect()
            time.sleep(0.02)
        for pid in [*self.running, *children(os.getpid())]:
            self.signal_group(pid, signal.SIGKILL)
            self.signal_one(pid, signal.SIGKILL)
        until_s = time.monotonic() + GRACE_S
        while (self.running or children(os.getpid())) and time.monotonic() < until_s:
            self.collect()
            time.sleep(0.02)

    @staticmethod
    def signal_group(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    @staticmethod
    def signal_one(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Return the children of a process, dead ones that nobody reaped included."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main() -> None:
    folder, prefix = Path(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keeper = Keeper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        keeper.serve()
    except BrokenPipeError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.end_all()
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
