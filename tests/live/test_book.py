"""Observations and outcomes on a record written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_double import service, steady

from gpusched.core.controls import Limits
from gpusched.core.logs import RequestLog
from gpusched.live.book import Book, Mean
from gpusched.live.ledger import Ledger
from gpusched.live.records import REAL, Tail, Writer
from gpusched.live.state import ReplicaState
from gpusched.live.telemetry import LEVELS, Growth

T0_S = 1000.0


def book(path: Path, **telemetry: Any) -> Book:
    """Twenty requests sent at 1 s, one answered after 0.1 s; SLO 0.2 s; one tick of 5 s."""
    writer = Writer(path, 0)
    for n in range(20):
        writer.sent(n, T0_S + 1.0, 0.0)
    writer.done(0, T0_S + 1.0, 0.1, RequestLog.OK, REAL)
    ledger = Ledger(T0_S, slo_s=0.2)
    ledger.add(Tail(path).read())
    told: Any = SimpleNamespace(
        levels=dict.fromkeys(LEVELS, math.nan), growth=Growth(), scraped_s=T0_S + 4.0, **telemetry
    )
    mean = Mean(ReplicaState(spec=1, ready=1, alive=1), 0.0)
    made = Book(service=service(), limits=Limits(), slo_s=0.2, plan=steady(20), window_s=5.0, ledger=ledger,
                telemetry=told, mean=mean, loaded=True)  # fmt: skip
    made.tick(0.0, 5.0)
    return made


def test_requests_that_hang_are_violations(tmp_path: Path) -> None:
    """A service that answers nobody must not look like one without requests."""
    outcome = book(tmp_path / "r").outcome(0.0, 5.0)
    assert (outcome.completed_E[0], outcome.slow_E[0], outcome.overdue_E[0]) == (1, 0, 19)
    assert outcome.violation_share_E[0] == pytest.approx(0.95)


def test_no_sample_is_younger_than_now(tmp_path: Path) -> None:
    """It may be taken a moment after the tick it is read in."""
    seen = book(tmp_path / "r", gpu_scraped_s=T0_S + 5.01).observation(5.0)
    assert seen.gpu_age_s_E[0] == 0.0
    assert book(tmp_path / "s", gpu_scraped_s=-math.inf).observation(5.0).gpu_age_s_E[0] == math.inf
