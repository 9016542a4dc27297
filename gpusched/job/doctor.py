"""The doctor: looks at everything a trial needs before one is run, and says the cure of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gpusched.core.check import FAIL, OK, Check
from gpusched.core.errors import GpuschedError
from gpusched.job.record import open_store
from gpusched.job.setup import Chore, Result, Setup
from gpusched.job.summary import show_checks
from gpusched.job.sweep import Failed
from gpusched.live import checks, machine


class DoctorJob(Chore):
    """Checks the machine, the tracking store, and the chosen cluster; fails where one check fails."""

    @dataclass(kw_only=True)
    class Config:
        """`json` names a file for the result, "" for none."""

        json: str

    config: Config

    def do(self, setup: Setup) -> Result:
        found = examine(setup)
        show_checks(found)
        if self.config.json:
            path = Path(self.config.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([asdict(check) for check in found], indent=1))
        failed = [check.name for check in found if check.status == FAIL]
        if failed:
            raise Failed(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}.")
        return Result(status="finished", names=setup.names, seed=setup.seed)


def examine(setup: Setup) -> list[Check]:
    """Return every check, those of the machine first."""
    real = setup.cluster_type.real
    return [
        *machine.checks(Path.cwd(), gpu_needed=real),
        *guarded("tracking store", lambda: store(setup)),
        *guarded("cluster", lambda: setup.cluster().checks()),
        *(guarded("load generator", lambda: [_load(setup)]) if real else []),
    ]


def _load(setup: Setup) -> Check:
    """Measure whether the load generator can send this trial's load from this machine."""
    cluster = setup.cluster_config
    requests = int(setup.service.connection_requests.value)
    return checks.load(setup.plan, cluster.endpoint, cluster.users_processes, requests)


def store(setup: Setup) -> list[Check]:
    found = open_store(setup.uri, setup.artifacts)
    return [Check(name="tracking store", status=OK, detail=f"{found.where}, {len(found.studies())} studies")]


def guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return the checks; what keeps them from being made is itself a failed check."""
    try:
        return look()
    except GpuschedError as error:
        return [Check(name=name, status=FAIL, detail=str(error))]
