"""Reads a study from the store: which runs count, which do not and why, and what makes them hard to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpusched.core.errors import InputError, StoreError, did_you_mean
from gpusched.core.kpi import KPIS
from gpusched.report.measures import REWARD

SYNTHETIC = "synthetic"
MARKING = ("calibration", "convergence", "degenerate", "provenance")
"""Gates whose failure qualifies a result and does not spoil it: such a run counts, and is marked."""


class Record(Protocol):
    """A stored run, as the tracking store finds it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def started_s(self) -> float: ...
    @property
    def tags(self) -> dict[str, str]: ...
    @property
    def params(self) -> dict[str, str]: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Source(Protocol):
    """Where runs are read from: the tracking store."""

    @property
    def where(self) -> str: ...
    def find(
        self,
        study: str | None = None,
        kind: str | None = None,
        status: str | None = "FINISHED",
        tags: Mapping[str, str] | None = None,
    ) -> Sequence[Record]: ...
    def series(self, run_id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
    def download(self, run_id: str, artifact: str) -> Path: ...


@dataclass(kw_only=True, frozen=True)
class Trial:
    """One run that counts. `values` holds every KPI and the mean reward, NaN where the run has none."""

    id: str
    policy: str
    load: str
    seed: int
    values: dict[str, float]
    tags: dict[str, str]
    params: dict[str, str]
    marks: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        return self.policy, self.load, self.seed


@dataclass(kw_only=True, frozen=True)
class Excluded:
    """One run that does not count, and why."""

    id: str
    name: str
    status: str
    why: str


@dataclass(kw_only=True)
class Study:
    """The trials of a study that count, in order; those that do not; the trainings behind them; and warnings."""

    name: str
    trials: list[Trial]
    excluded: list[Excluded] = field(default_factory=list)
    trainings: list[Record] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    synthetic: bool = False

    @property
    def policies(self) -> list[str]:
        return sorted({t.policy for t in self.trials})

    @property
    def loads(self) -> list[str]:
        """The loads in order of the demand they make: the median throughput over all policies."""
        demand = {load: _median([t.values["throughput_rps"] for t in self.of(load=load)])
                  for load in {t.load for t in self.trials}}  # fmt: skip
        return sorted(demand, key=lambda load: (demand[load], load))

    @property
    def assumed(self) -> list[str]:
        """The service constants that are assumed in any trial."""
        return sorted({name for t in self.trials for name in t.tags.get("assumed", "").split(",") if name})

    def of(self, policy: str | None = None, load: str | None = None) -> list[Trial]:
        """Return the trials of a policy and a load in order of the seed."""
        return [t for t in self.trials if policy in (None, t.policy) and load in (None, t.load)]

    def frame(self) -> pd.DataFrame:
        """Return one row per value: run_id, policy, load, seed, metric, value."""
        rows = [(t.id, *t.key, metric, value) for t in self.trials for metric, value in t.values.items()]
        return pd.DataFrame(rows, columns=["run_id", "policy", "load", "seed", "metric", "value"])


def newest_study(source: Source) -> str:
    """Return the study of the newest real trial. Raises InputError where nothing is stored."""
    trials = [r for r in source.find(kind="trial", status=None) if r.tags.get(SYNTHETIC) != "true"]
    if not trials:
        raise InputError(
            f"No trials are stored in {source.where}. "
            "Run some first: python run.py -m policy=ppo,hpa load=low,medium,high 'seed=range(5)'"
        )
    return trials[0].tags["study"]


def load(source: Source, study: str, *, allow_synthetic: bool = False) -> Study:
    """Read a study.

    Of each (policy, load, seed) the newest finished run counts. Runs that failed, were killed, did not end, or
    failed a gate that spoils the result are listed with the reason instead. Made-up runs (tag synthetic=true) are
    refused; `allow_synthetic` is for tests. Raises InputError where the study has no runs.
    """
    records = source.find(study, "trial", status=None)
    if not records:
        raise _unknown(source, study)
    made_up = [r for r in records if r.tags.get(SYNTHETIC) == "true"]
    if made_up and not allow_synthetic:
        raise InputError(
            f"study = {study!r}: {len(made_up)} of its {len(records)} runs hold made-up numbers (tag synthetic=true), "
            f"the first is {made_up[0].id}. They must not enter a report: delete them or name another study."
        )
    trials, excluded = _sift(records)
    result = Study(name=study, trials=trials, excluded=excluded, synthetic=bool(made_up))
    result.trainings = _trainings(source, result)
    return result


def ticks(source: Source, trial: Trial) -> pd.DataFrame | None:
    """Return a trial's tick log from the end of the warm-up on, None where it was not stored."""
    try:
        table = pd.read_csv(source.download(trial.id, "ticks.csv"))
    except (StoreError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
        return None
    return table[table["t_s"] > 0.0]


def _sift(records: Sequence[Record]) -> tuple[list[Trial], list[Excluded]]:
    """Part the runs, newest first, into those that count and those that do not."""
    trials: dict[tuple[str, str, int], Trial] = {}
    excluded: list[Excluded] = []
    spoilt: dict[tuple[str, str, int], str] = {}
    for record in records:
        trial = _trial(record)
        why = _why_not(record, trial, trials, spoilt)
        if trial is None or why:
            excluded.append(Excluded(id=record.id, name=record.name, status=record.status, why=why))
        else:
            trials[trial.key] = trial
        if trial is not None and record.status == "FINISHED" and why.startswith("gate"):
            spoilt.setdefault(trial.key, record.id)
    return sorted(trials.values(), key=lambda t: t.key), excluded


def _trial(record: Record) -> Trial | None:
    """Return the record as a trial, None where it does not say which policy, load and seed it is of."""
    tags = record.tags
    if not {"policy", "load", "seed"} <= tags.keys() or not tags["seed"].lstrip("-").isdigit():
        return None
    values = {name: record.metrics.get(f"kpi/{name}", math.nan) for name in KPIS}
    values[REWARD] = record.metrics.get(REWARD, math.nan)
    marks = tuple(f"{gate}: {detail}" for gate, detail in _failed_gates(tags) if _marks(gate))
    return Trial(id=record.id, policy=tags["policy"], load=tags["load"], seed=int(tags["seed"]), values=values,
                 tags=tags, params=record.params, marks=marks)  # fmt: skip


def _why_not(
    record: Record,
    trial: Trial | None,
    trials: Mapping[tuple[str, str, int], Trial],
    spoilt: Mapping[tuple[str, str, int], str],
) -> str:
    """Return why a run does not count, empty where it does."""
    if record.status != "FINISHED":
        return _ended_badly(record)
    if trial is None:
        return "the tags policy, load and seed are not all set"
    if trial.key in trials or trial.key in spoilt:
        newer = trials[trial.key].id if trial.key in trials else spoilt[trial.key]
        other = trial.key in trials and _settings(trials[trial.key]) != _settings(trial)
        return f"a newer run of the same policy, load and seed is there: {newer}" + (
            " (with another configuration)" if other else ""
        )
    failed = [f"gate {gate}: {detail}" for gate, detail in _failed_gates(record.tags) if not _marks(gate)]
    if failed:
        return "; ".join(failed)
    return "" if any(map(math.isfinite, trial.values.values())) else "it holds no KPI"


def _ended_badly(record: Record) -> str:
    if record.status == "RUNNING":
        return "not ended: still running, or killed without notice"
    error = record.tags.get("error", "")
    return {"KILLED": "killed before its end", "FAILED": "failed"}.get(record.status, record.status) + (
        f": {error}" if error else ""
    )


def _failed_gates(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (key.removeprefix("gate/"), value.removeprefix("failed: "))
        for key, value in sorted(tags.items())
        if key.startswith("gate/") and value.startswith("failed")
    ]


def _marks(gate: str) -> bool:
    return gate.startswith(MARKING)


def _settings(trial: Trial) -> dict[str, str]:
    return {
        key: value for key, value in trial.params.items() if not key.startswith(("resume", "tracking", "job"))
    }


def _trainings(source: Source, study: Study) -> list[Record]:
    """Return the trainings the trials name by fingerprint, else those of the study, in order of policy and seed."""
    wanted = {t.tags["fingerprint"] for t in study.trials if t.tags.get("fingerprint")}
    found = source.find(None if wanted else study.name, "training")
    newest: dict[str, Record] = {}
    for record in found:
        fingerprint = record.tags.get("fingerprint", record.id)
        if not wanted or fingerprint in wanted:
            newest.setdefault(fingerprint, record)
    return sorted(
        newest.values(), key=lambda r: (r.tags.get("policy", ""), r.tags.get("seed", "").zfill(9), r.id)
    )


def _unknown(source: Source, study: str) -> InputError:
    known = sorted({r.tags["study"] for r in source.find(kind="trial", status=None) if "study" in r.tags})
    names = ", ".join(known) if known else "none yet; run some trials first"
    return InputError(
        f"study = {study!r}: no trials of it are stored in {source.where}. "
        f"Studies: {names}.{did_you_mean(study, known)}"
    )


def _median(values: list[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.median(finite)) if finite else math.inf
