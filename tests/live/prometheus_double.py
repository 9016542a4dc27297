"""A real Prometheus over ports a test may serve metrics on, and a stand-in that misbehaves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRAPE_S = 0.2
PORTS = 40
"""Targets a session may use. Prometheus takes up new targets only every 5 s, so they are there from the start."""
FIRST_S = 20.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class RealPrometheus:
    """Debian's Prometheus, scraping every SCRAPE_S; `port()` gives a target nobody serves yet."""

    def __init__(self) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("needs Prometheus: apt-get install prometheus")
        self.folder = Path(tempfile.mkdtemp(prefix="gpusched-test-"))
        self.ports = [free_port() for _ in range(PORTS)]
        targets = [f"127.0.0.1:{port}" for port in self.ports]
        times = {"scrape_interval": f"{SCRAPE_S}s".replace("0.2s", "200ms"), "scrape_timeout": "200ms"}
        # A replica's own labels count, as in Kubernetes where they are the target's.
        job = {"job_name": "t", "honor_labels": True, "static_configs": [{"targets": targets}]}
        (self.folder / "p.yml").write_text(json.dumps({"global": times, "scrape_configs": [job]}))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [program, f"--config.file={self.folder}/p.yml", f"--storage.tsdb.path={self.folder}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=error"],
        )  # fmt: skip

    def port(self) -> int:
        return self.ports.pop()

    def ask(self, query: str) -> list[Any]:
        quoted = urllib.request.quote(query)  # type: ignore[attr-defined]
        with urllib.request.urlopen(f"{self.url}/api/v1/query?query={quoted}", timeout=2) as answer:
            return list(json.load(answer)["data"]["result"])

    def wait_for(self, query: str) -> None:
        """Wait until a query has a result."""
        until_s = time.monotonic() + FIRST_S
        while time.monotonic() < until_s:
            try:
                if self.ask(query):
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"Prometheus has no {query}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class Shared:
    """One Prometheus for every test folder of a session."""

    users = 0
    one: RealPrometheus | None = None


@pytest.fixture(scope="session")
def prometheus() -> Iterator[RealPrometheus]:
    """A real Prometheus; its first scrape comes five seconds after its start."""
    Shared.one = Shared.one or RealPrometheus()
    Shared.users += 1
    yield Shared.one
    Shared.users -= 1
    if Shared.users == 0:
        Shared.one.stop()
        Shared.one = None


class Exporter:
    """Serves the text that `text` returns at each scrape; `stop` lets it be gone."""

    def __init__(self, port: int, text: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        serve = {"poll_interval": 0.02}
        threading.Thread(target=self.server.serve_forever, kwargs=serve, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def exporter(port: int, text: Callable[[], str]) -> Iterator[Exporter]:
    one = Exporter(port, text)
    try:
        yield one
    finally:
        one.stop()


class StubPrometheus(ThreadingHTTPServer):
    """Answers every query with `reply(handler)`."""

    daemon_threads = True

    def __init__(self, reply: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.asked += 1
                stub.reply(self)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        stub, self.reply, self.asked, self.over = self, reply, 0, threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has given up

    def stop(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


def say(code: int, body: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        handler.wfile.write(body.encode())

    return reply


def vector(**fields: tuple[float, float]) -> str:
    """Return Prometheus' answer to the combined query: by field, evaluation time and value."""
    series = [{"metric": {"field": name}, "value": [at, str(value)]} for name, (at, value) in fields.items()]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}})
