"""Break-even prices: by hand, against brute force, and with the coverage an interval promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up import MadeUp
from memory import Memory

from gpusched.core.kpi import KPIS
from gpusched.report import statistics
from gpusched.report.breakeven import breakeven_table, crossings, headrooms, left_out, strips
from gpusched.report.dataset import Study, Trial, load
from gpusched.report.measures import REWARD
from gpusched.report.prices import (
    Bill,
    bills,
    common_seeds,
    contenders,
    crossing,
    envelope,
    undecided_prices,
    violations,
)

NUMBERS = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def bill(policy: str, replica_s: list[float], violated: list[float], seeds: tuple[int, ...] = ()) -> Bill:
    return Bill(policy=policy, load="low", seeds=seeds or tuple(range(len(replica_s))), replica_s_S=np.array(replica_s),
                violations_S=np.array(violated), runs=tuple(f"{policy}{i}" for i in range(len(replica_s))))  # fmt: skip


def trial(policy: str = "hpa", seed: int = 0, episode: int = 0, **values: float) -> Trial:
    filled = dict.fromkeys((*KPIS, REWARD), math.nan) | values
    return Trial(id=f"{policy}-{seed}-{episode}", policy=policy, load="low", seed=seed, episode=episode, values=filled,
                 tags={}, params={"trial.duration_s": "100.0"})  # fmt: skip


def test_violations_follow_from_rate_and_goodput() -> None:
    """90 good of 120 judged: 30 in violation."""
    assert violations(trial(goodput_rps=0.9, qos_violation_rate=0.25)) == pytest.approx(30.0, rel=1e-12)
    assert violations(trial(goodput_rps=5.0, qos_violation_rate=0.0)) == 0.0
    assert math.isnan(violations(trial(goodput_rps=0.0, qos_violation_rate=1.0)))
    assert math.isnan(violations(trial(goodput_rps=1.0)))


def test_a_crossing_by_hand() -> None:
    """10, 12, 14 replica-seconds more avoid 4, 6, 8 violations: 12 / 6 = 2 replica-seconds each."""
    cheap = bill("hpa", [100.0, 100.0, 100.0], [9.0, 9.0, 9.0])
    good = bill("ppo", [110.0, 112.0, 114.0], [5.0, 3.0, 1.0])
    for found in (crossing(cheap, good), crossing(good, cheap)):
        assert (found.cheap, found.other) == ("hpa", "ppo")
        assert found.price == pytest.approx(2.0, rel=1e-12)
        assert found.best == ("hpa", "ppo")
        assert found.extra.mean == pytest.approx(12.0)
        assert found.avoided.mean == pytest.approx(6.0)
        assert found.seeds == 3
        assert set(found.runs) == {*cheap.runs, *good.runs}
        (low, high), = found.open_ranges  # fmt: skip
        assert low < 2.0 < high


def test_a_policy_that_wins_on_both_never_loses() -> None:
    found = crossing(
        bill("a", [100.0, 101.0, 99.5], [1.0, 1.5, 0.5]), bill("b", [200.0, 202.0, 199.0], [50.0, 52.0, 49.0])
    )
    assert found.best == ("a",)
    assert math.isnan(found.price)
    assert found.open_ranges == []


def test_equal_policies_are_equal_at_every_price() -> None:
    found = crossing(bill("a", [100.0, 101.0], [1.0, 2.0]), bill("b", [100.0, 101.0], [1.0, 2.0]))
    assert found.best == ()
    assert found.open_ranges == [(0.0, math.inf)]


def test_one_seed_decides_nothing() -> None:
    assert undecided_prices(np.array([5.0]), np.array([1.0])) == [(0.0, math.inf)]
    assert contenders([bill("a", [1.0], [0.0]), bill("b", [9.0], [9.0])], np.array([1.0])) == [("a", "b")]


@pytest.mark.slow
@given(
    st.integers(2, 8).flatmap(
        lambda n: st.tuples(arrays(float, n, elements=NUMBERS), arrays(float, n, elements=NUMBERS))
    )
)
def test_undecided_prices_are_those_whose_interval_holds_zero(data: tuple[np.ndarray, np.ndarray]) -> None:
    """Fieller's set against the interval itself, price by price, away from its ends."""
    cost_S, avoided_S = data
    ranges = undecided_prices(cost_S, avoided_S)
    for price in np.geomspace(1e-3, 1e3, 61):
        near = any(abs(price - end) <= 1e-6 * max(price, 1.0) for ends in ranges for end in ends)
        e = statistics.interval(cost_S - price * avoided_S)
        close = min(abs(e.low), abs(e.high)) <= 1e-9 * (
            np.abs(cost_S).max() + price * np.abs(avoided_S).max()
        )
        if not near and not close:
            inside = any(low <= price <= high for low, high in ranges)
            assert inside == (e.low <= 0.0 <= e.high), price


