"""The engine's memory: one record per environment, pod, user, instance and processor; nothing on the heap.

Few arrays with large records, rather than many arrays: every array handed to a compiled function costs
compile time at each call, and forty of them made the engine take a minute to compile.

An environment is one service. Several that follow one another may form a fleet, which shares nodes and GPUs; by
default every environment is a fleet of its own. What is shared lies on axis F, and whatever of it belongs to one
service is numbered through: service s of a fleet has the users s·U ..., the pods s·P ... and their instances.

Letters: E environments, F fleets, U users (or request slots of an open load), P pod slots, G GPUs of all nodes,
M machines, I Triton instances per pod slot, L leaves of the event tree, W scrapes kept, B latency bins, K log rows,
D moments of a fault plan.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.sim import hpa

INF = float("inf")
CLOCK_HZ = 2.0**20
"""Users act on a grid of about a microsecond.

A closed loop amplifies a last-bit difference to a different history within a minute; on the grid, rounding of
another processor, mathematics library or engine is absorbed instead, so results can be reproduced elsewhere.
"""
BINS = 256
"""Latency bins: 16 per octave from 2^-10 s to 2^6 s."""
SCRAPES = 32
"""Prometheus scrapes kept, the most a window can span."""
READINGS = 16
"""cAdvisor readings kept of a pod; a delay of the metrics must fit into them."""
NEIGHBOURS = 4
"""Most foreign processes on one GPU."""
HPA_RULES, HPA_RECS, HPA_EVENTS = 16, 512, 512

# Users
INACTIVE, THINKING, QUEUED, EXECUTING = 0, 1, 2, 3
# Pods, in the order of ReplicaSet's deletion preference
FREE, PENDING, SCHEDULED, RUNNING, READY, TERMINATING = 0, 1, 2, 3, 4, 5
# The batch Triton's batcher adds to: none yet, one that an instance may take at any time, or one that is closed
NONE_YET, GROWING, CLOSED = 0, 1, 2
# Distribution of the GPU phase around its mean
DETERMINISTIC, LOGNORMAL, EXPONENTIAL = 0, 1, 2
# Slow events of the control plane: one time each
LEVEL, DEPLOY, RESIZE, HPA_SYNC, METRICS_SERVER, SCRAPE, DCGM_BEGIN, DCGM_END, FAULT = range(9)
# How a fault ends a pod
SURVIVES, CRASHES, EVICTED = 0, 1, 2
# What ended a call of the request loop
REACHED, LOG_FULL, SLOW_EVENT = 0, 1, 2

ACCOUNT = (
    "t", "completed", "failed", "slow", "latency_sum_s", "queue_sum_s", "batches", "cpu_used_s", "alive_s",
    "ready_s", "limit_s", "vram_s", "gpu_busy_s",
)  # fmt: skip
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
    "lost",
)
"""Columns of one Prometheus scrape: cumulative counters, one gauge, and whether the scrape failed."""
LOST = SCRAPED.index("lost")
GPU_SAMPLE = ("t", "busy", "vram_bytes", "lost")
"""Columns of one DCGM sample."""


def fields(floats: str = "", integers: str = "", states: str = "") -> list[tuple[str, str]]:
    """Declare fields by name: float64, int64, and uint64 for random states."""
    kinds = (("u8", states), ("f8", floats), ("i8", integers))
    return [(name, kind) for kind, names in kinds for name in names.split()]


def whole_lines(declared: list[tuple[str, str]]) -> np.dtype[Any]:
    """Return a record padded to whole cache lines of 64 bytes, so that no two of an array share one."""
    spare = -np.dtype(declared, align=True).itemsize % 64 // 8
    padding: list[Any] = [("spare", "f8", (spare,))] if spare else []
    return np.dtype([*declared, *padding], align=True)


USER = np.dtype(
    [("rng", "u8"), ("send_s", "f8"), ("enqueue_s", "f8"), ("next", "i4"), ("pod", "i4"), ("uid", "i4"),
     ("left", "i4"), ("state", "i4"), ("service", "i4")],
    align=True,
)  # fmt: skip
"""`next`, `pod` and every other number of a user or pod count through the fleet; `service` is the place in it."""
EVENT = np.dtype([("t", "f8"), ("user", "i8")], align=True)
TREE = np.dtype([("t", "f8"), ("leaf", "i8")], align=True)
LEVELS = np.dtype([("from_s", "f8"), ("users", "i8")], align=True)
LOG = np.dtype([("start_s", "f8"), ("latency_s", "f8"), ("status", "i8")], align=True)

FAULTS = np.dtype(
    fields(
        "from_s gpu_speed host_alpha_s host_beta_s start_factor stolen_cores metric_delay_s draw",
        "neighbours metrics_lost death",
    ),
    align=True,
)
"""One moment of a core.fault.FaultPlan: what holds from then on, and how the ready pod that `draw` picks ends."""

INSTANCE = np.dtype([*fields("key", "head size on_gpu left right"), ("closed", "i4", (2,))], align=True)
"""A Triton instance: its batch (or the next free instance), and its node in a processor's skew heap.

