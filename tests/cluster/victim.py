"""A trial's process: takes the cluster, uses every lever, and waits to be killed.

python victim.py KUBECONFIG
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import numpy as np

from gpusched.cluster.microk8s import hold as holds
from gpusched.cluster.microk8s.actuator import Target
from gpusched.cluster.microk8s.client import Access, Deadline
from gpusched.cluster.microk8s.desired import wanted
from gpusched.cluster.microk8s.hold import Hold
from gpusched.core.controls import Controls, HPASpec, Limits


def terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # as gpusched.tracking.run hears it


def act(one: Hold, controls: Controls) -> None:
    one.apply(wanted(controls, Limits()), Deadline(5), 1)


def main() -> None:
    holds.FORGET_S = 0.0  # nothing here depends on what a controller remembers
    signal.signal(signal.SIGTERM, terminate)
    one = Hold(
        Access(kubeconfig=sys.argv[1]),
        Target(namespace=sys.argv[2], deployment="triton", container="triton"),
        "victim",
    )
    try:
        one.take(10)
        controls = Controls.scale([4])
        controls.cpu_cores_E, controls.instances_E = np.array([0.05]), np.array([2])
        act(one, controls)
        act(one, Controls.autoscale(HPASpec(target=33), 1))
        print("busy", flush=True)
        time.sleep(60)
    finally:
        one.give_back(10)
        print("given back", flush=True)


if __name__ == "__main__":
    main()