@pytest.mark.slow  # Monte Carlo
def test_the_interval_of_the_price_covers_it() -> None:
    """95 % of 4,000 samples, within 4 standard errors."""
    rng, n, repeats = np.random.default_rng(5), 5, 4000
    covariance = [[9.0, 2.0], [2.0, 4.0]]
    hits = 0
    for _ in range(repeats):
        cost_S, avoided_S = rng.multivariate_normal([30.0, 10.0], covariance, n).T
        hits += any(low <= 3.0 <= high for low, high in undecided_prices(cost_S, avoided_S))
    assert abs(hits / repeats - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=8))
def test_the_envelope_is_what_is_cheapest_at_some_price(points: list[tuple[int, int]]) -> None:
    owed = [bill(str(i), [float(x)], [float(y)]) for i, (x, y) in enumerate(points)]
    chain = [int(b.policy) for b in envelope(owed)]
    least = {min(x + price * y for x, y in points): price for price in np.geomspace(1e-4, 1e4, 400)}
    for cost, price in least.items():
        assert min(points[i][0] + price * points[i][1] for i in chain) == pytest.approx(cost, rel=1e-12)
    violated = [points[i][1] for i in chain]
    prices = [(points[b][0] - points[a][0]) / (points[a][1] - points[b][1]) for a, b in pairwise(chain)]
    assert violated == sorted(set(violated), reverse=True)
    assert prices == sorted(prices)


def test_contenders_are_all_that_are_not_ruled_out() -> None:
    """b is 10 ± 1 dearer than a: ruled out; c is 10 ± 30 dearer: not."""
    owed = [bill("a", [100.0, 100.0, 100.0], [0.0, 0.0, 0.0]), bill("b", [109.0, 110.0, 111.0], [0.0, 0.0, 0.0]),
            bill("c", [80.0, 110.0, 140.0], [0.0, 0.0, 0.0])]  # fmt: skip
    assert contenders(owed, np.array([0.1, 10.0])) == [("a", "c"), ("a", "c")]


def study_of(*trials: Trial) -> Study:
    return Study(name="study", trials=list(trials))


def test_repeats_of_a_seed_are_one_seed() -> None:
    values = {"goodput_rps": 1.0, "qos_violation_rate": 0.0}
    study = study_of(trial(episode=0, replica_seconds=10.0, **values), trial(episode=1, replica_seconds=20.0, **values),
                     trial(seed=1, replica_seconds=7.0, **values), trial(seed=2, replica_seconds=math.nan, **values))  # fmt: skip
    (owed,) = bills(study, "low", ["hpa"])
    assert owed.seeds == (0, 1)
    assert list(owed.replica_s_S) == [15.0, 7.0]
    assert owed.runs == ("hpa-0-0", "hpa-0-1", "hpa-1-0")  # the seed without a value is not behind it
    assert common_seeds([owed, bill("b", [1.0], [1.0], seeds=(1,))]) == [1]