`closed`: room for the sizes of two batches formed ahead; those of all a pod's instances are one ring (triton.py).
"""

RESOURCE = whole_lines(
    fields(
        "virtual_s last_s rate capacity per_job shared_loss loss_per_job period_s quota_s period_end_s used_s busy_s",
        "jobs root throttled next",
    )
)
"""A processor that jobs share: a pod's CPU under its limit, or a GPU. Its rules stand in primitives.

`rate` is what `share_rate` gives for its jobs, `next` what happens there next: both of the last look at it.
"""

POD = whole_lines(
    [
        *fields(
            "life_s endpoint_s sigterm_s kill_s created_s admitted_s up_s ready_s turned_s batch_s share vram_bytes "
            "advisor_s backoff_s backoff_at_s",
            "state uid revision gpu endpoint listed head tail queued in_flight free instances restarts service",
            states="rng",
        ),
        *((name, "i4") for name in ("waiting", "ahead")),
        *((name, "i2") for name in ("first_closed", "closed", "wanted")),
        *((name, "i1") for name in ("current", "awake")),
    ]
)
"""A pod slot. `endpoint` is its place in the Service's list, `listed` the slot that stands at this place.

`ready_s` is -INF while the pod is not ready, `turned_s` when that last changed. `queued` requests wait in the chain from
`head` to `tail`. Where Triton forms batches ahead, the first `ahead` of them are in `closed` batches already, and
`waiting` is the first one that is not; the last three are the batcher's (triton.py).
"""

METER = np.dtype(
    [("seen_s", "f8", (READINGS,)), ("seen_used_s", "f8", (READINGS,)), ("in_flight", "i8", (SCRAPES,)),
     *fields("older_s older_used_s newer_s newer_used_s", "readings")],
    align=True,
)  # fmt: skip
"""What monitoring has of a pod slot: cAdvisor's readings, metrics-server's last two of them, and the scraped gauge."""

MACHINE = np.dtype(
    fields("cores held_bytes", "milli_cores memory_bytes matching score seen resume", states="rng"),
    align=True,
)
"""What is counted of a node or GPU in passing.

Of a node, when the scheduler looks for a place (schedule): CPU and memory requested, pods of the same ReplicaSet, score;
of a GPU: VRAM held, and whether a service stands on it. `resume` and `rng`, of the first node only: where the next
search begins, and the draws among equals.
"""

FLEET_TICK = (
    "t", "gpu_busy", "vram_bytes", "pods_pending", "vram_fragmented", "vram_free", "cores_stranded", "cores_free",
)  # fmt: skip
"""Columns of a fleet's own tick log (readout.fleet_tick); `schedule.fragments` defines the last four."""

HPA = np.dtype(
    [("spec", hpa.SPEC), ("metrics", hpa.METRIC, (1,)), ("rules", hpa.RULE, (HPA_RULES,)), ("memory", hpa.MEMORY),
     ("recs", hpa.REC, (HPA_RECS,)), ("up", hpa.EVENT, (HPA_EVENTS,)), ("down", hpa.EVENT, (HPA_EVENTS,))],
    align=True,
)  # fmt: skip
"""An HPA object and what its controller remembers."""

