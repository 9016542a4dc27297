"""One connection to the API server: every call has a deadline, and what may pass is tried again until then."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import urllib3
from kubernetes.client.exceptions import ApiException

from gpusched.cluster.microk8s.failures import ApiFailure, Call, Unreachable, failure
from gpusched.cluster.microk8s.kinds import Dict, Kind
from gpusched.core.errors import ClusterError

log = logging.getLogger(__name__)

METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "patch": "PATCH",
    "delete": "DELETE",
}
PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 5.0
"""Back-off: the first wait, doubled up to the longest, each drawn from its upper half (jitter)."""
UNPROVEN = ("CERTIFICATE_VERIFY_FAILED", "doesn't match")
"""How OpenSSL and urllib3 say that the server is not who it should be."""
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
MICROK8S = Path("/var/snap/microk8s/current/credentials/client.config")


class Deadline:
    """A moment on the monotonic clock until which something must be done."""

    def __init__(self, seconds: float) -> None:
        self.at_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self.at_s - time.monotonic()


@dataclass(kw_only=True)
class Access:
    """How to reach the API server; `kubeconfig` "" = where kubectl looks, in a pod its service account."""

    kubeconfig: str = ""
    context: str = ""
    call_timeout_s: float = 5.0


class _Again(Exception):
    """What may pass: try again, not before `after_s`."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Api:
    """The API server, as JSON in and out.

    A retried 409 is a lost race between writers; one that a precondition (`exact`) or another field
    manager causes is the caller's business. Raises ApiFailure, or Unreachable at the deadline.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._client = connect(access)
        self._skew_s = 0.0

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    def now_s(self) -> float:
        """Return the API server's clock, seconds since 1970: one clock for everybody who writes heartbeats."""
        return time.time() + self._skew_s

    def get(self, kind: Kind, namespace: str, name: str, deadline: Deadline) -> Dict | None:
        """Return an object, None where there is none."""
        try:
            return self.call("get", kind, namespace, name, deadline=deadline)
        except ApiFailure as refused:
            if refused.status == 404:
                return None
            raise

    def list(self, kind: Kind, namespace: str, deadline: Deadline, **query: str) -> list[Dict]:
        """Return the objects a query (labelSelector, fieldSelector) finds."""
        found = self.call("list", kind, namespace, deadline=deadline, query=query)
        return [dict(thing) for thing in found.get("items") or []]

    def call(
        self, verb: str, kind: Kind, namespace: str = "", name: str = "", *, deadline: Deadline,
        body: Any = None, query: dict[str, str] | None = None, patch: str = "merge", exact: bool = False,
    ) -> Dict:  # fmt: skip
        """Ask once, and again with growing jittered waits while the trouble may pass and time is left."""
        call = Call(verb=verb, kind=kind, namespace=namespace, name=name)
        if verb == "patch":
            query = {"fieldManager": "gpusched", **(query or {})}
        wait_s, renewed = FIRST_WAIT_S, False
        while True:
            try:
                answer = self._answer(call, body, query or {}, PATCHES.get(patch, ""), deadline)
                return self._judge(call, *answer, exact=exact)
            except _Again as again:
                pause_s = max(again.after_s, wait_s * random.uniform(0.5, 1.0))
                if pause_s >= deadline.left_s:
                    raise self._lost(call, again) from again
                log.debug("%s: %s, again in %.2f s", call, again, pause_s)
                time.sleep(pause_s)
                wait_s = min(2 * wait_s, MOST_WAIT_S)
            except ApiFailure as refused:
                if refused.status != 401 or renewed:
                    raise
                # A token expires: read the credentials anew, once.
                self._client, renewed = connect(self.access), True

    def stream(self, kind: Kind, namespace: str, query: dict[str, str], deadline: Deadline, quiet_s: float) -> Iterator[Dict]:  # fmt: skip
        """Yield one watch connection's events until the server ends it; Unreachable when it breaks or hangs."""
        call = Call(verb="watch", kind=kind, namespace=namespace)
        try:
            response = self._open(call, None, query, "", deadline, quiet_s)
            if response.status != 200:
                self._judge(call, response.status, self._read(response, deadline), response.headers)
            for line in _lines(response, deadline, quiet_s):
                yield json.loads(line)
        except _Again as again:
            raise self._lost(call, again, again.after_s) from again
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._lost(call, error) from error

    def _lost(self, call: Call, error: Exception, after_s: float = 0.0) -> Unreachable:
        return Unreachable(
            f"Kubernetes at {self.host}: could not {call} in time ({error}). "
            "Check that the API server runs and answers: kubectl get --raw /readyz",
            after_s,
        )

    def _answer(self, call: Call, body: Any, query: dict[str, str], content: str, deadline: Deadline) -> tuple[int, Dict, Any]:  # fmt: skip
        try:
            response = self._open(call, body, query, content, deadline, self.access.call_timeout_s)
            return response.status, self._read(response, deadline), response.headers
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Again(f"{type(error).__name__}: {error}") from error

    def _open(self, call: Call, body: Any, query: dict[str, str], content: str, deadline: Deadline, quiet_s: float) -> Any:  # fmt: skip
        """Send the request and return the open response; no wait for a byte is longer than what is left."""
        limit_s = max(min(quiet_s, deadline.left_s), 0.01)
        headers = {"Accept": "application/json"}
        if call.verb in ("create", "delete"):
            headers["Content-Type"] = "application/json"
        elif call.verb == "patch":
            headers["Content-Type"] = content
        client: Any = self._client
        made = client.param_serialize(
            METHODS[call.verb], call.kind.path(call.namespace, call.name), query_params=list(query.items()),
            header_params=headers, body=body, auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            return client.call_api(*made, _request_timeout=limit_s).response
        except ApiException as error:  # what kubernetes/client/rest.py makes of every SSLError
            raise self._insecure(str(error.reason).splitlines()[-1]) from None

    def _insecure(self, why: str) -> Exception:
        """Return what a failed TLS connection means: a bad certificate stays bad, a connection that is cut may not."""
        if not any(words in why for words in UNPROVEN):
            return _Again(why)
        return ClusterError(
            f"Kubernetes at {self.host}: no secure connection ({why}). "
            "Check the certificate authority in the kubeconfig (MicroK8s: microk8s config)."
        )

    def _read(self, response: Any, deadline: Deadline) -> Dict:
        parts = []
        while part := _part(response, deadline, self.access.call_timeout_s):
            parts.append(part)
        response.release_conn()
        try:
            found = json.loads(b"".join(parts))
        except ValueError:
            return {"message": b"".join(parts)[:200].decode(errors="replace")}
        return found if isinstance(found, dict) else {"message": str(found)}

    def _judge(self, call: Call, status: int, answer: Dict, headers: Any, exact: bool = False) -> Dict:
        """Return a good answer; raise _Again for what may pass and ApiFailure for the rest."""
        if date := headers.get("Date"):
            self._skew_s = parsedate_to_datetime(date).timestamp() - time.time()
        if 200 <= status < 300:
            return answer
        refused = failure(call, status, answer)
        raced = status == 409 and refused.reason == "Conflict" and not refused.causes and not exact
        if raced or status == 429 or status >= 500:
            said = " ".join(f"{status} {refused.reason}: {refused.said}".split())
            raise _Again(said, _retry_after(headers.get("Retry-After")))
        raise refused


def _retry_after(text: str | None) -> float:
    """Return a Retry-After header's seconds, 0 without one; the API server sends no dates."""
    return float(text) if text and text.isdigit() else 0.0


def _part(response: Any, deadline: Deadline, quiet_s: float) -> bytes:
    """Return what has come of an answer, waiting for it until the deadline; b"" at its end."""
    left_s = deadline.left_s
    if left_s <= 0:
        response.close()
        raise TimeoutError("the answer came too slowly")
    if (connection := response.connection) is not None and connection.sock is not None:
        connection.sock.settimeout(min(left_s, quiet_s))  # else every byte may take as long as the whole
    return bytes(response.read1(65536))


def _lines(response: Any, deadline: Deadline, quiet_s: float) -> Iterator[bytes]:
    """Split a stream into lines as they come."""
    rest = b""
    try:
        while deadline.left_s > 0 and (part := _part(response, deadline, quiet_s)):
            *whole, rest = (rest + part).split(b"\n")
            yield from (line for line in whole if line.strip())
    finally:
        response.close()


def connect(access: Access) -> kubernetes.client.ApiClient:
    """Return a client with credentials read now; ClusterError says what is missing."""
    settings: Any = kubernetes.client.Configuration()
    config: Any = kubernetes.config
    path = _kubeconfig(access.kubeconfig)
    try:
        if path is None:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(
                config_file=str(path), context=access.context or None,
                client_configuration=settings, persist_config=False,
            )  # fmt: skip
    except Exception as error:
        where = f"kubeconfig {path}" if path else "the pod's service account"
        raise ClusterError(
            f"Kubernetes: cannot connect by {where} ({' '.join(str(error).split())}). Name a kubeconfig that works with kubectl: "
            "cluster.kubeconfig=PATH cluster.context=NAME, or KUBECONFIG (MicroK8s: microk8s config > ~/.kube/config)."
        ) from None
    settings.retries = False  # ours know deadlines
    return kubernetes.client.ApiClient(settings)


def _kubeconfig(given: str) -> Path | str | None:
    """Return the kubeconfig to read; None = the service account of the pod we run in."""
    if given:
        return Path(given).expanduser()
    if from_env := os.environ.get("KUBECONFIG"):
        return from_env  # may name several files
    home = Path("~/.kube/config").expanduser()
    if IN_CLUSTER.exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    return MICROK8S if not home.exists() and os.access(MICROK8S, os.R_OK) else home
