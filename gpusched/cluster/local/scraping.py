"""Prometheus over the replicas, and what a kubelet would tell it of them: CPU and memory by replica."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpusched.cluster.local.parts import free_ports, get, program
from gpusched.cluster.local.processes import Processes
from gpusched.core.errors import ClusterError

NAME = "prometheus"
NAMESPACE = "local"
CONFIG = """\
global: {{ scrape_interval: {scrape_ms}ms, scrape_timeout: {timeout_ms}ms }}
scrape_configs:
  - job_name: triton
    file_sd_configs: [ {{ files: [ "{targets}" ], refresh_interval: 1s }} ]
  - job_name: kubelet
    honor_labels: true
    static_configs: [ {{ targets: [ "127.0.0.1:{exporter}" ] }} ]
"""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one replica has used: CPU seconds since its start, bytes resident."""

    cpu_s: float
    memory_bytes: int


class Exporter:
    """Serves the usage of all replicas in Prometheus' text format, under the kubelet's names."""

    def __init__(self, usage: Callable[[], Mapping[str, Usage]]) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = text(usage()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.server.daemon_threads = True
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, name="exporter", daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def text(usage: Mapping[str, Usage]) -> str:
    """Return the metrics page."""
    lines = []
    for pod, used in usage.items():
        labels = f'{{namespace="{NAMESPACE}",pod="{pod}",container="triton"}}'
        lines.append(f"container_cpu_usage_seconds_total{labels} {used.cpu_s:.3f}")
        lines.append(f"container_memory_working_set_bytes{labels} {used.memory_bytes}")
    return "\n".join([*lines, ""])


class Prometheus:
    """A Prometheus of our own on a free port, its data in the cluster's folder."""

    def __init__(self, processes: Processes, exporter: Exporter, scrape_s: float) -> None:
        self.processes = processes
        self.targets = processes.folder / "targets.json"
        self.point_at({})
        config = processes.folder / "prometheus.yml"
        config.write_text(
            CONFIG.format(
                scrape_ms=round(scrape_s * 1000),
                timeout_ms=round(min(scrape_s, 10.0) * 900),
                targets=self.targets,
                exporter=exporter.port,
            )
        )
        (self.port,) = free_ports(1)
        processes.start(
            NAME,
            [
                program("prometheus", "prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={processes.folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Whether it can be asked yet."""
        try:
            return get(self.port, "/-/ready")[0] == 200
        except OSError:
            return False

    def scraped(self) -> int:
        """Return how many replicas' metrics it has; new ones take up to six seconds."""
        try:
            page = json.loads(get(self.port, "/api/v1/query?query=count(up%7Bjob=%22triton%22%7D==1)")[1])
            found = page["data"]["result"]
            return int(found[0]["value"][1]) if found else 0
        except (OSError, ValueError, KeyError):
            return 0

    def check(self, codes: Mapping[str, int]) -> None:
        """Raise ClusterError where it is among those that have ended."""
        if NAME in codes:
            raise ClusterError(f"Prometheus has ended (code {codes[NAME]}): {self.processes.tail(NAME)}")

    def point_at(self, ports: Mapping[str, int]) -> None:
        """Scrape these replicas: metrics port by pod. Prometheus notices within 5 s."""
        groups = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"pod": pod, "namespace": NAMESPACE}}
            for pod, port in ports.items()
        ]
        part = Path(f"{self.targets}.part")
        part.write_text(json.dumps(groups))
        part.rename(self.targets)
