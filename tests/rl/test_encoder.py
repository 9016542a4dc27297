"""Features: known answers, memory per environment, and nothing but finite numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpusched.core.controls import Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.policy.encoder import CALM, Encoder, EncoderConfig, feature_names

CONFIG = EncoderConfig(
    slo_s=0.2, think_s=1.5, lags=[1, 2, 3], changes=False, roughness=[], peaks=[], troughs=[]
)
NAMES = feature_names(CONFIG)


def seen(envs: int = 1, **columns: float | list[float]) -> Observation:
    table = {name: np.zeros(envs) for name in Observation.columns()}
    return Observation(**(table | {name: np.full(envs, x, dtype=float) for name, x in columns.items()}))


def feature(features_EF: np.ndarray, name: str) -> list[float]:
    return [round(float(x), 5) for x in features_EF[:, NAMES.index(name)]]


def test_known_answers() -> None:
    view = seen(
        rate_rps_E=20.0, in_flight_E=5.0, replicas_ready_E=2.0, latency_mean_s_E=0.6, slow_share_E=0.25
    )
    features = Encoder(CONFIG, Limits(max_replicas=4), 1).start(view)
    assert features.shape == (1, len(NAMES)) and features.dtype == np.float32
    assert feature(features, "population") == [
        round(float(np.log(36)), 5)
    ]  # 20/s x 1.5 s thinking + 5 waiting
    assert feature(features, "population_per_ready") == [round(float(np.log(18.5)), 5)]
    assert feature(features, "latency_mean") == [round(float(np.log(4)), 5)]  # three objectives
    assert feature(features, "replicas_ready") == [0.5]
    assert feature(features, "violation_share") == [0.25]


def test_no_ready_replica_is_no_division_by_zero() -> None:
    features = Encoder(CONFIG, Limits(), 1).start(seen(in_flight_E=7.0))
    assert feature(features, "in_flight_per_ready") == [round(float(np.log(8)), 5)]


def test_the_past_moves_back_one_step_at_a_time() -> None:
    encoder = Encoder(CONFIG, Limits(), 1)
    shares = [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = [encoder.start(seen(slow_share_E=shares[0]))]
    rows += [encoder.follow(seen(slow_share_E=x)) for x in shares[1:]]
    past = [[feature(row, f"violation_share-{age}")[0] for age in (1, 2, 3)] for row in rows]
    assert past == pytest.approx(
        np.array([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.2, 0.1, 0.1], [0.3, 0.2, 0.1], [0.4, 0.3, 0.2]])
    )


def test_as_changes_the_past_says_what_came_since() -> None:
    encoder = Encoder(replace(CONFIG, changes=True), Limits(), 1)
    shares = [0.1, 0.2, 0.4, 0.8]
    rows = [encoder.start(seen(slow_share_E=shares[0]))]
    rows += [encoder.follow(seen(slow_share_E=x)) for x in shares[1:]]
    past = [[feature(row, f"violation_share-{age}")[0] for age in (1, 2, 3)] for row in rows]
    assert past == pytest.approx(np.array([[0, 0, 0], [0.1, 0.1, 0.1], [0.2, 0.3, 0.3], [0.4, 0.6, 0.7]]))
    assert feature(rows[-1], "violation_share") == [0.8]


def test_roughness_is_the_usual_step_of_the_rate() -> None:
    config = replace(CONFIG, lags=[], roughness=[3])
    column = feature_names(config).index("roughness-3")

    def last(log_rate: list[float]) -> float:
        encoder = Encoder(config, Limits(), 1)
        rows = [encoder.start(seen(rate_rps_E=np.expm1(log_rate[0])))]
        rows += [encoder.follow(seen(rate_rps_E=np.expm1(x))) for x in log_rate[1:]]
        return float(rows[-1][0, column])

    calm = np.log(CALM)
    assert last([3.0]) == pytest.approx(calm), "nothing is known yet"
    assert last([3.0] * 4) == pytest.approx(calm)
    # Changes by 0.1, 0.3 and 0.2 of its log, up or down: the one in the middle.
    assert last([3.0, 3.1, 2.8, 3.0]) == pytest.approx(np.log(CALM + 0.2), rel=1e-5)
    assert last([3.0, 3.0, 4.0, 4.0]) == pytest.approx(calm), "a single jump is no gust"
    assert last([9.0, 3.0, 3.1, 2.8, 3.0]) == pytest.approx(np.log(CALM + 0.2), rel=1e-5), "three changes"


def test_users_who_wait_send_evenly_and_arrivals_that_do_not_come_in_gusts() -> None:
    """Forty users of 1 to 2 s of thought answered at once, and as many requests at random: 15 s windows, counted."""
    config = replace(CONFIG, lags=[], roughness=[8])
    column = feature_names(config).index("roughness-8")
    rng = np.random.default_rng(5)
    sent_s = np.concatenate([np.cumsum(rng.uniform(1, 2, 400)) - rng.uniform(0, 2) for _ in range(40)])
    drawn_s = rng.uniform(0, 300, 8000)

    def told(times_s: np.ndarray) -> float:
        rate_rps_T = np.histogram(times_s, np.arange(30.0, 301.0, 15.0))[0] / 15.0
        encoder = Encoder(config, Limits(), 1)
        encoder.start(seen(rate_rps_E=rate_rps_T[0]))
        return float(np.mean([encoder.follow(seen(rate_rps_E=x))[0, column] for x in rate_rps_T[1:]][8:]))

    assert told(drawn_s) - told(sent_s) > 0.5


def test_peaks_are_the_most_users_there() -> None:
    config = replace(CONFIG, lags=[], peaks=[1, 3])
    columns = [feature_names(config).index(f"population_peak-{steps}") for steps in (1, 3)]
    encoder = Encoder(config, Limits(), 1)
    rows = [encoder.start(seen(in_flight_E=10.0))]
    rows += [encoder.follow(seen(in_flight_E=x)) for x in (30.0, 20.0, 20.0, 20.0, 20.0)]
    assert encoder.size == rows[0].shape[1] == len(feature_names(config))
    assert [[float(row[0, c]) for c in columns] for row in rows] == [
        [10, 10], [30, 30], [30, 30], [20, 30], [20, 30], [20, 20]
    ]  # fmt: skip


def test_troughs_are_the_fewest_users_there() -> None:
    config = replace(CONFIG, troughs=[1, 3])
    columns = [feature_names(config).index(f"population_trough-{window}") for window in (1, 3)]
    encoder = Encoder(config, Limits(), 1)
    rows = [encoder.start(seen(in_flight_E=30.0))]
    rows += [encoder.follow(seen(in_flight_E=x)) for x in (10.0, 20.0, 40.0, 40.0, 40.0)]
    assert [[float(row[0, c]) for c in columns] for row in rows] == [
        [30, 30], [10, 10], [10, 10], [20, 10], [40, 10], [40, 20]
    ]  # fmt: skip


def test_only_the_chosen_ages_are_shown() -> None:
    config = replace(CONFIG, lags=[1, 4])
    names, encoder = feature_names(config), Encoder(config, Limits(), 1)
    assert [name for name in names if name.startswith("violation_share-")] == [
        "violation_share-1",
        "violation_share-4",
    ]
    rows = [encoder.start(seen(slow_share_E=0.1))]
    rows += [encoder.follow(seen(slow_share_E=x)) for x in (0.2, 0.3, 0.4, 0.5, 0.6)]
    past = [[float(row[0, names.index(f"violation_share-{age}")]) for age in (1, 4)] for row in rows]
    assert past[-2:] == pytest.approx(np.array([[0.4, 0.1], [0.5, 0.2]]))


def test_a_new_episode_forgets_only_its_own_past() -> None:
    encoder = Encoder(CONFIG, Limits(), 3)
    encoder.start(seen(3, slow_share_E=0.1))
    encoder.follow(seen(3, slow_share_E=0.2))
    fresh = encoder.start(seen(3, slow_share_E=[0.7, 0.8, 0.9]), [1])
    assert feature(fresh, "violation_share-1") == [0.8]
    after = encoder.follow(seen(3, slow_share_E=0.3))
    assert feature(after, "violation_share-1") == [0.2, 0.8, 0.2]
    assert feature(after, "violation_share-2") == [0.1, 0.8, 0.1]


AMOUNT = st.one_of(st.sampled_from([float("nan"), float("inf")]), st.floats(min_value=0, max_value=1e30))


@given(arrays(float, (3, 4, len(Observation.columns())), elements=AMOUNT))
def test_any_observation_gives_finite_features_and_environments_do_not_mix(table_TEF: np.ndarray) -> None:
    config = replace(CONFIG, lags=[2], changes=True, roughness=[4], peaks=[1, 5], troughs=[1, 9])
    whole, alone = Encoder(config, Limits(), 4), Encoder(config, Limits(), 1)
    for t, table_EF in enumerate(table_TEF):
        steps = [encoder.follow if t else encoder.start for encoder in (whole, alone)]
        features = steps[0](Observation.from_table(table_EF))
        assert np.isfinite(features).all()
        assert np.array_equal(features[2:3], steps[1](Observation.from_table(table_EF[2:3])))


def test_failures_count_like_late_answers() -> None:
    features = Encoder(CONFIG, Limits(), 1).start(seen(failed_share_E=0.2, slow_share_E=0.5))
    assert feature(features, "violation_share") == [0.6]  # a fifth failed, half of the others came late


def test_while_metrics_are_missing_the_last_ones_stand() -> None:
    lost = float("nan")
    encoder = Encoder(CONFIG, Limits(), 2)
    assert feature(encoder.start(seen(2, in_flight_E=[lost, 3.0])), "population_count") == [0.0, 3.0]
    encoder.follow(seen(2, rate_rps_E=20.0, in_flight_E=[5.0, 7.0], slow_share_E=0.25))
    features = encoder.follow(
        seen(2, rate_rps_E=lost, in_flight_E=lost, slow_share_E=lost, replicas_ready_E=3.0)
    )
    assert feature(features, "population_count") == [35.0, 37.0]
    assert feature(features, "violation_share") == [0.25, 0.25]
    assert feature(features, "replicas_ready") == [0.5, 0.5]  # three of six: what is known is not held
    again = encoder.follow(seen(2, rate_rps_E=[lost, 0.0], in_flight_E=[lost, 0.0]))
    assert feature(again, "population_count") == [35.0, 0.0]
    assert feature(again, "population_count-1") == [35.0, 37.0]


def test_what_a_request_would_tell_is_0_while_nobody_asks_and_stands_while_requests_hang() -> None:
    none = float("nan")
    encoder = Encoder(CONFIG, Limits(), 3)
    encoder.start(
        seen(
            3,
            rate_rps_E=20.0,
            in_flight_E=5.0,
            latency_mean_s_E=0.6,
            slow_share_E=0.25,
            gpu_utilization_E=0.9,
        )
    )
    features = encoder.follow(
        seen(3, rate_rps_E=[0.0, 0.0, none], in_flight_E=[0.0, 4.0, none], latency_mean_s_E=none, slow_share_E=none,
             failed_share_E=none, gpu_utilization_E=none)
    )  # fmt: skip
    before = round(float(np.log(4)), 5)
    assert feature(features, "latency_mean") == [0.0, before, before]  # idle, stuck, metrics lost
    assert feature(features, "violation_share") == [0.0, 0.25, 0.25]
    assert feature(features, "gpu_utilization") == [0.9, 0.9, 0.9]  # the GPU's monitoring is another


def test_a_new_episode_holds_nothing_of_the_former() -> None:
    encoder = Encoder(CONFIG, Limits(), 2)
    encoder.start(seen(2, in_flight_E=9.0))
    fresh = encoder.start(seen(2, in_flight_E=float("nan")), [1])
    assert feature(fresh, "population_count") == [0.0]
    after = encoder.follow(seen(2, in_flight_E=float("nan")))
    assert feature(after, "population_count") == [9.0, 0.0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slo_s", 0.0),
        ("think_s", -1.0),
        ("lags", [0]),
        ("lags", [2, 2]),
        ("lags", [101]),
        ("roughness", [0]),
        ("peaks", [2, 0]),
        ("troughs", [0]),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        replace(CONFIG, **{key: value})  # type: ignore[arg-type]
