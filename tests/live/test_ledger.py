"""The raw record of the load and what is counted from it, on rows written by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from gpusched.core.errors import ClusterError
from gpusched.core.logs import RequestLog
from gpusched.live.ledger import Ledger
from gpusched.live.records import NO_ANSWER, NOT_REAL, REAL, RECORD, Buffer, Tail, Writer

OK, FAILED, UNFINISHED = RequestLog.OK, RequestLog.FAILED, RequestLog.UNFINISHED
T0_S = 1000.0


def ledger(path: Path) -> Ledger:
    """Two processes: requests of 0.1, 0.3 (slow), 0.2 s (failed) and 0.1 s (no inference), and one that is open."""
    first, second = Writer(path, 0), Writer(path, 1)
    first.sent(1, T0_S + 1.0, 0.001)
    second.sent(1, T0_S + 1.0, 0.002)
    first.done(1, T0_S + 1.0, 0.1, OK, REAL)
    second.done(1, T0_S + 1.0, 0.3, OK, REAL)
    first.sent(2, T0_S + 1.1, 0.003)
    first.done(2, T0_S + 1.1, 0.2, FAILED, NO_ANSWER)
    first.sent(3, T0_S + 2.0, 0.004)
    first.done(3, T0_S + 2.0, 0.1, FAILED, NOT_REAL)
    first.sent(4, T0_S + 2.5, 0.100)
    one = Ledger(T0_S, slo_s=0.25)
    one.add(Tail(path).read())
    return one


def test_counts_of_an_interval(tmp_path: Path) -> None:
    done = ledger(tmp_path / "r").done(1.05, 2.1 + 1e-6)
    assert (done.completed, done.failed, done.slow) == (2, 2, 1)
    assert done.mean_s == pytest.approx(0.2)
    assert done.p95_s == pytest.approx(0.29)
    nothing = ledger(tmp_path / "s").done(5.0, 6.0)
    assert (nothing.completed, nothing.failed) == (0, 0)
    assert math.isnan(nothing.p95_s)


def test_an_interval_holds_its_end_and_not_its_beginning(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r", 0)
    writer.done(1, T0_S + 0.5, 0.5, OK, REAL)
    one = Ledger(T0_S, slo_s=1.0)
    one.add(Tail(tmp_path / "r").read())
    assert one.done(0.0, 1.0).completed == 1
    assert one.done(1.0, 2.0).completed == 0


def test_requests_in_flight(tmp_path: Path) -> None:
    one = ledger(tmp_path / "r")
    assert [one.in_flight(t_s) for t_s in (0.5, 1.05, 1.15, 1.5, 2.05, 3.0)] == [0, 2, 2, 0, 1, 1]


def test_overdue_is_what_is_open_and_later_than_the_slo(tmp_path: Path) -> None:
    """Twenty sent at 1 s, one of them answered after 0.1 s, the others after 5 s: no answer yet at 5 s."""
    writer = Writer(tmp_path / "r", 0)
    for n in range(20):
        writer.sent(n, T0_S + 1.0, 0.0)
        writer.done(n, T0_S + 1.0, 5.0 if n else 0.1, OK, REAL)
    writer.sent(20, T0_S + 4.9, 0.0)
    one = Ledger(T0_S, slo_s=0.25)
    one.add(Tail(tmp_path / "r").read())
    # At 1.25 s they are as late as they may be, as in the simulator.
    assert [one.overdue(t_s) for t_s in (1.1, 1.25, 1.26, 5.0, 7.0)] == [0, 0, 19, 19, 1]


def test_the_log_is_as_of_its_end(tmp_path: Path) -> None:
    log = ledger(tmp_path / "r").log(3.0)
    assert log.status_N.tolist() == [OK, OK, FAILED, FAILED, UNFINISHED]
    assert np.allclose(log.start_s_N, [1.0, 1.0, 1.1, 2.0, 2.5])
    assert np.allclose(log.latency_s_N, [0.1, 0.3, 0.2, 0.1, 0.5])
    assert np.all(np.diff(log.end_s_N[:-1]) >= 0)
    early = ledger(tmp_path / "s").log(1.2)
    assert early.status_N.tolist() == [OK, UNFINISHED, UNFINISHED], "what ends later is open then"
    assert np.allclose(early.latency_s_N, [0.1, 0.2, 0.1])


def test_the_audit(tmp_path: Path) -> None:
    one = ledger(tmp_path / "r")
    assert one.real_share == pytest.approx(2 / 3), "a request without an answer is not among them"
    assert one.lag_p99_s == pytest.approx(np.quantile([0.001, 0.002, 0.003, 0.004, 0.1], 0.99), rel=1e-6)
    assert math.isnan(one.cpu_share)
    failed = Writer(tmp_path / "s", 0)
    failed.done(1, T0_S + 1.0, 0.1, FAILED, NO_ANSWER)
    nothing = Ledger(T0_S, 1.0)
    nothing.add(Tail(tmp_path / "s").read())
    assert nothing.real_share == 0.0, "every request ended without an answer"
    empty = Ledger(0.0, 1.0)
    assert math.isnan(empty.real_share)
    assert math.isnan(empty.lag_p99_s)


def test_the_busiest_stretch_of_the_busiest_process_counts(tmp_path: Path) -> None:
    writers = [Writer(tmp_path / "r", p) for p in range(2)]
    cpu_s = 0.0
    for second in range(41):
        writers[0].beat(T0_S + second, 0.1 * second, 0.0)
        writers[1].beat(T0_S + second, cpu_s, 0.0)
        cpu_s += 0.9 if 20 <= second < 30 else 0.05
    one = Ledger(T0_S, 1.0)
    one.add(Tail(tmp_path / "r").read())
    assert one.cpu_share == pytest.approx(0.9)


def test_a_short_record_gives_the_share_it_has(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r", 0)
    for second in range(3):
        writer.beat(T0_S + second, 0.25 * second, 0.0)
    one = Ledger(T0_S, 1.0)
    one.add(Tail(tmp_path / "r").read())
    assert one.cpu_share == pytest.approx(0.25)


def test_rows_come_in_pieces_and_a_torn_one_waits(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    writer = Writer(whole, 0)
    for n in range(5000):
        writer.sent(n, T0_S + n, 0.0)
    data = whole.read_bytes()
    tail, one = Tail(torn), Ledger(T0_S, 1.0)
    assert len(tail.read()) == 0, "no file yet"
    for end in (0, 1, RECORD.itemsize, 3 * RECORD.itemsize + 7, len(data) - 1, len(data)):
        torn.write_bytes(data[:end])
        one.add(tail.read())
        assert one.in_flight(math.inf) == end // RECORD.itemsize
    assert len(tail.read()) == 0


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"\xff" * RECORD.itemsize)
    with pytest.raises(ClusterError, match="damaged"):
        Tail(tmp_path / "r").read()


def test_a_full_disk_is_not_taken_for_a_short_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "r", 0)
    monkeypatch.setattr(os, "write", lambda file, data: len(data) - 1)
    with pytest.raises(OSError, match="disk is full"):
        writer.sent(1, 0.0, 0.0)


def test_a_worker_keeps_its_rows_until_they_are_taken(tmp_path: Path) -> None:
    buffer = Buffer(3, offset_s=50.0)
    buffer.sent(1, 7.0, 0.0)
    (tmp_path / "r").write_bytes(buffer.take())
    row = Tail(tmp_path / "r").read()[0]
    assert (row["process"], row["id"], row["time_s"]) == (3, 1, 57.0)
    assert buffer.take() == b""
