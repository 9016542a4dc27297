"""The HPA controller against answers worked out by hand from its specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpusched.core.controls import HPADirection, HPARule, HPASpec
from gpusched.sim import hpa_replicas as rep
from gpusched.sim import hpa_rules as hold
from gpusched.sim.hpa import (
    EVENT,
    FAULT_AMBIGUOUS_SELECTOR,
    FAULT_GET_SCALE,
    FAULT_UPDATE_SCALE,
    MEMORY,
    METRIC,
    NONE_MS,
    POD,
    REC,
    REQUEST_MISSING,
    STATUS,
    ControllerFlags,
    pack,
    reconcile,
)

ROOM = 12
"""Rows of every array, more than any test fills."""


class Controller:
    """One HPA with its memory, and pods of which each requests 1000 millicores."""

    def __init__(
        self, hpa: HPASpec | None = None, flags: ControllerFlags | None = None, room: int = 40
    ) -> None:
        self.packed = pack(hpa or HPASpec(target=50), flags)
        self.spec = self.packed.spec[0]
        self.metrics_M = self.packed.metrics_M
        self.memory_1 = np.zeros(1, dtype=MEMORY)
        self.memory = self.memory_1[0]
        self.recs = np.zeros(room, dtype=REC)
        self.up_events, self.down_events = np.zeros(room, dtype=EVENT), np.zeros(room, dtype=EVENT)
        self.pods_P = np.zeros(ROOM, dtype=POD)
        self.request_P = np.full(ROOM, 1000, dtype=np.int64)
        self.status_M: NDArray[Any] = np.zeros(1, dtype=STATUS)
        self.object_ok_M = np.ones(1, dtype=np.bool_)
        self.set_pods()

    def set_pods(self, **fields: Any) -> None:
        """Give all pods these fields; the rest is a pod that has been Running and Ready for ages."""
        self.pods_P["phase"], self.pods_P["ready"] = rep.PHASE_RUNNING, rep.READY_TRUE
        self.pods_P["ready_ms"] = self.pods_P["start_ms"] = rep.GO_ZERO_MS
        self.pods_P["deleting"] = 0
        for name, value in fields.items():
            self.pods_P[name] = value

    def set_metrics(self, *rows: tuple[int, int, int, int]) -> None:
        """Replace the metrics by METRIC rows."""
        self.metrics_M = np.array(list(rows), dtype=METRIC)
        self.packed.spec["n_metrics"] = len(rows)
        self.status_M = np.zeros(len(rows), dtype=STATUS)
        self.object_ok_M = np.ones(len(rows), dtype=np.bool_)

    def no_history(self) -> None:
        """An empty list of recommendations: nothing is seeded, nothing holds a scale-down."""
        self.memory_1["has_recs"] = 1

    def recommend(self, *rows: tuple[int, int]) -> None:
        """Recommendations (replicas, age in ms), as seen from time zero."""
        self.memory_1["has_recs"], self.memory_1["n_recs"] = 1, len(rows)
        for row, (replicas, age_ms) in enumerate(rows):
            self.recs[row] = (replicas, -age_ms)

    def step(
        self,
        current: int,
        values: list[int | None] | None = None,
        *,
        object_m: int = 0,
        now_s: float = 0.0,
        status: int | None = None,
        faults: int = 0,
    ) -> tuple[int, bool, int]:
        """One reconcile; `values` are the pods' samples in milli-units, None = the pod has none."""
        given = values or []
        M = len(self.metrics_M)
        value_MP = np.zeros((M, ROOM), dtype=np.int64)
        has_MP = np.zeros((M, ROOM), dtype=np.bool_)
        value_MP[:, : len(given)] = [value or 0 for value in given]
        has_MP[:, : len(given)] = [value is not None for value in given]
        now_ms = round(now_s * 1000)
        sample_ms_MP = np.full((M, ROOM), now_ms, dtype=np.int64)
        window_ms_MP = np.full((M, ROOM), 30_000, dtype=np.int64)
        request_MP = np.tile(self.request_P, (M, 1))
        desired, rescaled, code = reconcile(
            self.spec, self.metrics_M, self.packed.rules, self.memory,
            self.recs, self.up_events, self.down_events, self.pods_P, len(given),
            value_MP, sample_ms_MP, window_ms_MP, has_MP, request_MP,
            np.full(M, object_m, dtype=np.int64), self.object_ok_M,
            now_ms, current, current if status is None else status, faults, self.status_M,
        )  # fmt: skip
        return int(desired), bool(rescaled), int(code)

    def proposal(self, current: int, values: list[int | None], **kwargs: Any) -> int:
        """What the first metric proposes, whatever becomes of it."""
        self.step(current, values, **kwargs)
        assert self.status_M[0].error == rep.OK
        return int(self.status_M[0].proposal)


