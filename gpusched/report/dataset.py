"""Reads a study from the store: which runs count, which do not and why, and what makes them hard to compare."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from gpusched.core import gate
from gpusched.core.errors import InputError, did_you_mean
from gpusched.core.kpi import KPIS
from gpusched.report.measures import REWARD
from gpusched.report.source import Record as Record
from gpusched.report.source import Source as Source

SYNTHETIC = "synthetic"

Key = tuple[str, str, int, int]


@dataclass(kw_only=True, frozen=True)
class Trial:
    """One run that counts. `values` holds every KPI and the mean reward, NaN where the run has none.

    `episode` tells the repeats of one seed apart.
    """

    id: str
    policy: str
    load: str
    seed: int
    values: dict[str, float]
    tags: dict[str, str]
    params: dict[str, str]
    marks: tuple[str, ...] = ()
    episode: int = 0

    @property
    def key(self) -> Key:
        return self.policy, self.load, self.seed, self.episode

    @property
    def cluster(self) -> str:
        """The kind of cluster, without what was set in it: "sim" for "sim[scrape_s=10]"."""
        return self.tags.get("cluster", "unknown").partition("[")[0]


@dataclass(kw_only=True, frozen=True)
class Unit:
    """A seed of one policy under one load, the unit of analysis: `values` are means over its repeats.

    Repeats share what was learnt, so counting them as seeds would make every interval too narrow.
    """

    seed: int
    values: dict[str, float]
    runs: tuple[str, ...]


@dataclass(kw_only=True, frozen=True)
class Excluded:
    """One run that does not count, and why."""

    id: str
    name: str
    status: str
    why: str


@dataclass(kw_only=True)
class Study:
    """The trials of a study that count, in order; those that do not; and the trainings and searches behind them.

    `finished` are all trials that ended well, superseded and filtered ones too: what was known when. `query` is the
    filter the trials were chosen by, `stored` how many trials there are without it.
    """

    name: str
    trials: list[Trial]
    excluded: list[Excluded] = field(default_factory=list)
    trainings: list[Record] = field(default_factory=list)
    searches: list[Record] = field(default_factory=list)
    finished: list[Record] = field(default_factory=list)
    query: str = ""
    stored: int = 0
    synthetic: bool = False

    @property
    def learnt(self) -> list[Record]:
        """The trainings and the searches."""
        return [*self.trainings, *self.searches]

    @cached_property
    def policies(self) -> list[str]:
        return sorted({t.policy for t in self.trials})

    @cached_property
    def loads(self) -> list[str]:
        """The loads in order of the demand they make: the median throughput over all policies."""
        demand = {load: _median([t.values["throughput_rps"] for t in self.of(load=load)])
                  for load in {t.load for t in self.trials}}  # fmt: skip
        return sorted(demand, key=lambda load: (demand[load], load))

    @property
    def assumed(self) -> list[str]:
        """The service constants that are assumed in any trial."""
        return sorted({name for t in self.trials for name in t.tags.get("assumed", "").split(",") if name})

    @cached_property
    def ids(self) -> frozenset[str]:
        """The runs that count."""
        return frozenset(t.id for t in self.trials)

    @property
    def clusters(self) -> list[str]:
        return sorted({t.cluster for t in self.trials})

    @cached_property
    def repeated(self) -> bool:
        """True where any seed has more than one repeat."""
        return any(len(u.runs) > 1 for units in self._units.values() for u in units)

    def of(self, policy: str | None = None, load: str | None = None) -> list[Trial]:
        """Return the trials of a policy and a load in order of seed and episode."""
        if policy is not None and load is not None:
            return list(self._cells.get((policy, load), ()))
        return [t for t in self.trials if policy in (None, t.policy) and load in (None, t.load)]

    def units(self, policy: str, load: str) -> list[Unit]:
        """Return the seeds of a policy under a load, in order."""
        return list(self._units.get((policy, load), ()))

    def repeats(self, policy: str, load: str) -> dict[tuple[int, int], Trial]:
        """Return the trials of a policy under a load by seed and episode; not to be changed."""
        return self._repeats.get((policy, load), {})

    def by_seed(self, policy: str, load: str, name: str) -> dict[int, float]:
        """Return a measure of each seed that has it."""
        return {u.seed: v for u in self.units(policy, load) if math.isfinite(v := u.values[name])}

    def frame(self) -> pd.DataFrame:
        """Return one row per value: run_id, policy, load, seed, episode, metric, value."""
        rows = [(t.id, *t.key, metric, value) for t in self.trials for metric, value in t.values.items()]
        return pd.DataFrame(rows, columns=["run_id", "policy", "load", "seed", "episode", "metric", "value"])

    @cached_property
    def _cells(self) -> dict[tuple[str, str], list[Trial]]:
        cells: dict[tuple[str, str], list[Trial]] = defaultdict(list)
        for t in sorted(self.trials, key=lambda t: t.key):
            cells[t.policy, t.load].append(t)
        return dict(cells)

    @cached_property
    def _repeats(self) -> dict[tuple[str, str], dict[tuple[int, int], Trial]]:
        return {cell: {(t.seed, t.episode): t for t in own} for cell, own in self._cells.items()}

    @cached_property
    def _units(self) -> dict[tuple[str, str], list[Unit]]:
        return {cell: units_of(trials) for cell, trials in self._cells.items()}


def newest_study(source: Source, query: str = "") -> str:
    """Return the study of the newest real trial that the filter lets through. Raises InputError where there is none."""
    return newest_of(source.find(kind="trial", status=None, query=query), source.where, query)


def newest_of(found: Sequence[Record], where: str, query: str = "") -> str:
    """Return the study of the first real trial of those found. Raises InputError where there is none."""
    trials = [r for r in found if r.tags.get(SYNTHETIC) != "true"]
    if not trials and query:
        raise InputError(f"--filter {query!r}: no trial in {where} passes it. Loosen it, or leave it out.")
    if not trials:
        raise InputError(
            f"No trials are stored in {where}. "
            "Run some first: python run.py -m policy=ppo,hpa load=low,medium,high 'seed=range(5)'"
        )
    return trials[0].tags["study"]


def load(
    source: Source,
    study: str,
    query: str = "",
    *,
    allow_synthetic: bool = False,
    everything: Sequence[Record] | None = None,
) -> Study:
    """Read a study, or those of its trials that the MLflow filter `query` lets through.

    Of each (policy, load, seed, episode) on a cluster the newest finished run counts. Runs that failed, were killed,
    did not end, or failed a gate that spoils the result are listed with the reason instead. Made-up runs (tag
    synthetic=true) are refused; `allow_synthetic` is for tests. `everything` spares a search: all trials of the
    study. Raises InputError where the study has no runs, no run passes the filter, or runs of several kinds of
    cluster would be pooled.
    """
    if everything is None:
        everything = source.find(study, "trial", status=None)
    if not everything:
        raise _unknown(source, study)
    records = source.find(study, "trial", status=None, query=query) if query else everything
    if not records:
        raise InputError(
            f"--filter {query!r}: none of the {len(everything)} trials of study {study!r} passes it. "
            "Loosen it, or leave it out."
        )
    made_up = [r for r in records if r.tags.get(SYNTHETIC) == "true"]
    if made_up and not allow_synthetic:
        raise InputError(
            f"study = {study!r}: {len(made_up)} of its {len(records)} runs hold made-up numbers (tag synthetic=true), "
            f"the first is {made_up[0].id}. They must not enter a report: delete them or name another study."
        )
    trials, excluded = _sift(records)
    result = Study(name=study, trials=trials, excluded=excluded, synthetic=bool(made_up), query=query,
                   stored=len(everything), finished=[r for r in everything if r.status == "FINISHED"])  # fmt: skip
    _one_cluster(result)
    result.trainings, result.searches = (_behind(source, result, kind) for kind in ("training", "tuning"))
    return result


def _sift(records: Sequence[Record]) -> tuple[list[Trial], list[Excluded]]:
    """Part the runs, newest first, into those that count and those that do not."""
    trials: dict[tuple[str, Key], Trial] = {}
    excluded: list[Excluded] = []
    spoilt: dict[tuple[str, Key], str] = {}
    for record in records:
        trial = _trial(record)
        why = _why_not(record, trial, trials, spoilt)
        if trial is None or why:
            excluded.append(Excluded(id=record.id, name=record.name, status=record.status, why=why))
        else:
            trials[trial.cluster, trial.key] = trial
        if trial is not None and record.status == "FINISHED" and why.startswith("gate"):
            spoilt.setdefault((trial.cluster, trial.key), record.id)
    return sorted(trials.values(), key=lambda t: t.key), excluded


def _trial(record: Record) -> Trial | None:
    """Return the record as a trial, None where it does not say which policy, load and seed it is of."""
    tags = record.tags
    if not {"policy", "load", "seed"} <= tags.keys() or not tags["seed"].lstrip("-").isdigit():
        return None
    episode = tags.get("episode", "0")
    if not episode.isdigit():
        return None
    values = {name: record.metrics.get(f"kpi/{name}", math.nan) for name in KPIS}
    values[REWARD] = record.metrics.get(REWARD, math.nan)
    marks = tuple(f"{name}: {detail}" for name, detail in gate.failed(tags) if gate.marks(name))
    return Trial(id=record.id, policy=tags["policy"], load=tags["load"], seed=int(tags["seed"]), values=values,
                 tags=tags, params=record.params, marks=marks, episode=int(episode))  # fmt: skip


def _why_not(
    record: Record,
    trial: Trial | None,
    trials: Mapping[tuple[str, Key], Trial],
    spoilt: Mapping[tuple[str, Key], str],
) -> str:
    """Return why a run does not count, empty where it does."""
    if record.status != "FINISHED":
        return _ended_badly(record)
    if trial is None:
        return "the tags policy, load and seed are not all set, or seed or episode is no number"
    key = (trial.cluster, trial.key)
    if key in trials or key in spoilt:
        newer = trials[key].id if key in trials else spoilt[key]
        other = key in trials and _settings(trials[key]) != _settings(trial)
        return f"a newer run of the same policy, load and seed is there: {newer}" + (
            " (with another configuration)" if other else ""
        )
    failed = [f"gate {name}: {detail}" for name, detail in gate.failed(record.tags) if not gate.marks(name)]
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


def _one_cluster(study: Study) -> None:
    """Raise InputError where the trials come from several kinds of cluster: simulated and real seconds are never pooled."""
    if len(kinds := study.clusters) < 2:
        return
    count = ", ".join(f"{kind} ({sum(t.cluster == kind for t in study.trials)} runs)" for kind in kinds)
    example = kinds[-1]
    raise InputError(
        f"study {study.name!r} holds runs of {len(kinds)} kinds of cluster: {count}. They are never pooled. "
        f"Report on one of them: --filter \"tags.cluster LIKE '{example}%'\"."
    )


def units_of(trials: Sequence[Trial]) -> list[Unit]:
    """Average the repeats of each seed; a repeat without a value is left out of that value's mean."""
    groups: dict[int, list[Trial]] = defaultdict(list)
    for t in trials:
        groups[t.seed].append(t)
    return [
        Unit(
            seed=seed,
            values={name: _mean([t.values[name] for t in own]) for name in own[0].values},
            runs=tuple(t.id for t in own),
        )
        for seed, own in groups.items()
    ]


def _settings(trial: Trial) -> dict[str, str]:
    return {
        key: value for key, value in trial.params.items() if not key.startswith(("resume", "tracking", "job"))
    }


def _behind(source: Source, study: Study, kind: str) -> list[Record]:
    """Return the runs of a kind the trials name by fingerprint, else those of the study, by policy and seed."""
    wanted = {t.tags["fingerprint"] for t in study.trials if t.tags.get("fingerprint")}
    found = source.find(None if wanted else study.name, kind)
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


def _mean(values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _median(values: list[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.median(finite)) if finite else math.inf
