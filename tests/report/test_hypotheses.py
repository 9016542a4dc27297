"""Claims written down before the runs: judged as planted, and every change to them is told."""

import json
import math
from pathlib import Path

import pytest
from made_up import MadeUp, study_of
from memory import Memory

from gpusched.job.setup import digest as job_digest
from gpusched.report.dataset import Study, load
from gpusched.report.evidence import hypotheses_table
from gpusched.report.hypotheses import Judged, Registered, judge
from gpusched.report.registration import changes, digest
from gpusched.tracking.store import Found

NODE = {
    "candidate": "ppo",
    "baseline": "hpa",
    "alpha": 0.05,
    "margin": 0.05,
    "claims": [
        {"kpi": "latency_p95_s", "claim": "superior"},
        {"kpi": "replica_seconds", "claim": "non_inferior"},
        {"kpi": "throughput_rps", "claim": "equivalent"},
        {"kpi": "qos_violation_rate", "claim": "non_inferior", "margin": 0.01, "of": "absolute"},
    ],
    "seeds": 5,
    "stop": "All seeds are run before anyone looks.",
}
ROOT = Path(__file__).resolve().parents[2]


def tags(node: object = NODE) -> dict[str, str]:
    return {"hypotheses": json.dumps(node, sort_keys=True), "hypotheses_hash": digest(node)}


