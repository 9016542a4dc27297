"""The wall-clock cluster: its grid, its hooks, its record, what it does without metrics, and that it gives back."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from live_double import PODS, TRIAL, LiveDouble, cluster, episode, steady
from prometheus_double import RealPrometheus, StubPrometheus, say, vector
from triton_double import TritonDouble

from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.errors import ClusterError, GpuschedError, InputError
from gpusched.core.kpi import Window, kpis
from gpusched.core.logs import RequestLog
from gpusched.core.observation import Observation, Outcome
from gpusched.core.trial import TrialSpec
from gpusched.live.book import Mean
from gpusched.live.state import ReplicaState

pytestmark = [pytest.mark.slow, pytest.mark.wall]

QUIET = steady(0)
"""No users of ours: no load process, so a test is quick."""
QUICK = TrialSpec(duration_s=2.0, warmup_s=0.4, control_s=0.4, tick_s=0.2, start_replicas=2)
STEP_S = QUICK.control_s


class Metrics:
    """What the stand-in Prometheus says: fresh samples of known values, or the old ones for ever."""

    def __init__(self) -> None:
        self.frozen_s: float | None = None
        self.values = {"rate_rps": 12.0, "latency_mean_s": 0.07, "latency_p95_s": 0.09, "in_flight": 3.0}

    def __call__(self, handler: Any) -> None:
        now_s = time.time()
        scraped_s = now_s - 0.05 if self.frozen_s is None else self.frozen_s
        fields = {name: (now_s, value) for name, value in self.values.items()}
        say(200, vector(scraped_s=(now_s, scraped_s), **fields))(handler)

    def freeze(self) -> None:
        self.frozen_s = time.time()

    def thaw(self) -> None:
        self.frozen_s = None


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def made(metrics: Metrics) -> Iterator[Callable[..., LiveDouble]]:
    """Makes clusters without users whose Prometheus is the stand-in; closes them."""
    triton, stub, all_made = TritonDouble(), StubPrometheus(metrics), list[LiveDouble]()

    def make(trial: TrialSpec = QUICK, **config: Any) -> LiveDouble:
        all_made.append(cluster(triton, stub.url, trial, **config))
        return all_made[-1]

    yield make
    for one in all_made:
        one.close()
    stub.stop()
    triton.stop()


# --- a whole trial against a real Prometheus ---


class Lived:
    """A trial of three control intervals: two replicas, three, and an HPA."""

    def __init__(self, prometheus: RealPrometheus) -> None:
        trial = TRIAL
        triton = TritonDouble(0.05, prometheus.port())
        prometheus.wait_for(f'nv_inference_request_success{{pod=~"{PODS}"}}')
        self.plan = steady(10)
        self.cluster = one = cluster(triton, prometheus.url, trial)
        begin_s = time.monotonic()
        try:
            self.seen = [one.reset([episode(self.plan)])]
            self.reset_s, self.outcomes = time.monotonic() - begin_s, list[Outcome]()
            self.step_s = []
            hpa = Controls.autoscale(HPASpec(target=55.0), 1)
            for controls in (Controls.scale([2]), Controls.scale([3]), hpa):
                begin_s = time.monotonic()
                self.seen.append(one.step(controls))
                self.step_s.append(time.monotonic() - begin_s)
                self.outcomes.append(one.outcome())
            self.requests, self.ticks = one.logs()
            self.audit = one.audit()
        finally:
            one.close()
            triton.stop()


@pytest.fixture(scope="module")
def lived(prometheus: RealPrometheus) -> Lived:
    return Lived(prometheus)


@pytest.mark.slow
def test_ticks_stand_on_the_grid(lived: Lived) -> None:
    assert lived.ticks.t_s_T.tolist() == [0.5 * (k + 1) for k in range(10)]
    for step_s in lived.step_s:
        assert step_s == pytest.approx(1.0, abs=0.3)
    assert sum(lived.step_s) == pytest.approx(3.0, abs=0.3), "nothing drifts"


@pytest.mark.slow
def test_the_record_counts_every_request_once(lived: Lived) -> None:
    ok_N = lived.requests.status_N == RequestLog.OK
    assert np.all(lived.requests.end_s_N[lived.requests.status_N != RequestLog.UNFINISHED] <= 5.0)
    assert lived.ticks.completed_T.sum() == np.count_nonzero(ok_N) > 200
    assert lived.ticks.latency_sum_s_T.sum() == pytest.approx(lived.requests.latency_s_N[ok_N].sum())
    assert lived.ticks.failed_T.sum() == 0
    assert lived.ticks.in_flight_T[-1] == np.count_nonzero(lived.requests.status_N == RequestLog.UNFINISHED)
    assert lived.ticks.users_T.tolist() == [10.0] * 10


@pytest.mark.slow
def test_tick_p95_is_that_of_its_requests(lived: Lived) -> None:
    end_s_N = lived.requests.end_s_N
    inside_N = (end_s_N > 1.0) & (end_s_N <= 1.5) & (lived.requests.status_N == RequestLog.OK)
    assert lived.ticks.latency_p95_s_T[2] == pytest.approx(
        np.quantile(lived.requests.latency_s_N[inside_N], 0.95)
    )


@pytest.mark.slow
def test_what_a_policy_sees_is_the_window_up_to_the_last_scrape(lived: Lived) -> None:
    seen, now_s = lived.seen[-1], 5.0
    end_s = now_s - float(seen.age_s_E[0])
    assert 0.0 <= seen.age_s_E[0] < 1.0
    end_s_N = lived.requests.end_s_N
    inside_N = (end_s_N > end_s - 1.0) & (end_s_N <= end_s) & (lived.requests.status_N == RequestLog.OK)
    latency_s_N = lived.requests.latency_s_N[inside_N]
    assert seen.rate_rps_E[0] == pytest.approx(len(latency_s_N), abs=1)
    assert seen.latency_mean_s_E[0] == pytest.approx(latency_s_N.mean(), rel=0.02)
    assert seen.latency_p95_s_E[0] == pytest.approx(np.quantile(latency_s_N, 0.95), rel=0.05)
    assert seen.slow_share_E[0] == pytest.approx(np.mean(latency_s_N > 0.1), abs=0.02)
    assert seen.failed_share_E[0] == 0.0
    open_N = (lived.requests.start_s_N <= end_s) & (end_s_N > end_s)
    assert seen.in_flight_E[0] == pytest.approx(np.count_nonzero(open_N), abs=1)


@pytest.mark.slow
def test_tritons_part_comes_from_prometheus(lived: Lived) -> None:
    seen = lived.seen[-1]
    assert seen.queue_s_E[0] == pytest.approx(0.05 / 4, rel=1e-6)
    assert seen.batch_size_E[0] == pytest.approx(2.0, rel=1e-6)
    assert seen.cpu_cores_E[0] == pytest.approx(0.01 * seen.rate_rps_E[0], rel=0.2)
    # 3 replicas ready, 0.5 of 1 core requested each
    assert seen.cpu_utilization_E[0] == pytest.approx(seen.cpu_cores_E[0] / 1.5)
    assert np.isnan(seen.gpu_utilization_E[0])
    assert np.isinf(seen.gpu_age_s_E[0])


@pytest.mark.slow
def test_counters_add_up_over_the_trial(lived: Lived) -> None:
    counted = ~np.isnan(lived.ticks.batches_T)
    batches = lived.ticks.batches_T[counted].sum()
    completed = lived.ticks.completed_T[counted].sum()
    # but for what the first reading had missed and the last has not seen
    assert batches == pytest.approx(completed / 2, rel=0.15)
    assert lived.ticks.queue_sum_s_T[counted].sum() == pytest.approx(batches * 2 * 0.0125, rel=1e-3)
    assert lived.ticks.cpu_cores_used_T[counted].sum() * 0.5 == pytest.approx(batches * 2 * 0.01, rel=1e-3)


@pytest.mark.slow
def test_replicas_and_levers_are_recorded(lived: Lived) -> None:
    assert lived.ticks.replicas_spec_T.tolist() == [2] * 6 + [3] * 4
    assert lived.ticks.replicas_ready_T[-1] == 3.0
    assert 2.0 < lived.ticks.replicas_ready_T[6] < 3.0, "an average over the tick in which it became ready"
    assert [float(seen.hpa_target_E[0]) for seen in lived.seen[-2:]] == [
        pytest.approx(math.nan, nan_ok=True),
        55.0,
    ]
    assert lived.ticks.cpu_cores_limit_T[-1] == pytest.approx(3.0)


@pytest.mark.slow
def test_the_outcome_is_that_of_the_interval(lived: Lived) -> None:
    for k, outcome in enumerate(lived.outcomes):
        ticks = lived.ticks.between(2.0 + k, 3.0 + k)
        assert outcome.completed_E[0] == pytest.approx(ticks.completed_T.sum(), abs=2)
        assert outcome.slow_E[0] == pytest.approx(ticks.slow_T.sum(), abs=2)
        assert outcome.replicas_alive_E[0] == pytest.approx(ticks.replicas_alive_T.mean())
        assert outcome.gpu_busy_E[0] == 0.0
        assert outcome.replicas_max == Limits().max_replicas


@pytest.mark.slow
def test_the_audit_tells_of_load_and_cluster(lived: Lived) -> None:
    audit = lived.audit
    assert audit.real_share == 1.0
    assert 0.0 < audit.client_cpu_share < 1.0
    assert 0.0 <= audit.schedule_lag_p99_s < 0.2
    assert audit.telemetry_lost_s < 2.0
    assert not audit.fell_back
    assert audit.foreign_gpu_processes == 2


@pytest.mark.slow
def test_kpis_and_the_load_audit_work_on_it(lived: Lived) -> None:
    from gpusched.job.gates import load_audit

    window = Window(requests=lived.requests, ticks=lived.ticks, plan=lived.plan, begin_s=2.0, end_s=5.0, slo_s=0.1,
                    gpus=1, gpu_vram_bytes=1e10, node_memory_bytes=6.4e10)  # fmt: skip
    values = kpis(window)
    assert values["success_rate"] == 1.0
    assert values["latency_p50_s"] == pytest.approx(0.055, abs=0.02)
    # The think times of steady() have the mean the gate asks for; three seconds leave some noise.
    gate = load_audit(window, replace(lived.audit, schedule_lag_p99_s=0.0))
    ratio = float(re.search(r"X\(R\+Z\)/N = ([\d.]+)", gate.detail)[1])  # type: ignore[index]
    assert ratio == pytest.approx(1.0, abs=0.1)


# --- hooks and clock, without users ---


def test_hooks_come_in_their_order(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(QUIET)])
    one.step(Controls.scale([3]))
    one.close()
    assert one.log == ["take", "apply", "give back"]
    one.close()
    assert one.log.count("give back") == 1


def test_another_reset_gives_back_first(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(QUIET)])
    one.reset([episode(QUIET)])
    assert one.log == ["take", "give back", "take"]
    assert one.logs()[1].t_s_T.tolist() == [0.2, 0.4], "a record of its own"


def test_close_before_a_reset_touches_nothing(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.close()
    assert one.log == []
    with pytest.raises(RuntimeError, match="not been reset"):
        one.outcome()


@pytest.mark.parametrize(
    "error", [ClusterError("no"), KeyboardInterrupt(), SystemExit(143), RuntimeError("bug")]
)
@pytest.mark.parametrize("hook", ["take", "apply"])
def test_everything_is_given_back_whatever_happens(
    hook: str, error: BaseException, made: Callable[..., LiveDouble]
) -> None:
    one = made()
    one.fail = {hook: error}
    with pytest.raises(type(error)):
        one.reset([episode(QUIET)])
        one.step(Controls.scale([3]))
    assert one.log[-1] == "give back"
    assert one.log.count("give back") == 1


def test_a_failing_take_with_users_leaves_none(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.fail = {"apply": KeyboardInterrupt()}
    one.reset([episode(steady(2))])
    assert one.load is not None
    process = one.load.processes[0].process
    with pytest.raises(KeyboardInterrupt):
        one.step(Controls.scale([3]))
    assert process.poll() is not None, "the users have stopped"
    assert one.log[-1] == "give back"


def test_a_damaged_record_keeps_nothing_from_being_given_back(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(steady(2))])
    assert one.load is not None
    process = one.load.processes[0]
    with process.tail.path.open("ab") as file:
        file.write(b"\xff" * 64)
    with pytest.raises(ClusterError, match="damaged"):
        one.close()
    assert one.log[-1] == "give back"
    assert process.process.poll() is not None


def test_a_dead_load_ends_the_trial(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(steady(2))])
    assert one.load is not None
    one.load.processes[0].process.kill()
    with pytest.raises(ClusterError, match="load process ended with code -9"):
        one.step(Controls.scale([2]))
    assert one.log[-1] == "give back"


def test_slow_hooks_and_a_hung_prometheus_neither_block_nor_drift(
    made: Callable[..., LiveDouble], metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made()
    one.reset([episode(QUIET)])
    monkeypatch.setattr(Metrics, "__call__", lambda self, handler: time.sleep(5))
    before = LiveDouble.apply

    def slow(self: LiveDouble, controls: Controls, deadline_s: float) -> None:
        before(self, controls, deadline_s)
        time.sleep(deadline_s)

    monkeypatch.setattr(LiveDouble, "apply", slow)
    begin_s = time.monotonic()
    for k in range(1, 4):
        one.step(Controls.scale([2]))
        assert time.monotonic() - begin_s < k * STEP_S + 0.5
    assert one.logs()[1].t_s_T.tolist() == [0.2 * (k + 1) for k in range(8)]
    assert all(0 < deadline_s <= 0.2 for deadline_s in one.deadlines_s)


def test_controls_that_could_not_be_set_are_asked_for_again(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(QUIET)])
    one.not_yet = 1
    one.step(Controls.scale([4]))
    assert one.log.count("apply") == 2
    assert one.logs()[1].replicas_spec_T.tolist() == [2, 2, 2, 4]
    one.step(Controls.scale([4]))
    assert one.log.count("apply") == 3, "set: not asked for at every tick"


def test_controls_come_within_the_limits(made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(QUIET)])
    one.step(Controls.scale([99]))
    one.step(Controls.scale([0]))
    assert [int(controls.replicas_E[0]) for controls in one.applied] == [6, 1]


@pytest.mark.parametrize(
    "controls",
    [
        Controls(replicas_E=np.array([2]), gpu_share_E=np.array([0.5])),
        Controls(replicas_E=np.array([2]), instances_E=np.array([4])),
        Controls.autoscale(HPASpec(max_replicas=7), 1),
    ],
)
def test_what_the_service_cannot_do_is_refused(controls: Controls, made: Callable[..., LiveDouble]) -> None:
    one = made()
    one.reset([episode(QUIET)])
    with pytest.raises(InputError):
        one.step(controls)
    assert one.log[-1] == "give back"


def test_the_mean_of_a_level_is_that_of_straight_lines() -> None:
    mean = Mean(ReplicaState(spec=2, ready=2, alive=2), 0.0)
    mean.add(ReplicaState(spec=4, ready=2, alive=4), 1.0)
    mean.add(ReplicaState(spec=4, ready=4, alive=4), 4.0)
    assert mean.alive == pytest.approx((1 * 3 + 3 * 4) / 4)
    assert mean.ready == pytest.approx((1 * 2 + 3 * 3) / 4)
    mean.begin()
    assert mean.ready == 4.0, "no time has passed"


def test_more_than_one_environment_is_refused(made: Callable[..., LiveDouble]) -> None:
    one = made()
    with pytest.raises(InputError, match="one environment, 2"):
        LiveDouble(one.config, service=one.service, trial=QUICK, limits=Limits(), slo_s=0.1, envs=2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scrape_s", 0.0), ("window_s", 0.3), ("cpu_window_s", 0.3), ("lost_metrics_s", 0.0), ("users_processes", 0),
     ("ready_timeout_s", -1.0), ("request_timeout_s", 0.0)],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(key: str, value: float, made: Callable[..., LiveDouble]) -> None:
    with pytest.raises(GpuschedError, match=key):
        made(**{key: value})


# --- what a policy sees, and what happens without metrics ---


def field(seen: Observation, name: str) -> float:
    return float(getattr(seen, f"{name}_E")[0])


def test_somebody_elses_users_are_seen_through_triton(
    made: Callable[..., LiveDouble], metrics: Metrics
) -> None:
    seen = made().reset([episode(QUIET)])
    for name, value in metrics.values.items():
        assert field(seen, name) == value
    assert math.isnan(field(seen, "slow_share")), "Triton does not know the SLO"


def test_nothing_is_known_before_the_first_sample(
    made: Callable[..., LiveDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metrics, "__call__", lambda self, handler: say(500, "")(handler))
    one = made()
    seen = one.reset([episode(QUIET)])
    assert math.isinf(field(seen, "age_s"))
    known = {"replicas_spec", "replicas_ready", "cpu_limit_cores", "instances", "gpu_share"}
    for column in Observation.columns():
        name = column.removesuffix("_E")
        if name not in {*known, "age_s", "gpu_age_s"}:
            assert math.isnan(field(seen, name)), name
    assert one.audit().telemetry_lost_s == pytest.approx(0.4), "all of the warm-up"


def test_lost_metrics_keep_their_values_and_age(made: Callable[..., LiveDouble], metrics: Metrics) -> None:
    one = made()
    one.reset([episode(QUIET)])
    metrics.freeze()
    first = one.step(Controls.scale([2]))
    metrics.values["rate_rps"] = 99.0  # of no newer sample
    second = one.step(Controls.scale([2]))
    assert field(first, "rate_rps") == field(second, "rate_rps") == 12.0
    assert field(second, "age_s") - field(first, "age_s") == pytest.approx(STEP_S, abs=0.05)
    assert not one.audit().fell_back


def test_a_blind_policy_is_replaced_until_it_sees_again(
    made: Callable[..., LiveDouble], metrics: Metrics
) -> None:
    one = made(lost_metrics_s=1.5 * STEP_S)
    one.limits.max_replicas = 4
    one.reset([episode(QUIET)])
    one.step(Controls.scale([3]))
    metrics.freeze()
    one.step(Controls.scale([3]))
    assert not one.audit().fell_back, "old, but not that old"
    one.step(Controls.scale([3]))
    assert one.audit().fell_back
    spec = one.applied[-1].hpa
    assert spec is not None
    assert (spec.metric, spec.target, spec.min_replicas, spec.max_replicas) == ("cpu", 70.0, 1, 4)
    metrics.thaw()
    one.step(Controls.scale([2]))
    one.step(Controls.scale([2]))
    assert one.applied[-1].hpa is None
    assert one.replicas == 2
    assert one.audit().fell_back, "the mark stays"
    assert one.audit().telemetry_lost_s > 1.5 * STEP_S


def test_an_hpa_left_alone_needs_no_fallback(made: Callable[..., LiveDouble], metrics: Metrics) -> None:
    one = made(lost_metrics_s=0.5 * STEP_S)
    one.reset([episode(QUIET)])
    metrics.freeze()
    spec = HPASpec(target=40.0)
    for _ in range(2):
        one.step(Controls.autoscale(spec, 1))
    assert [controls.hpa for controls in one.applied] == [spec, spec]
    assert not one.audit().fell_back
    assert one.audit().telemetry_lost_s > STEP_S


def test_an_hpa_whose_target_a_policy_moves_is_replaced(
    made: Callable[..., LiveDouble], metrics: Metrics
) -> None:
    one = made(lost_metrics_s=0.5 * STEP_S)
    one.reset([episode(QUIET)])
    metrics.freeze()
    moved = replace(Controls.autoscale(HPASpec(target=40.0), 1), hpa_target_E=np.array([35.0]))
    for _ in range(2):
        one.step(moved)
    assert one.audit().fell_back
    last = one.applied[-1]
    assert last.hpa is not None
    assert last.hpa.target == 70.0


def test_replicas_counted_otherwise_elsewhere_are_told_once(
    made: Callable[..., LiveDouble], metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.values["replicas_ready"] = 5.0
    one = made(lost_metrics_s=STEP_S)
    one.reset([episode(QUIET)])
    for _ in range(3):
        one.step(Controls.scale([2]))
    told = [record for record in caplog.records if "kube-state-metrics counts 5" in record.getMessage()]
    assert len(told) == 1
