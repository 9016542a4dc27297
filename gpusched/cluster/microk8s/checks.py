"""The doctor's checks of a Kubernetes cluster: everything a trial needs of it, looked at and left alone."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable

from gpusched.cluster.microk8s import address
from gpusched.cluster.microk8s.client import Deadline
from gpusched.cluster.microk8s.failures import ApiFailure, Unreachable
from gpusched.cluster.microk8s.gpu import STRATEGY
from gpusched.cluster.microk8s.hold import Hold
from gpusched.cluster.microk8s.journal import NAME as JOURNAL
from gpusched.cluster.microk8s.journal import Journal
from gpusched.cluster.microk8s.kinds import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HPAS,
    NODES,
    PODS,
    RESIZE,
    SCALE,
    SERVICES,
    Dict,
    Kind,
    dig,
    name_of,
    selector,
)
from gpusched.cluster.microk8s.quantities import number
from gpusched.core.check import FAIL, OK, WARN, Check
from gpusched.core.errors import ClusterError
from gpusched.core.service import Service

LOOK_S = 10.0
OVERRIDES = "gpusched.io/service-overrides"
"""The annotation in which manifests/ tell, as words of the command line, where the pods differ from the shipped profile."""
SENTENCE_END = re.compile(r"\. (?![^(]*\))")
"""Not within brackets."""
METRICS_S = 3.0
REVIEWS = Kind(
    root="/apis/authorization.k8s.io/v1",
    plural="selfsubjectaccessreviews",
    kind="SelfSubjectAccessReview",
    namespaced=False,
)
POD_METRICS = Kind(root="/apis/metrics.k8s.io/v1beta1", plural="pods", kind="PodMetrics")
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1"
CUSTOM = "/apis/custom.metrics.k8s.io/v1beta1"
SEEN, UNKNOWN, HIDDEN = "seen", "unknown", "may not be looked at"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""To Triton without a proxy, as trials go; NO_PROXY of a network in CIDR form, as MicroK8s' own guide has it, urllib does not read."""
GPUS = ("nvidia.com/gpu", "nvidia.com/gpu.shared")

RIGHTS = (
    *((verb, DEPLOYMENTS) for verb in ("get", "list", "watch", "patch")),
    ("patch", SCALE),
    *((verb, HPAS) for verb in ("get", "list", "create", "patch", "delete")),
    ("list", PODS),
    ("patch", RESIZE),
    *((verb, CONFIGMAPS) for verb in ("get", "create", "patch", "delete")),
    ("get", SERVICES),
)
"""Everything a trial asks of the API server inside its namespace."""
EXCESS = (
    ("get", Kind(root="/api/v1", plural="secrets", kind="Secret")),
    ("delete", DEPLOYMENTS),
    ("create", Kind(root="/api/v1", plural="pods", kind="Pod", sub="exec")),
)
"""Rights no trial asks for; an account that has them has more than it needs."""


def run(hold: Hold, service: str, url: str, most: int) -> list[Check]:
    """Return every check of the cluster; without an API server the rest cannot be looked at.

    service, url  the Service's name, and its address where one is configured
    most          replicas a trial may ask for
    """
    first = _guarded("API server", lambda: _server(hold))
    if first.status == FAIL:
        return [first]
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("rights", lambda: _rights(hold, service)),
        ("Deployment", lambda: _deployment(hold)),
        ("autoscalers", lambda: _autoscalers(hold)),
        ("journal", lambda: _journal(hold)),
        ("GPUs", lambda: _gpus(hold, most)),
        ("Service", lambda: _service(hold, service, url)),
        ("HPA metrics", lambda: _hpa_metrics(hold)),
    ]
    return [first, *(_guarded(name, look) for name, look in looks)]


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """Return the check; what keeps it from being made fails it."""
    try:
        return look()
    except ClusterError as error:
        what, *cure = SENTENCE_END.split(str(error), maxsplit=1)
        return Check(name=name, status=FAIL, detail=f"{what.removesuffix('.')}.", cure="".join(cure))


def profile(hold: Hold, service: Service) -> Check:
    """Compare the service profile with what the Deployment's annotation OVERRIDES says of its pods."""
    return _guarded("service profile", lambda: _profile(hold, service))