def behavior(
    select: str = "Max",
    rules: list[tuple[str, int, int]] | None = None,
    window_s: int | None = 0,
    **more: Any,
) -> HPADirection:
    """One direction of a behavior; rules are (type, value, period in seconds)."""
    policies = None if rules is None else [HPARule(type=t, value=v, period_s=p) for t, v, p in rules]
    return HPADirection(stabilization_s=window_s, select=select, policies=policies, **more)


# --- ratios and tolerance


@pytest.mark.parametrize(
    ("usage_m", "expected", "percent"),
    [
        ([780, 780, 779], 3, 77),  # 77.97 % is 77; 77 / 70 = 1.1 = 1 + 0.1, the edge is inside
        ([780, 780, 780], 4, 78),  # 78 / 70 * 3 = 3.34
        ([630, 630, 630], 3, 63),  # 63 / 70 = 0.9, the lower edge is inside too
        ([460, 460, 460], 2, 46),  # 46 / 70 * 3 = 1.97
    ],
)
def test_utilization_is_a_truncated_percent_and_tolerance_is_inclusive(
    usage_m: list[int | None], expected: int, percent: int
) -> None:
    controller = Controller(HPASpec(target=70))
    assert controller.proposal(3, usage_m) == expected
    assert controller.status_M[0].utilization_pct == percent


def test_average_value_truncates_the_mean() -> None:
    controller = Controller(HPASpec(metric="in_flight", target=1.0))
    # Mean of 1100, 1101 is 1100.5, truncated to 1100 = 1.1 x target: inside. One more and it is outside.
    assert controller.proposal(2, [1100, 1101]) == 2
    assert controller.proposal(2, [1101, 1101]) == 3
    assert controller.status_M[0].usage_m == 1101


def test_tolerance_of_a_behavior_overrides_one_side_only() -> None:
    hpa = HPASpec(target=50, scale_up=behavior(tolerance=0.0))
    assert Controller(hpa).proposal(2, [510, 510]) == 3  # 51 / 50 > 1
    assert Controller(hpa).proposal(2, [450, 450]) == 2  # 0.9 is still inside on the way down
    closed = ControllerFlags(gate_configurable_tolerance=False)
    assert Controller(hpa, closed).proposal(2, [510, 510]) == 2


@pytest.mark.parametrize(
    ("tolerance", "target", "usage_m", "desired"),
    [(0.7, 100, 300, 10), (0.95, 80, 40, 10), (0.94, 80, 40, 1), (0.1, 100, 900, 10), (0.05, 100, 900, 9)],
)
def test_a_tolerance_is_read_as_the_controller_reads_its_quantity(
    tolerance: float, target: float, usage_m: int, desired: int
) -> None:
    """700 * 1e-3 is more than 0.7, so 30 % of the target is still inside; 0.95 and 1 - 0.05 alike (5 % of 80 %)."""
    hpa = HPASpec(target=target, max_replicas=20, scale_down=behavior(tolerance=tolerance, window_s=0))
    assert Controller(hpa).proposal(10, [usage_m] * 10) == desired


