"""What the pods' nodes tell of their GPU, and whether a share of it can be set at all."""

from __future__ import annotations

from gpusched.cluster.microk8s.kinds import Dict, dig, name_of
from gpusched.core.errors import ClusterError

STRATEGY = "nvidia.com/gpu.sharing-strategy"
REPLICAS = "nvidia.com/gpu.replicas"
"""Labels that GPU feature discovery writes: none, time-slicing or mps, and how many share one GPU."""


def check_share(share: float, nodes: list[Dict]) -> None:
    """Raise ClusterError unless every node shares its GPU by MPS and can give this share of it.

    The device plugin's MPS daemon already limits each of the n sharers to floor(100/n) % of the threads; a client can
    only lower that (NVIDIA k8s-device-plugin, cmd/mps-control-daemon; CUDA MPS documentation).
    """
    if not nodes:
        raise ClusterError(
            "gpu_share: no pod runs on a node yet, so nothing says whether the GPU is shared by MPS."
        )
    for node in nodes:
        strategy = dig(node, "metadata", "labels", STRATEGY)
        if strategy != "mps":
            raise ClusterError(
                f"gpu_share: node {name_of(node)} does not share its GPU by MPS (label {STRATEGY} = {strategy!r}), so a "
                "share has no effect. Set up MPS (manifests/overlays/mps), or leave action.gpu_shares at [1.0]."
            )
        sharers = int(dig(node, "metadata", "labels", REPLICAS) or 1)
        most = (100 // max(sharers, 1)) / 100
        if share > most:
            raise ClusterError(
                f"gpu_share = {share:g}: node {name_of(node)} lets {sharers} pods share a GPU, so MPS gives one at most "
                f"{most:g}. Offer at most that in action.gpu_shares, or set fewer MPS replicas."
            )
