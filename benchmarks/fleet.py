"""How long an hour of a large fleet takes: 100 nodes with 4 GPUs each, 20 services, 10^5 users, one core.

    python benchmarks/fleet.py [--out outputs/bench/fleet.json]

Runs the trial of conf/experiment/fleet.yaml under one HPA per service, without storing it: once for a minute, which
compiles, then for the hour. Seconds are CPU time, and wall time beside it; `goal_per_seconds` compares with the goal.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from machine import ROOT, describe, write
from omegaconf import open_dict

from gpusched.cluster.sim import SimCluster
from gpusched.core.fleet import fleet_kpis
from gpusched.job import fleet
from gpusched.job.build import setup

GOALS = {"seconds": 60.0, "peak_gigabytes": 4.0}


def prepare(*overrides: str) -> tuple[Any, list[fleet.Member]]:
    """Return the trial's setup and its services."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["experiment=fleet", *overrides], return_hydra_config=True)
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    job, made = setup(config, choices)
    assert isinstance(job, fleet.FleetJob)
    made = job.prepare(made)
    return made, fleet.members(made, job.config.fleet)


def run(*overrides: str) -> dict[str, float]:
    """Live through the trial and judge it; return what that took."""
    made, services = prepare(*overrides)
    begin_s, wall_s = time.process_time(), time.perf_counter()
    cluster = SimCluster(
        made.cluster_config, service=made.service, trial=made.spec, limits=made.limits, slo_s=made.reward.slo_s,
        envs=len(services), services=len(services),
    )  # fmt: skip
    fleet.live(made, services, cluster)
    engine_s = time.process_time() - begin_s
    nodes_T, window = fleet.read(made, services, cluster)
    values = fleet_kpis(window, [one.kpis for one in services])
    seconds = time.process_time() - begin_s
    requests = len(window.requests.status_N)
    return {
        "seconds": seconds,
        "wall_s": time.perf_counter() - wall_s,
        "engine_s": engine_s,
        "requests": float(requests),
        "requests_per_s": requests / engine_s,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "users_mean": sum(one.setup.plan.mean_users(0.0, made.spec.end_s) for one in services),
        "gpu_utilization": values["gpu_utilization"],
        "replicas_mean": values["replicas_mean"],
        "fragmentation": float(nodes_T["vram_fragmented"].sum() / nodes_T["vram_free"].sum()),
    }


def main() -> int:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/fleet.json")
    args = parser.parse_args()
    run("trial.duration_s=60", "trial.warmup_s=15")
    found = run()
    print(
        f"an hour (and {prepare()[0].spec.warmup_s:g} s of warm-up), 20 services, {found['users_mean']:,.0f} users"
    )
    print(f"  {found['requests']:,.0f} requests, {found['requests_per_s']:,.0f} per second of one core")
    print(
        f"  {found['seconds']:.1f} s of CPU ({found['engine_s']:.1f} of them the engine), {found['wall_s']:.1f} s of wall time"
    )
    print(f"  {found['peak_gigabytes']:.2f} GB at most")
    for name, goal in GOALS.items():
        print(f"  goal: {name} <= {goal:g}: {'met' if found[name] <= goal else 'MISSED'} ({found[name]:.2f})")
    report = {"machine": describe(), "goals": GOALS, **found}
    write(args.out, report | {"goal_per_seconds": GOALS["seconds"] / found["seconds"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
