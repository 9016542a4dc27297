"""Undo what a killed trial left on a real cluster."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gpusched.core.errors import InputError
from gpusched.job.setup import Chore, Result, Setup

log = logging.getLogger(__name__)


@runtime_checkable
class Restorable(Protocol):
    """A cluster on which a killed trial leaves something behind."""

    def restore(self) -> list[str]:
        """Undo it and return what was done, in words; ClusterError says what is left."""


class RestoreJob(Chore):
    """Restores the cluster from the journal of a trial that could not do it itself."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose."""

    def do(self, setup: Setup) -> Result:
        cluster = setup.cluster()
        if not isinstance(cluster, Restorable):
            raise InputError(
                f"cluster = {setup.names['cluster']!r}: leaves nothing behind, so job=restore has nothing to do."
            )
        for line in cluster.restore():
            log.info("%s", line)
        return Result(status="finished", names=setup.names, seed=setup.seed)