@pytest.mark.parametrize(
    ("tolerance", "read"), [(0.7, 0.7000000000000001), (0.1, 0.1), (0.0005, 0.0005), (2.0, 2.0)]
)
def test_a_tolerance_is_digits_times_a_power_of_ten(tolerance: float, read: float) -> None:
    assert pack(HPASpec(scale_up=behavior(tolerance=tolerance))).spec[0].tolerance_up == read


# --- pods without a usable sample


def test_missing_pods_count_zero_on_the_way_up() -> None:
    # 100 % of 90 is above 1.1; with the missing pod it is 2000 / 3000 = 66 %: the direction turns, stay.
    assert Controller(HPASpec(target=90)).proposal(2, [1000, 1000, None]) == 2


def test_missing_pods_count_their_whole_request_on_the_way_down() -> None:
    # (200 + 200 + 1000) / 3000 = 46 %; 46 / 50 = 0.92 is inside. Left out, 0.4 * 2 would propose 1.
    assert Controller(HPASpec(target=50)).proposal(3, [200, 200, None]) == 3


def test_missing_pods_count_the_target_when_it_exceeds_the_request() -> None:
    # (900 + 900 + 1500) / 3000 = 110 %; 110 / 150 * 3 = 2.2. At 100 % it were 93 / 150 * 3 = 1.86 -> 2.
    assert Controller(HPASpec(target=150)).proposal(3, [900, 900, None]) == 3


def test_missing_pods_are_left_out_at_a_ratio_of_exactly_one() -> None:
    # Ratio 1: the missing pod joins neither side. At 0 % it were 33 / 50 -> 2.
    assert Controller(HPASpec(target=50)).proposal(3, [500, 500, None]) == 3


def test_unready_pods_damp_a_scale_up_but_not_a_scale_down() -> None:
    controller = Controller(HPASpec(target=50))
    controller.pods_P["phase"][1:] = rep.PHASE_PENDING
    # 700 of 1000 = 1.4; over three pods 23 % < 50 %: the direction turns, stay. Left out, it were 2.
    assert controller.proposal(3, [700, None, None]) == 3
    # 20 / 50 = 0.4 of one ready pod out of five.
    assert controller.proposal(5, [200, None, None, None, None]) == 1


def test_terminating_and_failed_pods_are_ignored_but_need_a_request() -> None:
    controller = Controller(HPASpec(target=50))
    controller.pods_P["deleting"][1], controller.pods_P["phase"][2] = 1, rep.PHASE_FAILED
    assert controller.proposal(1, [1000, 0, 0]) == 2  # 100 / 50 * 1
    controller.request_P[1] = REQUEST_MISSING
    assert controller.step(1, [1000, 0, 0]) == (1, False, rep.ERR_MISSING_REQUEST)


def test_a_sample_of_an_unknown_pod_counts_in_an_average_but_not_in_a_utilization() -> None:
    controller = Controller(HPASpec(metric="in_flight", target=1.0))
    controller.pods_P["phase"][1] = rep.PHASE_NO_POD
    assert controller.proposal(1, [1000, 9000]) == 5  # mean 5, one ready pod
    controller = Controller(HPASpec(target=50))
    controller.pods_P["phase"][1] = rep.PHASE_NO_POD
    assert controller.proposal(1, [1000, 9000]) == 2


