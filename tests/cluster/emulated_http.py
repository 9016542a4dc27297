"""The HTTP side of the emulated API server: routes, faults, tokens, RBAC, answers and watches."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import rbac
from emulated import KINDS, Obj, Refusal

if TYPE_CHECKING:
    from emulator import Emulator

ROUTE = re.compile(r"(?P<root>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z_]+)(/(?P<name>[^/]+))?(/(?P<sub>[a-z_]+))?$")  # fmt: skip
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
BOOKMARK_S = 0.2
OPEN = ("", "selfsubjectaccessreviews.authorization.k8s.io")
"""What everybody may who is known: discovery, and asking for rights (ClusterRoles system:discovery, system:basic-user)."""


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    status   refuse with it; `reason`, `message` and `retry_after` go with it
    hang_s   keep the connection open and silent this long, then close it
    drop     close the connection without an answer, after the work was done where `after` is set
    cut      end a watch at once; gone: end it with a 410 event
    """

    verb: str = ""
    kind: str = ""
    times: int = 1
    status: int = 0
    reason: str = ""
    message: str = "injected"
    retry_after: int = 0
    hang_s: float = 0.0
    drop: bool = False
    after: bool = False
    cut: bool = False
    gone: bool = False


@dataclass
class Seen:
    """One request as it came."""

    verb: str
    kind: str
    name: str
    query: dict[str, str]
    at_s: float
    body: Any
    namespace: str = ""


def selected(thing: Obj, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    for rule in filter(None, query.get("labelSelector", "").split(",")):
        key, _, want = rule.partition("=")
        if labels.get(key) != want:
            return False
    field_rule = query.get("fieldSelector", "")
    return not field_rule or thing["metadata"]["name"] == field_rule.removeprefix("metadata.name=")


def kind_of(root: str, plural: str, sub: str) -> str:
    """A resource as RBAC calls it; groups of which nothing is stored stand behind it: "pods.metrics.k8s.io"."""
    stored = plural in KINDS and KINDS[plural][0].split("/")[2:3] == root.split("/")[2:3]
    group = "" if stored or not root.startswith("/apis/") else f".{root.split('/')[2]}"
    return f"{plural}{group}" + (f"/{sub}" if sub else "")


def forbidden(seen: Seen) -> Refusal:
    """What the authorizer says (responsewriters.forbiddenMessage)."""
    group, what = rbac.resource(seen.kind)
    where = f'in the namespace "{seen.namespace}"' if seen.namespace else "at the cluster scope"
    said = f'User "system:serviceaccount:gpusched:trial" cannot {seen.verb} resource "{what}" in API group "{group}" {where}'
    return Refusal(403, "Forbidden", f"{what.partition('/')[0]} is forbidden: {said}")


class Server(ThreadingHTTPServer):
    """One per emulator, on a free port of this machine."""

    daemon_threads = True

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(("127.0.0.1", 0), type("Handler", (_Handler,), {"emulator": emulator}))
        self.emulator, self.context = emulator, None
        if emulator.tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*emulator.tls)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.emulator.cut > 0:
            self.emulator.cut -= 1
            connection.recv(65536)  # what is unread when it closes would make it a reset
            connection.close()
            raise OSError("cut")
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    emulator: Emulator
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null") if length else None
        route = ROUTE.match(url.path)
        kind, name, namespace = "", "", ""
        if route:
            kind, name = kind_of(route["root"], route["plural"], route["sub"] or ""), route["name"] or ""
            namespace = route["ns"] or ""
        verb = VERBS.get(self.command) or ("watch" if "watch" in query else "get" if name else "list")
        seen = Seen(verb, kind, name, query, time.monotonic(), body, namespace)
        try:
            self.serve(url.path, seen, self.note(seen))
        except Refusal as refused:
            self.send(refused.code, refused.status(), refused.retry_after)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def note(self, seen: Seen) -> Fault | None:
        e = self.emulator
        with e.lock:
            e.seen.append(seen)
            for fault in e.faults:
                if fault.times > 0 and fault.verb in ("", seen.verb) and fault.kind in ("", seen.kind):
                    fault.times -= 1
                    return fault
        return None

    def serve(self, path: str, seen: Seen, fault: Fault | None) -> None:
        e = self.emulator
        if fault and (fault.hang_s or (fault.drop and not fault.after)):
            e.stopping.wait(fault.hang_s)
            self.close_connection = True
            return
        if fault and fault.status:
            raise Refusal(
                fault.status, fault.reason or "InternalError", fault.message, retry_after=fault.retry_after
            )
        token = (self.headers.get("Authorization") or "").partition(" ")[2]
        if e.tokens is not None and token not in e.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if seen.kind not in OPEN and not e.allows(seen.verb, seen.kind, seen.namespace, seen.name):
            raise forbidden(seen)
        if seen.verb == "watch":
            self.watch(path, seen.query, fault)
            return
        content = self.headers.get("Content-Type") or ""
        code, answer = e.answer(self.command, path, seen.query, content, seen.body)
        if fault and fault.drop:
            self.close_connection = True
            return
        self.send(code, answer)

    def send(self, code: int, answer: Any, retry_after: int = 0) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data)

    def watch(self, path: str, query: dict[str, str], fault: Fault | None) -> None:
        e, route = self.emulator, ROUTE.match(path)
        assert route
        version = int(query.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end_s = time.monotonic() + float(query.get("timeoutSeconds", 60))
        beat_s = time.monotonic() + BOOKMARK_S
        while time.monotonic() < end_s and not e.stopping.is_set():
            if version < e.store.oldest or (fault and fault.gone):
                self.event("ERROR", Refusal(410, "Expired", f"too old resource version: {version}").status())
                break
            with e.store.changed:
                news = e.store.since(version) or (e.store.changed.wait(0.02) and e.store.since(version)) or []
            for at, key, kind, thing in news:
                version = at
                if key[0] == route["plural"] and key[1] == (route["ns"] or "") and selected(thing, query):
                    self.event(kind, thing)
            if fault and fault.cut:
                break
            if time.monotonic() > beat_s and query.get("allowWatchBookmarks") == "true":
                beat_s = time.monotonic() + BOOKMARK_S
                self.event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
        self.wfile.write(b"0\r\n\r\n")

    def event(self, kind: str, thing: Obj) -> None:
        data = json.dumps({"type": kind, "object": thing}).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
