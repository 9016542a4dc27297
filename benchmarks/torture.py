"""Kills a sweep at random moments, again and again, and checks that resume=true makes the study whole.

python benchmarks/torture.py [--kills 20] [--seed 0] [--launcher basic|joblib]

Each round starts the sweep with resume=true, waits a random time, and kills -9 either the parent or one of its
workers. At the end an undisturbed run must leave every trial finished exactly once, and nothing half-written may
count as finished: the KPIs of a finished run must be those of the same trial run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
SWEEP = ["policy=static,hpa", "load=low,medium", "seed=range(3)", "trial.duration_s=120", "trial.warmup_s=30"]
JOBS = 12
EARLIEST_S, LATEST_S = 1.0, 12.0
PATIENCE_S = 600.0


@dataclass
class Story:
    """What happened: who was killed when, and what was left each time."""

    kills: list[dict[str, object]] = field(default_factory=list)
    finished: int = 0
    doubled: int = 0
    differing: int = 0

    @property
    def whole(self) -> bool:
        return self.finished == JOBS and not self.doubled and not self.differing


def command(folder: Path, launcher: str, *more: str) -> list[str]:
    """Return the command of the sweep; its store lies in `folder`."""
    chosen = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    return [sys.executable, str(ROOT / "run.py"), "-m", *SWEEP, "study=torture", "resume=true",
            f"tracking.uri=sqlite:///{folder}/mlruns/mlflow.db", *chosen, *more]  # fmt: skip


def round_of_death(folder: Path, launcher: str, rng: np.random.Generator) -> dict[str, object]:
    """Start the sweep and kill it, or one of its workers, after a random time."""
    wait_s = float(rng.uniform(EARLIEST_S, LATEST_S))
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            command(folder, launcher), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=wait_s)
    victims = _victims(process)
    victim = victims[int(rng.integers(len(victims)))] if victims else None
    if victim is not None:
        victim.kill()
    if victim is not None and victim.pid == process.pid:
        _sweep_away(process.pid)
    else:
        process.wait(timeout=PATIENCE_S)
    return {"after_s": round(wait_s, 2), "who": "nobody" if victim is None else
            "parent" if victim.pid == process.pid else "worker"}  # fmt: skip


def _victims(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)] if process.poll() is None else []
    except psutil.NoSuchProcess:
        return []


def _sweep_away(group: int) -> None:
    """End what a killed parent left, as a machine's restart would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    time.sleep(0.2)


def torture(folder: Path, kills: int, seed: int, launcher: str) -> Story:
    """Kill the sweep `kills` times, let it finish once, and compare it with an undisturbed one."""
    rng, story = np.random.default_rng(seed), Story()
    (folder / "mlruns").mkdir(parents=True, exist_ok=True)
    for number in range(kills):
        story.kills.append(round_of_death(folder, launcher, rng))
        print(f"{number + 1}/{kills}: {story.kills[-1]}, finished {len(finished(folder))}", flush=True)
    done = subprocess.run(
        command(folder, launcher), cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone = folder / "alone"
    (alone / "mlruns").mkdir(parents=True)
    subprocess.run(command(alone, "basic"), cwd=alone, check=True, capture_output=True, timeout=PATIENCE_S)
    left, wanted = finished(folder), finished(alone)
    keys = [key for key, _ in left]
    story.finished, story.doubled = len(set(keys)), len(keys) - len(set(keys))
    story.differing = sum(dict(left).get(key) != kpis for key, kpis in wanted)
    return story


def finished(folder: Path) -> list[tuple[str, dict[str, float]]]:
    """Return the name and KPIs of every finished trial, as a process that starts now sees them."""
    read = subprocess.run(
        [sys.executable, __file__, "--read", str(folder)], check=True, capture_output=True, text=True
    )
    return [(str(name), kpis) for name, kpis in json.loads(read.stdout)]


def _read(folder: Path) -> list[tuple[str, dict[str, float]]]:
    """Return what `finished` returns; nothing from a database that was killed while it was made."""
    from gpusched.core.errors import InputError, StoreError
    from gpusched.tracking.store import Store

    try:
        runs = Store(f"sqlite:///{folder}/mlruns/mlflow.db", create=False).find("torture", kind="trial")
    except (InputError, StoreError) as error:
        print(error, file=sys.stderr, flush=True)
        return []
    return [(_name(run.tags), {k: v for k, v in run.metrics.items() if k.startswith("kpi/")}) for run in runs]


def _name(tags: dict[str, str]) -> str:
    return " ".join(tags[key] for key in ("policy", "load", "seed"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=["basic", "joblib"], default="basic")
    parser.add_argument("--read", type=Path, help="only print the finished trials of this folder")
    args = parser.parse_args()
    if args.read:
        print(json.dumps(_read(args.read)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        story = torture(Path(name), args.kills, args.seed, args.launcher)
    print(json.dumps({"kills": args.kills, "finished": story.finished, "of": JOBS, "doubled": story.doubled,
                      "differing": story.differing, "whole": story.whole}))  # fmt: skip
    return 0 if story.whole else 1


if __name__ == "__main__":
    sys.exit(main())
