"""The table of constant policies in docs/service.md, and the sequential client the profile is fitted to.

    python benchmarks/static_table.py [--write]

`--write` puts the results between the markers of docs/service.md.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.core.ports import Episode
from gpusched.job.build import setup
from gpusched.job.setup import Setup
from gpusched.job.trial import live

ROOT = Path(__file__).parents[1]
LOADS, SEEDS, REPLICAS = ("low", "medium", "high", "mixed"), range(5), range(1, 7)


def made(*overrides: str) -> Setup:
    """Return what `python run.py` would build from these overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    choices = dict(o.split("=", 1) for o in overrides if "." not in o.split("=")[0])
    defaults = {
        "policy": "static",
        "load": "low",
        "reward": "balanced",
        "action": "replicas",
        "cluster": "sim",
    }
    return setup(config, {**defaults, "service": "mobilenetv4-rtx3080", **choices}, overrides)[1]


def sequential() -> str:
    """One user without think time on one replica, an hour."""
    base = made("policy=static", "trial.start_replicas=1")
    base.spec = replace(base.spec, warmup_s=60.0, duration_s=3600.0)
    cluster = base.cluster()
    plan = LoadPlan(
        from_s_K=np.zeros(1), users_K=np.ones(1, dtype=np.int64), think_min_s=0.0, think_max_s=0.0
    )
    cluster.reset([Episode(plan=plan, seed=base.episode.seed)])
    base.policy.reset(base.limits, base.policy_seed)
    hold = base.policy.act(cluster.reset([Episode(plan=plan, seed=base.episode.seed)]))
    for _ in range(base.spec.steps):
        cluster.step(hold)
    requests, ticks = cluster.logs()
    latency_s = requests.latency_s_N[requests.status_N == RequestLog.OK]
    p95, p99 = np.quantile(latency_s, [0.95, 0.99])
    return (
        f"{latency_s.mean() * 1e3:.1f} ms mean, {p95 * 1e3:.1f} ms p95, {p99 * 1e3:.1f} ms p99, "
        f"{len(latency_s) / ticks.t_s_T[-1]:.1f} req/s, GPU utilisation {ticks.gpu_busy_T.mean() * 100:.0f} %."
    )


def table() -> str:
    """Mean reward, p95 and violations of every constant policy on every load."""
    lines = [
        "| load | " + " | ".join(f"k = {k}" for k in REPLICAS) + " |",
        "|---" * (len(REPLICAS) + 1) + "|",
    ]
    for load in LOADS:
        cells = []
        for k in REPLICAS:
            trials = [
                live(
                    made(
                        "policy=static",
                        f"policy.replicas={k}",
                        f"load={load}",
                        f"seed={s}",
                        f"trial.start_replicas={k}",
                    )
                )
                for s in SEEDS
            ]
            cells.append(float(np.mean([t.reward_T.mean() for t in trials])))
        best = int(np.argmax(cells))
        lines.append(
            f"| {load} | "
            + " | ".join(f"**{c:.3f}**" if i == best else f"{c:.3f}" for i, c in enumerate(cells))
            + " |"
        )
    return "\n".join(lines)


def put(name: str, text: str, manual: Path) -> None:
    """Replace what stands between the markers of a name."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)"
    manual.write_text(re.sub(pattern, lambda m: m[1] + text + m[2], manual.read_text(), flags=re.S))


if __name__ == "__main__":
    fit, rewards = sequential(), table()
    print(fit, rewards, sep="\n\n")
    if "--write" in sys.argv:
        put("sequential", fit, ROOT / "docs" / "service.md")
        put("table", rewards, ROOT / "docs" / "service.md")
