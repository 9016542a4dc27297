"""The engine's memory: flat records in arrays with a leading environment axis, nothing on the heap.

Letters: E environments, U users (or request slots of an open load), P pod slots, G GPUs,
I Triton instances per pod slot, L leaves of the event tree, W scrapes kept, B latency bins, K log rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

INF = float("inf")
CLOCK_HZ = 2.0**20
"""Users act on a grid of about a microsecond.

A closed loop amplifies a last-bit difference to a different history within a minute; on the grid, rounding of
another processor, mathematics library or engine is absorbed instead, so results can be reproduced elsewhere.
"""
BINS = 256
"""Latency bins: 16 per octave from 2^-10 s to 2^6 s."""

# Users
INACTIVE, THINKING, QUEUED, EXECUTING = 0, 1, 2, 3
# Pods, in the order of ReplicaSet's deletion preference
FREE, PENDING, SCHEDULED, RUNNING, READY, TERMINATING = 0, 1, 2, 3, 4, 5
# Distribution of the GPU phase around its mean
DETERMINISTIC, LOGNORMAL, EXPONENTIAL = 0, 1, 2
# Slow events of the control plane: one time each
LEVEL, DEPLOY, RESIZE, HPA_SYNC, METRICS_SERVER, SCRAPE, DCGM_BEGIN, DCGM_END = range(8)
# What ended a call of the engine
REACHED, LOG_FULL = 0, 1

USER = np.dtype(
    [
        ("rng", "u8"),
        ("send_s", "f8"),
        ("enqueue_s", "f8"),
        ("next", "i4"),
        ("pod", "i4"),
        ("uid", "i4"),
        ("left", "i4"),
        ("state", "i4"),
    ],
    align=True,
)
EVENT = np.dtype([("t", "f8"), ("user", "i8")], align=True)
NODE = np.dtype([("key", "f8"), ("left", "i8"), ("right", "i8")], align=True)
INSTANCE = np.dtype([("head", "i8"), ("size", "i8"), ("on_gpu", "i8")], align=True)

RESOURCE = np.dtype(
    [
        ("virtual_s", "f8"),
        ("last_s", "f8"),
        ("jobs", "i8"),
        ("root", "i8"),
        ("capacity", "f8"),
        ("per_job", "f8"),
        ("shared_loss", "f8"),
        ("loss_per_job", "f8"),
        ("period_s", "f8"),
        ("quota_s", "f8"),
        ("period_end_s", "f8"),
        ("throttled", "i8"),
        ("used_s", "f8"),
        ("busy_s", "f8"),
    ],
    align=True,
)
"""A processor that jobs share: a pod's CPU under its limit, or a GPU. See engine primitives for its rules."""

POD = np.dtype(
    [
        ("rng", "u8"),
        ("state", "i8"),
        ("uid", "i8"),
        ("revision", "i8"),
        ("gpu", "i8"),
        ("life_s", "f8"),
        ("endpoint_s", "f8"),
        ("endpoint", "i8"),
        ("sigterm_s", "f8"),
        ("kill_s", "f8"),
        ("created_s", "f8"),
        ("admitted_s", "f8"),
        ("up_s", "f8"),
        ("ready_s", "f8"),
        ("head", "i8"),
        ("tail", "i8"),
        ("queued", "i8"),
        ("in_flight", "i8"),
        ("free", "i8"),
        ("batch_s", "f8"),
        ("instances", "i8"),
        ("share", "f8"),
        ("vram_bytes", "f8"),
        ("advisor_s", "f8"),
        ("seen_s", "f8"),
        ("seen_used_s", "f8"),
        ("older_s", "f8"),
        ("older_used_s", "f8"),
        ("newer_s", "f8"),
        ("newer_used_s", "f8"),
        ("scraped_in_flight", "i8"),
    ],
    align=True,
)

