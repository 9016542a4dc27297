"""The local cluster's own promises, on real servers: nothing lost while scaling, crashes mended, answers real."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from local_setup import cluster

from gpusched.cluster.local import LocalCluster
from gpusched.cluster.local.parts import get
from gpusched.cluster.local.replica import healthy
from gpusched.core.controls import Controls
from gpusched.core.errors import ClusterError
from gpusched.core.load import LoadPlan
from gpusched.core.logs import RequestLog
from gpusched.core.ports import Episode

pytestmark = [pytest.mark.local, pytest.mark.slow]

SHORT = ("trial.warmup_s=10", "trial.duration_s=40", "trial.control_s=10", "trial.tick_s=5")
WAIT_S = 30.0


@pytest.fixture
def local(installed: Path, request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    made = cluster(*SHORT, *getattr(request, "param", ()))
    try:
        yield made
    finally:
        made.close()
        made.give_back()


def episode(users: int) -> Episode:
    plan = LoadPlan(
        from_s_K=np.zeros(1), users_K=np.array([users], dtype=np.int64), think_min_s=0.2, think_max_s=0.4
    )
    return Episode(plan=plan, seed=np.random.SeedSequence(1))


def wait(until: Callable[[], bool]) -> None:
    begin_s = time.monotonic()
    while not until():
        assert time.monotonic() - begin_s < WAIT_S
        time.sleep(0.1)


def test_scaling_up_and_down_loses_no_request_and_shares_them(local: LocalCluster) -> None:
    local.reset([episode(20)])
    up = local.step(Controls.scale([3]))
    down = local.step(Controls.scale([1]))
    local.step(Controls.scale([1]))
    requests, ticks = local.logs()
    assert up.replicas_ready_E[0] == 3
    assert down.replicas_spec_E[0] == 1
    assert ticks.replicas_alive_T[-1] == 1.0
    ended_N = requests.status_N != RequestLog.UNFINISHED
    assert (requests.status_N[ended_N] == RequestLog.OK).all()
    assert local.audit().real_share == 1.0
    # Prometheus' counters of all replicas, gone ones included, against the clients' own count. A scrape and a replica's
    # last second may be missing.
    assert np.nansum(ticks.batches_T) <= ended_N.sum()
    assert np.nansum(ticks.batches_T) > 0.3 * ended_N.sum()
    assert ticks.cpu_cores_used_T[1:].min() > 0.0


def test_every_replica_gives_the_same_real_answer(local: LocalCluster) -> None:
    local.take()
    local.apply(Controls.scale([2]), 1.0)
    assert local.plane
    wait(lambda: local.state().ready == 2)
    image = np.full((1, 3, 96, 96), 100, dtype=np.uint8)
    given = {"name": "input", "shape": list(image.shape), "datatype": "UINT8", "data": image.ravel().tolist()}
    answers = []
    for port in local.plane.ports().values():
        body = json.dumps({"inputs": [given]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/mobilenetv4/infer", body) as answer:
            answers.append(np.array(json.load(answer)["outputs"][0]["data"]))
    assert answers[0].shape == (1000,)
    assert answers[0].std() > 0
    assert (answers[0] == answers[1]).all()


def test_a_crashed_replica_is_mended(local: LocalCluster) -> None:
    local.take()
    assert local.plane
    assert local.processes
    (before,) = local.plane.ports()
    os.killpg(local.processes.pids[before], signal.SIGKILL)
    wait(lambda: local.state().ready == 0)
    wait(lambda: local.state().ready == 1)
    (after,) = local.plane.ports()
    assert after != before


@pytest.mark.parametrize("local", [("cluster.threads=1", "cluster.onnx=/dev/null")], indirect=True)
def test_a_model_file_that_is_none_is_refused(local: LocalCluster) -> None:
    with pytest.raises(ClusterError, match="is not a file"):
        local.take()


def test_a_server_that_cannot_load_its_model_is_said(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    local = cluster(*SHORT, f"cluster.onnx={broken}")
    try:
        with pytest.raises(ClusterError, match="Triton ends before it is ready"):
            local.take()
    finally:
        local.give_back()


def test_another_server_on_the_port_is_not_taken_for_ours(local: LocalCluster) -> None:
    local.take()
    assert local.plane
    (port,) = local.plane.ports().values()
    (replica,) = local.plane.replicas
    assert get(port, "/v2/health/ready")[0] == 200
    assert healthy(port, replica.identity)
    assert not healthy(port, "somebody-else")


def test_giving_back_twice_and_without_having_taken_is_harmless(installed: Path) -> None:
    local = cluster(*SHORT)
    local.give_back()
    local.take()
    local.give_back()
    local.give_back()
    with pytest.raises(ClusterError, match="not running"):
        local.state()
