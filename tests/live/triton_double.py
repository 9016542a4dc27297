"""A small real HTTP server that speaks Triton's v2 protocol with binary tensors, and counts as Triton does."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np

ANSWER = "answer"
"""What the double does with a request: `answer`, or one of the ways to fail below."""
EMPTY, NOT_FINITE, ERROR, HANG, CUT = "empty", "not finite", "error", "hang", "cut"


class TritonDouble(ThreadingHTTPServer):
    """Answers every request after `latency_s`, as many at once as come. Its numbers are known on paper."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, latency_s: float = 0.05, port: int = 0, pod: str = "replica-0") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.latency_s, self.pod, self.mode = latency_s, pod, ANSWER
        self.lock = threading.Lock()
        self.inputs: list[tuple[Any, ...]] = []
        self.arrived = self.answered = self.failed = self.connections = 0
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def metrics(self) -> str:
        """What Triton would export: two requests to a batch, a quarter of the time in the queue; and an idle replica."""
        return self._page(self.pod, self.answered, self.failed) + self._page(f"{self.pod[:-1]}z", 0, 0)

    def _page(self, pod: str, n: int, failed: int) -> str:
        labels = f'{{model="m",version="1",pod="{pod}"}}'
        us = 1e6 * self.latency_s * n
        values = {
            "nv_inference_request_success": n,
            "nv_inference_request_failure": failed,
            "nv_inference_count": n,
            "nv_inference_exec_count": n / 2,
            "nv_inference_request_duration_us": us,
            "nv_inference_queue_duration_us": us / 4,
            "nv_inference_compute_input_duration_us": us / 4,
            "nv_inference_compute_infer_duration_us": us / 4,
            "nv_inference_compute_output_duration_us": us / 4,
            "nv_inference_pending_request_count": 0,
            "container_cpu_usage_seconds_total": 0.01 * n,
            "container_memory_working_set_bytes": 1e8,
        }
        container = labels.replace("}", ',container="triton"}')
        return "".join(
            f"{name}{container if name.startswith('container') else labels} {value}\n"
            for name, value in values.items()
        )

    def stop(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that is killed breaks its connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TritonDouble
    DTYPES: ClassVar = {"UINT8": np.uint8, "FP32": np.float32}

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.closed.is_set():
            # Prometheus keeps its connection: a stopped double would be scraped on, beside the next of its name.
            self.close_connection = True
        elif self.path == "/metrics":
            self._send(200, self.server.metrics().encode(), {"Content-Type": "text/plain; version=0.0.4"})
        else:
            self._send(200, b"{}", {})

    def do_POST(self) -> None:
        double = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:head])
        one = asked["inputs"][0]
        x = np.frombuffer(body[head:], self.DTYPES[one["datatype"]]).reshape(one["shape"])
        with double.lock:
            double.arrived += 1
            double.inputs.append((self.path, one["name"], x.shape, float(x.min()), float(x.max())))
        if double.mode == HANG:
            double.closed.wait(30)
            return
        if double.mode == CUT:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        time.sleep(double.latency_s)
        if double.mode == ERROR:
            with double.lock:
                double.failed += 1
            self._send(503, b'{"error": "no instance"}', {})
            return
        self._answer(asked["outputs"][0]["name"])

    def _answer(self, output: str) -> None:
        y = np.linspace(0, 1, 10, dtype=np.float32)[None]
        if self.server.mode == NOT_FINITE:
            y = y * np.float32(np.nan)
        data = b"" if self.server.mode == EMPTY else y.tobytes()
        tensor = {
            "name": output,
            "datatype": "FP32",
            "shape": [1, 10],
            "parameters": {"binary_data_size": len(data)},
        }
        told = json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()
        with self.server.lock:
            self.server.answered += 1
        self._send(200, told + data, {"Inference-Header-Content-Length": str(len(told))})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}"]
        # Deaf to "Connection: close": ending a connection is the client's business.
        self.close_connection = False
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