def test_a_seed_with_a_repeat_that_cannot_be_billed_is_left_out_whole() -> None:
    values = {"goodput_rps": 1.0, "qos_violation_rate": 0.1, "replica_seconds": 10.0, "throughput_rps": 1.0}
    outage = values | {"goodput_rps": 0.0, "qos_violation_rate": 1.0}
    study = study_of(trial(episode=0, **values), trial(episode=1, **outage), trial(seed=1, **values))
    (owed,) = bills(study, "low", ["hpa"])
    assert (owed.seeds, owed.runs) == ((1,), ("hpa-1-0",)), "two episodes of three would hide the outage"
    assert "hpa under low, seed 0" in left_out(study, ["hpa"])[0]


def test_what_cannot_be_counted_is_told() -> None:
    values = {"goodput_rps": 1.0, "qos_violation_rate": 0.1, "replica_seconds": 10.0, "throughput_rps": 1.0}
    lost = values | {"goodput_rps": 0.0, "qos_violation_rate": 1.0}
    study = study_of(trial("hpa", 0, **values), trial("hpa", 1, **lost), trial("ppo", 0, **lost))
    (note,) = left_out(study, ["hpa", "ppo"])
    assert "hpa under low, seed 1; ppo under low, seed 0." in note
    assert left_out(study_of(trial("hpa", 0, **values)), ["hpa"]) == []
    assert crossings(study, ["hpa", "ppo"], ("hpa", "ppo")) == []
    assert strips(study, ["hpa", "ppo"]) == []


def with_target(t: Trial, target: str, metric: str = "cpu") -> Trial:
    t.params.update(
        {"policy._target_": "gpusched.policy.hpa.HPA", "policy.metric": metric, "policy.target": target}
    )
    return t


def test_rows_are_headrooms_where_several_were_run() -> None:
    values = {"goodput_rps": 1.0, "qos_violation_rate": 0.1, "replica_seconds": 10.0, "throughput_rps": 1.0}
    hpas = [with_target(trial(f"hpa{t}", s, **values), t) for t in ("50", "70") for s in (0, 1)]
    queue = [with_target(trial("hpa-queue", s, **values), "20", "queue") for s in (0, 1)]
    ppo = [trial("ppo", s, **values) for s in (0, 1)]
    study = study_of(*hpas, *queue, *ppo)
    assert headrooms(study) == pytest.approx({"hpa50": 0.5, "hpa70": 0.3})
    rows = strips(study, study.policies)
    assert [(r.panel, r.label, [b.policy for b in r.owed]) for r in rows] == [
        ("low", "30", ["hpa-queue", "hpa70", "ppo"]), ("low", "50", ["hpa-queue", "hpa50", "ppo"])]  # fmt: skip
    one = study_of(*hpas[:2], *ppo)
    assert [(r.panel, r.label) for r in strips(one, one.policies)] == [("", "low")]
    assert strips(study_of(*ppo), ["ppo"]) == []


def test_the_table_has_the_pair_and_the_envelope(memory: Memory) -> None:
    MadeUp(loads=("low",), series=False, trainings=False).write(memory)
    study = load(memory, "study", allow_synthetic=True)
    found = crossings(study, ["hpa", "ppo"], ("hpa", "ppo"))
    assert [(c.load, c.cheap, c.other) for c in found] == [("low", "hpa", "ppo")]  # once, not twice
    (row,) = breakeven_table(found).rows
    cell = {key: c for (key, _), c in zip(breakeven_table(found).columns, row, strict=True)}
    gained = [
        violations(h) - violations(p)
        for h, p in zip(study.of("hpa", "low"), study.of("ppo", "low"), strict=True)
    ]
    paid = [p.values["replica_seconds"] - h.values["replica_seconds"]
            for h, p in zip(study.of("hpa", "low"), study.of("ppo", "low"), strict=True)]  # fmt: skip
    assert cell["price"].values[""] == pytest.approx(sum(paid) / sum(gained), rel=1e-12)
    assert cell["best"].text == "hpa below, ppo above"
    assert len(cell["price"].runs) == 10
    assert breakeven_table(crossings(study, ["hpa"], None)).rows == []
