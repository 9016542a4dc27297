"""Seconds that the headline study takes: thirty trials, their trainings and the analysis, in a temporary store.

    python benchmarks/sweep.py [--cold] [--seeds 5] [--out outputs/bench/sweep.json]

With --cold, numba's cache folder is empty, too, as on a fresh machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, describe, run_script, temporary_store, write

GOAL_S = 300.0
"""Wall seconds promised for the sweep, trainings included, on two idle cores."""
STUDY = "benchmark"


def main() -> None:
    """Run sweep and analysis, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", action="store_true", help="begin with nothing compiled")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/sweep.json")
    args = parser.parse_args()
    sweep = ["policy=ppo,hpa", "load=low,medium,high", f"seed=range({args.seeds})", f"study={STUDY}"]
    report: dict[str, Any] = {
        "machine": describe(),
        "command": ["run.py", "-m", *sweep],
        "goal_wall_s": GOAL_S,
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = temporary_store(place)
        uri = store[0].partition("=")[2]
        cache = place / "numba" if args.cold else None
        steps = {
            "sweep": ["run.py", "-m", *sweep, *store],
            "analysis": ["analyze.py", "--study", STUDY, "--uri", uri, "--out", str(place / "report")],
        }
        for name, command in steps.items():
            spent = run_script(command, numba_cache=cache, quiet=False)
            report[name] = {"wall_s": spent.wall_s, "cpu_s": spent.cpu_s}
    total_s = report["sweep"]["wall_s"] + report["analysis"]["wall_s"]
    for name in steps:
        print(f"{name:9} {report[name]['wall_s']:7.1f} s wall {report[name]['cpu_s']:7.1f} s CPU")
    print(f"total     {total_s:7.1f} s wall; the goal for the sweep is {GOAL_S:.0f} s on two idle cores")
    write(args.out, report)


if __name__ == "__main__":
    main()
