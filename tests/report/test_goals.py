"""The project's goals: planted results are told as reached, missed or not shown, with the axis that keeps them from it."""

import numpy as np
import pytest
from made_up import study_of

from gpusched.report.compare import compare
from gpusched.report.contents import tables
from gpusched.report.dataset import Study
from gpusched.report.goals import BEYOND_PLAN, BEYOND_RULES, NEAR_BOUND, RULES, SAME_AS_RULES, goals, missed
from gpusched.report.rivals import duels

SEEDS = 20


def planted(
    cost: float = 0.0, qos: float = 0.0, reward: float = -0.05, noise: float = 0.002,
    rivals: tuple[str, ...] = (*RULES, "hpa", "oracle"), load: str = "low",
) -> Study:  # fmt: skip
    """Return ppo against rivals that are all alike: cost as a share, violations as a difference, reward as a share."""
    rng = np.random.default_rng(11)
    level = 2000.0 * (1 + 0.1 * rng.normal(size=SEEDS))

    def policy(share: float, more: float, gain: float) -> dict[str, list[float]]:
        return {
            "replica_seconds": list(level * (1 + share + noise * rng.normal(size=SEEDS))),
            "qos_violation_rate": list(0.10 + more + noise * rng.normal(size=SEEDS)),
            "reward_mean": list(0.5 * (1 + gain) + 0.001 * rng.normal(size=SEEDS)),
        }

    return study_of({"ppo": policy(cost, qos, reward), **{r: policy(0.0, 0.0, 0.0) for r in rivals}}, (load,))


def told(study: Study, goal: str) -> tuple[str, str]:
    """Return the status of a goal under the study's load, and why."""
    c = compare(study, "hpa" if "hpa" in study.policies else "table", "ppo")
    (judged,) = [j for j in goals(c, duels(study, "ppo", 0.02)) if j.goal == goal]
    assert judged.runs or judged.status == "not tried"
    return judged.status, judged.why


@pytest.mark.parametrize(
    ("load", "cost", "qos", "goal", "status"),
    [
        ("low", 0.0, 0.0, SAME_AS_RULES, "reached"),
        ("low", -0.2, 0.0, SAME_AS_RULES, "reached"),
        ("low", 0.2, 0.0, SAME_AS_RULES, "missed"),
        ("low", -0.2, 0.05, SAME_AS_RULES, "missed"),
        ("spike", -0.2, -0.05, BEYOND_RULES, "reached"),
        ("spike", 0.0, -0.05, BEYOND_RULES, "reached"),
        ("spike", 0.0, 0.0, BEYOND_RULES, "not shown"),
        ("spike", 0.2, -0.05, BEYOND_RULES, "missed"),
    ],
)
def test_what_is_planted_against_the_rules_is_told(
    load: str, cost: float, qos: float, goal: str, status: str
) -> None:
    found, why = told(planted(cost, qos, load=load), goal)
    assert found == status
    assert (why == "") == (status == "reached")
    if status == "missed":
        assert ("cost" if cost > 0 else "violations") in why
        assert "worse, N = 20" in why


def test_a_reward_of_nothing_has_no_share() -> None:
    same = {"replica_seconds": [1.0, 2.0], "qos_violation_rate": [0.0, 0.0], "reward_mean": [0.0, 0.0]}
    study = study_of({"ppo": same, "oracle": same, "hpa": same}, ("low",))
    assert told(study, NEAR_BOUND)[0] == "reached", "the same in every seed"
    other = {**same, "reward_mean": [0.1, -0.1]}
    assert told(study_of({"ppo": other, "oracle": same, "hpa": same}, ("low",)), NEAR_BOUND)[0] == "not shown"


def test_noise_is_not_shown_and_both_axes_are_named() -> None:
    status, why = told(planted(noise=0.2), SAME_AS_RULES)
    assert status == "not shown"
    assert all(rule in why for rule in RULES)
    assert "cost" in why and "violations" in why


def test_a_policy_that_no_goal_names_does_not_make_it_harder() -> None:
    named = (*RULES, "hpa", "oracle")
    few = planted(noise=0.0125, rivals=named)
    crowd = planted(noise=0.0125, rivals=(*named, *(f"static_{k}" for k in range(1, 7))))
    assert told(crowd, SAME_AS_RULES) == told(few, SAME_AS_RULES) == ("reached", "")
    against = {duel.rival: duel for duel in duels(crowd, "ppo", 0.02)}
    for duel in duels(few, "ppo", 0.02):
        assert against[duel.rival].cost.not_worse_p >= duel.cost.not_worse_p, (
            "the table of rivals asks of all"
        )


def test_a_rule_that_did_not_run_is_not_beaten() -> None:
    status, why = told(planted(-0.2, -0.05, rivals=("table", "hpa", "oracle")), SAME_AS_RULES)
    assert (status, why) == ("not tried", "hpa_tuned: no run; keda: no run; predictive: no run")


@pytest.mark.parametrize(("reward", "status"), [(-0.05, "reached"), (0.02, "reached"), (-0.12, "missed")])
def test_the_distance_to_hindsight(reward: float, status: str) -> None:
    found, why = told(planted(reward=reward), NEAR_BOUND)
    assert found == status
    assert float(why.removesuffix(" %").replace("−", "-")) == pytest.approx(100 * reward, abs=0.3)


def test_without_hindsight_nothing_is_said_of_it() -> None:
    assert told(planted(rivals=(*RULES, "hpa")), NEAR_BOUND) == ("not tried", "no run of oracle")


def test_the_plan_s_hpa_is_compared_in_every_kpi_with_a_direction() -> None:
    status, why = told(planted(-0.2, 0.05), BEYOND_PLAN)
    assert status == "missed"
    assert "QoS violation rate" in why and "worse" in why
    assert "Replica seconds" not in why and "GPU utilization" not in why
    study = planted(rivals=RULES)
    assert BEYOND_PLAN not in {
        j.goal for j in goals(compare(study, "table", "ppo"), duels(study, "ppo", 0.02))
    }


def test_faults_and_other_candidates_have_no_goals() -> None:
    faulty = planted(load="low+pod_crash")
    found = goals(compare(faulty, "hpa", "ppo"), duels(faulty, "ppo", 0.02))
    assert [(j.goal, j.status) for j in found] == [(NEAR_BOUND, "not tried")]
    study = planted()
    assert goals(compare(study, "hpa", "table"), duels(study, "table", 0.02)) == []
    alone = planted(rivals=("hpa", "static"))
    assert goals(compare(alone, "hpa", "ppo"), duels(alone, "ppo", 0.02)) == []


def test_the_first_page_names_what_is_not_reached_and_where_it_is() -> None:
    both = study_both()
    table = tables(both, compare(both, "hpa", "ppo"), both.policies)["goals"]
    (rules, _) = [s for s in missed(table) if s.startswith((SAME_AS_RULES, BEYOND_PLAN))]
    assert "reached under low; medium: missed, hpa_tuned (cost +20 % worse, N = 20)" in rules
    assert not any(s.startswith(NEAR_BOUND) for s in missed(table))
    assert all(cell.runs for row in table.rows for cell in row[2:])


def study_both() -> Study:
    """Return two steady loads: as good as the rules under one, a fifth dearer under the other."""
    trials = [*planted(0.0).trials, *planted(0.2, load="medium").trials]
    return Study(name="s", trials=trials)
