"""job=fleet: one run for many services, what it refuses, and who controls whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import make

from gpusched.core.errors import InputError
from gpusched.core.fleet import JUDGED_EACH, OF_NODES, Fleet, Tenant
from gpusched.core.kpi import KPIS
from gpusched.job import fleet
from gpusched.job.setup import Setup
from gpusched.load.steady import Steady
from gpusched.load.trace import Trace
from gpusched.policy.static import Static
from gpusched.tracking.store import Store

SIM = ["cluster=sim", "trial.duration_s=60", "trial.warmup_s=15"]


def steady(users: int) -> Steady:
    return Steady(Steady.Config(users=users, think_min_s=1.0, think_max_s=2.0))


def prepared(*overrides: str, services: list[Tenant] | None = None) -> tuple[fleet.FleetJob, Setup]:
    job, setup = make("job=fleet", *SIM, *overrides)
    assert isinstance(job, fleet.FleetJob)
    if services is not None:
        job = fleet.FleetJob(fleet.FleetJob.Config(fleet=Fleet(name="own", services=services)))
    return job, job.prepare(setup)


def test_a_fleet_is_one_run_with_the_kpis_of_all_and_of_each(store: Store) -> None:
    job, setup = prepared("cluster.nodes=2")
    result = job.run(setup, store, None)
    assert set(result.values) == {*KPIS, "reward_mean"}
    run = store.find(setup.study, kind="trial", tags={})[0]
    assert run.id == result.run_id
    for name in ("steady", "daily"):
        found = {key.partition("/")[2] for key in run.metrics if key.startswith(f"{name}/")}
        assert found == set(KPIS) - set(OF_NODES) - {"fault_recovery_s"}
    assert 0.0 <= run.metrics["fleet/fragmentation"] <= 1.0
    each = [run.metrics[f"{name}/throughput_rps"] for name in ("steady", "daily")]
    assert result.values["throughput_rps"] == pytest.approx(sum(each))
    judged = [run.metrics[f"{name}/{JUDGED_EACH[0]}"] for name in ("steady", "daily")]
    assert result.values[JUDGED_EACH[0]] == pytest.approx(np.mean(judged))
    again = job.run(replace(setup, resume=True), store, None)
    assert again.status == "skipped"


def test_one_service_alone_is_no_fleet() -> None:
    with pytest.raises(InputError, match=r"^job\.fleet\.services = 'a': must be more than one.*job=trial"):
        prepared(services=[Tenant(name="a", load=steady(5))])
    prepared("cluster.nodes=2", services=[Tenant(name="a", load=steady(5))])


def test_two_services_of_one_name_are_refused_however_they_came_by_it() -> None:
    with pytest.raises(InputError, match=r"services = 'a_01': is the name of two services"):
        Fleet(
            name="own",
            services=[Tenant(name="a", count=2, load=steady(5)), Tenant(name="a_01", load=steady(9))],
        )


@pytest.mark.slow
def test_the_fleet_is_part_of_the_trial_s_key() -> None:
    keys = {
        prepared(*more)[1].trial_key
        for more in (
            (),
            ("cluster.nodes=2",),
            ("job.fleet.services.0.load.users=31",),
            ("job.fleet.services.1.slo_s=0.2",),
        )
    }
    assert len(keys) == 4


def test_the_users_of_every_service_are_part_of_the_run_s_key(tmp_path: Path) -> None:
    file, keys = tmp_path / "t.csv", set()
    for text in ("0\n1\n3\n", "0\n2\n3\n"):
        file.write_text(text)
        trace = Trace(Trace.Config(path=str(file), column="0", scale=1.0, random_start=False))
        job, setup = prepared(services=[Tenant(name="a", load=steady(5)), Tenant(name="b", load=trace)])
        keys.add(job.key(setup))
    assert len(keys) == 2


@pytest.mark.slow
def test_every_service_has_users_of_its_own_and_every_policy_meets_the_same() -> None:
    services = [Tenant(name="twin", count=2, load=steady(20))]
    (job, one), (_, other) = (prepared(f"policy={p}", services=services) for p in ("hpa", "static"))
    seeds = [m.episode.seed.generate_state(2).tolist() for m in fleet.members(one, job.config.fleet)]
    assert seeds[0] != seeds[1]
    assert seeds == [
        m.episode.seed.generate_state(2).tolist() for m in fleet.members(other, job.config.fleet)
    ]


def test_a_service_can_have_a_policy_of_its_own() -> None:
    services = [
        Tenant(name="joint", load=steady(20)),
        Tenant(name="own", load=steady(20), policy=Static(Static.Config(replicas=4))),
    ]
    job, setup = prepared("policy=static", "policy.replicas=1", services=services)
    members = fleet.members(setup, job.config.fleet)
    cluster = fleet.SimCluster(
        setup.cluster_config,
        service=setup.service,
        trial=setup.spec,
        limits=setup.limits,
        slo_s=0.2,
        envs=2,
        services=2,
    )
    fleet.live(setup, members, cluster)
    assert [float(cluster.logs(e)[1].replicas_spec_T[-1]) for e in (0, 1)] == [1.0, 4.0]
    cluster.close()


REFUSED = [
    (["cluster=double"], "cluster = 'double': must be sim"),
    (["fault=pod_crash"], "fault = .*must be none"),
    (["policy=oracle"], "does not know the future"),
    (["+job.fleet.services.0.service={gpu_alpha: 1}"], "must be one of gpu_alpha_s"),
    (["+job.fleet.services.0.service={gpus: 2}"], "must be one of gpu_alpha_s"),
    (
        ["+job.fleet.services.0.service={pod_vram_bytes: 9.0e+09}"],
        r"service 1 \(steady\): trial.max_replicas",
    ),
    (["job.fleet.services.0.load.users=-1"], "must lie in 0"),
    (["job.fleet.services.0.name=daily"], "is the name of two services"),
    (["+job.fleet.services.0.slo_s=0"], "must be greater than 0 s"),
    (["job.fleet.services=[]"], "must name at least one service"),
    (["cluster.nodes=0"], r"cluster.nodes = 0: must lie in 1\.\.10000"),
    (["cluster.nodes=1000000000"], "cluster.nodes = 1000000000: must lie in"),
    (["+job.fleet.services.0.users=3"], "no such key"),
    (["+job.fleet.services.0.start_replicas=9"], "start_replicas"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_bad_input_is_one_clear_error(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        prepared(*overrides)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["table", "ppo"])
def test_one_learned_policy_controls_all_services(policy: str, store: Store) -> None:
    small: dict[str, Any] = {
        "ppo": ["cluster@policy.train_cluster=sim", "policy.training.frames=1024", "policy.training.envs=8",
                "policy.training.rollout=32", "policy.training.validate_episodes=4", "policy.network.hidden=[8]"],
        "table": ["policy.search.frames=960", "policy.search.episodes=2", "policy.search.batch=2",
                  "policy.search.finalists=1", "policy.search.validate_episodes=2"],
    }  # fmt: skip
    job, setup = prepared(f"policy={policy}", *small[policy], "study=learned")
    assert np.isfinite(job.run(setup, store, None).values["reward_mean"])


@pytest.mark.slow
def test_one_service_can_have_several_nodes() -> None:
    """Nine replicas fit on two nodes and not on one; what is trained gets nodes for as many."""
    from gpusched.job.trial import live

    wide = ["trial.max_replicas=9", "trial.start_replicas=9"]
    with pytest.raises(InputError, match="At most 6 fit"):
        make(*SIM, *wide)
    setup = make(*SIM, *wide, "cluster.nodes=2", "policy=static", "policy.replicas=9")[1]
    lived = live(setup)
    assert lived.ready_at_start == 9
    assert lived.window.gpus == 2
    assert setup.simulator().sim.nodes == 2