_F, _I = "f8", "i8"
SIM = np.dtype(
    [("rng", "u8"), ("pod_key", "u8"), ("user_key", "u8")]
    + [
        (n, _F)
        for n in (
            "t",
            "think_min_s",
            "think_span_s",
            "gpu_alpha_s",
            "gpu_beta_s",
            "gpu_sigma",
            "host_alpha_s",
            "host_beta_s",
            "half_client_s",
            "tail_median_s",
            "tail_sigma",
            "slo_s",
            "queue_delay_s",
            "queue_timeout_s",
            "usable_vram_bytes",
            "pod_vram_bytes",
            "instance_vram_bytes",
            "pod_memory_bytes",
            "node_cpu_cores",
            "schedule_min_s",
            "schedule_span_s",
            "start_mu",
            "start_sigma",
            "probe_delay_s",
            "probe_period_s",
            "endpoint_min_s",
            "endpoint_span_s",
            "prestop_s",
            "grace_s",
            "resize_delay_s",
            "api_delay_s",
            "cfs_period_s",
            "gpu_shared_loss",
            "gpu_loss_per_job",
            "gpu_capacity",
            "request_per_limit",
            "cpu_limit",
            "cpu_applied",
            "gpu_share",
            "hpa_target",
            "scrape_s",
            "metrics_server_s",
            "hpa_sync_s",
            "dcgm_s",
            "dcgm_window_s",
            "latency_sum_s",
            "queue_sum_s",
            "cpu_gone_s",
            "accrued_s",
            "alive_s",
            "ready_s",
            "limit_s",
            "vram_s",
            "vram_bytes",
            "gpu_seen",
            "gpu_seen_at_s",
            "dcgm_busy_s",
        )
    ]
    + [
        (n, _I)
        for n in (
            "users",
            "pods",
            "gpus",
            "instances_max",
            "leaves",
            "level",
            "target_users",
            "is_open",
            "arrival",
            "free_slot",
            "gpu_dist",
            "max_batch",
            "preferred_mask",
            "preferred_max",
            "queue_size",
            "connection_requests",
            "mps",
            "replicas",
            "instances",
            "revision",
            "hpa_on",
            "hpa_metric",
            "events",
            "endpoints",
            "uid",
            "alive",
            "completed",
            "failed",
            "slow",
            "batches",
            "in_flight",
            "scrapes",
            "window",
            "log_rows",
            "record",
            "surge_percent",
            "unavailable_percent",
            "ticks",
        )
    ],
    align=True,
)


class Env(NamedTuple):
    """Everything the engine reads and writes; arrays start with axis E, then as written."""

    sim_E: NDArray[Any]
    users_EU: NDArray[Any]
    events_EU: NDArray[Any]  # 4-ary heap of the next arrivals
    pods_EP: NDArray[Any]
    instances_EPI: NDArray[Any]
    nodes_EPI: NDArray[Any]  # skew-heap nodes, one per instance
    resources_ER: NDArray[Any]  # P pod CPUs, then G GPUs
    endpoints_EP: NDArray[np.int64]
    tree_t_EL: NDArray[np.float64]
    tree_leaf_EL: NDArray[np.int64]
    slow_E8: NDArray[np.float64]
    histogram_EB: NDArray[np.int64]
    scraped_EWC: NDArray[np.float64]
    scraped_histogram_EWB: NDArray[np.int64]
    log_start_EK: NDArray[np.float64]
    log_latency_EK: NDArray[np.float64]
    log_status_EK: NDArray[np.int8]
    level_s_EV: NDArray[np.float64]
    level_users_EV: NDArray[np.int64]
    arrival_s_EN: NDArray[np.float64]
    hpa_spec_E: NDArray[Any]
    hpa_metric_EM: NDArray[Any]  # M = 1 metric
    hpa_rules_ER: NDArray[Any]
    hpa_memory_E: NDArray[Any]  # one row more than E: the last stays blank
    hpa_recs_ER: NDArray[Any]
    hpa_up_ER: NDArray[Any]
    hpa_down_ER: NDArray[Any]
    hpa_pods_EP: NDArray[Any]
    hpa_value_EMP: NDArray[np.int64]
    hpa_sample_ms_EMP: NDArray[np.int64]
    hpa_window_ms_EMP: NDArray[np.int64]
    hpa_has_EMP: NDArray[Any]
    hpa_request_EMP: NDArray[np.int64]
    hpa_object_EM: NDArray[np.int64]
    hpa_object_ok_EM: NDArray[Any]
    hpa_status_EM: NDArray[Any]
    tick_histogram_EB: NDArray[np.int64]
    tick_account_EC: NDArray[np.float64]
    control_histogram_EB: NDArray[np.int64]
    control_account_EC: NDArray[np.float64]


ACCOUNT = (
    "t",
    "completed",
    "failed",
    "slow",
    "latency_sum_s",
    "queue_sum_s",
    "batches",
    "cpu_used_s",
    "alive_s",
    "ready_s",
    "limit_s",
    "vram_s",
    "gpu_busy_s",
)
"""Columns of an account: everything that only grows; an interval is the difference of two accounts."""
SCRAPED = (
    "t",
    "completed",
    "failed",
    "slow",
    "latency_sum_s",
    "queue_sum_s",
    "batches",
    "cpu_used_s",
    "in_flight",
)
"""Columns of one Prometheus scrape: cumulative counters and one gauge."""
