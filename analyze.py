"""Writes the report of a study: python analyze.py [--study NAME] [--baseline hpa] [--candidate ppo]."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpusched.core.errors import GpuschedError

PLAIN_WIDTH = 180
"""Columns of the table where the output is no terminal."""

if TYPE_CHECKING:
    from gpusched.report.build import Report
    from gpusched.tracking.store import Store


def main(argv: list[str] | None = None) -> int:
    """Write the report and return the exit code: 0, or 2 after one message about what the user can mend."""
    args = _arguments(argv)
    try:
        _analyze(args)
    except GpuschedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the policies of a study from what MLflow holds.")
    add = parser.add_argument
    add("--study", help="study to report on (default: the one with the newest trial)")
    add("--filter", default="", metavar="QUERY",
        help="only trials that pass this MLflow filter, such as \"tags.cluster = 'sim' and tags.load = 'high'\"")  # fmt: skip
    add("--uri", default="sqlite:///mlruns/mlflow.db", help="tracking store (default: %(default)s)")
    add("--baseline", metavar="POLICY", help="policy to compare with (default: the hypotheses’, else hpa)")
    add("--candidate", metavar="POLICY", help="policy to judge (default: the hypotheses’, else ppo)")
    add("--all-pairs", action="store_true", help="also compare every two policies in a table of its own")
    add("--margin", type=float, metavar="SHARE",
        help="margin of the exploratory equivalence tests, as a share of the baseline's mean (default: the hypotheses’, "
        "else 0.02); claims written down before the runs keep their own")  # fmt: skip
    add("--hypotheses", type=Path, default=Path(__file__).parent / "conf" / "hypotheses.yaml", metavar="FILE",
        help="file the runs took their hypotheses from; the report says whether it was changed (default: %(default)s)")  # fmt: skip
    add("--out", type=Path, default=Path("outputs/report"), help="where to write (default: %(default)s)")
    add("--keep", type=Path, metavar="FOLDER", help="also copy the small tables and figures there, to be kept with the code")  # fmt: skip
    return parser.parse_args(argv)


def _analyze(args: argparse.Namespace) -> None:
    # Imported late so that --help answers at once.
    from gpusched.report.analysis import Choice
    from gpusched.report.build import build
    from gpusched.report.keep import check_place, keep
    from gpusched.tracking.provenance import provenance
    from gpusched.tracking.store import Store

    choice = Choice(
        study=args.study,
        query=args.filter,
        baseline=args.baseline,
        candidate=args.candidate,
        margin=args.margin,
        hypotheses_file=args.hypotheses,
        all_pairs=args.all_pairs,
    )
    if args.keep:
        check_place(args.keep)
    store = Store(args.uri, create=False)
    tags = provenance()
    report = build(store, out=args.out, choice=choice, provenance_tags=tags)
    _log(store, report, tags)
    _print(report)
    if args.keep:
        kept = keep(report.folder, args.keep, shlex.join(["python", *sys.argv]))
        print(f"Kept: {len(kept)} files in {args.keep}")


def _log(store: Store, report: Report, tags: dict[str, str]) -> None:
    """Keep the report in the store as a run of its own."""
    compared = report.comparison
    params = {"baseline": compared.baseline, "candidate": compared.candidate} if compared else {}
    if report.study.query:
        params["filter"] = report.study.query
    own = {**tags, "tables_sha256": report.digest}
    with store.start("analysis", study=report.study.name, name="analysis", params=params, tags=own) as run:
        run.file(report.folder, "report")


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False)
    shown = report.tables.get("comparison") or report.tables.get("means")
    if shown:
        table = Table(title=shown.title, title_justify="left")
        for i, (_, name) in enumerate(shown.columns):
            table.add_column(name, justify="left" if i < shown.labels else "right")
        for row in shown.rows:
            table.add_row(*(cell.text for cell in row))
        console.print(table)
    for text in report.registered.sentences:
        console.print(f"Hypotheses: {text}", highlight=False)
    kind = "Exploratory: " if report.registered.results else ""
    for text in (report.no_comparison, *(f"{kind}{v.load}: {v.summary}" for v in report.verdicts)):
        if text:
            console.print(text, highlight=False)
    if report.fidelity:
        console.print(report.fidelity, highlight=False)
    for caveat in report.caveats:
        console.print(f"Note: {caveat}", highlight=False)
    console.print(f"Report: {report.folder / 'index.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