@pytest.mark.parametrize(
    ("pod", "sample_s", "window_s", "group"),
    [
        # Young (under 300 s): a whole window must lie behind the moment it became ready.
        ({"start_ms": -60_000, "ready_ms": -30_000}, 0, 30, rep.GROUP_READY),
        ({"start_ms": -60_000, "ready_ms": -30_000}, 0, 31, rep.GROUP_UNREADY),
        ({"start_ms": -60_000, "ready_ms": -50_000, "ready": rep.READY_FALSE}, 0, 30, rep.GROUP_UNREADY),
        # Exactly 300 s is old: the fresh-sample rule no longer applies.
        ({"start_ms": -300_000, "ready_ms": -1_000}, 0, 30, rep.GROUP_READY),
        # Old and not ready: left out only if it never was (last transition under 30 s after the start).
        ({"start_ms": -600_000, "ready_ms": -570_001, "ready": rep.READY_FALSE}, 0, 30, rep.GROUP_UNREADY),
        ({"start_ms": -600_000, "ready_ms": -570_000, "ready": rep.READY_FALSE}, 0, 30, rep.GROUP_READY),
        ({"start_ms": -600_000, "ready_ms": -590_000, "ready": rep.READY_UNKNOWN}, 0, 30, rep.GROUP_READY),
        ({"start_ms": NONE_MS}, 0, 30, rep.GROUP_UNREADY),
        ({"ready": rep.READY_NONE}, 0, 30, rep.GROUP_UNREADY),
    ],
)
def test_cpu_readiness_rule(pod: dict[str, int], sample_s: int, window_s: int, group: int) -> None:
    controller = Controller()
    controller.set_pods(**pod)
    args = True, sample_s * 1000, window_s * 1000, 0
    assert rep.group_pod(controller.spec, controller.pods_P[0], 1, *args) == group
    assert rep.group_pod(controller.spec, controller.pods_P[0], 0, *args) == rep.GROUP_READY


# --- object and external metrics


def test_value_target_multiplies_pods_that_are_running_and_ready() -> None:
    controller = Controller(HPASpec(metric="queue", target=100.0, max_replicas=50))
    controller.pods_P["deleting"][0] = 1  # still ready: counts
    controller.pods_P["ready"][2] = rep.READY_FALSE
    # 250 ms of 100 ms times two ready pods, although spec and status say 3.
    assert controller.proposal(3, [None, None, None], object_m=250_000) == 5
    controller.set_pods(ready=rep.READY_FALSE)
    assert controller.proposal(3, [None, None, None], object_m=250_000) == 0


def test_a_huge_value_is_capped_at_int32() -> None:
    controller = Controller(HPASpec(metric="queue", target=0.001))
    assert controller.proposal(1, [None], object_m=2**62) == 2**31 - 1


def test_average_value_of_an_external_metric_answers_with_status_replicas() -> None:
    controller = Controller(HPASpec(max_replicas=50))
    controller.set_metrics((rep.TYPE_EXTERNAL, 0, rep.TARGET_AVERAGE_VALUE, 1000))
    # 4000 / (1000 * 4) = 1 is inside: the answer is status.replicas, and a surge pod ratchets spec upwards.
    assert controller.step(3, [None] * 4, object_m=4000, status=4) == (4, True, rep.OK)
    # 5000 / 4000 is outside: ceil(5000 / 1000).
    assert controller.step(4, [None] * 4, object_m=5000, status=4) == (5, True, rep.OK)


# --- several metrics


def test_a_failing_metric_blocks_only_scale_down() -> None:
    controller = Controller(HPASpec(target=50))
    controller.set_metrics(
        (rep.TYPE_RESOURCE, 1, rep.TARGET_UTILIZATION, 50), (rep.TYPE_EXTERNAL, 0, rep.TARGET_VALUE, 1000)
    )
    controller.object_ok_M[1] = False
    controller.no_history()
    assert controller.step(3, [100, 100, 100]) == (3, False, rep.ERR_API)
    assert controller.memory.n_recs == 0  # nothing is recorded either
    assert hold.REASON_NAMES[int(controller.memory.active)] == "FailedGetExternalMetric"
    assert controller.step(3, [900, 900, 900]) == (6, True, rep.ERR_API)  # 90 / 50 * 3 = 5.4
    assert hold.REASON_NAMES[int(controller.memory.active)] == "ValidMetricFound"


def test_the_largest_proposal_wins() -> None:
    controller = Controller(HPASpec(max_replicas=20))
    controller.set_metrics(
        (rep.TYPE_RESOURCE, 1, rep.TARGET_UTILIZATION, 50), (rep.TYPE_EXTERNAL, 0, rep.TARGET_VALUE, 1000)
    )
    assert controller.step(3, [500, 500, 500], object_m=1500) == (5, True, rep.OK)  # max(3, ceil(1.5 * 3))


