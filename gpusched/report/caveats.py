"""What a reader must know before comparing the trials of a study: gaps, unequal conditions, marked runs."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from gpusched.report.compare import Comparison, compare
from gpusched.report.dataset import Study, Trial
from gpusched.report.measures import TESTED, measure

CONDITIONS = {
    "service": "service profiles",
    "service_hash": "service constants",
    "cluster": "clusters",
    "reward": "rewards",
    "git_commit": "commits",
    "gpusched_version": "versions of gpusched",
    "lock_hash": "lock files",
}
FREE = ("seed", "study", "resume", "tracking.", "job")
"""Configuration that may differ between the trials of a study without a word."""
MOST = 6
"""How many items a warning lists before it only counts."""
NUMBER = re.compile(r"\d+(\.\d+)?")


def caveats(study: Study) -> list[str]:
    """Return every caveat about a study, the gravest first."""
    return [
        *_filtered(study),
        *_no_trials(study),
        *_missing_loads(study),
        *_unequal_seeds(study),
        *_unequal_repeats(study),
        *_few_seeds(study),
        *_missing_values(study),
        *_unlike_conditions(study),
        *_unlike_settings(study),
        *_still(study),
        *_unconverged(study),
        *_marked(study),
        *_excluded(study),
        *_dirty(study),
    ]


def listed(items: Iterable[object]) -> str:
    """Return the items joined by commas, only counted beyond MOST."""
    names = [str(item) for item in items]
    rest = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {rest} more" if rest > 0 else "")


def without_marked(study: Study, comparison: Comparison | None) -> list[str]:
    """Say which decisions would be others if the runs that a gate objects to were left out."""
    if comparison is None:
        return []
    pair = (comparison.baseline, comparison.candidate)
    marked = sum(bool(t.marks) for t in study.trials if t.policy in pair)
    if not marked:
        return []
    kept = Study(name=study.name, trials=[t for t in study.trials if not t.marks])
    again = compare(kept, *pair)
    if not again.rows:
        return ["Nothing would be left to compare without the marked runs."]
    changed = [
        f"{row.measure.label} under {row.load}: {row.decision} → {other.decision if other else 'untested'}"
        for row in comparison.rows
        if (other := again.row(row.load, row.measure.name)) is None or other.decision != row.decision
    ]
    if not changed:
        return [f"Without the {marked} marked runs every decision would be the same."]
    return [f"Without the {marked} marked runs {len(changed)} of {len(comparison.rows)} decisions would be others: {listed(changed)}."]  # fmt: skip


def _filtered(study: Study) -> list[str]:
    if not study.query:
        return []
    read = len(study.trials) + len(study.excluded)
    told = [
        f"Filtered: only the {read} of {study.stored} trials of the study that pass “{study.query}” are read."
    ]
    if "metric" in study.query.lower():
        told.append("The filter looks at results (metrics): what is left was chosen by its outcome.")
    return told


def _no_trials(study: Study) -> list[str]:
    return (
        []
        if study.trials
        else ["No run of this study counts: all are excluded, see the list of excluded runs."]
    )


def _missing_loads(study: Study) -> list[str]:
    gaps = [f"{p} under {load}" for p in study.policies for load in study.loads if not study.of(p, load)]
    return [f"Missing: no run of {listed(gaps)}."] if gaps else []


def _unequal_seeds(study: Study) -> list[str]:
    found = []
    for load in study.loads:
        seeds = {p: {t.seed for t in study.of(p, load)} for p in study.policies if study.of(p, load)}
        if len({frozenset(s) for s in seeds.values()}) > 1:
            common = set.intersection(*seeds.values())
            per = "; ".join(f"{p}: {listed(sorted(s))}" for p, s in seeds.items())
            found.append(
                f"Unequal seeds under {load} ({per}). Paired comparisons use the seeds both policies have; "
                f"all policies share {listed(sorted(common)) or 'none'}."
            )
    return found


def _unequal_repeats(study: Study) -> list[str]:
    count = {(p, load): Counter(len(u.runs) for u in study.units(p, load))
             for load in study.loads for p in study.policies if study.units(p, load)}  # fmt: skip
    if len({n for counter in count.values() for n in counter}) < 2:
        return []
    per = [f"{p} under {load}: {' or '.join(map(str, sorted(c)))}" for (p, load), c in count.items()]
    return [
        f"Unequal repeats per seed ({listed(per)}). Paired comparisons use the repeats both policies have; "
        "each seed weighs the same."
    ]


def _few_seeds(study: Study) -> list[str]:
    single = [
        f"{p} under {load}" for p in study.policies for load in study.loads if len(study.units(p, load)) == 1
    ]
    return [f"One seed only, so no interval and no test: {listed(single)}."] if single else []


def _missing_values(study: Study) -> list[str]:
    lost: dict[str, list[str]] = defaultdict(list)
    for t in study.trials:
        for name in TESTED:
            if not math.isfinite(t.values[name]):
                repeat = f" episode {t.episode}" if study.repeated else ""
                lost[name].append(f"{t.policy} {t.load} seed {t.seed}{repeat}")
    return [f"{measure(name).label} has no value in {listed(runs)}; these runs are left out of it."
            for name, runs in lost.items()]  # fmt: skip


def _unlike_conditions(study: Study) -> list[str]:
    found = []
    for tag, words in CONDITIONS.items():
        count = Counter(t.tags.get(tag, "unknown") for t in study.trials)
        if len(count) > 1:
            each = listed(f"{value[:12]} ({n} runs)" for value, n in sorted(count.items()))
            found.append(f"The runs come from different {words}: {each}. {_mixed_up(study, tag)}")
    return found


def _mixed_up(study: Study, tag: str) -> str:
    """Say whether a condition differs between the policies that are compared, and not only between seeds or loads."""
    cells: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    policies: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    for t in study.trials:
        cells[t.key[1:]].add(t.tags.get(tag, "unknown"))
        policies[t.key[1:]].add(t.policy)
    compared = [cell for cell, who in policies.items() if len(who) > 1]
    unlike = sum(len(cells[cell]) > 1 for cell in compared)
    if not unlike:
        return "Within each load and seed all policies have the same, so that it does not touch their differences."
    return (
        f"Policies are compared across them in {unlike} of {len(compared)} cells of load and seed: a difference "
        "between policies may be one between these."
    )


def _unlike_settings(study: Study) -> list[str]:
    """Compare configurations: a policy's own within the policy, a load's own within the load, the rest everywhere."""
    groups: list[tuple[str, Callable[[Trial], str], Callable[[str], bool]]] = [
        ("policy", lambda t: t.policy, lambda key: key.startswith("policy")),
        ("load", lambda t: t.load, lambda key: key.startswith("load")),
        ("study", lambda t: study.name, lambda key: not key.startswith(("policy", "load"))),
    ]
    found = []
    for word, group_of, wanted in groups:
        values: dict[tuple[str, str], set[str]] = defaultdict(set)
        for t in study.trials:
            for key, value in t.params.items():
                if wanted(key) and not key.startswith(FREE):
                    values[group_of(t), key].add(value)
        for group in sorted({g for g, _ in values}):
            unlike = [f"{key} = {' | '.join(sorted(v))}" for (g, key), v in sorted(values.items())
                      if g == group and len(v) > 1]  # fmt: skip
            if unlike:
                found.append(f"Different configurations within the {word} {group}: {listed(unlike)}.")
    return found


def _still(study: Study) -> list[str]:
    """A controller that held one replica count under every load is a constant, whatever it is called."""
    found = []
    for policy in study.policies:
        trials = [t for load in study.loads for t in study.of(policy, load)]
        loads = {t.load for t in trials}
        still = trials and all(t.values.get("scale_events") == 0 for t in trials)
        if still and len(loads) > 1 and not policy.startswith("static"):
            found.append(
                f"{policy} never changed the replicas in any of its {len(trials)} runs: it is a constant."
            )
    return found


def _unconverged(study: Study) -> list[str]:
    open_ended = [f"{r.tags.get('policy', '?')} seed {r.tags.get('seed', '?')}" for r in study.trainings
                  if r.tags.get("converged", "").lower() != "true"]  # fmt: skip
    if not open_ended:
        return []
    count = f"{len(open_ended)} of {len(study.trainings)} trainings"
    return [f"{count} did not converge: {listed(open_ended)}. Their policies are judged as they are."]


def _marked(study: Study) -> list[str]:
    """Count the marked runs by policy and kind of mark; the table of runs has each one's own numbers."""
    count = Counter((t.policy, NUMBER.sub("…", mark)) for t in study.trials for mark in t.marks)
    return [f"Marked: {n} of {len(study.of(policy))} runs of {policy} count although a gate objects: {mark}."
            for (policy, mark), n in sorted(count.items())]  # fmt: skip


def _excluded(study: Study) -> list[str]:
    n = len(study.excluded)
    return (
        [f"{n} run{'' if n == 1 else 's'} excluded; the reasons are listed under “Excluded runs”."]
        if n
        else []
    )


def _dirty(study: Study) -> list[str]:
    n = sum(t.tags.get("git_dirty") == "true" for t in study.trials)
    return [f"{n} of {len(study.trials)} runs come from code with uncommitted changes."] if n else []
