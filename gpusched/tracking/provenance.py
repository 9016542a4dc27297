"""Where a number comes from: the commit, whether the tree was changed since, and the versions installed."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import gpusched

UNKNOWN = "unknown"
ROOT = Path(gpusched.__file__).resolve().parents[1]


def provenance(root: Path = ROOT) -> dict[str, str]:
    """Return the provenance tags of a run: git_commit, git_dirty, lock_hash, gpusched_version."""
    return {
        "git_commit": git_commit(root),
        "git_dirty": git_dirty(root),
        "lock_hash": lock_hash(root / "constraints.txt"),
        "gpusched_version": gpusched.__version__,
    }


def git_commit(root: Path = ROOT) -> str:
    """Return the commit checked out in `root`, "unknown" outside a repository, without git or before a commit."""
    return (_git(root, "rev-parse", "--verify", "HEAD") if _is_top(root) else None) or UNKNOWN


def git_dirty(root: Path = ROOT) -> str:
    """Return "true" where files differ from the commit or are new, "false" where none, "unknown" without git."""
    changes = _git(root, "status", "--porcelain") if _is_top(root) else None
    return UNKNOWN if changes is None else str(bool(changes)).lower()


def lock_hash(path: Path = ROOT / "constraints.txt") -> str:
    """Return the first 16 hex digits of the lock file's SHA-256, "unknown" without the file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return UNKNOWN


def _is_top(root: Path) -> bool:
    """True where `root` is the repository's top; an installed package may lie inside somebody else's."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return bool(top) and Path(str(top)).resolve() == root.resolve()


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