# --- the legacy path


def test_legacy_cap_doubles_from_four() -> None:
    controller = Controller(HPASpec(target=10, max_replicas=100))
    replicas = []
    current = 1
    for tick in range(4):
        current, _, _ = controller.step(current, [1000] * ROOM, now_s=15.1 * tick)
        replicas.append(current)
    assert replicas == [4, 8, 16, 32]


def test_first_recommendation_holds_a_scale_down_for_a_full_window() -> None:
    controller = Controller(HPASpec(target=50))
    results = [controller.step(4, [100] * 4, now_s=15.0 * tick)[0] for tick in range(22)]
    # Seeded with 4 at 0 s; at exactly 300 s (tick 20) it still counts, at 315 s no more: ceil(0.2 * 4) = 1.
    assert results == [4] * 21 + [1]


@pytest.mark.parametrize(
    ("age_ms", "legacy", "with_behavior"), [(299_999, 4, 4), (300_000, 4, 1), (300_001, 1, 1)]
)
def test_edge_of_the_stabilization_window(age_ms: int, legacy: int, with_behavior: int) -> None:
    for scale_down, expected in ((None, legacy), (HPADirection(), with_behavior)):
        controller = Controller(HPASpec(target=50, scale_down=scale_down))
        controller.recommend((4, age_ms))
        assert controller.step(4, [100] * 4)[0] == expected


def test_recommendations_are_raw_and_overwrite_the_last_expired_row() -> None:
    controller = Controller(HPASpec(target=10, max_replicas=6))
    controller.recommend((9, 400_000), (8, 301_000), (2, 1_000))
    assert controller.step(4, [1000] * 4) == (6, True, rep.OK)
    assert controller.recs["replicas"][:4].tolist() == [9, 40, 2, 0]  # 100 / 10 * 4, beyond max


def test_a_full_memory_loses_its_oldest_row() -> None:
    controller = Controller(HPASpec(target=50), room=3)
    for tick in range(5):
        controller.step(4, [500 + 100 * tick] * 4, now_s=15.0 * tick)
    # Tick 0 stores the seed and its own row. Ratios 1, 1.2, 1.4, 1.6, 1.8 times 4; the last three remain.
    assert sorted(controller.recs["replicas"].tolist()) == [6, 7, 8]
    assert controller.memory.n_recs == 3


# --- the behavior path


def test_default_rates() -> None:
    up = Controller(HPASpec(target=10, max_replicas=100, scale_up=HPADirection()))
    assert up.step(10, [1000] * 10) == (20, True, rep.OK)  # max(10 + 4, 2 * 10)
    up = Controller(HPASpec(target=10, max_replicas=100, scale_up=HPADirection()))
    assert up.step(2, [1000] * 2) == (6, True, rep.OK)  # max(2 + 4, 2 * 2)


@pytest.mark.parametrize(
    ("rules", "select", "expected"),
    [
        ([("Percent", 10, 60)], "Max", 4),  # ceil(3.3)
        ([("Pods", 5, 60), ("Percent", 100, 60)], "Max", 8),
        ([("Pods", 5, 60), ("Percent", 100, 60)], "Min", 6),
    ],
)
def test_scale_up_policies(rules: list[tuple[str, int, int]], select: str, expected: int) -> None:
    controller = Controller(HPASpec(target=10, max_replicas=100, scale_up=behavior(select, rules)))
    assert controller.step(3, [1000] * 3)[0] == expected


@pytest.mark.parametrize(
    ("rules", "select", "expected"),
    [
        ([("Percent", 50, 60)], "Max", 2),  # trunc(2.5)
        ([("Pods", 1, 60), ("Percent", 50, 60)], "Max", 2),
        ([("Pods", 1, 60), ("Percent", 50, 60)], "Min", 4),
        ([("Pods", 9, 60)], "Max", 1),  # min_replicas
    ],
)
def test_scale_down_policies(rules: list[tuple[str, int, int]], select: str, expected: int) -> None:
    controller = Controller(HPASpec(target=50, max_replicas=100, scale_down=behavior(select, rules)))
    controller.no_history()
    assert controller.step(5, [10] * 5)[0] == expected


