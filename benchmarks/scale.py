"""How the engine's cost grows: users 10^2 to 10^5, pods 3 to 1,000; memory of an environment; two cores in a batch.

    python benchmarks/scale.py [--requests 300000] [--rounds 5] [--out outputs/bench/scale.json]

More users come to three pods whose processors are as much faster; more pods have as many more users and a GPU for every
three. Utilisation stays the same. Cost is CPU time per request, relative to the smallest size, median of rounds in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, describe, service, write

from gpusched.core.load import LoadPlan
from gpusched.core.ports import Episode
from gpusched.sim.batch import BatchSim, Clocks

USERS = (100, 1_000, 10_000, 100_000)
PODS = (3, 30, 300, 1_000)
GPU_ALPHA_S, THINK_S = 0.0138, (1.0, 2.0)
GOALS = {"users": 3.0, "pods": 3.0, "env_bytes": 1_000_000, "two_cores": 1.8}


def sim(users: int, pods: int, envs: int = 1, threads: int = 1) -> tuple[BatchSim, LoadPlan]:
    """Return an engine before its first episode; 100 users to three pods load a GPU to 70 %."""
    faster = users / 100 * 3 / pods
    profile = service(
        gpu_alpha_s=GPU_ALPHA_S / faster,
        gpu_beta_s=0.0005 / faster,
        host_alpha_s=0.008 / faster,
        host_beta_s=0.01 / faster,
        cfs_period_s=0.1 / faster,
        gpus=max(1, pods // 3),
        node_cpu_cores=2.0 * pods + 16,
        node_memory_bytes=2e9 * pods + 6.4e10,
    )
    made = BatchSim(
        profile, envs=envs, max_replicas=pods, clocks=Clocks(), slo_s=0.2, start_replicas=pods, record=False,
        threads=threads,
    )  # fmt: skip
    plan = LoadPlan(
        from_s_K=np.array([0.0]), users_K=np.array([users]), think_min_s=THINK_S[0], think_max_s=THINK_S[1]
    )
    return made, plan


def cost(users: int, pods: int, requests: int, seed: int) -> float:
    """Return CPU seconds per request of one run."""
    made, plan = sim(users, pods)
    made.reset([Episode(plan=plan, seed=np.random.SeedSequence(seed))], [0])
    per_s = users / 1.6
    begin_s = 5.0
    made.step(np.array([begin_s]))
    done = made.env.sim_E["completed"][0] + made.env.sim_E["failed"][0]
    cpu_s = time.thread_time()
    made.step(np.array([begin_s + requests / per_s]))
    cpu_s = time.thread_time() - cpu_s
    count = made.env.sim_E["completed"][0] + made.env.sim_E["failed"][0] - done
    return cpu_s / max(int(count), 1)


def growth(sizes: list[tuple[int, int]], requests: int, rounds: int) -> list[float]:
    """Return each size's cost per request as a multiple of the first's, median of the rounds."""
    table = [[cost(users, pods, requests, seed) for users, pods in sizes] for seed in range(rounds + 1)][1:]
    return [statistics.median(row[k] / row[0] for row in table) for k in range(len(sizes))]


def two_cores(rounds: int, envs: int = 32, until_s: float = 600.0) -> float:
    """Return how many times faster two threads are than one, by wall time, on a batch of environments."""
    ratios = []
    for seed in range(rounds + 1):
        walls = []
        for threads in (1, 2) if seed % 2 else (2, 1):
            made, plan = sim(100, 3, envs, threads)
            made.reset(
                [Episode(plan=plan, seed=np.random.SeedSequence([seed, e])) for e in range(envs)], range(envs)
            )
            begin_s = time.perf_counter()
            made.step(np.full(envs, until_s))
            walls.append((threads, time.perf_counter() - begin_s))
        wall_s = dict(walls)
        ratios.append(wall_s[1] / wall_s[2])
    return statistics.median(ratios[1:])


def bytes_per_env(users: int) -> int:
    """Return the bytes of an environment's own arrays."""
    made, plan = sim(users, 6, envs=4)
    made.reset([Episode(plan=plan, seed=np.random.SeedSequence(k)) for k in range(4)], [0, 1, 2, 3])
    return int(sum(array.nbytes for array in made.env) // 4)


def main() -> int:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/scale.json")
    args = parser.parse_args()
    by_users = growth([(n, 3) for n in USERS], args.requests, args.rounds)
    by_pods = growth([(100 * p // 3, p) for p in PODS], args.requests, args.rounds)
    report: dict[str, Any] = {"machine": describe(), "goals": GOALS}
    report["users"] = dict(zip(map(str, USERS), by_users, strict=True))
    report["pods"] = dict(zip(map(str, PODS), by_pods, strict=True))
    report["per_user"], report["per_pod"] = 1 / max(by_users), 1 / max(by_pods)
    report["env_bytes"] = bytes_per_env(100)
    report["two_cores"] = two_cores(args.rounds)
    print("cost per request, times that of the smallest")
    print("  users " + "  ".join(f"{n:,}: {c:.2f}" for n, c in zip(USERS, by_users, strict=True)))
    print("  pods  " + "  ".join(f"{n:,}: {c:.2f}" for n, c in zip(PODS, by_pods, strict=True)))
    print(f"memory of an environment at 100 users: {report['env_bytes'] / 1e6:.2f} MB")
    print(f"two threads on a batch: {report['two_cores']:.2f} times one")
    met = report["two_cores"] >= GOALS["two_cores"]
    print(f"  goal: two_cores >= {GOALS['two_cores']}: {'met' if met else 'MISSED'}")
    for name, value in (("users", max(by_users)), ("pods", max(by_pods)), ("env_bytes", report["env_bytes"])):
        print(
            f"  goal: {name} <= {GOALS[name]:,}: {'met' if value <= GOALS[name] else 'MISSED'} ({value:,.2f})"
        )
    write(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
