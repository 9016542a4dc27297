import shutil
from pathlib import Path

import pytest
from made_up import MadeUp
from memory import Memory

from gpusched.tracking.store import Store


@pytest.fixture(scope="session")
def filled(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the made-up study "study": hpa and ppo, two loads, five seeds, time series and trainings."""
    folder = shutil.copytree(empty, tmp_path_factory.mktemp("filled") / "mlruns")
    MadeUp(loads=("low", "high")).write(Store(f"sqlite:///{folder}/mlflow.db"))
    return folder


@pytest.fixture(scope="session")
def store(filled: Path) -> Store:
    """The made-up study, not to be written to."""
    return Store(f"sqlite:///{filled}/mlflow.db")


@pytest.fixture(scope="module")
def own(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy that the tests of a file may write further studies to."""
    folder = shutil.copytree(filled, tmp_path_factory.mktemp("own") / "mlruns")
    return Store(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def memory() -> Memory:
    """An empty store that is quick to write to."""
    return Memory()
