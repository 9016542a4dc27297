"""What all tests share."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from gpusched.tracking.store import Store

# Most of the time of a test that composes a configuration is reading YAML in Python; libyaml feeds the same constructors.
if hasattr(yaml, "CSafeLoader"):
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all that was imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store to copy, one for all workers, made where an earlier start was broken off: making one takes seconds."""
    from gpusched.tracking.store import Store

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder, made = place / "empty" / "mlruns", place / "empty.made"
    with (place / "empty.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir(parents=True)
            (folder / "mlflow.db.new").write_bytes(b"half a database")
            Store(f"sqlite:///{folder}/mlflow.db")
            made.touch()
    return folder


@pytest.fixture(scope="module")
def store(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that the tests of a file share, each with studies of its own."""
    from gpusched.tracking.store import Store

    folder = shutil.copytree(empty, tmp_path_factory.mktemp("store") / "mlruns")
    return Store(f"sqlite:///{folder}/mlflow.db")
