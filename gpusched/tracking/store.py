"""The store of all runs: start one, find finished ones, read them back. One MLflow experiment per study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import InputError, StoreError, refuse
from gpusched.tracking.database import PATIENCE_S, SQLITE, connect, patiently, sqlite_path, told
from gpusched.tracking.files import check_place, located
from gpusched.tracking.lease import Lease
from gpusched.tracking.model import fetch_model
from gpusched.tracking.postgres import is_postgres, masked
from gpusched.tracking.run import Run, cut

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun

KINDS = ("trial", "training", "tuning", "sweep", "fidelity", "analysis")
WAIT_S = 20.0
"""How long a locked database is waited for; MLflow's own writes wait as long."""
PAGE = 5000
NAME_CHARS = 250
"""Longest name of a run that PostgreSQL and MySQL take; SQLite does not look."""


@dataclass(kw_only=True, frozen=True)
class Found:
    """One stored run: its identity, status, start (seconds since 1970), and the newest value of every metric."""

    id: str
    name: str
    status: str
    started_s: float
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


class Store:
    """An MLflow store: SQLite with its artifacts beside it, a server, or PostgreSQL.

    `artifacts` is the folder or URL (s3://...) for the files of new studies; without one they lie beside an SQLite
    database, where the server says, or in mlruns/artifacts of this folder for PostgreSQL.
    `create` False refuses a missing SQLite store instead of making one, as readers want it.
    Raises InputError for an address of another kind and StoreError where the store is locked, read-only,
    damaged or unreachable.
    """

    def __init__(
        self, uri: str, wait_s: float = WAIT_S, create: bool = True, artifacts: str | None = None
    ) -> None:
        self.uri = uri
        self._folder = sqlite_path(uri).parent if uri.startswith(SQLITE) else None
        self._asked_for = bool(artifacts)
        self._chosen = located(artifacts or ("mlruns/artifacts" if is_postgres(uri) else ""))
        if create and self._asked_for:
            check_place(self._chosen)
        self._client = connect(uri, wait_s, create, self._chosen)

    @property
    def where(self) -> str:
        """The database file or the server's address."""
        return str(sqlite_path(self.uri)) if self._folder else masked(self.uri)

    def start(
        self,
        kind: str,
        *,
        study: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> Run:
        """Create a run of one of KINDS and return it, to be used in a with statement."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {KINDS}")
        own = {"kind": kind, "study": study, **_shown(tags, parent)}
        all_tags = {**{key: cut(value) for key, value in tags.items()}, **own}

        def create() -> Any:
            return self._client.create_run(
                self._experiment(study), run_name=cut(name, NAME_CHARS), tags=all_tags
            )

        run = Run(self._client, patiently(self.where, PATIENCE_S, create).info.run_id, self.where)
        run.params(params)
        return run

    def studies(self) -> list[str]:
        """Return the names of all studies, by name."""
        with told(self.where):
            experiments = self._client.search_experiments(max_results=PAGE)
        return sorted(e.name for e in experiments if e.name != "Default")

    def find(
        self,
        study: str | None = None,
        kind: str | None = None,
        status: str | None = "FINISHED",
        tags: Mapping[str, str] | None = None,
        query: str = "",
    ) -> list[Found]:
        """Return the runs that match, newest first. `query` adds a filter in MLflow's own words.

        `status` None means any: a run that was killed without notice stays RUNNING for ever and is no
        result. An unknown study has no runs.
        """
        wanted = {**(tags or {}), **({"kind": kind} if kind else {})}
        parts = [f"tags.`{key}` = {_quoted(value)}" for key, value in wanted.items()]
        if status:
            parts.append(f"attributes.status = {_quoted(status)}")
        if query.strip():
            parts.append(query)
        with told(self.where):
            ids = [
                e.experiment_id
                for e in self._client.search_experiments(max_results=PAGE)
                if study in (None, e.name)
            ]
            found = [_found(run) for run in self._asked(ids, " and ".join(parts), query)] if ids else []
        return sorted(found, key=lambda f: (-f.started_s, f.id))

    def _asked(self, ids: list[str], whole: str, query: str) -> list[MlflowRun]:
        """Search; a filter of the user's that MLflow cannot read is the user's to mend."""
        from mlflow.exceptions import MlflowException

        try:
            return self._search(ids, whole)
        except MlflowException as error:
            if query and error.error_code == "INVALID_PARAMETER_VALUE":
                raise refuse(
                    "filter",
                    query,
                    "must be an MLflow filter such as \"tags.policy = 'ppo' and tags.load = 'low'\"",
                    str(error).splitlines()[0],
                ) from error
            raise

    def _search(self, ids: list[str], query: str) -> list[MlflowRun]:
        runs: list[MlflowRun] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(ids, query, max_results=PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def series(self, run_id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the steps and values of one metric of a run, in order of the steps; both empty if it has none."""
        with told(self.where):
            points = self._client.get_metric_history(run_id, metric)
        points = sorted(points, key=lambda m: (m.step, m.timestamp))
        return np.array([m.step for m in points], dtype=np.int64), np.array(
            [m.value for m in points], dtype=float
        )

    def download(self, run_id: str, artifact: str) -> Path:
        """Return the local path of an artifact of a run; "model" is the folder that `Run.model` was given.

        Raises StoreError where there is none. Do not write into what is returned.
        """
        if artifact == "model":
            return fetch_model(self._client, run_id, self._folder, self.where)
        # A store that was moved still names the old place of its artifacts; beside the database they are found.
        if self._folder and (near := self._folder / "artifacts" / run_id / "artifacts" / artifact).exists():
            return near
        with told(f"{self.where} (artifact {artifact} of run {run_id})"):
            return Path(self._client.download_artifacts(run_id, artifact))

    def lease(self, name: str, done: Callable[[], bool]) -> Lease:
        """Return the sole right to do the work `name`, for a with statement; `done` tells that it needs no doing."""
        return Lease(self._client, self.where, name, done)

    def tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag of a run that may have ended."""
        with told(self.where):
            self._client.set_tag(run_id, key, cut(value))

    def _experiment(self, study: str) -> str:
        """Return the ID of the study's experiment, creating it unless another process is quicker."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(study)
        if found is None:
            try:
                return str(self._client.create_experiment(study, artifact_location=self._artifacts()))
            except MlflowException:
                found = self._client.get_experiment_by_name(study)
                if found is None:
                    raise
        return self._usable(found)

    def _artifacts(self) -> str | None:
        if self._chosen:
            return self._chosen
        return (self._folder / "artifacts").as_uri() if self._folder else None

    def _usable(self, experiment: Experiment) -> str:
        if experiment.lifecycle_stage != "active":
            raise StoreError(
                f"The study {experiment.name!r} was deleted in {self.where}. Restore it "
                f"(`mlflow experiments restore -x {experiment.experiment_id}`) or set study to another name."
            )
        here = self._artifacts()
        if self._folder and not self._chosen and here and experiment.artifact_location.rstrip("/") != here:
            raise StoreError(
                f"The store {self.where} was moved: the study {experiment.name!r} keeps its artifacts in "
                f"{experiment.artifact_location}. Move it back, or set study to another name for new runs."
            )
        if self._asked_for and experiment.artifact_location.rstrip("/") != self._chosen.rstrip("/"):
            raise StoreError(
                f"The study {experiment.name!r} keeps its artifacts in {experiment.artifact_location}, not in "
                f"tracking.artifacts ({self._chosen}). Leave that out, or set study to another name for new runs."
            )
        return str(experiment.experiment_id)


def _shown(tags: Mapping[str, str], parent: str | None) -> dict[str, str]:
    """Return the tags that MLflow's own pages read."""
    shown = {"mlflow.source.name": "gpusched", "mlflow.source.type": "LOCAL"}
    if parent:
        shown["mlflow.parentRunId"] = parent
    if commit := tags.get("git_commit"):
        shown["mlflow.source.git.commit"] = commit
    return shown


def _quoted(value: str) -> str:
    if "'" in value and '"' in value:
        raise InputError(f"{value!r} cannot be searched for: it holds both kinds of quotation marks.")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _found(run: Any) -> Found:
    info, data = run.info, run.data
    return Found(
        id=info.run_id,
        name=info.run_name or "",
        status=info.status,
        started_s=info.start_time / 1000.0,
        tags=dict(data.tags),
        params=dict(data.params),
        metrics={key: float(value) for key, value in data.metrics.items()},
    )
