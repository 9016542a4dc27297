"""How much memory an environment takes: every array the engine works in, allocated once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sim import hpa
from gpusched.sim.records import ACCOUNT, BINS, EVENT, INSTANCE, NODE, POD, RESOURCE, SCRAPED, SIM, USER, Env

HPA_RULES, HPA_RECS, HPA_EVENTS = 16, 512, 512


def allocate(*, envs: int, pods: int, gpus: int, instances: int, window: int) -> Env:
    """Return zeroed arrays for `pods` slots of `instances` each; what a load needs grows at its reset."""
    E, P, slots = envs, pods, pods * instances
    leaves = 1 << (P + gpus + 1).bit_length()
    users = levels = arrivals = log_rows = 1

    def zeros(*shape: int, dtype: Any = np.float64) -> NDArray[Any]:
        return np.zeros((E, *shape), dtype=dtype)

    return Env(
        sim_E=zeros(dtype=SIM),
        users_EU=zeros(users, dtype=USER),
        events_EU=zeros(users + 1, dtype=EVENT),
        pods_EP=zeros(P, dtype=POD),
        instances_EPI=zeros(slots, dtype=INSTANCE),
        nodes_EPI=zeros(slots, dtype=NODE),
        resources_ER=zeros(P + gpus, dtype=RESOURCE),
        endpoints_EP=zeros(P, dtype=np.int64),
        tree_t_EL=zeros(2 * leaves),
        tree_leaf_EL=zeros(2 * leaves, dtype=np.int64),
        slow_E8=zeros(8),
        histogram_EB=zeros(BINS, dtype=np.int64),
        scraped_EWC=zeros(window, len(SCRAPED)),
        scraped_histogram_EWB=zeros(window, BINS, dtype=np.int64),
        log_start_EK=zeros(log_rows),
        log_latency_EK=zeros(log_rows),
        log_status_EK=zeros(log_rows, dtype=np.int8),
        level_s_EV=zeros(levels),
        level_users_EV=zeros(levels, dtype=np.int64),
        arrival_s_EN=zeros(arrivals),
        hpa_spec_E=zeros(dtype=hpa.SPEC),
        hpa_metric_EM=zeros(1, dtype=hpa.METRIC),
        hpa_rules_ER=zeros(HPA_RULES, dtype=hpa.RULE),
        hpa_memory_E=np.zeros(E + 1, dtype=hpa.MEMORY),
        hpa_recs_ER=zeros(HPA_RECS, dtype=hpa.REC),
        hpa_up_ER=zeros(HPA_EVENTS, dtype=hpa.EVENT),
        hpa_down_ER=zeros(HPA_EVENTS, dtype=hpa.EVENT),
        hpa_pods_EP=zeros(P, dtype=hpa.POD),
        hpa_value_EMP=zeros(1, P, dtype=np.int64),
        hpa_sample_ms_EMP=zeros(1, P, dtype=np.int64),
        hpa_window_ms_EMP=zeros(1, P, dtype=np.int64),
        hpa_has_EMP=zeros(1, P, dtype=np.bool_),
        hpa_request_EMP=zeros(1, P, dtype=np.int64),
        hpa_object_EM=zeros(1, dtype=np.int64),
        hpa_object_ok_EM=zeros(1, dtype=np.int64),
        hpa_status_EM=zeros(1, dtype=hpa.STATUS),
        tick_histogram_EB=zeros(BINS, dtype=np.int64),
        tick_account_EC=zeros(len(ACCOUNT)),
        control_histogram_EB=zeros(BINS, dtype=np.int64),
        control_account_EC=zeros(len(ACCOUNT)),
    )
