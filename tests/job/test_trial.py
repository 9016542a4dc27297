"""One trial on the double cluster: its streams, its hashes, what it stores, what it skips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs import make

from gpusched.core.errors import ClusterError
from gpusched.core.kpi import KPIS
from gpusched.job.record import flat, run_tags
from gpusched.job.setup import Result
from gpusched.job.trial import live
from gpusched.tracking.store import Store


@pytest.mark.slow
def test_policies_meet_the_same_users_and_seeds_other_ones() -> None:
    hpa, static = (make(f"policy={p}", "load=varied")[1] for p in ("hpa", "static"))
    other = make("load=varied", "seed=1")[1]
    assert np.array_equal(hpa.plan.users_K, static.plan.users_K)
    assert hpa.episode.seed.generate_state(4).tolist() == static.episode.seed.generate_state(4).tolist()
    assert not np.array_equal(hpa.plan.users_K, other.plan.users_K)


@pytest.mark.slow
def test_a_trial_s_key_changes_with_everything_it_depends_on_and_nothing_else() -> None:
    key = make("policy=ppo", "load=mixed")[1].trial_key
    same = ["resume=true", "tracking.uri=sqlite:///elsewhere.db", "job=train", "hypotheses.margin=0.1",
            "trial.episodes=3"]  # fmt: skip
    assert make("policy=ppo", "load=mixed", *same)[1].trial_key == key, "each of them would change it"
    others = ["seed=1", "study=b", "reward=latency", "trial.tick_s=3", "policy.training.epochs=2", "load.hold_share=0.1",
              "service.gpu_cv.value=0.1", "policy.max_change=1", "policy.train_load.users=99", "action=hpa_target"]  # fmt: skip
    keys = {make("policy=ppo", "load=mixed", one)[1].trial_key for one in others}
    assert len(keys) == len(others)
    assert key not in keys


def test_a_trace_s_content_is_part_of_the_key(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    keys = set()
    for text in ("0\n1\n3\n", "0\n2\n3\n"):
        file.write_text(text)
        keys.add(make("load=trace", f"load.path={file}")[1].trial_key)
    assert len(keys) == 2


@pytest.mark.slow
def test_all_of_a_trace_is_part_of_a_training_s_fingerprint(tmp_path: Path) -> None:
    file, prints = tmp_path / "t.csv", set()
    early = "".join(f"{t}\n" for t in range(0, 5000, 2))
    for late in ("9000\n9001\n", "8000\n9001\n"):  # a training's plan is of minutes, this of hours
        file.write_text(early + late)
        made = make("policy=ppo", "load@policy.train_load=trace", f"policy.train_load.path={file}")[1]
        prints.add(made.fingerprint)
    assert len(prints) == 2


@pytest.mark.slow
def test_the_loads_of_one_seed_share_a_training_and_seeds_do_not() -> None:
    prints = {load: make("policy=ppo", f"load={load}")[1].fingerprint for load in ("low", "high")}
    assert prints["low"] == prints["high"]
    others = [
        "seed=1",
        "reward=latency",
        "policy.train_load.users=99",
        "policy.training.epochs=2",
        "trial.control_s=30",
    ]
    assert prints["low"] not in {make("policy=ppo", one)[1].fingerprint for one in others}


@pytest.mark.slow
def test_a_training_does_not_depend_on_where_or_how_guarded_the_trial_runs() -> None:
    own = make("policy=ppo", "cluster@policy.train_cluster=sim")[1].fingerprint
    others = ("cluster=sim", "policy.shadow=true", "policy.cooldown_s=60", "trial.episodes=2")
    assert make("policy=ppo", "cluster@policy.train_cluster=sim", *others)[1].fingerprint == own
    assert make("policy=ppo", "cluster@policy.train_cluster=double")[1].fingerprint != own


@pytest.mark.slow
def test_episodes_of_a_seed_have_users_of_their_own_and_are_runs_of_their_own(store: Store) -> None:
    job, setup = make("policy=static", "policy.replicas=2", "load=varied", "trial.episodes=3", "study=nested")
    plans = [replace(setup, repeat=k).plan.users_K.tolist() for k in range(3)]
    assert plans[0] == make("policy=hpa", "load=varied", "study=nested")[1].plan.users_K.tolist()
    assert len({str(plan) for plan in plans}) == 3
    result = job.run(setup, store, None)
    runs = store.find("nested", kind="trial")
    assert sorted(run.tags["episode"] for run in runs) == ["0", "1", "2"]
    mean = np.mean([run.metrics["kpi/throughput_rps"] for run in runs])
    assert result.values["throughput_rps"] == pytest.approx(mean)
    again = job.run(replace(setup, resume=True), store, None)
    assert again.status == "skipped"
    assert len(store.find("nested", kind="trial")) == 3


def test_the_hypotheses_are_written_into_the_run_before_it_starts(store: Store) -> None:
    job, setup = make("policy=static", "policy.replicas=3", "study=told", "hypotheses.margin=0.07")
    job.run(setup, store, None)
    (found,) = store.find("told", kind="trial")
    assert json.loads(found.tags["hypotheses"])["margin"] == 0.07
    other = make("policy=static", "policy.replicas=3", "study=told")[1]
    assert found.tags["hypotheses_hash"] not in ("", run_tags(other)["hypotheses_hash"])


def test_what_happens_is_known_on_paper() -> None:
    lived = live(make("policy=static", "policy.replicas=3", "load=medium")[1])  # 50 users on 3: fast
    assert lived.window.good == lived.window.judged > 0
    lived = live(make("policy=static", "policy.replicas=2", "load=medium")[1])  # 50 users on 2: slow
    assert lived.window.good == 0
    assert len(lived.reward_T) == 8


def test_a_trial_is_stored_whole(store: Store) -> None:
    job, setup = make("policy=static", "policy.replicas=3", "study=whole")
    result = job.run(setup, store, None)
    (found,) = store.find("whole", kind="trial")
    assert found.id == result.run_id
    assert result.status == "finished"
    assert found.metrics["kpi/qos_violation_rate"] == 0
    assert found.metrics["reward_mean"] == pytest.approx(result.values["reward_mean"])
    assert set(found.metrics) >= {"kpi/latency_p95_s", "wall_s", "tick/replicas", "reward"}
    assert found.tags["policy"] == "static[replicas=3]"
    assert found.tags["seed"] == "0"
    assert found.tags["trial_key"] == setup.trial_key
    assert (
        found.tags["gate/load_audit"] == found.tags["gate/readiness"] == found.tags["gate/degenerate"] == "ok"
    )
    assert "gpu_alpha_s" in found.tags["assumed"].split(",")
    assert "start_s" not in found.tags["assumed"].split(",")  # reported
    assert found.params["load.users"] == "50"
    config = json.loads(store.download(found.id, "config.json").read_text())
    assert config["service"]["start_s"]["source"]
    assert store.download(found.id, "ticks.csv").exists()
    assert set(result.values) == {*KPIS, "reward_mean"}


def test_resume_skips_what_is_finished_and_nothing_else(store: Store) -> None:
    arguments = ["policy=static", "study=resume"]
    job, setup = make(*arguments)
    first = job.run(setup, store, None)
    again = job.run(make(*arguments, "resume=true")[1], store, None)
    assert (again.status, again.run_id) == ("skipped", first.run_id)
    known = {name: value for name, value in first.values.items() if np.isfinite(value)}
    assert again.values == pytest.approx(known) and "reward_mean" in known
    assert job.run(setup, store, None).status == "finished"  # not asked to resume
    other = job.run(make(*arguments, "resume=true", "seed=1")[1], store, None)
    assert other.status == "finished"


@pytest.mark.slow
def test_resume_runs_again_what_a_newer_run_has_taken_the_place_of(store: Store) -> None:
    one, other = ["policy=static", "study=replaced"], ["trial.start_replicas=4"]
    for arguments in (one, one + other):
        job, setup = make(*arguments)
        job.run(setup, store, None)
    back = [job.run(make(*one, "resume=true")[1], store, None) for _ in range(2)]
    assert [b.status for b in back] == ["finished", "skipped"], (
        "the report would have shown four start replicas"
    )


def test_resume_runs_what_was_only_run_under_another_label(store: Store) -> None:
    job, setup = make("policy=static", "study=label")
    job.run(setup, store, None)
    named = make(
        "policy=static", f"policy.replicas={setup.policy.config.replicas}", "study=label", "resume=true"
    )[1]
    assert named.trial_key == setup.trial_key and named.names != setup.names
    assert job.run(named, store, None).status == "finished", "the report has a row for each label"
    assert job.run(named, store, None).status == "skipped"


@pytest.mark.slow
def test_resume_repeats_what_a_real_cluster_spoilt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["policy=static", "study=spoilt", "resume=true"]
    job, setup = make(*arguments)
    first = job.run(setup, store, None)
    store.tag(first.run_id, "gate/degenerate", "failed: it never acted")
    monkeypatch.setattr(setup.cluster_type, "real", True)
    assert job.run(make(*arguments)[1], store, None).status == "skipped", "such a run counts, marked"
    store.tag(first.run_id, "gate/readiness", "failed: another process used the GPU")
    monkeypatch.setattr(setup.cluster_type, "real", False)
    assert job.run(make(*arguments)[1], store, None).status == "skipped", "it would only be spoilt again"
    monkeypatch.setattr(setup.cluster_type, "real", True)
    assert job.run(make(*arguments)[1], store, None).status == "finished"


def test_a_status_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(status="finished", names={"policy": "ppo"}, seed=3)
    result.write(tmp_path)
    assert Result.read(tmp_path / "status.json") == result

    def full(self: Path, text: str) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        replace(result, status="failed").write(tmp_path)
    assert Result.read(tmp_path / "status.json") == result


@pytest.mark.parametrize("text", ["", "{", "[]", '{"policy": 1}'])
def test_a_status_nobody_can_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert Result.read(tmp_path / "status.json") is None


def test_a_failed_trial_is_marked_and_done_again(store: Store) -> None:
    arguments = ["study=failed", "resume=true"]
    job, setup = make(*arguments, "cluster.break_at_users=50")
    with pytest.raises(RuntimeError, match="the double broke"):
        job.run(setup, store, None)
    assert [found.status for found in store.find("failed", status=None)] == ["FAILED"]
    with pytest.raises(RuntimeError):
        job.run(setup, store, None)


def test_flat_keeps_every_leaf() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_a_trial_whose_cluster_cannot_be_given_back_is_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty minutes of a real cluster were lost where its API server was away at the very end."""
    _, setup = make("policy=static")
    kind = setup.cluster_type

    def fail(self: object) -> None:
        raise ClusterError("the API server is away; job=restore puts back what is left")

    monkeypatch.setattr(kind, "close", fail)
    lived = live(setup)
    assert len(lived.reward_T) == setup.spec.steps
    assert "job=restore" in caplog.text
