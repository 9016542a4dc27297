"""CPU time of composing one job of a sweep, with Python's garbage collector as it comes and as run.py sets it, in turn.

python benchmarks/compose.py [--rounds 5] [--jobs 10]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

from hydra import compose, initialize_config_dir
from machine import ROOT

import gpusched.job.command  # the reader of YAML, and the threshold
import gpusched.tracking.store  # noqa: F401

SET = gc.get_threshold()
THRESHOLDS = {"as it comes": (700, 10, 10), "as run.py sets it": SET}


def one_round(jobs: int) -> float:
    """Return CPU seconds a job; what is composed is kept, as a job's configuration is while it runs."""
    begin_s, kept = time.process_time(), []
    for _ in range(jobs):
        kept.append(compose("config", ["policy=ppo", "load=low"], return_hydra_config=True))
    return (time.process_time() - begin_s) / jobs


def main() -> None:
    """Compose in turn and print the medians and the median ratio of a round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=10)
    args = parser.parse_args()
    # What a job that learns has loaded, and the collector looks through.
    import mlflow  # noqa: F401
    import torch  # noqa: F401

    found: dict[str, list[float]] = {name: [] for name in THRESHOLDS}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        one_round(1)
        for _ in range(args.rounds):
            for name, threshold in THRESHOLDS.items():
                gc.set_threshold(*threshold)
                found[name].append(one_round(args.jobs))
    before, after = found.values()
    for name, times_s in found.items():
        print(
            f"{name:18} {statistics.median(times_s):.3f} s CPU a job ({min(times_s):.3f} to {max(times_s):.3f})"
        )
    shares = [b / a for a, b in zip(before, after, strict=True)]
    print(f"ratio              {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")


if __name__ == "__main__":
    main()
