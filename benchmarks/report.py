"""Seconds that analyze.py takes for a study of 1,000 finished runs, in a temporary store.

    python benchmarks/report.py [--runs 1000] [--repeats 3] [--out outputs/bench/report.json]

One trial per policy and load is run for real; the other seeds are copies of it with noise on the KPIs. Every run is
marked synthetic=true, which analyze.py refuses: the numbers of this store can never enter a report.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, Spent, describe, median, run_script, temporary_store, write

from gpusched.tracking.store import Store

GOAL_S = 20.0
"""Wall seconds promised for 1,000 runs, on two idle cores."""
STUDY = "benchmark"
LOADS = ("low", "medium", "high", "spike")
POLICIES = (["policy=hpa", "policy.target=30,40,50,60,70,80,90"], ["policy=static", "policy.replicas=1,2,3"])
"""Ten policies, as the command line sweeps them."""
BASELINE, CANDIDATE = "hpa[target=70]", "hpa[target=50]"
NOISE = 0.02
TRAININGS = 25
CURVE = 30
"""Points of a training's curves."""


def main() -> None:
    """Make the store, analyse it, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder to keep store and reports in")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/report.json")
    parser.add_argument("--analyse", nargs=2, metavar=("URI", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.analyse:
        return analyse(*args.analyse)
    with tempfile.TemporaryDirectory() as folder:
        place = args.keep or Path(folder)
        report = {"machine": describe(), "goal_wall_s": GOAL_S, **measure(place, args.runs, args.repeats)}
    wall_s = median(one["wall_s"] for one in report["analysis"])
    print(
        f"\nmedian {wall_s:.1f} s wall for {report['runs']} runs; the goal is {GOAL_S:.0f} s on two idle cores"
    )
    write(args.out, report | {"median_wall_s": wall_s})
    return None


def measure(place: Path, runs: int, repeats: int) -> dict[str, Any]:
    """Return what was made and the seconds of every analysis."""
    database = place / "mlruns" / "mlflow.db"
    if not database.exists():
        seconds = fill(database, place, runs)
        print(f"{runs} runs made in {seconds:.0f} s, {database.stat().st_size / 1e6:.0f} MB of database")
    spent = []
    for i in range(repeats):
        one = analysis(f"sqlite:///{database}", place / f"report{i}")
        print(f"analysis {i}: {one.wall_s:6.1f} s wall {one.cpu_s:6.1f} s CPU", flush=True)
        spent.append({"wall_s": one.wall_s, "cpu_s": one.cpu_s})
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"runs": runs, "policies": 10, "loads": len(LOADS), "analysis": spent, "peak_memory_mb": peak_mb}


def analysis(uri: str, out: Path) -> Spent:
    """Run one analysis in a process of its own."""
    return run_script([str(Path(__file__)), "--analyse", uri, str(out)])


def analyse(uri: str, out: str) -> None:
    """Do what analyze.py does, with made-up runs let in: its page says so in a banner."""
    sys.path.insert(0, str(ROOT))
    import analyze
    from gpusched.report.analysis import Choice
    from gpusched.report.build import build
    from gpusched.tracking.provenance import provenance

    store = Store(uri, create=False)
    tags = provenance()
    choice = Choice(study=STUDY, baseline=BASELINE, candidate=CANDIDATE, allow_synthetic=True,
                    hypotheses_file=ROOT / "conf/hypotheses.yaml")  # fmt: skip
    report = build(store, out=Path(out), choice=choice, provenance_tags=tags)
    analyze._log(store, report, tags)
    analyze._print(report)


def fill(database: Path, place: Path, runs: int) -> float:
    """Make the store of so many trials, and the trainings; return the seconds it took."""
    begin_s = time.perf_counter()
    settings = temporary_store(place)
    for i, policy in enumerate(POLICIES):
        own = f"hydra.sweep.dir={place}/outputs/{i}"
        sweep = [*policy, f"load={','.join(LOADS)}", "seed=0", f"study={STUDY}", *settings[:-1], own]
        run_script(["run.py", "-m", *sweep])
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("begin")
        copy(connection, database.parent / "artifacts", runs)
        mark(connection)
        connection.execute("commit")
    train(Store(f"sqlite:///{database}"))
    return time.perf_counter() - begin_s


def copy(connection: sqlite3.Connection, artifacts: Path, runs: int) -> None:
    """Copy every trial until there are `runs` of them: all rows that name it, and its artifacts."""
    rng = np.random.default_rng(0)
    originals = [run for (run,) in connection.execute(
        "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'kind' and t.value = 'trial'"
    )]  # fmt: skip
    owned = list(tables(connection))
    for i in range(len(originals), runs):
        original, seed = originals[i % len(originals)], i // len(originals)
        new = uuid.UUID(bytes=rng.bytes(16)).hex
        for table, columns in owned:
            connection.execute(
                f"insert into {table} (run_uuid, {', '.join(columns)}) select ?, {', '.join(columns)} from {table} "
                "where run_uuid = ?",
                [new, original],
            )
        change(connection, original, new, seed, rng)
        shutil.copytree(artifacts / original, artifacts / new, copy_function=os.link)


def tables(connection: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """Yield every table whose rows belong to a run, with its other columns; the runs themselves come first."""
    names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    for name in sorted(names, key=lambda name: (name != "runs", name)):
        columns = [row[1] for row in connection.execute(f"pragma table_info({name})")]
        if "run_uuid" in columns:
            yield name, [column for column in columns if column != "run_uuid"]


def change(
    connection: sqlite3.Connection, original: str, new: str, seed: int, rng: np.random.Generator
) -> None:
    """Make the copy a run of another seed, later, with its own files and noise on what was measured."""
    do = connection.execute
    do("update runs set start_time = start_time + ?, artifact_uri = replace(artifact_uri, ?, ?) where run_uuid = ?",
       [seed, original, new, new])  # fmt: skip
    for table in ("tags", "params"):
        do(f"update {table} set value = ? where run_uuid = ? and key = 'seed'", [str(seed), new])
    do(
        "update tags set value = ? where run_uuid = ? and key in ('trial_key', 'config_hash')",
        [new[:16], new],
    )
    keys = [key for (key,) in do("select key from latest_metrics where run_uuid = ?", [new])]
    for key in keys:
        if key.startswith(("kpi/", "reward_mean")):
            factor = 1.0 + NOISE * rng.normal()
            do(
                "update latest_metrics set value = value * ? where run_uuid = ? and key = ?",
                [factor, new, key],
            )


def mark(connection: sqlite3.Connection) -> None:
    """Mark every run of the store as made up."""
    connection.execute(
        "insert or replace into tags (key, value, run_uuid) select 'synthetic', 'true', run_uuid from runs"
    )


def train(store: Store) -> None:
    """Write made-up trainings with curves."""
    for seed in range(TRAININGS):
        tags = {
            "policy": "ppo",
            "seed": str(seed),
            "converged": "true",
            "synthetic": "true",
            "fingerprint": str(seed),
        }
        with store.start("training", study=STUDY, name=f"training {seed}", params={}, tags=tags) as run:
            for k in range(1, CURVE + 1):
                reward = -1.0 / k
                run.metrics(k * 8192, {"train/reward": reward, "train/reward_low": reward - 0.1,
                                       "train/reward_high": reward + 0.1, "train/kl": 0.1 / k,
                                       "train/entropy": 1.0 / k, "train/agreement": 1.0 - 0.5 / k})  # fmt: skip


if __name__ == "__main__":
    main()
