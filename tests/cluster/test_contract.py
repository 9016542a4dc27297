"""The contract every cluster keeps, whatever runs behind it: same record, same units, same refusals."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from contract import Case, Lived

from gpusched.core.audit import Audit
from gpusched.core.controls import Controls, HPASpec
from gpusched.core.errors import InputError
from gpusched.core.kpi import HEADLINE, Window, kpis
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.core.observation import Observation, Outcome

OK, FAILED, UNFINISHED = RequestLog.OK, RequestLog.FAILED, RequestLog.UNFINISHED
GPU = {"gpu_utilization_E", "vram_bytes_E", "gpu_age_s_E"}
"""What a cluster without a GPU cannot show."""


def value(seen: Observation, name: str) -> float:
    return float(getattr(seen, name)[0])


# --- the clock ---


def test_ticks_stand_on_the_grid_from_the_warm_up_to_the_end(lived: Lived) -> None:
    count = round(lived.end_s / lived.case.trial.tick_s)
    assert lived.ticks.t_s_T == pytest.approx(lived.case.trial.tick_s * np.arange(1, count + 1))


def test_a_real_step_takes_its_control_interval(lived: Lived) -> None:
    if not lived.real:
        pytest.skip("simulated time")
    control_s = lived.case.trial.control_s
    assert max(lived.step_s) < control_s + 0.5
    assert sum(lived.step_s) == pytest.approx(control_s * len(lived.asked), abs=0.5)


# --- the record ---


def test_requests_lie_within_the_trial(lived: Lived) -> None:
    r = lived.requests
    assert len(r.start_s_N) == len(r.latency_s_N) == len(r.status_N) > 0
    assert r.start_s_N.min() >= 0.0
    assert r.latency_s_N.min() >= 0.0
    assert r.end_s_N.max() <= lived.end_s + lived.case.wire_s + 1e-6
    assert set(r.status_N.tolist()) <= {OK, FAILED, UNFINISHED}


def test_requests_come_in_order_of_completion_and_the_open_ones_last(lived: Lived) -> None:
    r = lived.requests
    open_N = r.status_N == UNFINISHED
    count = np.count_nonzero(~open_N)
    assert not open_N[:count].any()
    end_s_N = r.end_s_N[:count]
    assert np.all(end_s_N >= np.maximum.accumulate(end_s_N) - lived.case.wire_s - 1e-9)
    assert r.end_s_N[count:] == pytest.approx(lived.end_s), "its age at the end"


def test_ticks_count_every_request_once(lived: Lived) -> None:
    r, t = lived.requests, lived.ticks
    ok_N = r.status_N == OK
    assert t.completed_T.sum() == np.count_nonzero(ok_N)
    assert t.failed_T.sum() == np.count_nonzero(r.status_N == FAILED)
    assert t.slow_T.sum() == np.count_nonzero(ok_N & (r.latency_s_N > lived.case.slo_s))
    assert t.latency_sum_s_T.sum() == pytest.approx(r.latency_s_N[ok_N].sum(), rel=1e-6)
    assert t.users_T.tolist() == [lived.case.plan.max_users] * len(t.t_s_T)


def test_nobody_fails_who_is_served_well(lived: Lived) -> None:
    assert np.count_nonzero(lived.requests.status_N == OK) > 0.9 * len(lived.requests.status_N)


def test_open_requests_are_in_flight_at_the_end(lived: Lived) -> None:
    # On the way to and from a replica a request is open and yet nowhere; a user has one at most.
    open_count = np.count_nonzero(lived.requests.status_N == UNFINISHED)
    assert lived.ticks.in_flight_T[-1] <= open_count <= lived.case.plan.max_users


def test_tick_quantiles_are_those_of_their_requests(lived: Lived) -> None:
    r, t = lived.requests, lived.ticks
    begin_s = 0.0
    for end_s, p95_s in zip(t.t_s_T, t.latency_p95_s_T, strict=True):
        inside_N = (r.end_s_N > begin_s) & (r.end_s_N <= end_s) & (r.status_N == OK)
        begin_s = end_s
        if not inside_N.any():
            assert np.isnan(p95_s)
        else:
            # A histogram's quantile lies within a bin or two of the order statistics around the rank.
            low_s, high_s = np.quantile(r.latency_s_N[inside_N], [0.8, 1.0])
            assert 0.95 * low_s <= p95_s <= 1.05 * high_s


def test_levels_are_possible(lived: Lived) -> None:
    t, limits = lived.ticks, lived.case.limits
    assert np.all(t.replicas_ready_T >= 0)
    assert np.all(t.replicas_ready_T <= t.replicas_alive_T + 1e-9)
    assert t.replicas_spec_T.min() >= limits.min_replicas
    assert t.replicas_spec_T.max() <= limits.max_replicas
    assert t.cpu_cores_limit_T == pytest.approx(t.replicas_alive_T * t.cpu_cores_T, rel=0.01)
    for column_T in (t.cpu_cores_used_T, t.memory_bytes_T, t.queue_sum_s_T, t.batches_T):
        # NaN: before the first scrape.
        assert np.all(column_T[np.isfinite(column_T)] >= 0)
    busy_T = t.gpu_busy_T[np.isfinite(t.gpu_busy_T)]
    assert np.all((busy_T >= 0) & (busy_T <= 1))
    assert np.nansum(t.batches_T) <= t.completed_T.sum() * 1.1 + 10


# --- observation and outcome ---


def test_the_episode_begins_with_the_start_replicas_ready(lived: Lived) -> None:
    want = lived.case.trial.start_replicas
    assert value(lived.first, "replicas_spec_E") == want
    assert value(lived.first, "replicas_ready_E") == want
    assert np.isnan(lived.first.hpa_target_E[0])


def test_observations_have_every_field_of_one_environment(lived: Lived) -> None:
    for seen in (lived.first, *lived.seen):
        for name in Observation.columns():
            assert getattr(seen, name).shape == (1,), name
        assert 0.0 <= value(seen, "age_s_E") < lived.case.trial.control_s
        assert value(seen, "gpu_age_s_E") >= 0.0


def test_after_a_while_everything_has_a_value(lived: Lived) -> None:
    for name in set(Observation.columns()) - GPU - {"hpa_target_E"}:
        assert np.isfinite(value(lived.after(1), name)), name


def test_observed_rates_agree_with_the_record(lived: Lived) -> None:
    for k, seen in enumerate(lived.seen):
        end_s = lived.case.trial.warmup_s + (k + 1) * lived.case.trial.control_s - value(seen, "age_s_E")
        r = lived.requests
        for span_s in (30.0, 5.0, 1.0):  # the windows of the cases
            if end_s < span_s:
                continue
            inside_N = (r.end_s_N > end_s - span_s) & (r.end_s_N <= end_s) & (r.status_N == OK)
            if value(seen, "rate_rps_E") == pytest.approx(np.count_nonzero(inside_N) / span_s, rel=0.1):
                break
        else:
            pytest.fail(f"step {k}: {value(seen, 'rate_rps_E')} requests/s were not answered in any window")
        latency_s_N = r.latency_s_N[inside_N]
        # The window's borders are known to a scrape, so some requests of one mean are not in the other: the standard
        # error of a difference decides.
        error_s = 4 * latency_s_N.std() * np.sqrt(2 / len(latency_s_N))
        assert value(seen, "latency_mean_s_E") == pytest.approx(latency_s_N.mean(), rel=0.1, abs=error_s)
        assert value(seen, "queue_s_E") <= value(seen, "latency_mean_s_E")
        assert value(seen, "in_flight_E") <= lived.case.plan.max_users


def test_shares_lie_in_0_to_1(lived: Lived) -> None:
    for seen in lived.seen:
        for name in ("failed_share_E", "slow_share_E", "gpu_utilization_E"):
            share = value(seen, name)
            assert np.isnan(share) or 0.0 <= share <= 1.0


def test_outcomes_are_those_of_their_interval(lived: Lived) -> None:
    trial = lived.case.trial
    for k, outcome in enumerate(lived.outcomes):
        begin_s = trial.warmup_s + k * trial.control_s
        ticks = lived.ticks.between(begin_s, begin_s + trial.control_s)
        # A real load's row may be read a tick late; the record at the end has them all.
        late = 2 if lived.real else 0
        assert outcome.completed_E[0] == pytest.approx(ticks.completed_T.sum(), abs=late)
        assert outcome.failed_E[0] == pytest.approx(ticks.failed_T.sum(), abs=late)
        assert outcome.slow_E[0] == pytest.approx(ticks.slow_T.sum(), abs=late)
        assert outcome.replicas_alive_E[0] == pytest.approx(ticks.replicas_alive_T.mean(), rel=1e-6)
        assert outcome.cpu_cores_limit_E[0] == pytest.approx(ticks.cpu_cores_limit_T.mean(), rel=1e-6)
        assert (outcome.replicas_max, outcome.slo_s) == (lived.case.limits.max_replicas, lived.case.slo_s)
        for one in fields(Outcome):
            assert np.all(np.isfinite(getattr(outcome, one.name))), one.name


# --- controls ---


def test_replicas_are_as_asked(lived: Lived) -> None:
    assert value(lived.after(0), "replicas_ready_E") == 2
    assert value(lived.after(1), "replicas_spec_E") == 3
    assert value(lived.after(1), "replicas_ready_E") == 3
    assert value(lived.after(3), "replicas_spec_E") == 2


def test_the_hpa_comes_and_goes(lived: Lived) -> None:
    assert np.isnan(value(lived.after(1), "hpa_target_E"))
    assert value(lived.after(2), "hpa_target_E") == 55.0
    assert 1 <= value(lived.after(2), "replicas_spec_E") <= 4
    assert np.isnan(value(lived.after(3), "hpa_target_E"))


def test_repeating_a_control_changes_nothing(lived: Lived) -> None:
    trial, settle = lived.case.trial, lived.case.settle
    begin_s = trial.warmup_s + settle * trial.control_s
    spec_T = lived.ticks.between(begin_s + trial.tick_s, begin_s + settle * trial.control_s).replicas_spec_T
    assert set(spec_T) == {3.0}


@pytest.mark.parametrize(
    "controls",
    [
        Controls(replicas_E=np.array([2]), gpu_share_E=np.array([0.5])),
        Controls(replicas_E=np.array([2]), instances_E=np.array([9])),
        Controls.autoscale(HPASpec(max_replicas=99), 1),
    ],
    ids=["gpu share under time-slicing", "instances", "HPA beyond the limits"],
)
def test_what_cannot_be_is_refused(controls: Controls, case: Case) -> None:
    cluster = case.make()
    cluster.trial = replace(cluster.trial, warmup_s=0.0)
    nobody = LoadPlan(from_s_K=np.zeros(1), users_K=np.zeros(1, dtype=np.int64))
    try:
        cluster.reset([replace(case.episode(), plan=nobody)])
        with pytest.raises(InputError):
            cluster.step(controls)
    finally:
        cluster.close()


def test_a_real_cluster_has_one_environment(case: Case) -> None:
    if not case.make().real:
        assert case.make(envs=2).envs == 2
        return
    with pytest.raises(InputError, match="one environment"):
        case.make(envs=2)


def test_close_before_anything_is_harmless(case: Case) -> None:
    cluster = case.make()
    cluster.close()
    cluster.close()


# --- what is made of it ---


def test_the_audit_tells_only_what_there_is(lived: Lived) -> None:
    audit = lived.audit
    if not lived.real:
        assert audit == pytest.approx(Audit(), nan_ok=True) or str(audit) == str(Audit())
        return
    assert audit.real_share == 1.0
    assert 0.0 < audit.client_cpu_share < 1.5
    assert 0.0 <= audit.schedule_lag_p99_s < 1.0
    assert audit.telemetry_lost_s < lived.case.trial.warmup_s + 1.0
    assert not audit.fell_back


def test_the_same_kpis_come_out_of_it(lived: Lived) -> None:
    window = Window(
        requests=lived.requests,
        ticks=lived.ticks,
        plan=lived.case.plan,
        begin_s=lived.case.trial.warmup_s,
        end_s=lived.end_s,
        slo_s=lived.case.slo_s,
        gpus=1,
        gpu_vram_bytes=1e10,
        node_memory_bytes=6.4e10,
    )
    values = kpis(window)
    for name in set(HEADLINE) - {"gpu_utilization", "goodput_per_gpu_s"}:
        assert np.isfinite(values[name]), name
    assert values["success_rate"] > 0.9
    assert values["scale_events"] >= 2
    # Little's law over the users' cycle: a few seconds leave a few per cent.
    users, think_s = lived.case.plan.max_users, lived.case.plan.think_mean_s
    assert values["throughput_rps"] * (values["latency_mean_s"] + think_s) / users == pytest.approx(
        1.0, abs=0.08
    )