def _profile(hold: Hold, service: Service) -> Check:
    told = str(dig(hold.look(), "metadata", "annotations", OVERRIDES) or "")
    own = {f"service.{name}.value": constant.value for name, constant in service.constants().items()}
    said = dict(word.partition("=")[::2] for word in told.split())
    unlike = [f"{key}={value}" for key, value in said.items() if own.get(key) != number(value)]
    if not unlike:
        return Check(name="service profile", status=OK, detail=f"{service.name}: nothing known against it")
    return Check(name="service profile", status=WARN,
                 detail=f"{service.name} does not say how these pods are set up: PPO would be trained on others, and calibrated start-up times be wrong",
                 cure=f"Add to every command: {' '.join(unlike)}")  # fmt: skip


def _server(hold: Hold) -> Check:
    how = "pods are resized in place" if hold.server.resize else "a new CPU size is a rollout"
    return Check(name="API server", status=OK, detail=f"Kubernetes {hold.server} at {hold.api.host}; {how}")


def _may(hold: Hold, service: str, verb: str, kind: Kind) -> bool:
    """Ask the API server whether we may."""
    names = {CONFIGMAPS: JOURNAL, SERVICES: service}
    nameless = verb in ("create", "list", "watch") or kind in (PODS, RESIZE)
    asked = {
        "namespace": hold.target.namespace, "verb": verb, "group": kind.group, "resource": kind.plural,
        "subresource": kind.sub, "name": "" if nameless else names.get(kind, hold.target.deployment),
    }  # fmt: skip
    body = {
        "apiVersion": REVIEWS.api_version,
        "kind": REVIEWS.kind,
        "spec": {"resourceAttributes": asked},
    }
    answer = hold.api.call("create", REVIEWS, body=body, deadline=Deadline(LOOK_S))
    return bool(dig(answer, "status", "allowed"))


def _rights(hold: Hold, service: str) -> Check:
    missing = [f"{verb} {kind}" for verb, kind in RIGHTS if not _may(hold, service, verb, kind)]
    if missing:
        return Check(name="rights", status=FAIL, detail=f"missing in {hold.target.namespace}: {', '.join(missing)}",
                     cure="Use the service account of manifests/base, whose Role has them.")  # fmt: skip
    more = [f"{verb} {kind}" for verb, kind in EXCESS if _may(hold, service, verb, kind)]
    if more:
        return Check(name="rights", status=WARN, detail=f"more than needed, such as {', '.join(more)}",
                     cure="A trial needs no administrator: use the service account of manifests/base.")  # fmt: skip
    return Check(name="rights", status=OK, detail=f"all {len(RIGHTS)} that a trial needs, and no more")


def _deployment(hold: Hold) -> Check:
    deployment = hold.look()
    ready = dig(deployment, "status", "readyReplicas") or 0
    want = dig(deployment, "spec", "replicas")
    status = OK if ready else WARN
    cure = "" if ready else f"kubectl describe pods -n {hold.target.namespace}"
    return Check(name="Deployment", status=status, detail=f"{hold.target}: {ready} of {want} replicas ready", cure=cure)  # fmt: skip


def _autoscalers(hold: Hold) -> Check:
    found = hold.autoscalers(Deadline(LOOK_S))
    names = ", ".join(name_of(hpa) for hpa in found)
    detail = f"{names}: set aside during a trial" if found else "none besides a trial's own"
    return Check(name="autoscalers", status=OK, detail=detail)


def _journal(hold: Hold) -> Check:
    journal = Journal(hold.api, hold.target.namespace, hold.owner)
    found = journal.read(Deadline(LOOK_S))
    if found is None:
        return Check(name="journal", status=OK, detail="nobody holds the cluster")
    journal.refuse_if_held(found)
    return Check(name="journal", status=WARN, detail="a trial ended without giving the cluster back",
                 cure="The next trial does it first, or: python run.py job=restore cluster=microk8s")  # fmt: skip


