"""Kubernetes: the adapter, split by what each part does to the API."""

from gpusched.cluster.microk8s.cluster import Microk8sCluster

__all__ = ["Microk8sCluster"]
