"""Whether this host has what a local cluster needs; a test without it is skipped and says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpusched.cluster.local import parts
from gpusched.core.errors import ClusterError

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-triton"


def missing() -> str:
    """Return what is missing, with the cure; "" where all is there."""
    try:
        parts.triton(VENV)
        parts.network(VENV, "")
        for name in ("haproxy", "prometheus"):
            parts.program(name, name)
    except ClusterError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def installed() -> Path:
    """Return the environment that holds Triton."""
    if why := missing():
        pytest.skip(why)
    assert shutil.which("haproxy", path="/usr/sbin:/usr/bin") and VENV.exists()
    return VENV
