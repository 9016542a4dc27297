"""Constants come back from measurements made with known ones, and a profile comes back from its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from composing import composed
from local_setup import make

from gpusched.cluster.sim import SimCluster
from gpusched.core.errors import GateError, InputError
from gpusched.core.service import Service
from gpusched.job import fit
from gpusched.job.build import option, resolve
from gpusched.job.calibrate import Measured, constants, header
from gpusched.job.measure import Stats, Stretch, real, times
from gpusched.job.profile import number, renewed, text

pytestmark = pytest.mark.slow  # wall time

ALPHA, BETA, GAP = 0.004, 0.0035, 0.0004
CLIENT, MEDIAN, SIGMA = 0.0012, 0.0003, 1.1


def stretch(
    users: int,
    rng: np.random.Generator,
    noise: float = 0.02,
    gpu_busy: float = np.nan,
    gap_per_request: float = 0.0,
) -> Stretch:
    """Return five seconds of an instance that always works, batches of about as many as there are users."""
    executions: dict[int, int] = {}
    held_s: dict[int, float] = {}
    t_s = 0.0
    while t_s < 5.0:
        b = int(np.clip(rng.integers(1, users + 1), 1, 8))
        one_s = (ALPHA + BETA * b) * (1 + noise * rng.normal())
        executions[b] = executions.get(b, 0) + 1
        held_s[b] = held_s.get(b, 0.0) + one_s
        t_s += one_s + GAP + gap_per_request * b
    served = sum(b * n for b, n in executions.items())
    tail_s_N = MEDIAN * np.exp(SIGMA * rng.normal(size=served))
    return Stretch(
        users=users, span_s=t_s, latency_s_N=ALPHA + BETA + GAP + CLIENT + tail_s_N, failed=0,
        stats=Stats(executions=executions, held_s=held_s, served=served, queue_s=0.0), cpu_s=4.5, memory_bytes=1.7e8,
        gpu_busy=gpu_busy,
    )  # fmt: skip


def measured(seed: int = 0, **more: Any) -> list[Stretch]:
    rng = np.random.default_rng(seed)
    return [stretch(users, rng, **more) for users in (1, 2, 4, 8, 16) for _ in range(6)]


def test_the_line_through_batch_times_is_found() -> None:
    alpha, beta = fit.bootstrap(fit.affine, measured(), np.random.default_rng(0))
    assert alpha.value == pytest.approx(ALPHA, rel=0.03)
    assert beta.value == pytest.approx(BETA, rel=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 repetitions at 95 %: fewer than 18 hits has a probability below 1e-4; the bootstrap is known to be short."""
    monkeypatch.setattr(fit, "DRAWS", 300)
    hits = 0
    for seed in range(24):
        _, beta = fit.bootstrap(fit.affine, measured(seed), np.random.default_rng(0))
        hits += beta.low <= BETA <= beta.high
    assert hits >= 18


def test_the_time_between_batches_is_found() -> None:
    """A part per batch and a part per request: without batching an instance is not kept waiting for batches of eight."""
    alpha, beta = fit.between(measured(gap_per_request=0.0001), 1)
    assert alpha == pytest.approx(GAP, rel=1e-6)
    assert beta == pytest.approx(0.0001, rel=1e-6)


def test_the_time_between_batches_of_one_size_is_all_fixed() -> None:
    full = [s for s in measured() if s.users == 1]
    assert fit.between(full, 1) == pytest.approx([GAP, 0.0], rel=1e-6)
    assert list(fit.between([], 1)) == [0.0, 0.0]


def test_a_time_between_batches_that_falls_with_the_size_is_taken_as_fixed() -> None:
    """Noise may say so; the mean stays what was seen."""
    alpha, beta = fit.between(measured(gap_per_request=-0.00002), 1)
    assert beta == 0.0
    assert 0.0 < alpha < GAP


def test_a_lone_users_quantiles_are_reproduced() -> None:
    lone = [stretch(1, np.random.default_rng(k)) for k in range(20)]
    client_s, median_s, sigma = fit.client(lone, ALPHA + BETA + GAP)
    assert client_s == pytest.approx(CLIENT, rel=0.05)
    assert median_s == pytest.approx(MEDIAN, rel=0.15)
    assert sigma == pytest.approx(SIGMA, rel=0.05)
    every_s_N = np.concatenate([s.latency_s_N for s in lone])
    z = np.random.default_rng(1).normal(size=200_000)
    again_s_N = ALPHA + BETA + GAP + client_s + median_s * np.exp(sigma * z)
    for q in (0.5, 0.95, 0.99):
        assert np.quantile(again_s_N, q) == pytest.approx(np.quantile(every_s_N, q), rel=0.02)


def test_a_tail_too_short_for_the_median_still_gives_median_and_p95() -> None:
    """Up to a third longer than usual, evenly: no lognormal with its median inside the client's share has that p99."""
    rng = np.random.default_rng(0)
    short = replace(stretch(1, rng), latency_s_N=0.010 * (1 + 0.3 * rng.random(50_000)))
    client_s, median_s, sigma = fit.client([short], 0.011)
    assert client_s == 0.0
    z = rng.normal(size=200_000)
    again_s_N = 0.011 + client_s + median_s * np.exp(sigma * z)
    for q in (0.5, 0.95):
        assert np.quantile(again_s_N, q) == pytest.approx(np.quantile(short.latency_s_N, q), rel=0.01)


def test_one_batch_size_is_no_line() -> None:
    with pytest.raises(GateError, match="needs two sizes"):
        fit.affine([stretch(1, np.random.default_rng(0))])