_CONSTANTS = fields(
    "think_min_s think_span_s gpu_alpha_s gpu_beta_s gpu_sigma host_alpha_s host_beta_s half_client_s tail_median_s "
    "tail_sigma slo_s queue_delay_s queue_timeout_s usable_vram_bytes pod_vram_bytes instance_vram_bytes "
    "pod_memory_bytes node_cpu_cores node_memory_bytes schedule_min_s schedule_span_s start_mu start_sigma probe_delay_s "
    "probe_period_s endpoint_min_s endpoint_span_s prestop_s grace_s resize_delay_s api_delay_s cfs_period_s "
    "gpu_shared_loss gpu_loss_per_job gpu_capacity request_per_limit scrape_s metrics_server_s hpa_sync_s dcgm_s "
    "dcgm_window_s",
    "pods gpus nodes devices services lead fleet first_pod first_user instances_max leaves is_open gpu_dist max_batch preferred_max queue_size "
    "connection_requests mps window record prefetching surge_percent unavailable_percent",
    states="pod_key user_key preferred_mask",
)
_STATE = fields(
    "t cpu_limit cpu_applied gpu_share hpa_target latency_sum_s queue_sum_s cpu_gone_s accrued_s alive_s ready_s "
    "limit_s vram_s vram_bytes dcgm_busy_s device_busy_s device_sum_s device_s due_s",
    "level target_users arrival free_slot replicas instances revision hpa_on hpa_metric events endpoints uid "
    "completed failed slow batches in_flight scrapes log_rows ticks unscheduled",
    states="rng",
)
_TROUBLE = fields(
    "gpu_speed start_factor stolen_cores metric_delay_s frozen_s scraped_s sampled_s",
    "fault neighbours metrics_lost samples ring",
)
SIM = np.dtype(
    [*_CONSTANTS, *_STATE, *_TROUBLE]
    + [("slow_s", "f8", (FAULT + 1,)), ("histogram", "i4", (BINS,))]
    + [(f"{k}_histogram", "i4", (BINS,)) for k in ("tick", "control")]
    + [(f"{k}_account", "f8", (len(ACCOUNT),)) for k in ("tick", "control")]
    + [
        ("scraped", "f8", (SCRAPES, len(SCRAPED))),
        ("scraped_histogram", "i4", (SCRAPES, BINS)),
        ("sampled", "f8", (SCRAPES, len(GPU_SAMPLE))),
        ("hpa", HPA),
    ],
    align=True,
)
"""An environment: its service's constants, its state, what was counted and scraped, and its HPA.

lead, fleet, services   the fleet it belongs to: its first environment, its place on axis F, its size
first_pod, first_user   where its own begin in the fleet's numbering
gpus, nodes             of the whole fleet; `pods` are the slots of this service
devices                 what a sum of GPU time is divided by for a mean: all GPUs, or 1 where it is a mean already
unscheduled             a pod waits for a node, or what it waits for may have come free
due_s                   next event of its control plane
device_busy_s           mean busy time of the GPUs its pods stand on, up to device_s, when these last changed;
                        device_sum_s is the sum of their own counters then
"""


class Env(NamedTuple):
    """Everything the engine reads and writes; arrays start with axis E, what a fleet shares with axis F."""

    sim_E: NDArray[Any]
    users_EU: NDArray[Any]
    pods_EP: NDArray[Any]
    meters_EP: NDArray[Any]
    log_EK: NDArray[Any]
    levels_EV: NDArray[Any]
    faults_ED: NDArray[Any]
    arrival_s_EN: NDArray[np.float64]
    events_FU: NDArray[Any]  # 4-ary heap of the next arrivals
    instances_FI: NDArray[Any]  # I of pod 0, I of pod 1, ..., then each GPU's neighbours
    resources_FR: NDArray[Any]  # the CPUs of all pods, then G GPUs
    tree_FL: NDArray[Any]  # tournament over the resources, root at 1
    machines_FM: NDArray[Any]  # N nodes, then G GPUs
