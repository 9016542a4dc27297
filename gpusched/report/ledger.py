"""The ledger: what each method spent before it was judged, so that a comparison shows whether all had the same chance."""

from __future__ import annotations

from collections import defaultdict

from gpusched.report import statistics
from gpusched.report.dataset import Study
from gpusched.report.measures import number
from gpusched.report.source import Record
from gpusched.report.tables import Cell, Table, figures, words

STEPS, VALIDATED, WALL = "ledger/steps", "ledger/validate_steps", "ledger/wall_s"
CANDIDATES = "ledger/candidates"


def ledger(study: Study) -> Table:
    """Return mean simulated control steps, wall time and candidates per method; the others spent nothing."""
    spent: dict[str, list[Record]] = defaultdict(list)
    for record in study.learnt:
        if STEPS in record.metrics:
            spent[record.tags.get("policy", "?")].append(record)
    columns = [("policy", "Policy"), ("n", "Trainings or searches"), ("steps", "Control steps simulated"),
               ("validated", "of them validation"), ("wall_s", "Wall time (s)"), ("candidates", "Candidates tried")]  # fmt: skip
    # A guard (policy.cooldown_s ...) makes another policy of the same training.
    known = {
        record.tags["fingerprint"] for own in spent.values() for record in own if "fingerprint" in record.tags
    }
    free = sorted(policy for policy in study.policies if policy not in spent
                  and not any(trial.tags.get("fingerprint") in known for trial in study.of(policy)))  # fmt: skip
    notes = ["Means over the seeds. A step is one control interval of one simulated environment."]
    notes += [f"Spent nothing: {', '.join(free)}."] if free else []
    rows = [_row(policy, records) for policy, records in sorted(spent.items())]
    return Table(name="ledger", title="Budget: what each method spent before it was judged", columns=columns,
                 rows=rows, labels=1, notes=notes)  # fmt: skip


def _row(policy: str, records: list[Record]) -> list[Cell]:
    runs = [record.id for record in records]
    return [
        words(policy),
        figures(str(len(records)), {"": len(records)}, runs),
        *(_mean(records, metric, runs) for metric in (STEPS, VALIDATED, WALL, CANDIDATES)),
    ]


def _mean(records: list[Record], metric: str, runs: list[str]) -> Cell:
    e = statistics.interval([record.metrics[metric] for record in records if metric in record.metrics])
    return figures(number(e.mean) if e.n else "–", {"": e.mean} if e.n else {}, runs)