def test_past_rescales_count_until_they_are_a_period_old() -> None:
    hpa = HPASpec(target=10, max_replicas=100, scale_up=behavior(rules=[("Pods", 2, 60)]))
    controller = Controller(hpa)
    assert controller.step(3, [1000] * 3, now_s=0.0)[0] == 5
    assert controller.step(5, [1000] * 5, now_s=59.9)[0] == 5  # 5 - 2 + 2
    assert controller.step(5, [1000] * 5, now_s=60.0)[0] == 7  # exactly a period old: gone
    assert controller.step(7, [1000] * 7, now_s=60.1)[0] == 7
    # At 60.0 s the first event was not older than the period, so it was kept and a second row was taken.
    assert controller.memory.n_up == 2


def test_stabilization_starts_from_current() -> None:
    hpa = HPASpec(target=50, scale_up=behavior(window_s=300), scale_down=behavior(window_s=300))
    controller = Controller(hpa)
    controller.recommend((3, 180_000))
    assert controller.step(2, [250, 250]) == (
        2,
        False,
        rep.OK,
    )  # proposal 1, lowest 1, highest 3: 2 is inside


def test_disabled_still_lets_the_range_be_restored() -> None:
    frozen = behavior("Disabled")
    controller = Controller(HPASpec(max_replicas=6, scale_up=frozen, scale_down=frozen))
    assert controller.step(8, [10] * 8) == (6, True, rep.OK)


# --- outside the range, at zero, faults


def test_correction_above_max_reads_no_metrics_and_stores_an_event() -> None:
    controller = Controller(HPASpec(max_replicas=6, scale_down=HPADirection()))
    assert controller.step(9, [None] * 9, now_s=1.0) == (6, True, rep.OK)
    assert controller.status_M[0].error == rep.SKIPPED
    assert controller.recs["replicas"][: controller.memory.n_recs].tolist() == [9]  # the seed alone
    assert controller.memory.n_down == 1
    assert controller.down_events[0].change == 3
    assert controller.down_events[0].t_ms == 1000


def test_correction_below_min_stores_no_event_without_behavior() -> None:
    controller = Controller(HPASpec(min_replicas=4, max_replicas=6))
    assert controller.step(1, []) == (4, True, rep.OK)
    assert controller.memory.n_up == 0


def test_zero_replicas_disable_the_hpa() -> None:
    controller = Controller(HPASpec(metric="queue", target=100.0))
    assert controller.step(0, [], object_m=10**6) == (0, False, rep.OK)
    assert controller.memory.active == hold.SCALING_DISABLED


def test_a_zero_of_its_own_is_left_again() -> None:
    controller = Controller(HPASpec(metric="queue", target=100.0), ControllerFlags(gate_scale_to_zero=True))
    controller.packed.spec["min_replicas"] = 0
    controller.no_history()
    assert controller.step(1, [None], object_m=0) == (0, True, rep.OK)
    assert controller.memory.scaled_to_zero == hold.SCALED_TO_ZERO
    assert controller.step(0, [], object_m=110_000, now_s=15.0) == (
        2,
        True,
        rep.OK,
    )  # ceil(1.1), no tolerance
    assert controller.memory.scaled_to_zero == hold.NOT_SCALED_TO_ZERO


def test_faults_stop_the_step() -> None:
    controller = Controller(HPASpec(target=50, scale_up=HPADirection()))
    assert controller.step(2, [1000, 1000], faults=FAULT_GET_SCALE)[:2] == (2, False)
    assert controller.memory.has_recs == 0  # not even seeded
    assert controller.step(2, [1000, 1000], faults=FAULT_AMBIGUOUS_SELECTOR)[:2] == (2, False)
    assert controller.memory.n_recs == 1
    assert controller.step(2, [1000, 1000], faults=FAULT_UPDATE_SCALE)[:2] == (2, False)
    assert (controller.memory.n_recs, controller.memory.n_up) == (2, 0)


