"""Faults are told against the same seeds without them; what was trained where stands in rows and columns."""

import math
from dataclasses import replace

import pytest
from made_up import study_of

from gpusched.report.dataset import Study
from gpusched.report.robustness import faults_table, shift_table


def both(plain: dict[str, list[float]], faulty: dict[str, list[float]]) -> Study:
    one, other = study_of({"ppo": plain}, ("low",)), study_of({"ppo": faulty}, ("low+pod_crash",))
    return Study(name="s", trials=[*one.trials, *other.trials])


def test_a_fault_is_told_against_the_same_seeds_without_it() -> None:
    study = both(
        {
            "latency_p95_s": [0.1, 0.2, 0.4],
            "qos_violation_rate": [0.01, 0.02, 0.03],
            "reward_mean": [1, 1, 1],
        },
        {
            "latency_p95_s": [0.2, 0.4, 0.8],
            "qos_violation_rate": [0.03, 0.04, 0.05],
            "reward_mean": [0.5, 0.5, 0.5],
            "fault_recovery_s": [30.0, 60.0, math.nan],
        },
    )
    (row,) = faults_table(study).rows
    cells = dict(zip([key for key, _ in faults_table(study).columns], row, strict=True))
    assert (cells["fault"].text, cells["policy"].text) == ("low+pod_crash", "ppo")
    assert cells["p95_ratio"].values[""] == pytest.approx(2.0)
    assert cells["qos_violation_rate"].values[""] == pytest.approx(0.02)
    assert cells["reward_mean"].values[""] == pytest.approx(-0.5)
    assert cells["recovery"].values[""] == pytest.approx(45.0)
    assert cells["recovery"].text.endswith("†"), "a seed without a value is marked"
    assert len(row[2].runs) == 6


def test_without_the_plain_load_or_without_a_fault_there_is_no_table() -> None:
    assert faults_table(study_of({"ppo": {"latency_p95_s": [0.1, 0.2]}}, ("low",))).rows == []
    assert faults_table(study_of({"ppo": {"latency_p95_s": [0.1, 0.2]}}, ("low+pod_crash",))).rows == []


def test_what_was_trained_where_stands_in_rows_and_columns() -> None:
    label = "ppo[train_load={}]".format
    study = Study(
        name="s",
        trials=[
            *study_of({label("low"): {"reward_mean": [0.9, 0.8]}}, ("low",)).trials,
            *study_of({label("low"): {"reward_mean": [-2.0, -1.0]}}, ("high",)).trials,
            *study_of({label("high"): {"reward_mean": [-0.4, -0.6]}}, ("high",)).trials,
            *study_of({"hpa": {"reward_mean": [-3.0, -3.0]}}, ("high",)).trials,
        ],
    )
    table = shift_table(study)
    keys = [key for key, _ in table.columns]
    assert sorted(keys[2:]) == ["high", "low"]
    met = {(row[1].text, key): cell for row in table.rows for key, cell in zip(keys, row, strict=True)}
    assert met["low", "low"].values[""] == pytest.approx(0.85)
    assert met["low", "high"].values[""] == pytest.approx(-1.5)
    assert met["high", "low"].text == "–"
    assert met["high", "high"].kind == "equal", "where it was trained"


def test_seeds_that_met_no_fault_and_faults_without_their_seed_are_no_pair() -> None:
    study = both({"reward_mean": [1.0, 1.0]}, {"reward_mean": [0.5, 0.5]})
    moved = [replace(t, seed=t.seed + 7) if "+" in t.load else t for t in study.trials]
    assert faults_table(Study(name="s", trials=moved)).rows == []


def test_a_repeat_that_only_one_side_has_is_left_out() -> None:
    study = both({"reward_mean": [1.0, 1.0]}, {"reward_mean": [0.5, 0.5]})
    spare = replace(
        study.trials[0], id="spare", episode=1, values={**study.trials[0].values, "reward_mean": 99.0}
    )
    table = faults_table(Study(name="s", trials=[*study.trials, spare]))
    cells = dict(zip([key for key, _ in table.columns], table.rows[0], strict=True))
    assert cells["reward_mean"].values[""] == pytest.approx(-0.5)