def test_a_negative_fixed_part_becomes_a_line_through_the_origin() -> None:
    one = stretch(8, np.random.default_rng(0))
    steep = replace(one.stats, held_s={b: n * 0.001 * b**2 for b, n in one.stats.executions.items()})
    alpha, beta = fit.affine([replace(one, stats=steep)])
    assert alpha == 0.0
    assert beta > 0.0


def of_sizes(busy_s_B: dict[int, float]) -> list[Stretch]:
    """Return one stretch per batch size, a hundred batches of so much GPU time each."""
    return [
        Stretch(users=b, span_s=10.0, latency_s_N=np.zeros(1), failed=0,
                stats=Stats(executions={b: 100}, held_s={b: 100 * s}, served=100 * b, queue_s=0.0), cpu_s=1.0,
                memory_bytes=1e8, gpu_busy=10 * s)
        for b, s in busy_s_B.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("busy_s_B", "alpha", "beta"),
    [
        ({1: 0.001, 4: 0.030, 8: 0.090}, 0.0, 0.841 / 81),  # through the origin
        ({1: 0.030, 4: 0.028, 8: 0.026}, 0.028, 0.0),  # the mean
    ],
)
def test_a_line_with_a_part_below_zero_is_fitted_again_without_it(
    busy_s_B: dict[int, float], alpha: float, beta: float
) -> None:
    seen = of_sizes(busy_s_B)
    assert fit.gpu_line(seen, 1) == pytest.approx([alpha, beta], rel=1e-9)
    assert fit.affine(seen) == pytest.approx([alpha, beta], rel=1e-9)


def test_draws_without_a_second_batch_size_are_left_out() -> None:
    """Two stretches of two users, only one of which saw a batch of two: a quarter of the draws lacks it."""
    lone, pair = of_sizes({1: 0.010, 2: 0.012})
    seen = [lone, replace(lone, users=2), pair]
    alpha, beta = fit.bootstrap(fit.affine, seen, np.random.default_rng(0))
    assert (alpha.value, beta.value) == pytest.approx((0.008, 0.002))
    assert (beta.low, beta.high) == pytest.approx((0.002, 0.002))


def test_a_lone_users_stretch_without_an_answer_is_left_out() -> None:
    _, built = make("job=calibrate", "job.name=mine")
    seen = measured()
    empty = replace(seen[0], latency_s_N=np.zeros(0))
    stretches = [s for s in seen if s.users > 1] + [empty, seen[1]]
    found = constants(built, Measured(stretches=stretches, starts_s=[1.0, 1.2], server=""), "today")
    assert "n = 1" in found["client_s"].source


def test_gpu_time_is_taken_from_the_devices_busy_time() -> None:
    def busy(one: Stretch) -> Stretch:
        n = sum(one.stats.executions.values())
        items = sum(b * k for b, k in one.stats.executions.items())
        return replace(one, gpu_busy=(n * 0.001 + items * 0.002) / one.span_s)

    alpha, beta = fit.gpu_line([busy(s) for s in measured()], 1)
    assert alpha == pytest.approx(0.001, rel=1e-6)
    assert beta == pytest.approx(0.002, rel=1e-6)
    assert (fit.gpu_line(measured(), 1) == 0).all()


def calibrated(tmp_path: Path) -> tuple[Service, Service]:
    """Return a profile and what is read from its file by `service=NAME`."""
    job, built = make("job=calibrate", f"job.folder={tmp_path}", "job.name=mine")
    seen = Measured(stretches=measured(), starts_s=[1.0, 1.2, 0.9], server="a machine")
    made = renewed(built.service, constants(built, seen, "calibrated today"), name="mine")
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "mine.yaml").write_text(text(made, header(built, job.config, seen)))
    config, _ = composed("service=mine", more=tmp_path)
    return made, option(resolve(config)["service"], Service, "service")


def test_a_written_profile_is_read_as_it_was(tmp_path: Path) -> None:
    made, read = calibrated(tmp_path)
    assert read.name == "mine"
    for name, constant in made.constants().items():
        again = read.constants()[name]
        assert again.value == pytest.approx(constant.value, rel=1e-5), name
        assert (again.status, again.unit) == (constant.status, constant.unit)
        assert "assumed" not in again.status, name


def test_it_says_value_interval_unit_source_and_date(tmp_path: Path) -> None:
    made, _ = calibrated(tmp_path)
    host = made.host_alpha_s
    assert host.status == "measured"
    assert host.value == pytest.approx(ALPHA + GAP, rel=0.03)
    assert "95 % interval 0.00" in host.source
    assert "n = 30" in host.source
    assert "today" in host.source
    assert made.max_batch.source.startswith("not measured but set")
    assert "a machine" in (tmp_path / "service" / "mine.yaml").read_text()


@pytest.mark.parametrize("value", [0.0, 1e-5, 1.5e-5, 0.0022, 12.0, 64.0, 1.7e8, 2.5e10])
def test_numbers_are_numbers_in_yaml(value: float) -> None:
    assert yaml.safe_load(number(value)) == pytest.approx(value)
    assert isinstance(yaml.safe_load(number(value)), int | float)


@pytest.mark.parametrize(
    "change", ["users=[2,4]", "users=[1]", "users=[1,4,2]", "repeats=1", "step_s=0.5", "name=a/b"]
)
def test_impossible_calibrations_are_refused(change: str) -> None:
    with pytest.raises(InputError, match=f"job.{change.split('=')[0]}"):
        make("job=calibrate", f"job.{change}")


def test_a_simulated_cluster_cannot_be_calibrated() -> None:
    _, built = make("job=calibrate")
    built.cluster_type = SimCluster
    with pytest.raises(InputError, match="is not real"):
        real(built, built.service, times([1, 2], 2, 1.0))
