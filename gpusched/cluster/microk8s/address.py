"""Where the service and Prometheus answer, seen from outside the pods' network or on the node itself."""

from __future__ import annotations

from gpusched.cluster.microk8s.client import Api, Deadline
from gpusched.cluster.microk8s.failures import ApiFailure
from gpusched.cluster.microk8s.kinds import NODES, SERVICES, Dict, dig, name_of
from gpusched.core.errors import ClusterError

MONITORING = ("observability", "monitoring")
"""Namespaces Prometheus is looked for in: the MicroK8s addon's, and the one most charts are installed to."""
PROMETHEUS = ("app.kubernetes.io/name=prometheus", "app=kube-prometheus-stack-prometheus")


def service_url(api: Api, namespace: str, name: str, deadline: Deadline) -> str:
    """Return "host:port" of a Service's HTTP port; ClusterError where nothing can reach it."""
    service = api.get(SERVICES, namespace, name, deadline)
    if service is None:
        raise ClusterError(
            f"Service {name} in namespace {namespace}: not found, so users have nowhere to send. Apply manifests/, or say "
            "where Triton answers: cluster.service=NAME or cluster.url=HOST:PORT."
        )
    port = http_port(service)
    kind = dig(service, "spec", "type")
    ingress = (dig(service, "status", "loadBalancer", "ingress") or [{}])[0]
    if kind == "LoadBalancer" and (host := ingress.get("ip") or ingress.get("hostname")):
        return f"{_host(host)}:{port['port']}"
    if kind in ("NodePort", "LoadBalancer") and port.get("nodePort"):
        return f"{_host(node_ip(api, deadline))}:{port['nodePort']}"
    return cluster_ip(service, port, namespace, name)


def http_port(service: Dict) -> Dict:
    """Return the Service's port called http, else its first."""
    ports = dig(service, "spec", "ports") or []
    if not ports:
        raise ClusterError(f"Service {name_of(service)}: has no ports.")
    return next((dict(p) for p in ports if p.get("name") in ("http", "web", "http-web")), dict(ports[0]))


def cluster_ip(service: Dict, port: Dict, namespace: str, name: str) -> str:
    """Return the address inside the cluster, which the cluster's own machine reaches too."""
    host = dig(service, "spec", "clusterIP")
    if not host or host == "None":
        raise ClusterError(
            f"Service {name} in namespace {namespace}: is headless, it has no address of its own. "
            "Give it one, or say where it answers: cluster.url=HOST:PORT."
        )
    return f"{_host(str(host))}:{port['port']}"


def node_ip(api: Api, deadline: Deadline) -> str:
    """Return the address of a node, for a NodePort."""
    nodes = api.list(NODES, "", deadline)
    for node in nodes:
        for address in dig(node, "status", "addresses") or []:
            if address.get("type") == "InternalIP":
                return str(address["address"])
    raise ClusterError(
        "no node tells an InternalIP, so the Service's node port cannot be reached. Set cluster.url=HOST:PORT."
    )


def prometheus_url(api: Api, deadline: Deadline) -> str:
    """Return "http://host:port" of the cluster's Prometheus; ClusterError with the cure where none is found."""
    hidden: ApiFailure | None = None
    for namespace in MONITORING:
        for label in PROMETHEUS:
            try:
                found = api.list(SERVICES, namespace, deadline, labelSelector=label)
            except ApiFailure as refused:
                if refused.status != 403:
                    raise
                hidden = hidden or refused
                continue
            for service in found:
                if dig(service, "spec", "clusterIP") not in (None, "None"):
                    return f"http://{cluster_ip(service, http_port(service), namespace, name_of(service))}"
    if hidden is not None:
        raise ClusterError(f"{hidden} Or say where it answers: cluster.prometheus=URL.")
    raise ClusterError(
        f"no Prometheus found in the namespaces {' and '.join(MONITORING)} (Services labelled {' or '.join(PROMETHEUS)}). "
        "Install it (install.sh, or microk8s enable observability), or say where it answers: cluster.prometheus=URL."
    )


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
