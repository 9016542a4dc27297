"""Every cluster that must keep the contract: each file contract_*.py beside this one adds one.

Such a file has

    NAME = "microk8s"                  # how the tests call it
    MARKS = (pytest.mark.cluster,)     # marks of its tests, () for the default run
    @contextmanager
    def opened(session: Session) -> Iterator[Case]: ...

`opened` starts what the cluster needs, once for all tests, and stops it; `pytest.skip` in it says what is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import Case, Lived, Session

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "live"))

from prometheus_double import prometheus  # noqa: E402

__all__ = ["prometheus"]

CLUSTERS = {
    module.NAME: module
    for module in (importlib.import_module(path.stem) for path in sorted(HERE.glob("contract_*.py")))
}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that remembers nothing of an HPA that was removed: nobody waits for it."""
    monkeypatch.setattr("gpusched.cluster.microk8s.hold.FORGET_S", 0.0)


def slow(name: str) -> list[pytest.MarkDecorator]:
    """Mark what takes wall time: everything but the simulator."""
    return [] if name == "sim" else [pytest.mark.slow, pytest.mark.wall]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[*one.MARKS, *slow(name)]) for name, one in CLUSTERS.items()],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """One cluster under contract, with what it needs running."""
    with CLUSTERS[request.param].opened(Session(request, tmp_path_factory)) as one:
        yield one


@pytest.fixture(scope="module")
def lived(case: Case) -> Lived:
    """A short trial on it: the contract is about what it leaves."""
    return Lived(case)