def _gpus(hold: Hold, most: int) -> Check:
    try:
        nodes = hold.api.list(NODES, "", Deadline(LOOK_S))
    except ApiFailure as refused:
        if refused.status != 403:
            raise
        return Check(
            name="GPUs", status=WARN, detail="nodes may not be listed", cure="Look at them as administrator."
        )
    shares = {name_of(node): _shares(node) for node in nodes}
    total = sum(shares.values())
    told = ", ".join(f"{name_of(n)}: {shares[name_of(n)]} ({dig(n, 'metadata', 'labels', STRATEGY) or 'not shared'})"
                     for n in nodes if shares[name_of(n)])  # fmt: skip
    if total == 0:
        return Check(name="GPUs", status=FAIL, detail="no node offers nvidia.com/gpu",
                     cure="Install the GPU operator (install.sh, or microk8s enable nvidia).")  # fmt: skip
    if total < most:
        return Check(name="GPUs", status=FAIL, detail=f"{told}; trial.max_replicas is {most}, so pods would stay Pending",
                     cure="Share the GPU (manifests/overlays/time-slicing or mps), or lower trial.max_replicas.")  # fmt: skip
    return Check(name="GPUs", status=OK, detail=told)


def _shares(node: Dict) -> int:
    """Return how many pods can have a GPU of the node."""
    offered = dig(node, "status", "allocatable") or {}
    return sum(int(number(offered.get(name, 0))) for name in GPUS)


def _service(hold: Hold, service: str, url: str) -> Check:
    at = url or address.service_url(hold.api, hold.target.namespace, service, Deadline(LOOK_S))
    try:
        with DIRECT.open(f"http://{at.removeprefix('http://')}/v2/health/ready", timeout=METRICS_S):
            return Check(name="Service", status=OK, detail=f"Triton at {at} is ready")
    except (OSError, urllib.error.URLError) as error:
        return Check(name="Service", status=FAIL, detail=f"Triton at {at} does not answer ({error})",
                     cure="Start a replica, and run where that address can be reached, or set cluster.url=HOST:PORT.")  # fmt: skip


def _hpa_metrics(hold: Hold) -> Check:
    """Look where the HPA looks: a metric absent there shows as <unknown>, and nothing is scaled by it."""
    t, deployment = hold.target, hold.look()
    every = Kind(root=CUSTOM, plural="pods", kind="MetricValueList", sub=t.metrics.in_flight)
    external = Kind(root=EXTERNAL, plural=t.metrics.queue, kind="ExternalMetricValueList")
    query = {"labelSelector": selector(deployment)}
    there = {
        "cpu": _answers(hold, POD_METRICS, "", query),
        "queue": _answers(hold, external, "", {}),
        "in_flight": _answers(hold, every, "*", query),
    }
    told = {how: [name for name, seen in there.items() if seen == how] for how in (SEEN, UNKNOWN, HIDDEN)}
    detail = "; ".join(f"{how}: {', '.join(names)}" for how, names in told.items() if names)
    if "cpu" in told[UNKNOWN]:
        return Check(name="HPA metrics", status=FAIL, detail=detail,
                     cure="Enable metrics-server (microk8s enable metrics-server) and start a replica.")  # fmt: skip
    cures = []
    if told[UNKNOWN]:
        cures.append(
            "Only an HPA on what is unknown needs it: kubectl apply -k manifests/overlays/prometheus-adapter"
        )
    if told[HIDDEN]:
        cures.append("To look, use the Role of manifests/base; the HPA's controller has rights of its own.")
    return Check(name="HPA metrics", status=WARN if cures else OK, detail=detail, cure=" ".join(cures))


def _answers(hold: Hold, kind: Kind, name: str, query: dict[str, str]) -> str:
    """Return SEEN where a metrics API has at least one value, UNKNOWN where it has none, HIDDEN where we may not look."""
    verb = "get" if name else "list"
    try:
        found = hold.api.call(
            verb, kind, hold.target.namespace, name, query=query, deadline=Deadline(METRICS_S)
        )
    except ApiFailure as refused:
        return HIDDEN if refused.status == 403 else UNKNOWN
    except Unreachable:
        return UNKNOWN
    return SEEN if found.get("items") else UNKNOWN
