"""The front chooses at random per connection, lets open connections be, and forgets what is gone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.cluster.local import parts
from gpusched.cluster.local.front import Front
from gpusched.cluster.local.processes import Processes
from gpusched.core.errors import ClusterError

pytestmark = pytest.mark.local


class Echo:
    """A server that answers every line with its name."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listening.getsockname()[1])
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listening.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        while connection.recv(64):
            connection.sendall(self.name)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    try:
        parts.program("haproxy", "haproxy")
    except ClusterError as error:
        pytest.skip(str(error))
    folder = tmp_path / "f"
    folder.mkdir()
    processes = Processes(folder, "gpusched-test")
    try:
        made = Front(processes, slots=4)
        while not made.answers():
            time.sleep(0.01)
        yield made
    finally:
        processes.end()


def connect(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.port), timeout=2)


def ask(connection: socket.socket) -> str:
    connection.sendall(b"?")
    return connection.recv(64).decode()


def asked(front: Front, times: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    for _ in range(times):
        with connect(front) as connection:
            answers[ask(connection)] += 1
    return answers


def test_connections_are_spread_at_random_and_evenly(front: Front) -> None:
    for slot, name in enumerate("abc", start=1):
        front.add(slot, Echo(name).port)
    n = 600
    answers = asked(front, n)
    chi2 = sum((answers[name] - n / 3) ** 2 / (n / 3) for name in "abc")
    assert chi2 < 18.4  # 2 degrees of freedom, p = 1e-4
    assert chi2 > 0.001, "that even is no draw: round robin?"


def test_two_replicas_get_equal_shares(front: Front) -> None:
    """The ring of servers with one unit of weight gave 42 and 58 %, for ever, and saturated one of them early."""
    for slot, name in enumerate("ab", start=1):
        front.add(slot, Echo(name).port)
    n = 3000
    # Four standard errors are 3.7 %; the ring's own share is within 2 % of a half.
    assert abs(asked(front, n)["a"] / n - 0.5) < 0.057


def test_one_draw_does_not_look_at_the_load(front: Front) -> None:
    """With two draws per connection, HAProxy's default, the replica with open connections would get next to nothing."""
    for slot, name in enumerate("ab", start=1):
        front.add(slot, Echo(name).port)
    open_connections = [connect(front) for _ in range(40)]
    held = Counter(ask(connection) for connection in open_connections)
    busy = max(held, key=lambda name: held[name])
    for connection in open_connections:
        if ask(connection) != busy:
            connection.close()
    assert 0.35 < asked(front, 400)[busy] / 400 < 0.65
    for connection in open_connections:
        connection.close()


def test_a_replica_that_drains_keeps_its_connections_and_gets_no_new_one(front: Front) -> None:
    front.add(1, Echo("a").port)
    with connect(front) as connection:
        assert ask(connection) == "a"
        front.add(2, Echo("b").port)
        front.drain(1)
        assert asked(front, 20) == {"b": 20}
        assert ask(connection) == "a"
        assert front.connections()[1] == 1
        front.remove(1)
        assert connection.recv(64) == b""


def test_without_a_replica_connections_are_closed(front: Front) -> None:
    with connect(front) as connection:
        assert connection.recv(64) == b""


def test_a_slot_can_be_used_again(front: Front) -> None:
    front.add(1, Echo("a").port)
    front.remove(1)
    front.add(1, Echo("b").port)
    assert asked(front, 5) == {"b": 5}


def test_a_proxy_that_has_ended_is_said(front: Front) -> None:
    os.kill(front.processes.pids["haproxy"], signal.SIGKILL)
    with pytest.raises(ClusterError, match="HAProxy has ended"):
        for _ in range(100):
            front.check(front.processes.exits())
            time.sleep(0.02)
    with pytest.raises(ClusterError, match="does not answer"):
        front.drain(1)
