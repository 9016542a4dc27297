"""Provenance tells the truth with git, without it, and inside somebody else's repository."""

import subprocess
from pathlib import Path

import pytest

from gpusched.tracking.provenance import git_commit, git_dirty, lock_hash, provenance


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) == "unknown"  # nothing is committed yet
    (tmp_path / "constraints.txt").write_text("numpy==1\n")
    assert git_dirty(tmp_path) == "true"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert git_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    assert git_dirty(tmp_path) == "false"
    assert set(provenance(tmp_path)) == {"git_commit", "git_dirty", "lock_hash", "gpusched_version"}
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_commit(inside) == "unknown"


def test_no_repository_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (git_commit(tmp_path), git_dirty(tmp_path)) == ("unknown", "unknown")
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) == "unknown"


def test_the_lock_hash_is_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_bytes(b"abc")  # FIPS 180-2's own example
    assert lock_hash(tmp_path / "constraints.txt") == "ba7816bf8f01cfea"
    assert lock_hash(tmp_path / "none") == "unknown"
