"""Seconds that whole processes take: the first run ever, a run with everything warm, and the help.

The first run compiles the simulator: numba's cache folder is empty, and so is the store. Everything is written to a
temporary folder. Clear the page cache first if the reading of libraries from disk should count, too.

    python benchmarks/cold.py [--rounds 3] [--out outputs/bench/cold.json]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, Spent, describe, median, run_script, temporary_store, write

GOALS = {"first": 45.0, "warm": 5.0}
"""Wall seconds promised, on two idle cores."""
TRIAL = ["policy=hpa", "load=high"]


def measure(folder: Path, rounds: int) -> dict[str, list[Spent]]:
    """Run the three commands in turn, each round with an empty cache for the first."""
    spent: dict[str, list[Spent]] = {"first": [], "warm": [], "help": []}
    for k in range(rounds):
        place = folder / str(k)
        trial = ["run.py", *TRIAL, *temporary_store(place)]
        for name in ("first", "warm"):
            spent[name].append(run_script(trial, numba_cache=place / "numba"))
        spent["help"].append(run_script(["run.py", "--help"], numba_cache=place / "numba"))
    return spent


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/cold.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(Path(folder), args.rounds)
    report: dict[str, Any] = {"machine": describe(), "command": ["run.py", *TRIAL], "goals_wall_s": GOALS}
    print(f"{'process':8} {'wall s':>8} {'(range)':>16} {'CPU s':>8} {'goal':>6}")
    for name, rows in spent.items():
        walls = [row.wall_s for row in rows]
        cpu_s, goal = median(row.cpu_s for row in rows), GOALS.get(name)
        limits = f"({min(walls):.2f}-{max(walls):.2f})"
        print(f"{name:8} {median(walls):8.2f} {limits:>16} {cpu_s:8.2f} {goal if goal else '':>6}")
        report[name] = {"wall_s": walls, "wall_median_s": median(walls), "cpu_median_s": cpu_s}
    write(args.out, report)


if __name__ == "__main__":
    main()