def test_no_pods_and_no_samples_fail_the_metric() -> None:
    assert Controller().step(2, []) == (2, False, rep.ERR_NO_PODS)
    assert Controller().step(2, [None, None]) == (2, False, rep.ERR_ALL_UNREADY)


# --- packing


def test_pack_fills_in_the_other_direction() -> None:
    packed = pack(HPASpec(scale_up=behavior("Min", [("Pods", 1, 30)], window_s=20)))
    spec = packed.spec[0]
    assert (spec.has_behavior, spec.n_up_rules, spec.n_down_rules) == (1, 1, 1)
    assert packed.rules.tolist() == [(hold.RULE_PODS, 1, 30_000), (hold.RULE_PERCENT, 100, 15_000)]
    assert (spec.up_window_ms, spec.down_window_ms) == (20_000, 300_000)
    assert (spec.up_select, spec.down_select) == (hold.SELECT_MIN, hold.SELECT_MAX)


def test_pack_takes_whole_seconds_of_the_flag_into_a_behavior() -> None:
    spec = pack(HPASpec(scale_up=behavior()), ControllerFlags(downscale_stabilization_s=300.9)).spec[0]
    assert (spec.downscale_window_ms, spec.down_window_ms) == (300_900, 300_000)


def test_pack_keeps_an_absent_behavior_absent() -> None:
    packed = pack(HPASpec())
    assert packed.spec[0].has_behavior == 0
    assert len(packed.rules) == 0


@pytest.mark.parametrize(
    ("metric", "target", "row"),
    [
        ("cpu", 70.0, (rep.TYPE_RESOURCE, 1, rep.TARGET_UTILIZATION, 70)),
        ("queue", 100.0, (rep.TYPE_EXTERNAL, 0, rep.TARGET_VALUE, 100_000)),
        ("in_flight", 2.5, (rep.TYPE_PODS, 0, rep.TARGET_AVERAGE_VALUE, 2_500)),
    ],
)
def test_pack_metrics(metric: str, target: float, row: tuple[int, ...]) -> None:
    assert pack(HPASpec(metric=metric, target=target)).metrics_M.tolist() == [row]


# --- properties

usages = st.lists(st.one_of(st.none(), st.integers(0, 3000)), min_size=1, max_size=ROOM)
directions = st.one_of(
    st.none(),
    st.builds(
        behavior,
        st.sampled_from(["Max", "Min", "Disabled"]),
        st.one_of(
            st.none(),
            st.lists(
                st.tuples(
                    st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.sampled_from([15, 60])
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        st.sampled_from([None, 0, 30]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(directions, directions, st.lists(st.tuples(usages, st.integers(2, 9)), min_size=1, max_size=6))
def test_replicas_stay_within_the_range(
    up: HPADirection | None, down: HPADirection | None, steps: list[tuple[list[int | None], int]]
) -> None:
    controller = Controller(HPASpec(min_replicas=2, max_replicas=9, scale_up=up, scale_down=down), room=4)
    for tick, (usage, current) in enumerate(steps):
        desired, rescaled, _ = controller.step(current, usage, now_s=15.1 * tick)
        assert 2 <= desired <= 9
        assert rescaled == (desired != current)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(usages, st.integers(2, 9)), min_size=1, max_size=6))
def test_disabled_moves_nothing_within_the_range(steps: list[tuple[list[int | None], int]]) -> None:
    frozen = behavior("Disabled")
    controller = Controller(HPASpec(min_replicas=2, max_replicas=9, scale_up=frozen, scale_down=frozen))
    for tick, (usage, current) in enumerate(steps):
        assert controller.step(current, usage, now_s=15.1 * tick)[:2] == (current, False)
