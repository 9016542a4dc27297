"""Real Triton servers as processes on this host, behind HAProxy, watched by Prometheus."""

from gpusched.cluster.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