def carrying(study: Study, *own: dict[str, str]) -> Study:
    """Return the study with its trials carrying the tags in turn; the first tags are the oldest runs'."""
    for i, t in enumerate(study.trials):
        t.tags.update(own[i * len(own) // len(study.trials)])
    study.finished = [
        Found(id=t.id, name="", status="FINISHED", started_s=float(i), tags=t.tags, params={}, metrics={})
        for i, t in enumerate(study.trials)
    ]
    return study


HPA = {
    "latency_p95_s": [0.20, 0.21, 0.19, 0.20, 0.22],
    "replica_seconds": [1000.0, 1010.0, 990.0, 1005.0, 995.0],
    "throughput_rps": [30.0, 30.1, 29.9, 30.0, 30.05],
    "qos_violation_rate": [0.05, 0.06, 0.04, 0.05, 0.05],
}


def moved(by: dict[str, float], noise: float = 0.001) -> dict[str, list[float]]:
    """Return HPA's values moved by a share of each, with a small noise."""
    wobble = [1.0, -1.0, 0.5, -0.5, 0.2]
    return {
        k: [x * (1 + by.get(k, 0.0) + noise * w) for x, w in zip(v, wobble, strict=True)]
        for k, v in HPA.items()
    }


def judged(ppo: dict[str, list[float]], node: dict[str, object] | None = None) -> Registered:
    return judge(carrying(study_of({"hpa": HPA, "ppo": ppo}), tags(node or NODE)))


def by_kpi(found: Registered) -> dict[str, Judged]:
    return {j.measure.name: j for j in found.results}


def test_planted_effects_are_judged_as_planted() -> None:
    found = judged(moved({"latency_p95_s": -0.3, "replica_seconds": 0.02, "qos_violation_rate": 0.5}))
    decisions = {name: j.decision for name, j in by_kpi(found).items()}
    assert decisions == {
        "latency_p95_s": "supported",
        "replica_seconds": "supported",  # 2 % more cost lies within 5 %
        "throughput_rps": "supported",
        "qos_violation_rate": "contradicted",  # 2.5 points more against a margin of one
    }
    assert found.sentences[-1] == (
        "low: supported: Latency p95 better, Replica seconds not worse, Throughput the same; "
        "contradicted: QoS violation rate not worse."
    )
    assert (
        by_kpi(found)["qos_violation_rate"].claim
        == "QoS violation rate: ppo is not worse than hpa by 1 pp or more"
    )
    assert (
        by_kpi(found)["replica_seconds"].claim
        == "Replica seconds: ppo is not worse than hpa by 5 % of its mean or more"
    )


def test_a_claim_in_the_wrong_direction_is_contradicted() -> None:
    found = by_kpi(judged(moved({"latency_p95_s": 0.3, "throughput_rps": 0.2})))
    assert (found["latency_p95_s"].decision, found["throughput_rps"].decision) == (
        "contradicted",
        "contradicted",
    )
    assert "beyond the margin" in found["throughput_rps"].text


def test_five_pairs_that_cannot_decide_say_so_and_how_many_could() -> None:
    noisy = {
        "latency_p95_s": [0.15, 0.30, 0.12, 0.25, 0.19],
        "replica_seconds": [900.0, 1150.0, 880.0, 1100.0, 980.0],
        "throughput_rps": [27.0, 33.0, 28.0, 32.0, 30.0],
        "qos_violation_rate": [0.01, 0.10, 0.02, 0.09, 0.04],
    }
    found = by_kpi(judged(noisy))
    assert {j.decision for j in found.values()} == {"open"}
    assert "N = 5 cannot decide (differences below" in found["latency_p95_s"].text
    assert "pairs would find the observed one" in found["latency_p95_s"].text
    assert "even of two policies that are the same it shows no margin below" in found["throughput_rps"].text
    assert "% of the baseline’s mean" in found["throughput_rps"].text
    assert "pairs would show this one" in found["throughput_rps"].text
    assert " pp; " in found["qos_violation_rate"].text  # an absolute margin speaks in the KPI's unit


def test_the_claims_have_a_holm_family_of_their_own() -> None:
    found = judged(moved({"latency_p95_s": -0.3, "replica_seconds": 0.02}))
    p = sorted(j.p for j in found.results)
    least = min(found.results, key=lambda j: j.p)
    assert least.holm_p == pytest.approx(min(1.0, 4 * p[0]), rel=1e-12)  # four claims, one load
    assert all(j.holm_p >= j.p for j in found.results)


def test_a_missing_pair_does_not_hide_that_the_others_are_equal() -> None:
    ppo = {name: [*values[:4], math.nan] for name, values in HPA.items()}
    found = by_kpi(judged(ppo))
    assert {j.decision for j in found.values()} == {"equal"}
    assert {j.pairs for j in found.values()} == {4}


def test_equal_and_untestable_claims() -> None:
    same = moved({}, noise=0.0)
    found = by_kpi(judged(same))
    assert {j.decision for j in found.values()} == {"equal"}
    hpa = HPA | {"replica_seconds": [0.0, 0.0, 0.0, 0.0, 1.0]}
    result = judge(carrying(study_of({"hpa": hpa, "ppo": moved({})}), tags()))
    untested = by_kpi(result)["replica_seconds"]
    assert untested.decision == "untested"
    assert "cannot be told from 0" in untested.text
    lost = moved({}) | {"latency_p95_s": [math.nan] * 5}
    assert by_kpi(judged(lost))["latency_p95_s"].text.endswith("0 pairs: no test")


def test_policies_without_a_common_seed_are_not_tested() -> None:
    study = study_of({"hpa": HPA, "ppo": moved({})})
    study.trials[:] = [t for t in study.trials if (t.policy == "hpa") == (t.seed < 3)]
    found = judge(carrying(study, tags()))
    assert {(j.decision, j.text) for j in found.results} == {("untested", "0 pairs: no test")}
    assert all(len(j.runs) == 5 for j in found.results)
    (table,) = [hypotheses_table(found)]
    assert {row[4].text for row in table.rows} == {"–"}


def test_runs_without_hypotheses_are_exploratory() -> None:
    found = judge(study_of({"hpa": HPA, "ppo": moved({})}), ROOT / "conf/hypotheses.yaml")
    assert found.results == []
    assert found.hypotheses is None
    assert "every test here is exploratory" in found.sentences[0]


def test_seeds_planned_and_present() -> None:
    assert "All 5 planned seeds are there. " not in (
        text := " ".join(judged(moved({}), NODE | {"seeds": 7}).sentences)
    )
    assert "7 seeds were planned. Fewer are there (ppo under low: 5; hpa under low: 5)" in text
    more = " ".join(judged(moved({}), NODE | {"seeds": 4}).sentences)
    assert "More are there (ppo under low: 5; hpa under low: 5): seeds added after a look" in more
    assert "All 5 planned seeds are there." in judged(moved({})).sentences
    assert "Stop rule: All seeds are run before anyone looks." in judged(moved({})).sentences


def test_the_file_and_the_runs_are_compared(tmp_path: Path) -> None:
    study = carrying(study_of({"hpa": HPA, "ppo": moved({})}), tags())
    file = tmp_path / "hypotheses.yaml"
    file.write_text(json.dumps(NODE))  # JSON is YAML
    assert f"{file} is as it was when the runs began." in judge(study, file).sentences
    claims = [dict(NODE["claims"][0], claim="equivalent"), *NODE["claims"][1:]]  # type: ignore[index, misc]
    file.write_text(json.dumps(NODE | {"margin": 0.2, "claims": claims}))
    (told,) = [x for x in judge(study, file).sentences if "was changed since" in x]
    assert '(claims[1].claim: "superior" → "equivalent"; margin: 0.05 → 0.2)' in told
    file.write_text(json.dumps(NODE).replace("0.05", "5e-2"))  # a number to the runs, text to plain YAML
    assert f"{file} is as it was when the runs began." in judge(study, file).sentences
    file.write_text("stop: 2026-12-01")  # a date to plain YAML
    assert any("was changed since" in x for x in judge(study, file).sentences)
    file.write_text("margin: [")
    assert any("cannot be read" in x for x in judge(study, file).sentences)
    assert any("cannot be read" in x for x in judge(study, tmp_path / "none.yaml").sentences)
    assert len(judge(study, tmp_path / "none.yaml").results) == 4


def test_of_different_hypotheses_those_of_the_oldest_run_are_judged() -> None:
    later = NODE | {"claims": NODE["claims"][:1], "margin": 0.5}  # type: ignore[index]
    found = judge(carrying(study_of({"hpa": HPA, "ppo": moved({})}), tags(), tags(later)))
    assert len(found.results) == 4
    (told,) = [x for x in found.sentences if "different hypotheses" in x]
    assert f"{digest(NODE)} (5 runs)" in told and f"{digest(later)} (5 runs)" in told
    assert f"the oldest run, {digest(NODE)}, are judged" in told
    some = judge(carrying(study_of({"hpa": HPA, "ppo": moved({})}), tags(), {}))
    assert any("none (5 runs)" in x for x in some.sentences)
    assert len(some.results) == 4


def test_hypotheses_that_only_discarded_runs_carried_are_told() -> None:
    study = carrying(study_of({"hpa": HPA, "ppo": moved({})}), tags())
    before = NODE | {"margin": 0.01}
    study.finished.insert(0, Found(id="old", name="", status="FINISHED", started_s=-9.0, tags=tags(before),
                                   params={}, metrics={}))  # fmt: skip
    (told,) = [x for x in judge(study).sentences if "do not count here" in x]
    assert f"{digest(before)} (1 runs)" in told


def test_a_text_without_its_hash_is_not_judged() -> None:
    forged = tags() | {"hypotheses": json.dumps(NODE | {"margin": 0.5})}
    found = judge(carrying(study_of({"hpa": HPA, "ppo": moved({})}), forged))
    assert found.results == []
    assert "no longer has the hash" in found.sentences[0]
    broken = judge(carrying(study_of({"hpa": HPA, "ppo": moved({})}), tags() | {"hypotheses": "{"}))
    assert "no JSON" in broken.sentences[0]
    unknown = NODE | {"claims": [{"kpi": "latency", "claim": "superior"}]}
    assert "cannot be judged: kpi = 'latency'" in judged(moved({}), unknown).sentences[0]
    assert "cannot be judged" in judged(moved({}), NODE | {"power": 0.8}).sentences[0]


def test_policies_that_are_not_there() -> None:
    found = judge(carrying(study_of({"hpa": HPA, "keda": moved({})}), tags()))
    assert found.results == []
    assert found.sentences[-1] == "They cannot be judged: no run of ppo counts."


def test_the_hash_is_the_jobs() -> None:
    assert digest(NODE) == job_digest(NODE)


def test_the_repositorys_own_file_can_be_judged() -> None:
    import yaml

    node = yaml.safe_load((ROOT / "conf/hypotheses.yaml").read_text())
    study = carrying(study_of({node["baseline"]: HPA, node["candidate"]: moved({})}), tags(node))
    found = judge(study, ROOT / "conf/hypotheses.yaml")
    assert len(found.results) == len(node["claims"])
    assert any("is as it was" in x for x in found.sentences)


def test_changes_by_hand() -> None:
    assert changes({"a": 1, "b": [1, 2]}, {"a": 1.0, "b": [1, 3], "c": None}) == ["b[2]: 2 → 3"]
    assert changes({"a": 1}, {}) == ["a: 1 → nothing"]
    assert changes([1], [1, 2], "x") == ["x: [1] → [1, 2]"]


def test_registered_claims_of_a_stored_study(memory: Memory) -> None:
    MadeUp(name="registered", loads=("low", "high"), series=False, trainings=False, tags=tags()).write(memory)
    found = judge(load(memory, "registered", allow_synthetic=True))
    assert [(j.load, j.measure.name) for j in found.results[:2]] == [
        ("low", "latency_p95_s"),
        ("low", "replica_seconds"),
    ]
    decisions = {(j.load, j.measure.name): j.decision for j in found.results}
    assert decisions["high", "latency_p95_s"] == "supported"  # planted: -20 %
    assert decisions["high", "replica_seconds"] == "contradicted"  # planted: +25 %
    assert len(found.results) == 8
