"""The comparison finds no difference where there is none, and the one there is; simulator against simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from composing import composed
from local_setup import make

from gpusched.cluster.sim import SimCluster
from gpusched.core.errors import ClusterError, InputError
from gpusched.core.ports import Cluster
from gpusched.job.agreement import GOAL, Block, Case, compare
from gpusched.job.build import setup
from gpusched.job.fidelity import FidelityJob, capacity_rps, with_batch
from gpusched.job.record import run_tags
from gpusched.job.setup import Setup
from gpusched.report.fidelity import read
from gpusched.tracking.store import Store

pytestmark = pytest.mark.slow  # wall time

PROFILE = {
    "host_alpha_s": 0.004, "host_beta_s": 0.004, "gpu_alpha_s": 0.0, "gpu_beta_s": 0.0, "client_s": 0.002, "queue_size": 0,
    "cfs_period_s": 0, "cpu_limit_cores": 1, "client_tail_median_s": 0.0003, "client_tail_sigma": 1.0, "prestop_s": 1,
    "start_s": 0.5, "schedule_min_s": 0.0, "schedule_max_s": 0.0,
}  # fmt: skip
SMALL = (
    "job=fidelity", "job.levels=[0.6]", "job.replicas=[1,2]", "job.batches=[1,8]", "job.duration_s=300", "job.episodes=10",
    *(f"service.{name}.value={value}" for name, value in PROFILE.items()),
    *(f"service.{name}.status=measured" for name in ("host_alpha_s", "host_beta_s", "client_s")),
)  # fmt: skip


class Simulated(FidelityJob):
    """Its real cluster is a simulated one, a little slower where told."""

    slower = 1.0

    def real(self, setup: Setup, case: Case) -> Cluster:
        service = with_batch(setup.service, case.max_batch)
        for name in ("host_alpha_s", "host_beta_s"):
            one = getattr(service, name)
            service = replace(service, **{name: replace(one, value=one.value * self.slower)})
        spec = self.spec(case)
        limits = replace(setup.limits, max_replicas=spec.max_replicas)
        config = SimCluster.Config(
            scrape_s=5.0, window_s=30.0, metrics_server_s=15.0, hpa_sync_s=15.0, dcgm_s=5.0, dcgm_window_s=1.0,
            api_delay_s=0.05, threads=1, nodes=1,
        )  # fmt: skip
        return SimCluster(config, service=service, trial=spec, limits=limits, slo_s=0.2)


def run(folder: Path, slower: float, *more: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows by case and measure."""
    job, built = make(*SMALL, f"job.folder={folder}", *more)
    mine = Simulated(cast(FidelityJob, job).config)
    mine.slower = slower
    mine.compared(built)
    told = json.loads((folder / "fidelity.json").read_text())
    return {(row["case"], row["measure"]): row for row in told["rows"]}


def test_the_same_system_agrees_within_its_intervals(tmp_path: Path) -> None:
    rows = run(tmp_path, 1.0)
    assert len({case for case, _ in rows}) == 6, "four constant cases, one up, one down"
    judged = [row for (_, name), row in rows.items() if name in ("p50_s", "p95_s", "p99_s", "throughput_rps")]
    held = sum(row["low"] <= 0.0 <= row["high"] for row in judged)
    assert held >= len(judged) - 3, "24 intervals of 95 %"
    for (_, name), row in rows.items():
        if name in ("p50_s", "p95_s"):
            assert abs(row["error"]) < 0.05


class Breaking(Simulated):
    """Its real cluster breaks in the second case."""

    cases_begun = 0

    def real(self, setup: Setup, case: Case) -> Cluster:
        self.cases_begun += 1
        if self.cases_begun == 2:
            raise ClusterError("the machine is on fire")
        return super().real(setup, case)


def test_finished_cases_outlive_the_run(tmp_path: Path) -> None:
    small = ("job.scaling=false", "job.replicas=[1]", "job.duration_s=60", "job.episodes=2")
    job, built = make(*SMALL, f"job.folder={tmp_path}", *small)
    with pytest.raises(ClusterError, match="on fire"):
        Breaking(cast(FidelityJob, job).config).compared(built)
    told = json.loads((tmp_path / "fidelity.json").read_text())
    assert [case["max_batch"] for case in told["cases"]] == [1]
    assert (tmp_path / "fidelity.md").read_text().startswith("| case |")


