"""The comparison decides what was planted and nothing else, and the words say what the numbers say."""

import math

import pytest
from made_up import MadeUp, study_of
from memory import Memory

from gpusched.core.kpi import HEADLINE
from gpusched.report import verdict
from gpusched.report.compare import Comparison, compare
from gpusched.report.dataset import load
from gpusched.report.measures import REWARD, difference_unit, measure, number, p_text


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    made = Memory()
    MadeUp(loads=("low", "high"), series=False).write(made)
    return compare(load(made, "study", allow_synthetic=True), "hpa", "ppo")


def test_planted_effects_are_found_with_their_direction(comparison: Comparison) -> None:
    planted = {
        "latency_p95_s": "better",
        "qos_violation_rate": "better",
        "replica_seconds": "worse",
        REWARD: "better",
    }
    for load_name in ("low", "high"):
        for name, decision in planted.items():
            row = comparison.row(load_name, name)
            assert row is not None
            assert row.decision == decision
            if name == REWARD:
                assert math.isnan(row.relative), "its zero is a choice, so no share of it means anything"
            else:
                assert row.relative == pytest.approx(MadeUp().effect[name], abs=0.06)
            assert len(row.runs) == 10


def test_holm_counts_every_test_of_every_load(comparison: Comparison) -> None:
    assert comparison.tests == len(comparison.rows) == 2 * (len(HEADLINE) + 1)
    assert comparison.alpha == 0.05 / 16
    least = min(comparison.rows, key=lambda row: row.paired.p)
    assert least.holm_p == pytest.approx(16 * least.paired.p, rel=1e-12)
    assert all(row.holm_p >= row.paired.p for row in comparison.rows)


def test_the_verdict_names_the_trade_off(comparison: Comparison) -> None:
    for v in verdict.verdicts(comparison):
        assert v.summary == (
            "ppo has fewer QoS violations, higher cost: "
            "a trade-off: which one is best depends on the price of a violation."
        )
        assert [f.name for f in v.of("worse")] == ["replica_seconds"]
        assert all("N = 5 cannot decide" in f.text for f in v.of("undecided"))


@pytest.mark.parametrize(
    ("qos", "cost", "words"),
    [
        ([0.1, 0.13, 0.11], [100, 104, 99], "ppo wins on both"),
        ([0.9, 0.93, 0.91], [900, 904, 899], "hpa wins on both"),
        ([0.5, 0.52, 0.51], [100, 104, 99], "the same QoS violations in every seed, lower cost: ppo wins"),
        ([0.5, 0.52, 0.51], [500, 540, 510], "a tie"),
        (
            [0.9, 0.92, 0.91],
            [100, 104, 99],
            "more QoS violations by the same in all 3 seeds (no variance, no test), lower cost: no winner is shown",
        ),
        (
            [0.1, 0.13, 0.11],
            [100, 140, 110],
            "fewer QoS violations, lower cost by the same in all 3 seeds (no variance, no test): no winner is shown",
        ),
        ([0.4, 0.62, 0.50], [100, 104, 99], "QoS violations undecided, lower cost: no winner is shown"),
    ],
)
def test_cost_and_qos_are_summed_up(qos: list[float], cost: list[float], words: str) -> None:
    hpa = {"qos_violation_rate": [0.5, 0.52, 0.51], "replica_seconds": [500.0, 540.0, 510.0]}
    study = study_of(
        {"hpa": hpa, "ppo": {"qos_violation_rate": qos, "replica_seconds": [float(c) for c in cost]}}
    )
    (v,) = verdict.verdicts(compare(study, "hpa", "ppo"))
    assert words in v.summary


def test_pairs_are_the_shared_seeds_only() -> None:
    study = study_of({"hpa": {"latency_p95_s": [1.0, 2.0, 3.0]}, "ppo": {"latency_p95_s": [1.5, 2.6]}})
    row = compare(study, "hpa", "ppo").row("low", "latency_p95_s")
    assert row is not None
    assert row.pairs == 2
    assert row.paired.difference.mean == pytest.approx(0.55, abs=1e-12)
    assert row.baseline.n == 3


def test_without_evidence_there_is_no_p_and_no_decision() -> None:
    study = study_of({"hpa": {"latency_p95_s": [1.0]}, "ppo": {"latency_p95_s": [2.0]}})
    result = compare(study, "hpa", "ppo")
    row = result.row("low", "latency_p95_s")
    assert row is not None
    assert (row.decision, result.tests) == ("untested", 0)
    assert math.isnan(row.holm_p)
    assert "1 pair: no test" in verdict.finding(row).text
    gone = result.row("low", "throughput_rps")
    assert gone is not None
    assert verdict.finding(gone).text.endswith("0 pairs: no test")


def test_a_measure_without_direction_is_higher_or_lower() -> None:
    study = study_of(
        {"hpa": {"gpu_utilization": [0.30, 0.31, 0.32]}, "ppo": {"gpu_utilization": [0.50, 0.52, 0.51]}}
    )
    row = compare(study, "hpa", "ppo").row("low", "gpu_utilization")
    assert row is not None
    assert row.decision == "higher"
    assert math.isnan(row.improvement)


def test_notes_say_that_wilcoxon_is_blind_at_five(comparison: Comparison) -> None:
    assert any("cannot give a p below 0.0625 with 5 pairs" in note for note in verdict.notes(comparison))


@pytest.mark.parametrize(
    ("value", "resolution", "text"),
    [(0.123456, math.nan, "0.1235"), (-12.345, 0.8, "−12.35"), (1234567.0, 3000.0, "1\u2009234\u2009567"),
     (-0.0004, 0.2, "0.00"), (math.nan, 1.0, "–"), (0.0, math.nan, "0")],
)  # fmt: skip
def test_numbers_are_rounded_to_two_digits_of_their_uncertainty(
    value: float, resolution: float, text: str
) -> None:
    assert number(value, resolution) == text


def test_p_and_units() -> None:
    assert (p_text(0.0004), p_text(0.05), p_text(math.nan)) == ("< 0.001", "0.050", "–")
    latency, violation = measure("latency_p95_s"), measure("qos_violation_rate")
    assert (latency.axis, latency.shown(0.2)) == ("Latency p95 (ms)", 200.0)
    assert (violation.axis, difference_unit(violation)) == ("QoS violation rate (%)", "pp")
    assert measure("goodput_per_gpu_s").axis == "Goodput per GPU second (req/s)"
    assert measure("scale_events").axis == "Scale events (count)"
