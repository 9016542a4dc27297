"""The front: HAProxy gives each new connection to a ready replica at random, as kube-proxy does.

In TCP mode, so that an open connection stays where it is, also when its replica is told to stop; servers come and
go through HAProxy's runtime socket, without a reload.
"""

from __future__ import annotations

import csv
import socket
from collections.abc import Mapping

from gpusched.cluster.local.parts import free_ports, program
from gpusched.cluster.local.processes import Processes
from gpusched.core.errors import ClusterError

NAME = "haproxy"
ASK_S = 2.0
CONFIG = """\
global
  stats socket {socket} mode 600 level admin
  maxconn 8192
  nbthread 1
defaults
  mode tcp
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  retries 0
frontend service
  bind 127.0.0.1:{port}
  default_backend replicas
backend replicas
  # One draw, whatever the load of the others: kube-proxy does not know it. HAProxy draws a point on a ring that each
  # server has 16 places on per unit of weight: with weight 1 two servers get 42 and 58 % of the connections.
  balance random(1)
  server-template r 1-{slots} 127.0.0.1:1 weight 256 disabled
"""


class Front:
    """One address in front of `slots` places for replicas, numbered from 1."""

    def __init__(self, processes: Processes, slots: int) -> None:
        self.processes, self.slots = processes, slots
        self.socket = processes.folder / "haproxy.sock"
        (self.port,) = free_ports(1)
        config = processes.folder / "haproxy.cfg"
        config.write_text(CONFIG.format(socket=self.socket, port=self.port, slots=slots))
        processes.start(NAME, [program("haproxy", "haproxy"), "-db", "-f", str(config)])

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Whether it can be talked to yet."""
        return self.socket.exists() and "replicas" in self._ask("show servers state replicas", patient=True)

    def check(self, codes: Mapping[str, int]) -> None:
        """Raise ClusterError where it is among those that have ended."""
        if NAME in codes:
            raise ClusterError(f"HAProxy has ended (code {codes[NAME]}): {self.processes.tail(NAME)}")

    def add(self, slot: int, port: int) -> None:
        """Let new connections go to a replica."""
        self._tell(f"set server replicas/r{slot} addr 127.0.0.1 port {port}", "changed", "no need")
        self._tell(f"set server replicas/r{slot} state ready")

    def drain(self, slot: int) -> None:
        """Send a replica no new connection; open ones stay."""
        self._tell(f"set server replicas/r{slot} state drain")

    def remove(self, slot: int) -> None:
        """Forget a replica and close what is still open to it."""
        self._tell(f"set server replicas/r{slot} state maint")
        self._tell(f"shutdown sessions server replicas/r{slot}")

    def connections(self) -> dict[int, int]:
        """Return the open connections by slot."""
        rows = csv.DictReader(self._ask("show stat").removeprefix("# ").splitlines())
        own = [row for row in rows if row["pxname"] == "replicas" and row["svname"].startswith("r")]
        return {int(row["svname"][1:]): int(row["scur"]) for row in own}

    def _tell(self, command: str, *fine: str) -> None:
        """Give a command; HAProxy says nothing where all is well, or one of the `fine` words."""
        answer = self._ask(command)
        if answer and not any(word in answer for word in fine):
            raise ClusterError(f"HAProxy refused {command!r}: {answer}")

    def _ask(self, command: str, patient: bool = False) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as pipe:
                pipe.settimeout(ASK_S)
                pipe.connect(str(self.socket))
                pipe.sendall(command.encode() + b"\n")
                parts = []
                while part := pipe.recv(65536):
                    parts.append(part)
        except OSError as error:
            if patient:
                return ""
            raise ClusterError(f"HAProxy does not answer ({error}): {self.processes.tail(NAME)}") from None
        return b"".join(parts).decode().strip()
