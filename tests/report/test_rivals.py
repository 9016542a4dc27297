"""Against every rival: planted differences are decided, a small one is no worse, noise stays open."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import study_of

from gpusched.report.dataset import Study
from gpusched.report.rivals import Duel, duels, rivals_table

SEEDS = 20


def planted(cost: float, qos: float, noise: float = 0.002) -> Study:
    """Return ppo against two rivals: `cost` as a share of, `qos` as a difference to, the rivals' own."""
    rng = np.random.default_rng(7)
    level = 2000.0 * (1 + 0.1 * rng.normal(size=SEEDS))
    late = 0.10 + 0.01 * rng.normal(size=SEEDS)

    def policy(share: float, more: float) -> dict[str, list[float]]:
        return {
            "replica_seconds": list(level * (1 + share + noise * rng.normal(size=SEEDS))),
            "qos_violation_rate": list(late + more + noise * rng.normal(size=SEEDS)),
            "reward_mean": list(-0.5 + 0.1 * share + 0.01 * rng.normal(size=SEEDS)),
        }

    return study_of({"ppo": policy(cost, qos), "table": policy(0.0, 0.0), "keda": policy(0.0, 0.0)})


def against(study: Study, rival: str) -> Duel:
    return next(d for d in duels(study, "ppo", 0.02) if d.rival == rival)


@pytest.mark.parametrize(
    ("cost", "qos", "outcome", "kind"),
    [
        (-0.2, -0.05, "better in both", "better"),
        (-0.2, 0.0, "better in cost, no worse in violations", "better"),
        (0.0, -0.05, "no worse in cost, better in violations", "better"),
        (0.0, 0.0, "no worse in both", "equal"),
        (0.01, 0.0, "no worse in both", "equal"),
        (0.2, -0.05, "a trade-off: worse in cost, better in violations", "undecided"),
        (-0.2, 0.05, "a trade-off: better in cost, worse in violations", "undecided"),
        (0.2, 0.0, "worse in cost, no worse in violations", "worse"),
        (0.2, 0.05, "worse in both", "worse"),
    ],
)
def test_a_planted_difference_is_decided(cost: float, qos: float, outcome: str, kind: str) -> None:
    duel = against(planted(cost, qos), "table")
    assert (duel.outcome, duel.kind) == (outcome, kind)
    assert duel.cost.bounds.value == pytest.approx(cost, abs=0.005)
    assert duel.qos.bounds.value == pytest.approx(qos, abs=0.005)


def test_what_is_within_the_margin_is_no_worse_even_where_it_is_shown() -> None:
    side = against(planted(0.01, 0.0), "table").cost
    assert side.superior_p < 0.05
    assert side.paired.difference.mean > 0
    assert side.decision == "no worse"


def test_noise_decides_nothing() -> None:
    duel = against(planted(0.0, 0.0, noise=0.2), "table")
    assert (duel.decisions, duel.outcome, duel.kind) == (("open", "open"), "open in both", "undecided")


@pytest.mark.parametrize(
    ("cost", "outcome"),
    [
        (-0.5, "better in cost, open in violations"),
        (0.5, "worse in cost, open in violations"),
        (0.0, "no worse in cost, open in violations"),
    ],
)
def test_an_axis_that_is_open_hides_no_other(cost: float, outcome: str) -> None:
    """Seeds disagree about violations by 30 points either way, about cost they do not."""
    rng = np.random.default_rng(3)
    late = list(0.4 + 0.3 * rng.choice([-1.0, 1.0], SEEDS))
    level = list(2000.0 * (1 + 0.001 * rng.normal(size=SEEDS)))

    def policy(share: float, late: list[float]) -> dict[str, list[float]]:
        return {
            "replica_seconds": [x * (1 + share) for x in level],
            "qos_violation_rate": late,
            "reward_mean": late,
        }

    rival = policy(0.0, [0.4] * SEEDS)
    study = study_of({"ppo": policy(cost, late), "table": rival, "keda": rival})
    duel = against(study, "table")
    assert (duel.outcome, duel.kind) == (outcome, "undecided")
    row = next(
        row for row in rivals_table(duels(study, "ppo", 0.02), "ppo", 0.02).rows if row[1].text == "table"
    )
    assert (row[-1].text, row[-1].values[""], row[-1].kind) == (outcome, outcome, "undecided")


def test_seeds_that_are_all_alike_are_no_worse() -> None:
    same = {"replica_seconds": [1200.0] * 9, "qos_violation_rate": [0.0] * 9, "reward_mean": [0.8] * 9}
    duel = against(study_of({"ppo": same, "table": same, "keda": same}), "table")
    assert duel.outcome == "no worse in both"
    few = {name: values[:3] for name, values in same.items()}
    duel = against(study_of({"ppo": few, "table": few, "keda": few}), "table")
    assert (duel.outcome, duel.kind) == ("equal in both", "equal"), "too few for a test, but not open"


def test_the_same_difference_in_every_pair_is_decided_by_its_sign() -> None:
    """No t test can be had without variance; that all of ten pairs agree has a chance of 2/1024."""

    def constant(cost: float, n: int) -> dict[str, list[float]]:
        return {"replica_seconds": [cost] * n, "qos_violation_rate": [0.01] * n, "reward_mean": [0.5] * n}

    for n, decision in ((10, "better"), (3, "open")):
        study = study_of(
            {"ppo": constant(1200.0, n), "table": constant(2400.0, n), "keda": constant(2400.0, n)}
        )
        side = against(study, "table").cost
        assert side.p_superior == pytest.approx(2 * 0.5**n)
        assert side.decision == decision


def test_holm_counts_both_axes_of_every_rival_and_load() -> None:
    found = duels(planted(0.0, 0.0), "ppo", 0.02)
    sides = [side for d in found for side in (d.cost, d.qos)]
    assert len(sides) == 4
    for plain, adjusted in (
        ([s.paired.p for s in sides], [s.superior_p for s in sides]),
        ([s.bounds.not_worse(-1) for s in sides], [s.not_worse_p for s in sides]),
    ):
        k = int(np.argmin(plain))
        assert adjusted[k] == pytest.approx(4 * plain[k], rel=1e-9)


def test_one_rival_needs_no_table_and_every_number_of_two_names_its_runs() -> None:
    study = planted(-0.2, 0.0)
    table = rivals_table(duels(study, "ppo", 0.02), "ppo", 0.02)
    assert [row[1].text for row in table.rows] == ["keda", "table"]
    assert all(any(run.startswith(row[1].text) for run in row[2].runs) for row in table.rows)
    alone = Study(name="s", trials=[t for t in study.trials if t.policy != "keda"])
    assert rivals_table(duels(alone, "ppo", 0.02), "ppo", 0.02).rows == []


def test_a_rival_that_met_none_of_the_candidate_s_users_is_left_out() -> None:
    study = planted(-0.2, 0.0)
    moved = [replace(t, seed=t.seed + 100) if t.policy == "keda" else t for t in study.trials]
    found = duels(Study(name="s", trials=moved), "ppo", 0.02)
    assert {d.rival for d in found} == {"table"}
