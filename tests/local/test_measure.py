"""Triton's own statistics, read off a server of the test: versions add up, and what is no such answer is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gpusched.core.errors import ClusterError
from gpusched.job.measure import Stats, ask
from gpusched.live.state import Endpoint


class Server(ThreadingHTTPServer):
    """Answers everything with `page`."""

    daemon_threads = True
    page: Any = None

    @property
    def endpoint(self) -> Endpoint:
        url = f"127.0.0.1:{self.server_address[1]}"
        return Endpoint(model="m", input="x", shape=[1], dtype="FP32", output="y", urls=[url])


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.page).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def version(served: int, executions: dict[int, int]) -> dict[str, Any]:
    """Return what Triton says of one version: 1 ms of queue per request, 3 ms per execution."""

    def took(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": count * ns}

    phases = ("compute_input", "compute_infer", "compute_output")
    batches = [
        {"batch_size": b, **{phase: took(n, 1_000_000) for phase in phases}} for b, n in executions.items()
    ]
    totals = {"success": took(served, 4_000_000), "queue": took(served, 1_000_000)}
    return {"name": "m", "inference_stats": totals, "batch_stats": batches}


def test_versions_of_the_model_add_up(server: Server) -> None:
    server.page = {"model_stats": [version(0, {}), version(100, {1: 20, 4: 20}), version(8, {4: 2})]}
    stats = ask(server.endpoint)
    assert stats.executions == {1: 20, 4: 22}
    assert stats.held_s == pytest.approx({1: 0.060, 4: 0.066})
    assert (stats.served, stats.queue_s) == (108, pytest.approx(0.108))


@pytest.mark.parametrize(
    "page", [{"model_stats": []}, {"model_stats": [{"name": "m"}]}, {"error": "unknown model"}, [], None, 7]
)
def test_an_answer_that_is_no_statistics_is_told(page: Any, server: Server) -> None:
    server.page = page
    with pytest.raises(ClusterError, match=r"/v2/models/m/stats: the answer is not Triton's statistics"):
        ask(server.endpoint)


def stats(executions: dict[int, int], served: int = 0) -> Stats:
    return Stats(executions=executions, held_s={b: 0.01 * n for b, n in executions.items()}, served=served, queue_s=0.0)  # fmt: skip


@pytest.mark.parametrize("after", [stats({1: 20, 4: 3}), stats({1: 2000}), stats({1: 1000, 8: 500}, -1)])
def test_counts_that_fall_are_a_restart(after: Stats) -> None:
    with pytest.raises(ClusterError, match="the server restarted"):
        after.since(stats({1: 1000, 8: 500}))


def test_what_was_added_is_told_by_batch_size() -> None:
    added = stats({1: 1010, 8: 500, 4: 3}, 30).since(stats({1: 1000, 8: 500}, 10))
    assert added.executions == {1: 10, 8: 0, 4: 3}
    assert added.served == 20
