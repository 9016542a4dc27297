"""Which runs count, which are listed instead, and what the reader is told before comparing."""

import pytest
from made_up import MadeUp

from gpusched.core.errors import InputError
from gpusched.core.kpi import HEADLINE, KPIS
from gpusched.report.caveats import caveats, listed
from gpusched.report.dataset import Study, Trial, load, newest_study
from gpusched.report.measures import REWARD
from gpusched.tracking.store import Store

QUICK = {"series": False, "trainings": False, "loads": ("low",), "seeds": 2}


def read(store: Store, name: str) -> Study:
    return load(store, name, allow_synthetic=True)


def told(study: Study, *words: str) -> str:
    """Return the one caveat that holds all the words."""
    (found,) = [c for c in caveats(study) if all(w in c for w in words)]
    return found


def test_a_plain_study(store: Store) -> None:
    study = read(store, "study")
    assert (study.policies, study.loads) == (
        ["hpa", "ppo"],
        ["low", "high"],
    )  # by demand, not by name
    assert len(study.trials) == 20
    assert study.excluded == []
    assert caveats(study) == [
        "1 of 5 trainings did not converge: ppo seed 1. Their policies are judged as they are."
    ]
    assert [t.seed for t in study.of("ppo", "high")] == [0, 1, 2, 3, 4]
    assert [r.tags["seed"] for r in study.trainings] == ["0", "1", "2", "3", "4"]
    assert study.assumed[0] == "client_tail_sigma"
    frame = study.frame()
    assert list(frame.columns) == ["run_id", "policy", "load", "seed", "episode", "metric", "value"]
    assert len(frame) == 20 * (len(KPIS) + 1)


def test_made_up_runs_never_enter_a_report(store: Store) -> None:
    with pytest.raises(InputError, match=r"made-up numbers.*must not enter a report"):
        load(store, "study")
    with pytest.raises(InputError, match=r"No trials are stored"):
        newest_study(store)


def test_one_made_up_run_spoils_a_real_study(own: Store) -> None:
    real = MadeUp(name="mixed", **QUICK)
    real.tags = {"synthetic": "false"}
    real.write(own)
    assert newest_study(own) == "mixed"
    assert len(load(own, "mixed").trials) == 4
    MadeUp(name="mixed").trial(own, "hpa", "low", 7)
    with pytest.raises(InputError, match=r"1 of its 5 runs hold made-up numbers"):
        load(own, "mixed")


def test_an_unknown_study_names_those_there_are(store: Store) -> None:
    with pytest.raises(InputError, match=r"study = 'studdy'.*Studies: study. Did you mean 'study'"):
        load(store, "studdy")


def test_the_newest_finished_run_counts_and_older_ones_are_listed(own: Store) -> None:
    first = MadeUp(name="again", **QUICK).write(own)
    newer = MadeUp(name="again").trial(own, "hpa", "low", 0, params={"trial.duration_s": 1200.0})
    study = read(own, "again")
    assert newer in {t.id for t in study.trials}
    (old,) = study.excluded
    assert (old.id, old.why) == (
        first[0], f"a newer run of the same policy, load and seed is there: {newer} (with another configuration)"
    )  # fmt: skip
    assert "trial.duration_s = 1200.0 | 600.0" in told(
        study, "Different configurations within the study again"
    )


def test_bad_ends_are_listed_with_the_reason(own: Store) -> None:
    made = MadeUp(name="ends", **QUICK)
    made.write(own)
    for error in (RuntimeError("engine broke"), KeyboardInterrupt()):
        tags = {"policy": "hpa", "load": "low", "seed": "5", "synthetic": "true"}
        with (
            pytest.raises(type(error)),
            own.start("trial", study="ends", name="x", params={}, tags=tags) as run,
        ):
            run.kpis({"latency_p95_s": 1.0})
            raise error
    own.start("trial", study="ends", name="open", params={}, tags=tags)
    study = read(own, "ends")
    assert {(e.status, e.why) for e in study.excluded} == {
        ("FAILED", "failed: RuntimeError: engine broke"),
        ("KILLED", "killed before its end"),
        ("RUNNING", "not ended: still running, or killed without notice"),
    }
    assert 5 not in {t.seed for t in study.trials}
    assert "3 runs excluded" in told(study, "excluded")


def test_a_failed_gate_excludes_or_marks_and_no_older_run_slips_in(own: Store) -> None:
    made = MadeUp(name="gates", **QUICK)
    made.write(own)
    spoilt = made.trial(own, "hpa", "low", 0, tags={"gate/load_audit": "failed: Little's law off by 9 %"})
    marked = made.trial(own, "ppo", "low", 1, tags={"gate/convergence": "failed: KL too high"})
    study = read(own, "gates")
    why = {e.id: e.why for e in study.excluded}
    assert why[spoilt] == "gate load_audit: Little's law off by 9 %"
    assert [t.seed for t in study.of("hpa")] == [1]  # the older run of seed 0 is no substitute
    assert marked in {t.id for t in study.trials}
    assert "1 of 2 runs of ppo" in told(study, "Marked", "convergence: KL too high")


def test_gaps_and_unequal_conditions_are_said(own: Store) -> None:
    made = MadeUp(name="gaps", **QUICK)
    made.write(own)
    made.trial(
        own, "hpa", "low", 2, latency_p95_s=float("nan"), tags={"git_commit": "fedcba98", "service": "other"}
    )
    made.trial(own, "ppo", "high", 0, tags={"git_dirty": "true"})
    study = read(own, "gaps")
    assert "hpa under high" in told(study, "Missing")
    assert "hpa: 0, 1, 2; ppo: 0, 1" in told(study, "Unequal seeds under low")
    assert "hpa low seed 2" in told(study, "Latency p95 has no value")
    assert "0123456789ab (4 runs), fedcba98 (1 runs)" in told(study, "different commits").replace("(5", "(4")
    assert "other (1 runs)" in told(study, "different service profiles")
    assert "ppo under high" in told(study, "One seed only")
    assert "1 of 6 runs" in told(study, "uncommitted changes")


def test_a_policy_that_never_acts_is_called_a_constant() -> None:
    def trial(policy: str, load_name: str, events: float) -> Trial:
        blank = dict.fromkeys((*HEADLINE, REWARD), 1.0)
        return Trial(id=policy + load_name, policy=policy, load=load_name, seed=0, tags={}, params={},
                     values=blank | {"scale_events": events})  # fmt: skip

    policies, loads = ("hpa", "ppo", "static"), ("low", "high")
    trials = [trial(p, name, float(p == "hpa")) for p in policies for name in loads]
    told = [c for c in caveats(Study(name="s", trials=trials)) if "constant" in c]
    assert told == ["ppo never changed the replicas in any of its 2 runs: it is a constant."]


def test_long_lists_are_counted() -> None:
    assert listed(range(6)) == "0, 1, 2, 3, 4, 5"
    assert listed(range(9)) == "0, 1, 2, 3, 4, 5 and 3 more"
