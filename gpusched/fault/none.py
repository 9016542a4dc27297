"""Nothing goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.core.ports import Fault


class NoFault(Fault):
    """Service, load and time line as they are."""

    @dataclass(kw_only=True)
    class Config:
        pass

    simulated = False
