"""Made-up runs, tagged synthetic so that no real report takes them; the effects in them are known."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpusched.core.kpi import KPIS
from gpusched.core.logs import TickLog
from gpusched.report.dataset import Study, Trial
from gpusched.tracking.store import Store

if TYPE_CHECKING:
    from memory import Memory

DEMAND = {"low": 6.0, "medium": 30.0, "high": 55.0}
USERS = {"low": 10, "medium": 50, "high": 100}


@dataclass
class MadeUp:
    """A study to write. `effect[metric]` is what ppo adds to hpa's value, as a share of it, on every load."""

    name: str = "study"
    policies: tuple[str, ...] = ("hpa", "ppo")
    loads: tuple[str, ...] = ("low", "medium", "high")
    seeds: int = 5
    episodes: int = 1
    effect: dict[str, float] = field(
        default_factory=lambda: {
            "latency_p95_s": -0.2,
            "qos_violation_rate": -0.5,
            "replica_seconds": 0.25,
            "goodput_per_gpu_s": 0.0,
            "reward_mean": 0.3,
        }
    )
    noise: float = 0.02
    series: bool = True
    trainings: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)

    def write(self, store: "Store | Memory") -> list[str]:
        """Write every run and return the IDs of the trials."""
        ids = []
        for policy in self.policies:
            if policy == "ppo" and self.trainings:
                for seed in range(self.seeds):
                    self.training(store, seed)
            ids += [
                self.trial(store, policy, load, seed, episode=episode)
                for load in self.loads for seed in range(self.seeds) for episode in range(self.episodes)
            ]  # fmt: skip
        return ids

    def values(self, policy: str, load: str, seed: int, episode: int = 0) -> dict[str, float]:
        """Return every KPI and the reward: a seed's own level, a policy's own noise, and the known effect.

        Later episodes differ from the first by a noise of their own.
        """
        shared = np.random.default_rng([1, seed, USERS.get(load, 7)])
        own = np.random.default_rng([2, seed, USERS.get(load, 7), len(policy) + ord(policy[0])])
        level = {name: 0.3 * (1 + 0.1 * shared.normal()) for name in (*KPIS, "reward_mean")}
        level["throughput_rps"] = DEMAND.get(load, 10.0) * (1 + 0.01 * shared.normal())
        level["replica_seconds"] = 2400.0 * (1 + 0.02 * shared.normal())
        for name in level:
            level[name] *= (
                1 + self.noise * own.normal() + (self.effect.get(name, 0.0) if policy == "ppo" else 0.0)
            )
        if episode:
            repeat = np.random.default_rng([5, seed, episode, USERS.get(load, 7), ord(policy[0])])
            level = {name: v * (1 + self.noise * repeat.normal()) for name, v in level.items()}
        return level

    def trial(self, store: "Store | Memory", policy: str, load: str, seed: int, **changes: object) -> str:
        """Write one trial; `changes` override KPI values by name, `tags`, `params` and `episode` its own."""
        episode = int(changes.pop("episode", 0))  # type: ignore[call-overload]
        tags = {"policy": policy, "load": load, "seed": str(seed), "synthetic": "true", "service": "made-up",
                "cluster": "sim", "reward": "balanced", "git_commit": "0123456789abcdef", "git_dirty": "false",
                "config_hash": f"{policy}-{load}-{seed}", "lock_hash": "feedfeed", "gpusched_version": "0.1.0",
                "assumed": "gpu_cv,host_alpha_s,host_beta_s,client_tail_sigma,gpu_switch_s", "gate/load_audit": "ok"}  # fmt: skip
        if episode:
            tags["episode"] = str(episode)
        tags |= self.tags | dict(changes.pop("tags", {}))  # type: ignore[call-overload]
        params = {
            "seed": seed,
            "load.users": USERS.get(load, 7),
            "reward.slo_s": 0.2,
            "trial.duration_s": 600.0,
        }
        params |= self.params | dict(changes.pop("params", {}))  # type: ignore[call-overload]
        values = self.values(policy, load, seed, episode) | changes
        with store.start(
            "trial", study=self.name, name=f"{policy} {load} {seed}", params=params, tags=tags
        ) as run:
            run.metrics(0, {"reward_mean": values.pop("reward_mean")})
            run.kpis(values)  # type: ignore[arg-type]
            if self.series:
                run.ticks(tick_log(policy, load, seed), offset_s=60.0)
        return run.id

    def training(self, store: "Store | Memory", seed: int) -> str:
        """Write one training with a curve that settles; seed 1 does not converge."""
        rng = np.random.default_rng([3, seed])
        tags = {"policy": "ppo", "seed": str(seed), "synthetic": "true", "converged": str(seed != 1).lower(),
                "verdict": "reward interval within 2 %" if seed != 1 else "KL still 0.04 at the end of the budget",
                "fingerprint": f"{self.name}-{seed}"}  # fmt: skip
        with store.start("training", study=self.name, name=f"train {seed}", params={}, tags=tags) as run:
            for k in range(1, 21):
                mean = -0.6 * np.exp(-k / 4) - 0.2 + 0.01 * rng.normal()
                run.metrics(k * 16384, {"train/reward": mean, "train/reward_low": mean - 0.03,
                                        "train/reward_high": mean + 0.03, "train/kl": 0.02 / k,
                                        "train/entropy": 1.6 - 0.05 * k, "train/agreement": 1 - 0.5 / k})  # fmt: skip
        return run.id


def tick_log(policy: str, load: str, seed: int) -> TickLog:
    """Return 132 ticks of 5 s, the first 12 of them warm-up."""
    rng = np.random.default_rng([4, seed, len(policy)])
    table_TC = np.ones((132, len(TickLog.columns())))
    ticks = TickLog.from_table(table_TC)
    ticks.t_s_T = 5.0 * np.arange(1, 133)
    ticks.users_T = np.full(132, float(USERS.get(load, 7)))
    late = 300.0 if policy == "hpa" else 200.0
    ticks.replicas_ready_T = np.where(ticks.t_s_T > late + 15 * seed, 4.0 if policy == "hpa" else 5.0, 2.0)
    ticks.latency_p95_s_T = 0.1 + 0.3 / ticks.replicas_ready_T + 0.02 * rng.normal(size=132)
    ticks.gpu_busy_T = np.clip(0.9 - 0.1 * ticks.replicas_ready_T + 0.03 * rng.normal(size=132), 0, 1)
    return ticks


def study_of(values: dict[str, dict[str, list[float]]], loads: tuple[str, ...] = ("low",)) -> Study:
    """Return a study without a store: {policy: {metric: [value per seed]}}, other metrics missing.

    A value that is a list itself holds one value per episode.
    """
    blank = dict.fromkeys((*KPIS, "reward_mean"), math.nan)
    trials = []
    for policy, metrics in values.items():
        for load in loads:
            for seed, episode in cells(metrics):
                own = {name: np.atleast_1d(v[seed])[episode] for name, v in metrics.items()}
                trials.append(Trial(id=f"{policy}-{load}-{seed}-{episode}", policy=policy, load=load, seed=seed,
                                    episode=episode, tags={}, params={}, values=blank | own))  # fmt: skip
    return Study(name="s", trials=trials)


def cells(metrics: dict[str, list[float]]) -> list[tuple[int, int]]:
    """Return seed and episode of every run that the lists stand for."""
    first = next(iter(metrics.values()))
    return [(seed, episode) for seed, v in enumerate(first) for episode in range(len(np.atleast_1d(v)))]
