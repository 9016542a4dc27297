"""How many requests one load process can send: measured against a server that does nothing."""

from __future__ import annotations

import json
import math
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gpusched.core.load import LoadPlan
from gpusched.live.load import Load
from gpusched.live.plan import UsersPlan
from gpusched.live.records import BEAT, DONE
from gpusched.live.state import Endpoint, ModelIO

USERS, THINK_S = 10, 0.05
MEASURE_S = 3.0
OPEN_WINDOW_S = 10.0
"""An open load's rate is that of its busiest stretch this long."""


class _Null(socketserver.StreamRequestHandler):
    """Reads a request, answers at once."""

    disable_nagle_algorithm = True
    answer = b""

    def handle(self) -> None:
        while (length := self._length()) >= 0:
            self.rfile.read(length)
            self.wfile.write(self.answer)

    def _length(self) -> int:
        """Return the length of the next request's body, -1 at the end of the connection."""
        length = -1
        while line := self.rfile.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return length


@contextmanager
def null_server(output: str) -> Iterator[str]:
    """Serve Triton's inference protocol with the same ten numbers for every image; yields host:port."""
    tensor = {"name": output, "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}
    told = json.dumps({"model_name": "null", "model_version": "1", "outputs": [tensor]}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(told) + 40}\r\nInference-Header-Content-Length: {len(told)}\r\n\r\n"
    handler = type("Null", (_Null,), {"answer": head.encode() + told + np.ones(10, np.float32).tobytes()})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def cpu_per_request_s(model: ModelIO, connection_requests: int, measure_s: float = MEASURE_S) -> float:
    """Return the CPU seconds a load process spends on one request, NaN where nothing could be sent.

    CPU time and not speed is measured, so neither the server nor a busy machine counts.
    """
    with null_server(model.output) as url:
        load = LoadPlan(
            from_s_K=np.zeros(1), users_K=np.array([USERS]), think_min_s=0.0, think_max_s=2 * THINK_S
        )
        plan = UsersPlan.made(
            load,
            np.random.SeedSequence(0),
            Endpoint(**{**vars(model), "urls": [url]}),
            connection_requests=connection_requests,
            timeout_s=measure_s,
        )
        users = Load(plan)
        try:
            users.start()
            users.begin(time.monotonic())
            time.sleep(measure_s + 0.2)
            rows = users.tail()
        finally:
            users.stop()
    beats, done = rows[rows["kind"] == BEAT], rows[rows["kind"] == DONE]
    if len(beats) < 2:
        return math.nan
    end_s = done["time_s"] + done["span_s"]
    first, last = beats[0], beats[-1]
    count = np.count_nonzero((end_s > first["time_s"]) & (end_s <= last["time_s"]))
    return float((last["span_s"] - first["span_s"]) / count) if count else math.nan


def asked_rps(plan: LoadPlan) -> float:
    """Return the most requests per second a load can ask for: users without any latency, or its busiest stretch."""
    if plan.arrivals_s_N is None:
        return plan.max_users / plan.think_mean_s if plan.think_mean_s else math.inf
    t_s_N = plan.arrivals_s_N
    counts = np.searchsorted(t_s_N, t_s_N + OPEN_WINDOW_S, side="left") - np.arange(len(t_s_N))
    return float(counts.max(initial=0) / OPEN_WINDOW_S)
