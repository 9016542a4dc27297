"""How far the simulator is from a real cluster: the stored comparison (job=fidelity) of the very profile the trials ran on.

A comparison of another profile is no evidence for this one, not even under the same name: only the hash decides.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gpusched.core.errors import StoreError
from gpusched.report.dataset import Record, Source, Study
from gpusched.report.measures import number
from gpusched.report.tables import Cell, Table, figures, words

KIND, FILE = "fidelity", "fidelity.json"
SIMULATED = "sim"
MEASURES = {
    "p50_s": ("p50, ms", 1e3),
    "p95_s": ("p95, ms", 1e3),
    "p99_s": ("p99, ms", 1e3),
    "throughput_rps": ("Throughput, req/s", 1.0),
    "utilisation": ("CPU utilisation, cores per ready replica", 1.0),
    "queue_s": ("Queue time, ms", 1e3),
    "not_ready": ("Replicas not ready, mean", 1.0),
}
"""What a comparison measures, with the factor from the stored SI value to the unit shown."""


@dataclass(kw_only=True, frozen=True)
class Compared:
    """One measure of one case: both values in SI units, and sim / real - 1 with its 95 % interval; NaN where none."""

    real: float
    sim: float
    error: float
    low: float
    high: float


@dataclass(kw_only=True, frozen=True)
class Case:
    """One case of a comparison: a level of load (share of the capacity) and what was measured under it, by name."""

    name: str
    level: float
    users: int
    busy_cores: float
    measures: dict[str, Compared]


@dataclass(kw_only=True, frozen=True)
class Evidence:
    """One stored comparison. `goal` is the largest error wanted below saturation, by measure, as a share."""

    record: Record
    goal: dict[str, float]
    cores: int
    cases: list[Case]

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.record.started_s, UTC).strftime("%Y-%m-%d")

    @property
    def emulated(self) -> bool:
        """True where batches slept and nothing was inferred."""
        return self.record.tags.get("emulated") == "true"

    @property
    def judged(self) -> list[Case]:
        """The cases below saturation, for which there is a goal."""
        return [case for case in self.cases if case.level < 1.0]

    def met(self, case: Case, shown: bool = False) -> bool:
        """Whether every error is within its goal; `shown`: its whole interval is."""
        return all(self.within(case, name, shown) for name in self.goal)

    def within(self, case: Case, name: str, shown: bool = False) -> bool:
        """Whether the error of a measure is within its goal, or its whole interval is."""
        one, goal = case.measures[name], self.goal[name]
        return all(abs(value) <= goal for value in ((one.low, one.high) if shown else (one.error,)))


@dataclass(kw_only=True, frozen=True)
class Fidelity:
    """What is known of the simulator's error for a study: the newest comparison of each of its profiles, and what to say
    first, "" where nothing was simulated; `caveats` tell of results that cannot be read."""

    evidence: list[Evidence] = field(default_factory=list)
    sentence: str = ""
    caveats: list[str] = field(default_factory=list)


def fidelity(study: Study, source: Source) -> Fidelity:
    """Find the newest comparison that can be read of each service profile the study's simulated trials ran on."""
    if study.clusters != [SIMULATED]:
        return Fidelity()
    profiles = Counter(
        (t.tags.get("service_hash", ""), _name(t.tags.get("service", "unknown"))) for t in study.trials
    )
    stored = source.find(kind=KIND)
    found, caveats = [], []
    for profile, _ in profiles:
        one, lost = _newest([r for r in stored if profile and r.tags.get("service_hash") == profile], source)
        found += [one] if one else []
        caveats += lost
    have = {one.record.tags["service_hash"] for one in found}
    without = [(name, n) for (profile, name), n in profiles.items() if profile not in have]
    sentence = " ".join([*map(_told, found), *_never(without, stored, study, bool(found))])
    return Fidelity(evidence=found, sentence=sentence, caveats=caveats + _older(found, study))


def fidelity_table(evidence: Sequence[Evidence]) -> Table:
    """Return a row per case: every measure real / sim with its error, and whether the goal was met."""
    columns = [("case", "Case"), ("users", "Users"), *((name, label) for name, (label, _) in MEASURES.items()),
               ("busy", "Host busy, cores"), ("goal", "Goal")]  # fmt: skip
    rows = [_row(one, case) for one in evidence for case in one.cases]
    return Table(name="fidelity", title="Simulator against real Triton", columns=columns, rows=rows, labels=1,
                 notes=[note for one in evidence for note in _notes(one)])  # fmt: skip


def read(text: str) -> tuple[dict[str, float], int, list[Case]]:
    """Return goal, cores and cases of a fidelity.json. Raises ValueError where it is none or not whole."""
    try:
        told = json.loads(text)
        measured: dict[str, dict[str, Compared]] = {}
        for row in told["rows"]:
            values = {key: float(row[key]) for key in ("real", "sim", "error", "low", "high")}
            measured.setdefault(row["case"], {})[row["measure"]] = Compared(**values)
        cases = [_case(note, measured) for note in told["cases"]]
        goal = {str(name): float(share) for name, share in told["goal"].items()}
        if not cases or not goal.keys() <= MEASURES.keys():
            raise ValueError("no case, or a goal for an unknown measure")
        return goal, int(told["cores"]), cases
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _case(note: Mapping[str, Any], measured: Mapping[str, dict[str, Compared]]) -> Case:
    own = measured[note["name"]]
    if own.keys() != MEASURES.keys():
        raise ValueError(f"case {note['name']!r} has not every measure")
    return Case(name=str(note["name"]), level=float(note["level"]), users=int(note["users"]),
                busy_cores=float(note["host_busy_cores"]), measures=own)  # fmt: skip


