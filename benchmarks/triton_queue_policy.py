"""What a queue policy costs on real Triton: requests that wait half a second for nothing (docs/fidelity.md).

    python benchmarks/triton_queue_policy.py

One replica on cluster=local, with and without max_queue_size, in turns, under a few users without think time. Needs
`make local`. Prints how many requests took 500 to 580 ms: Triton's batcher looks at its queue every 500 ms when nobody
wakes it, and a batch of so few takes less than 80 ms.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from os import getloadavg
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from gpusched.job.build import setup
from gpusched.job.measure import ladder, real, times
from gpusched.job.setup import Setup

ROOT = Path(__file__).parents[1]
USERS, REPEATS, STEP_S, TURNS = (1, 2, 4), 4, 5.0, 2
TIMER_S = 0.50, 0.58
SETTINGS = (
    "cluster=local", "service.probe_delay_s.value=0", "service.probe_period_s.value=1", "trial.max_replicas=2",
)  # fmt: skip


def made(*overrides: str) -> Setup:
    """Return what `python run.py` would build."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*SETTINGS, f"cluster.triton={ROOT / '.venv-triton'}", *overrides])
    choices = {
        "policy": "hpa",
        "load": "medium",
        "reward": "balanced",
        "action": "replicas",
        "cluster": "local",
    }
    return setup(config, {**choices, "service": "mobilenetv4-rtx3080"}, overrides)[1]


def table(base: Setup) -> str:
    lines = [
        "| max_queue_size | " + " | ".join(f"{n} users" for n in USERS) + " | load average |",
        "|---" * (len(USERS) + 2) + "|",
    ]
    for size in (0.0, 256.0) * TURNS:
        service = replace(base.service, queue_size=replace(base.service.queue_size, value=size))
        found = ladder(
            real(base, service, times(USERS, REPEATS, STEP_S)), USERS, REPEATS, np.random.SeedSequence(1)
        )
        cells = []
        for users in USERS:
            latency_s_N = np.concatenate([s.latency_s_N for s in found if s.users == users])
            caught = int(np.sum((latency_s_N > TIMER_S[0]) & (latency_s_N < TIMER_S[1])))
            p50, p99 = np.quantile(latency_s_N, [0.5, 0.99]) * 1e3
            cells.append(f"{caught} of {len(latency_s_N)}; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        lines.append(
            f"| {size:.0f}{' (none)' if not size else ''} | "
            + " | ".join(cells)
            + f" | {getloadavg()[0]:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(made(*sys.argv[1:])))
