"""The Kubernetes cluster under contract, over an emulated API server, a Triton-speaking server and a real Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from contract import Case, Session, configured, service
from scene import cluster as emulated
from scene import deployment

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))

from triton_double import TritonDouble

from gpusched.core.controls import Limits
from gpusched.core.load import LoadPlan
from gpusched.core.ports import Cluster
from gpusched.core.trial import TrialSpec

NAME = "microk8s"
MARKS = ()
TRIAL = TrialSpec(duration_s=8.0, warmup_s=2.0, control_s=2.0, tick_s=1.0, start_replicas=2)
POD = "triton-5d4f7c9b8d-abcde"


class OnePod(TritonDouble):
    """Its metrics carry the labels that a pod's ServiceMonitor gives them."""

    def metrics(self) -> str:
        return super().metrics().replace('{model="m"', '{namespace="gpusched",model="m"')


@contextmanager
def opened(session: Session) -> Iterator[Case]:
    prometheus = session.fixture("prometheus")
    triton = OnePod(0.05, prometheus.port(), POD)
    prometheus.wait_for(f'nv_inference_request_success{{pod="{POD}"}}')
    with emulated(("deployments", deployment(1))) as emulator:
        kubeconfig = emulator.kubeconfig(session.folders.mktemp("kube") / "config")
        kind, config = configured(
            "microk8s", f"cluster.kubeconfig={kubeconfig}", f"cluster.url={triton.url}", f"cluster.prometheus={prometheus.url}",
            "cluster.scrape_s=0.2", "cluster.window_s=1.0", "cluster.cpu_window_s=1.0", "cluster.ready_timeout_s=10",
            "cluster.endpoint={model: m, input: x, shape: [3, 8, 8], dtype: UINT8, output: y}",
        )  # fmt: skip

        def make(envs: int = 1) -> Cluster:
            return kind(config, service=service(), trial=TRIAL, limits=Limits(), slo_s=0.3, envs=envs)

        plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.array([10]), think_min_s=0.05, think_max_s=0.15)
        try:
            yield Case(make=make, trial=TRIAL, plan=plan)
        finally:
            triton.stop()