def _newest(records: Sequence[Record], source: Source) -> tuple[Evidence | None, list[str]]:
    """Return the newest comparison that can be read, and why newer ones cannot."""
    lost = []
    for record in records:
        try:
            goal, cores, cases = read(source.download(record.id, FILE).read_text())
        except (StoreError, OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            lost.append(f"The comparison with a real cluster of run {record.id} is left out: its {FILE} cannot be read ({why}). "
                        "Run job=fidelity again.")  # fmt: skip
        else:
            return Evidence(record=record, goal=goal, cores=cores, cases=cases), lost
    return None, lost


def _told(one: Evidence) -> str:
    tags, judged = one.record.tags, one.judged
    goal = ", ".join(f"{100 * share:g} % at {name.removesuffix('_s')}" for name, share in one.goal.items())
    shown = sum(one.met(case, shown=True) for case in judged)
    slept = " with batches that slept instead of computing," if one.emulated else ""
    return (
        f"The simulator was compared with real Triton (cluster={_name(tags.get('cluster', '?'))},{slept} profile {_name(tags.get('service', '?'))}) "
        f"on {one.day}: goal met in {sum(map(one.met, judged))} of {len(judged)} cases below saturation ({goal}; in {shown} the whole "
        "95 % interval is within it)."
    )


def _never(
    without: Sequence[tuple[str, int]], stored: Sequence[Record], study: Study, some: bool
) -> list[str]:
    """Say which profiles were never compared, and that comparisons of others are no evidence for them."""
    if not without:
        return []
    names = sorted({name for name, _ in without})
    n = sum(n for _, n in without)
    which = (
        f"{n} of {len(study.trials)} runs are on a profile" if some else f"The profile {', '.join(names)} was"
    )
    told = f"{which} never compared with a real cluster: every number of theirs is the simulator’s opinion." if some else (
        f"{which} never compared with a real cluster (job=fidelity): every number here is the simulator’s opinion.")  # fmt: skip
    other = [
        r
        for r in stored
        if r.tags.get("service_hash") not in {t.tags.get("service_hash") for t in study.trials}
    ]
    if not other:
        return [told]
    same = any(_name(r.tags.get("service", "")) in names for r in other)
    kind = "a profile of that name with other constants" if same else "other profiles"
    return [f"{told} Comparisons of {kind} are stored; they are no evidence for this one."]


def _older(found: Sequence[Evidence], study: Study) -> list[str]:
    """Say where the simulator may have changed since the comparison."""
    commits = {t.tags.get("git_commit", "unknown") for t in study.trials}
    return [
        f"The comparison of {one.day} was made at commit {own[:12]}, and some of the runs at others: the simulator may have changed "
        "in between."
        for one in found
        if commits != {own := one.record.tags.get("git_commit", "unknown")}
    ]


def _notes(one: Evidence) -> list[str]:
    tags = one.record.tags
    commit = tags.get("git_commit", "unknown")[:12] + (
        " with changes" if tags.get("git_dirty") == "true" else ""
    )
    return [
        f"{one.day}, cluster={tags.get('cluster', '?')}, {tags.get('machine', 'unknown machine')}, commit {commit}, profile "
        f"{tags.get('service', '?')} (hash {tags.get('service_hash', '?')}).",
        "Each cell: real / simulated, and simulated / real − 1 with its 95 % interval (bootstrap over ticks and episodes). Marked "
        "where the error is beyond its goal; “met †”: the interval reaches beyond it. Calibration and comparison are different "
        f"runs. A host that is busy on nearly all of its {one.cores} cores has made real requests wait for cores the simulator does "
        "not know of.",
        *(["Batches slept, so replicas used no CPU: utilisation says nothing."] if one.emulated else []),
    ]


def _row(one: Evidence, case: Case) -> list[Cell]:
    runs = (one.record.id,)
    judged = case in one.judged
    verdict = "beyond saturation" if not judged else "met" if one.met(case) else "missed"
    mark = " †" if verdict == "met" and not one.met(case, shown=True) else ""
    kind = {"met": "better", "missed": "worse"}.get(verdict, "untested")
    cells = [_cell(case.measures[name], scale, judged and name in one.goal and not one.within(case, name), runs)
             for name, (_, scale) in MEASURES.items()]  # fmt: skip
    return [
        words(case.name),
        figures(str(case.users), {"": case.users}, runs),
        *cells,
        figures(number(case.busy_cores, 0.1), {"": case.busy_cores}, runs),
        words(verdict + mark, kind, runs),
    ]


def _cell(one: Compared, scale: float, beyond: bool, runs: tuple[str, ...]) -> Cell:
    real, sim = (number(scale * value, abs(scale * value) / 10 or math.nan) for value in (one.real, one.sim))
    text = f"{real} / {sim}"
    if math.isfinite(one.error):
        low, high = (number(100 * end, 10.0) for end in (one.low, one.high))
        text += f", {'+' if one.error > 0 else ''}{number(100 * one.error, 1.0)} % [{low}, {high}]"
    values = {"real": one.real, "sim": one.sim, "error": one.error, "low": one.low, "high": one.high}
    return figures(text, dict(values), runs, "worse" if beyond else "")


def _name(label: str) -> str:
    """Return a profile's name without what was set on the command line."""
    return label.partition("[")[0]
