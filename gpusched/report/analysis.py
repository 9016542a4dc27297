"""The whole analysis of a study in one call: what is read, compared and judged, and every table and sentence of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from gpusched.core.errors import InputError, did_you_mean, refuse
from gpusched.report import contents, verdict
from gpusched.report.caveats import caveats, without_marked
from gpusched.report.compare import Comparison, compare, shared_loads
from gpusched.report.dataset import Source, Study, load, newest_of, newest_study
from gpusched.report.fidelity import Fidelity, fidelity
from gpusched.report.hypotheses import Registered, judge
from gpusched.report.tables import Table
from gpusched.report.verdict import LoadVerdict

BASELINE, CANDIDATE = "hpa", "ppo"
"""The pair compared where neither the options nor the hypotheses name one."""


@dataclass(kw_only=True, frozen=True)
class Choice:
    """What to analyse and how.

    study            its name, None = the one with the newest trial
    query            MLflow filter on its trials, "" = all
    baseline         policy to compare with, None = the registered one, else hpa
    candidate        policy to judge, None = the registered one, else ppo
    margin           of the exploratory TOST, share of the baseline's mean; None = the registered one, else 2 %
    hypotheses_file  the file the runs took their hypotheses from, None = not looked at
    all_pairs        also compare every two policies
    allow_synthetic  take made-up runs, for tests
    """

    study: str | None = None
    query: str = ""
    baseline: str | None = None
    candidate: str | None = None
    margin: float | None = None
    hypotheses_file: Path | None = None
    all_pairs: bool = False
    allow_synthetic: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin > 0):
            raise refuse("--margin", self.margin, "must be a share greater than 0, such as 0.02")


@dataclass(kw_only=True)
class Analysis:
    """What there is to say of a study: `policies` begins with the baseline and the candidate."""

    study: Study
    policies: list[str]
    comparison: Comparison | None
    no_comparison: str
    registered: Registered
    verdicts: list[LoadVerdict]
    notes: list[str]
    caveats: list[str]
    tables: dict[str, Table]
    fidelity: Fidelity


def analyse(source: Source, choice: Choice) -> Analysis:
    """Read the chosen study, compare two of its policies and judge its hypotheses.

    Raises InputError for an unknown study or policy, a store without trials, a filter that is none or lets nothing
    through, made-up runs, and runs of several kinds of cluster.
    """
    study = _read(source, choice)
    registered = judge(study, choice.hypotheses_file)
    named = bool(choice.baseline or choice.candidate)
    choice = _completed(choice, registered, study)
    baseline, candidate, margin = choice.baseline or "", choice.candidate or "", choice.margin or math.nan
    reason = _no_comparison(study, baseline, candidate, named=named)
    compared = None if reason else compare(study, baseline, candidate)
    policies = _ordered(study, baseline, candidate)
    known = fidelity(study, source)
    return Analysis(
        study=study,
        policies=policies,
        comparison=compared,
        no_comparison=reason,
        registered=registered,
        verdicts=verdict.verdicts(compared) if compared else [],
        notes=verdict.notes(compared) if compared else [],
        caveats=caveats(study)
        + _other_pair(registered, compared, margin)
        + without_marked(study, compared)
        + known.caveats,
        tables=contents.tables(
            study, compared, policies, registered, known.evidence, margin=margin, all_pairs=choice.all_pairs
        ),
        fidelity=known,
    )


def _read(source: Source, choice: Choice) -> Study:
    """Read the chosen study; where it is the newest of all, with the one search that finds it."""
    if choice.study or choice.query:
        name = choice.study or newest_study(source, choice.query)
        return load(source, name, choice.query, allow_synthetic=choice.allow_synthetic)
    found = source.find(kind="trial", status=None)
    name = newest_of(found, source.where)
    own = [r for r in found if r.tags["study"] == name]
    return load(source, name, allow_synthetic=choice.allow_synthetic, everything=own)


def _completed(choice: Choice, registered: Registered, study: Study) -> Choice:
    """Fill in what was not chosen: the registered pair where the study has both, else the usual one."""
    h = registered.hypotheses
    usual = (h.baseline, h.candidate) if h and {h.baseline, h.candidate} <= set(study.policies) else (BASELINE, CANDIDATE)  # fmt: skip
    return replace(
        choice,
        baseline=choice.baseline or usual[0],
        candidate=choice.candidate or usual[1],
        margin=choice.margin or (h.margin if h else contents.MARGIN),
    )


def _no_comparison(study: Study, baseline: str, candidate: str, *, named: bool) -> str:
    """Return why nothing is compared, empty where it is.

    Raises InputError for a policy the study does not have, where the pair was `named` by the user: a study without the
    usual pair, such as an ablation, is described.
    """
    have = study.policies
    if len(have) < 2:
        only = f"Only {have[0]} has runs that count" if have else "No run counts"
        return f"{only}, so there is nothing to compare; the page describes what was measured."
    absent = [(o, p) for o, p in (("baseline", baseline), ("candidate", candidate)) if p not in have]
    if absent and not named:
        return (
            f"{candidate} is not compared with {baseline}: study {study.name!r} has no run of "
            f"{' or '.join(p for _, p in absent)} that counts. The page describes what was measured; --baseline and "
            f"--candidate compare two of: {', '.join(have)}."
        )
    for option, policy in absent:
        raise InputError(
            f"--{option} {policy}: study {study.name!r} has no run of it that counts. "
            f"Policies: {', '.join(have)}.{did_you_mean(policy, have)}"
        )
    if baseline == candidate:
        raise InputError(f"--baseline and --candidate are both {baseline!r}. Policies: {', '.join(have)}.")
    if not shared_loads(study, baseline, candidate):
        return f"{candidate} and {baseline} have no load in common, so they are not compared."
    return ""


def _ordered(study: Study, baseline: str, candidate: str) -> list[str]:
    first = [p for p in (baseline, candidate) if p in study.policies]
    return first + [p for p in study.policies if p not in first]


def _other_pair(registered: Registered, compared: Comparison | None, margin: float) -> list[str]:
    """Say where the comparison shown is not the one that was written down before the runs."""
    h = registered.hypotheses
    if h is None or compared is None:
        return []
    told = []
    if (h.baseline, h.candidate) != (compared.baseline, compared.candidate):
        told.append(
            f"{compared.candidate} against {compared.baseline} was chosen at the analysis; what was written down before "
            f"the runs is {h.candidate} against {h.baseline}."
        )
    if margin != h.margin:
        told.append(
            f"The margin of the exploratory equivalence tests is {margin:g}, chosen at the analysis; {h.margin:g} was "
            "written down before the runs, and the claims are judged with their own."
        )
    return told
