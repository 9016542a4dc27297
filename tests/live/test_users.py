"""Real Locust users in a process of their own against a real server that speaks Triton's protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from live_double import steady
from triton_double import ANSWER, CUT, EMPTY, ERROR, HANG, NOT_FINITE, TritonDouble

from gpusched.core.errors import ClusterError
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.live.ledger import Ledger
from gpusched.live.load import Load, sweep
from gpusched.live.plan import UsersPlan
from gpusched.live.records import DONE, NO_ANSWER, NOT_REAL, REAL, SENT
from gpusched.live.state import Endpoint

pytestmark = [pytest.mark.slow, pytest.mark.wall]

SEED = np.random.SeedSequence([3, 4])
LATENCY_S = 0.05
LONG_S = 3.0


@pytest.fixture
def triton() -> Iterator[TritonDouble]:
    one = TritonDouble(LATENCY_S)
    yield one
    one.stop()


def plan(
    triton: TritonDouble, load: LoadPlan, *, keep: int = 1, timeout_s: float = 2.0, dtype: str = "UINT8"
) -> UsersPlan:
    endpoint = Endpoint(urls=[triton.url], model="m", input="x", shape=[3, 8, 8], dtype=dtype, output="y")
    return UsersPlan.made(load, SEED, endpoint, connection_requests=keep, timeout_s=timeout_s)


@dataclass
class Ran:
    """What a load left after `seconds`, as read while it ran."""

    ledger: Ledger
    triton: TritonDouble
    seconds: float


def run(
    one: UsersPlan, triton: TritonDouble, seconds: float, processes: int = 1, modes: tuple[str, ...] = ()
) -> Ran:
    """Let a load run; the server goes through the modes, for equally long each."""
    load = Load(one, processes)
    try:
        load.start()
        t0_s = time.monotonic() + 0.1
        ledger = Ledger(t0_s, slo_s=0.5)
        load.begin(t0_s)
        for mode in modes or (ANSWER,):
            triton.mode = mode
            time.sleep((seconds + 0.1) / len(modes or (ANSWER,)))
            load.check()
            ledger.add(load.tail())
        children = [process.process for process in load.processes]
        # Whoever was sending finishes or is cut off: the record is read after the end.
        for process in load.processes:
            process.stop()
        ledger.add(load.tail())
        assert all(child.poll() is not None for child in children)
    finally:
        load.stop()
    return Ran(ledger, triton, seconds)


@pytest.fixture(scope="module")
def closed() -> Iterator[Ran]:
    """Twenty users, each request over a connection of its own."""
    triton = TritonDouble(LATENCY_S)
    yield run(plan(triton, steady(20)), triton, LONG_S)
    triton.stop()


def test_littles_law_holds(closed: Ran) -> None:
    begin_s = 0.5
    done = closed.ledger.done(begin_s, LONG_S)
    rate_rps = (done.completed + done.failed) / (LONG_S - begin_s)
    assert done.failed == 0
    assert rate_rps * (done.mean_s + 0.1) / 20 == pytest.approx(1.0, abs=0.05)
    assert done.latency_s_N.min() >= LATENCY_S
    assert np.median(done.latency_s_N) < LATENCY_S + 0.05


def test_every_request_is_in_the_record(closed: Ran) -> None:
    sent, done = (closed.ledger.kept[kind].rows for kind in (SENT, DONE))
    # What was cut off at the end has been sent, and may or may not have arrived.
    assert len(done) <= closed.triton.answered <= closed.triton.arrived <= len(sent)
    assert len(sent) - len(done) <= 20
    assert len(np.unique(sent["id"])) == len(sent)
    log = closed.ledger.log(LONG_S)
    assert np.count_nonzero(log.status_N == RequestLog.OK) == closed.ledger.done(-1.0, LONG_S).completed
    assert set(log.status_N) <= {RequestLog.OK, RequestLog.UNFINISHED}


def test_users_send_images_as_binary_tensors(closed: Ran) -> None:
    for path, name, shape, low, high in closed.triton.inputs:
        assert (path, name, shape) == ("/v2/models/m/infer", "x", (1, 3, 8, 8))
        assert low < 20
        assert high > 235
    assert len({(low, high) for *_, low, high in closed.triton.inputs}) > 1, "different images"


def test_the_audit_of_a_calm_load(closed: Ran) -> None:
    assert closed.ledger.real_share == 1.0
    assert 0.0 < closed.ledger.cpu_share < 0.9
    assert 0.0 <= closed.ledger.lag_p99_s < 0.1


def test_each_request_has_its_connection(closed: Ran) -> None:
    assert closed.triton.connections == pytest.approx(closed.triton.arrived, abs=20)


@pytest.mark.slow
def test_kept_alive_connections_are_one_per_user_and_users_split_over_processes(triton: TritonDouble) -> None:
    ran = run(plan(triton, steady(9), keep=0, dtype="FP32"), triton, 1.5, processes=2)
    assert triton.connections == 9
    done = ran.ledger.kept[DONE].rows
    assert set(done["process"]) == {0, 1}
    assert triton.arrived > 50
    assert all(0 <= low < 0.1 and 0.9 < high <= 1 for *_, low, high in triton.inputs), "numbers in 0..1"


@pytest.mark.slow
def test_connections_end_after_so_many_requests(triton: TritonDouble) -> None:
    run(plan(triton, steady(4), keep=3), triton, 1.5)
    assert triton.connections == pytest.approx(triton.arrived / 3, abs=4)


def test_all_arrivals_of_an_open_load_are_sent_on_time(triton: TritonDouble) -> None:
    arrivals_s_N = np.sort(np.random.default_rng(0).uniform(0.0, 1.5, 200))
    triton.latency_s = 0.6  # far more under way at once than one after the other could be
    drawn = LoadPlan(from_s_K=np.zeros(0), users_K=np.zeros(0, int), arrivals_s_N=arrivals_s_N)
    ran = run(plan(triton, drawn), triton, 2.5)
    sent = ran.ledger.kept[SENT].rows
    assert len(sent) == triton.answered == 200
    assert np.allclose(sent["time_s"] - sent["lag_s"], arrivals_s_N, atol=1e-3)
    assert np.all(sent["lag_s"] > -1e-3)
    assert np.quantile(sent["lag_s"], 0.9) < 0.1
    assert ran.ledger.in_flight(1.2) > 40


@pytest.mark.slow
def test_users_follow_the_levels_to_the_moment(triton: TritonDouble) -> None:
    load = LoadPlan(
        from_s_K=np.array([0.0, 1.0, 2.0]), users_K=np.array([2, 12, 4]), think_min_s=0.1, think_max_s=0.1
    )
    ran = run(plan(triton, load), triton, 3.0)
    start_s = ran.ledger.kept[SENT].rows["time_s"]
    counts = [
        np.count_nonzero((start_s >= a) & (start_s < b)) for a, b in ((0.15, 1.0), (1.15, 2.0), (2.0, 3.0))
    ]
    cycle_s = 0.1 + float(ran.ledger.done(0.0, 3.0).mean_s)
    for count, users, span_s in zip(counts, (2, 12, 4), (0.85, 0.85, 1.0), strict=True):
        assert count == pytest.approx(users * span_s / cycle_s, rel=0.2, abs=2)


@pytest.mark.slow
def test_every_way_to_fail_is_told_apart(triton: TritonDouble, caplog: pytest.LogCaptureFixture) -> None:
    modes = (ANSWER, EMPTY, NOT_FINITE, ERROR, CUT, HANG, ANSWER)
    ran = run(plan(triton, steady(6, think_s=0.05), timeout_s=0.4), triton, 7 * 0.6, modes=modes)
    done = ran.ledger.kept[DONE].rows
    middle = [done[(done["time_s"] > 0.6 * k + 0.15) & (done["time_s"] < 0.6 * k + 0.45)] for k in range(7)]
    answers = [set(rows["answer"].tolist()) for rows in middle]
    assert answers == [{REAL}, {NOT_REAL}, {NOT_REAL}, {NO_ANSWER}, {NO_ANSWER}, {NO_ANSWER}, {REAL}]
    for k, rows in enumerate(middle):
        good = RequestLog.OK if k in (0, 6) else RequestLog.FAILED
        assert set(rows["status"].tolist()) == {good}, "a 200 without an inference is a failure"
    assert middle[5]["span_s"] == pytest.approx(0.4, abs=0.1), "given up after the time-out"
    assert 0 < ran.ledger.real_share < 1


@pytest.mark.slow
def test_nobody_there_is_a_failure(triton: TritonDouble) -> None:
    one = plan(triton, steady(3))
    triton.stop()
    ran = run(one, triton, 1.0)
    done = ran.ledger.done(0.0, 1.0)
    assert done.completed == 0
    assert done.failed > 5


def test_no_users_need_no_process(triton: TritonDouble) -> None:
    load = Load(plan(triton, steady(0)))
    assert not load
    load.start()
    assert load.processes == []
    load.stop()


def test_a_load_that_dies_is_told_with_its_last_words(triton: TritonDouble) -> None:
    load = Load(plan(triton, steady(2)))
    try:
        load.start()
        load.begin(time.monotonic())
        load.processes[0].log.write_text("one line\nthe last line\n")
        load.processes[0].process.kill()
        load.processes[0].process.wait()
        with pytest.raises(ClusterError, match=r"ended with code -9.\n  one line\n  the last line"):
            load.check()
    finally:
        load.stop()
    load.stop()


def test_a_load_that_cannot_start_says_why(triton: TritonDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UsersPlan, "write", lambda self, path: path.write_text("{}"))
    load = Load(plan(triton, steady(2)))
    try:
        with pytest.raises(ClusterError, match=r"(?s)code 2.*is no plan of a load"):
            load.start()
    finally:
        load.stop()


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from triton_double import TritonDouble
from test_users import plan, steady
from gpusched.live.load import Load

load = Load(plan(TritonDouble(), steady(5)), 2)
load.start()
load.begin(time.monotonic())
print(*[p.process.pid for p in load.processes], load.folder, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process() -> None:
    folder = Path(__file__).parent
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(folder.parents[1])},
    )
    assert parent.stdout is not None
    *pids, left = parent.stdout.readline().decode().split()
    children = [psutil.Process(int(pid)) for pid in pids]
    assert len(children) == 2
    assert all(child.is_running() for child in children)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert Path(left).exists()
    sweep()
    assert not Path(left).exists(), "the next load cleans up"


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_a_master_and_its_workers_run_the_same_plan(
    is_open: bool, triton: TritonDouble, tmp_path: Path
) -> None:
    from prometheus_double import free_port

    from gpusched.live.records import Tail

    one = plan(triton, steady(10, think_s=0.2))
    one.end_s = 4.0
    if is_open:
        one.arrivals_s = [0.02 * n for n in range(150)]
    one.write(tmp_path / "plan.json")
    port, records = str(free_port()), tmp_path / "records.bin"
    words = [sys.executable, "-m", "gpusched.live.users", str(tmp_path / "plan.json"), "--port", port]
    words += ["--expect-workers", "2"]
    programs = [subprocess.Popen([*words, "--master", "--records", str(records)])]
    programs += [subprocess.Popen([*words, "--worker"]) for _ in range(2)]
    try:
        assert [program.wait(60) for program in programs] == [0, 0, 0]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    rows = Tail(records).read()
    sent, done = rows[rows["kind"] == SENT], rows[rows["kind"] == DONE]
    assert len(sent) == len(done) == triton.arrived
    assert set(done["answer"]) == {REAL}
    assert set(done["process"]) == {0, 1}
    assert abs(time.time() - done["time_s"].max()) < 30, "wall time, the one clock hosts share"
    if is_open:
        assert len(sent) == 150
    else:
        assert len(sent) == pytest.approx(10 * 4.0 / 0.255, rel=0.15)