def test_the_report_finds_it_by_its_profile(tmp_path: Path) -> None:
    small = (
        "job.scaling=false",
        "job.batches=[1]",
        "job.replicas=[1]",
        "job.duration_s=60",
        "job.episodes=2",
    )
    job, built = make(*SMALL, f"job.folder={tmp_path}", *small)
    store = Store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    result = Simulated(cast(FidelityJob, job).config).run(built, store, None)
    (stored,) = store.find(kind="fidelity")
    assert stored.id == result.run_id
    assert stored.tags["service_hash"] == run_tags(built)["service_hash"]
    assert stored.tags["cluster"].startswith("local") and stored.tags["emulated"] == "false"
    assert {"machine", "git_commit", "lock_hash"} <= stored.tags.keys()
    assert not {"policy", "load", "fingerprint"} & stored.tags.keys()
    assert stored.metrics["worst_error/p50_s"] == pytest.approx(result.values["worst_error/p50_s"])
    goal, _, (case,) = read(store.download(stored.id, "fidelity.json").read_text())
    assert goal == GOAL
    assert case.measures["p50_s"].real > 0
    assert store.download(stored.id, "fidelity.md").read_text().startswith("| case |")
    assert {path.name for path in tmp_path.iterdir()} == {"fidelity.json", "fidelity.md", "mlruns"}


def test_a_slower_system_is_found_out(tmp_path: Path) -> None:
    rows = run(tmp_path, 1.15, "job.scaling=false", "job.batches=[1]")
    for (_, name), row in rows.items():
        if name in ("p50_s", "p95_s"):
            assert row["error"] < -0.08
            assert row["high"] < 0.0


def test_levels_are_shares_of_the_capacity(tmp_path: Path) -> None:
    rows = run(tmp_path, 1.0, "job.scaling=false", "job.levels=[0.3,0.9]")
    _, built = make(*SMALL)
    assert capacity_rps(with_batch(built.service, 1), 1) == pytest.approx(125.0)
    assert capacity_rps(with_batch(built.service, 8), 2) == pytest.approx(2 * 8 / 0.036)
    for (case, name), row in rows.items():
        if name == "throughput_rps":
            level = float(case.partition("%")[0]) / 100
            capacity = 125.0 if "≤ 1" in case else 8 / 0.036
            assert row["sim"] == pytest.approx(
                level * capacity * (2 if "2 replicas" in case else 1), rel=0.04
            ), case


def test_a_level_that_no_number_of_users_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no number of users gets more than about"):
        run(tmp_path, 1.0, "job.scaling=false", "job.levels=[1.5]", "job.batches=[1]")


def test_an_assumed_profile_is_refused() -> None:
    job, built = make("job=fidelity", "service=mobilenetv4-rtx3080")
    with pytest.raises(InputError, match="host_alpha_s, host_beta_s, client_s not measured"):
        job.run(built, cast(Store, None), None)


def block(latency_s: float, n: int = 50) -> Block:
    return Block(
        latency_s_N=np.full(n, latency_s), span_s=1.0, cpu_s=0.5, ready_s=1.0, lag_s=0.0, queue_s=0.1
    )


def test_an_interval_is_as_wide_as_the_ticks_differ() -> None:
    case = Case(name="c", level=0.5, max_batch=1, users=1, replicas_S=(1,))
    calm = {r.measure: r for r in compare(case, [block(0.1)] * 20, [block(0.11)] * 5)}
    assert calm["p50_s"].error == pytest.approx(0.1)
    assert calm["p50_s"].high - calm["p50_s"].low < 1e-9
    wild = compare(case, [block(0.05 + 0.01 * k) for k in range(20)], [block(0.11)] * 5)
    assert (
        next(r for r in wild if r.measure == "p50_s").high - next(r for r in wild if r.measure == "p50_s").low
        > 0.1
    )


def test_before_and_after_a_scaling_are_drawn_apart() -> None:
    """Two calm halves stay calm, though they differ from each other."""
    case = Case(name="c", level=0.5, max_batch=1, users=1, replicas_S=(1, 2))
    halves = [block(0.3)] * 10 + [block(0.1)] * 10
    row = next(r for r in compare(case, halves, [block(0.2)] * 4) if r.measure == "p95_s")
    assert row.high - row.low < 1e-9


@pytest.mark.parametrize(
    "change", ["levels=[0]", "levels=[]", "replicas=[0]", "batches=[]", "think_min_s=3", "episodes=1"]
)
def test_impossible_comparisons_are_refused(change: str) -> None:
    with pytest.raises(InputError, match=f"job.{change.split('=')[0]}"):
        make("job=fidelity", f"job.{change}")


def test_servers_that_are_set_up_already_are_compared_with_their_own_batch_only() -> None:
    job, made = setup(*composed("job=fidelity", "cluster=microk8s", "job.batches=[1,8]"))
    assert isinstance(job, FidelityJob)
    with pytest.raises(InputError, match=r"job.batches = \[1, 8\]: must be \[8\] on cluster=microk8s"):
        job.check_batches(made)
    job.config.batches = [8]
    job.check_batches(made)
