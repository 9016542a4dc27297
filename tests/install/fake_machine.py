"""A made-up machine for install.sh: nothing on its PATH can change the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub.sh"

HARMLESS = [
    "awk",
    "bash",
    "cat",
    "cp",
    "date",
    "dirname",
    "find",
    "grep",
    "head",
    "install",
    "ln",
    "ls",
    "mkdir",
    "rm",
    "sed",
    "sleep",
    "sort",
    "tail",
    "tee",
    "touch",
    "tr",
]
"""Real commands, which only touch what they are told to; all paths they are told lie in the machine's own folder."""
STUBBED = [
    "apt-get",
    "df",
    "gpasswd",
    "id",
    "lspci",
    "make",
    "mokutil",
    "nvidia-smi",
    "sg",
    "snap",
    "sudo",
    "timeout",
    "uname",
    "usermod",
]


@dataclass
class Result:
    """What a run did: its answer, what it changed (in order), what it asked."""

    code: int
    out: str
    calls: list[str]
    questions: list[str]

    def index(self, beginning: str) -> int:
        """Return when the first call that begins so was made."""
        return next(i for i, call in enumerate(self.calls) if call.startswith(beginning))


class Machine:
    """Ubuntu 24.04 with an RTX 3080 and nothing installed; files in `world` change that."""

    def __init__(self, folder: Path, *, stubs: bool = True) -> None:
        self.folder, self.world, self.bin = folder, folder / "world", folder / "bin"
        self.home, self.state, self.repo = folder / "home", folder / "state", folder / "repo"
        for path in (self.world, self.bin, self.home, self.repo, folder / "shelf"):
            path.mkdir(parents=True)
        (folder / "shelf" / "stub.sh").symlink_to(STUB)
        for name in HARMLESS:
            real = shutil.which(name)
            assert real, f"{name} is needed for this test"
            (self.bin / name).symlink_to(real)
        for name in STUBBED if stubs else ["df", "id", "uname"]:
            (self.bin / name).symlink_to(STUB)
        shutil.copy(ROOT / "install.sh", self.repo)
        (self.repo / "manifests").symlink_to(ROOT / "manifests")
        (self.repo / "pyproject.toml").touch()
        os.utime(self.repo / "pyproject.toml", (0, 0))
        self.put("gpu", "01:00.0 VGA compatible controller: NVIDIA Corporation GA102 [GeForce RTX 3080]")
        self.put("driver", "570.133.07")
        self.system("ubuntu", "24.04")
        self.memory(64)

    def put(self, name: str, text: str = "") -> None:
        """Let something be so in the machine's world."""
        (self.world / name).write_text(text + "\n" if text else "")

    def drop(self, name: str) -> None:
        (self.world / name).unlink()

    def system(self, name: str, version: str) -> None:
        (self.folder / "os-release").write_text(f'NAME="X"\nID={name}\nVERSION_ID="{version}"\n')

    def memory(self, gib: int) -> None:
        (self.folder / "meminfo").write_text(f"MemTotal:       {gib * 1048576} kB\nMemFree: 1 kB\n")

    def run(self, *words: str, **more: str) -> Result:
        """Run install.sh."""
        env = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "WORLD": str(self.world),
            "GPUSCHED_STATE_DIR": str(self.state),
            "GPUSCHED_OS_RELEASE": str(self.folder / "os-release"),
            "GPUSCHED_MEMINFO": str(self.folder / "meminfo"),
            "GPUSCHED_PATIENCE_S": "0",
            "GPUSCHED_PAUSE_S": "0",
            **more,
        }
        for name in ("calls", "questions", "unknown"):
            (self.world / name).unlink(missing_ok=True)
        bash = str((self.bin / "bash").resolve())
        done = subprocess.run(
            [bash, str(self.repo / "install.sh"), *words],
            env=env, cwd=self.folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        unknown = self._lines("unknown")
        assert not unknown, f"calls the stubs do not know: {unknown}"
        assert "command not found" not in done.stderr, done.stderr
        return Result(
            code=done.returncode,
            out=done.stdout + done.stderr,
            calls=self._lines("calls"),
            questions=self._lines("questions"),
        )

    def _lines(self, name: str) -> list[str]:
        path = self.world / name
        text = path.read_text() if path.exists() else ""
        return [line.replace(str(self.folder), "") for line in text.splitlines()]

    def files(self) -> dict[str, str]:
        """Return every file outside the world and what it holds."""
        return {
            str(path.relative_to(self.folder)): path.read_text(errors="replace") if path.is_file() else ""
            for top in (self.home, self.state, self.repo)
            for path in sorted(top.rglob("*"))
            if not {"manifests", "bin"} & set(path.parts)
        }
