"""Waiting for readiness: by watch, through its troubles, and never for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_control import Times, World
from emulator import Emulator
from scene import act, cluster, hold, scale

from gpusched.cluster.microk8s.hold import Hold
from gpusched.cluster.microk8s.ready import rolled_out
from gpusched.core.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.wall]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster(world=World(times=Times(ready_s=0.3))) as made:
        yield made


@pytest.fixture
def held(emulator: Emulator, tmp_path: Path) -> Hold:
    one = hold(emulator, tmp_path)
    one.take(5)
    return one


def test_ready_means_ready(emulator: Emulator, held: Hold) -> None:
    act(held, scale(3))
    began_s = time.monotonic()
    held.wait_ready(3, 5)
    assert time.monotonic() - began_s > 0.2
    status = emulator.store.get(("deployments", "gpusched", "triton"))["status"]
    assert (status["readyReplicas"], status["updatedReplicas"]) == (3, 3)


def test_waiting_is_no_polling(emulator: Emulator, held: Hold) -> None:
    emulator.world.times.ready_s = 1.0
    act(held, scale(3))
    lists = emulator.count("list", "deployments")
    held.wait_ready(3, 5)
    assert emulator.count("list", "deployments") == lists + 1
    assert emulator.count("watch", "deployments") <= 2


def test_a_watch_that_is_cut_resumes_where_it_was(emulator: Emulator, held: Hold) -> None:
    emulator.fault("watch", "deployments", cut=True, times=3)
    act(held, scale(3))
    lists = emulator.count("list", "deployments")
    held.wait_ready(3, 5)
    assert emulator.count("list", "deployments") == lists + 1, "resumed by version, not listed again"
    asked = [int(s.query["resourceVersion"]) for s in emulator.seen if s.verb == "watch"]
    assert asked == sorted(asked)


def test_a_bookmark_moves_the_version_on(
    emulator: Emulator, held: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other objects change; only bookmarks tell the watch of one Deployment how far it has come."""
    import gpusched.cluster.microk8s.watch as watch

    monkeypatch.setattr(watch, "WATCH_S", 1.0)
    emulator.world.times.ready_s = 2.0
    act(held, scale(2))

    def others() -> None:
        for i in range(20):
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{i}"}}
            emulator.store.create("configmaps", "gpusched", body, "t")
            time.sleep(0.02)

    thread = threading.Thread(target=others)
    thread.start()
    held.wait_ready(2, 6)
    thread.join()
    asked = [int(s.query["resourceVersion"]) for s in emulator.seen if s.verb == "watch"]
    assert len(asked) >= 2
    assert asked[1] - asked[0] >= 15, "no event of the Deployment came, so only bookmarks can have told"


def test_an_expired_version_is_listed_again(emulator: Emulator, held: Hold) -> None:
    emulator.fault("watch", "deployments", gone=True, times=2)
    act(held, scale(3))
    lists = emulator.count("list", "deployments")
    held.wait_ready(3, 5)
    assert emulator.count("list", "deployments") == lists + 3


@pytest.mark.parametrize(
    "trouble",
    [{"gone": True}, {"status": 410, "reason": "Expired"}, {"status": 401}, {"cut": True}, {"drop": True}],
)
def test_trouble_that_stays_is_not_hammered(emulator: Emulator, held: Hold, trouble: dict) -> None:
    emulator.world.never_ready = True
    act(held, scale(2))
    time.sleep(0.1)
    emulator.fault("watch", "deployments", times=10**6, **trouble)
    with pytest.raises(ClusterError):
        held.wait_ready(2, 2.0)
    # 0.05..0.1, 0.1..0.2, 0.2..0.4, 0.4..0.8, 0.8..1.6 between them
    assert 4 <= emulator.count("watch", "deployments") <= 7


def test_retry_after_is_honoured(emulator: Emulator, held: Hold) -> None:
    emulator.fault("watch", "deployments", status=429, retry_after=1)
    act(held, scale(2))
    held.wait_ready(2, 6)
    first, second, *_ = [s.at_s for s in emulator.seen if s.verb == "watch"]
    assert 1.0 <= second - first < 1.5


def test_410_as_a_status_is_listed_again(emulator: Emulator, held: Hold) -> None:
    emulator.fault("watch", "deployments", status=410, reason="Expired")
    act(held, scale(3))
    held.wait_ready(3, 5)


@pytest.mark.parametrize(
    "trouble", [{"status": 500}, {"status": 429, "retry_after": 1}, {"drop": True}, {"status": 401}]
)
def test_trouble_while_watching_passes(emulator: Emulator, held: Hold, trouble: dict) -> None:
    emulator.fault("watch", "deployments", **trouble)
    act(held, scale(2))
    held.wait_ready(2, 6)


def test_a_hung_watch_is_noticed(emulator: Emulator, held: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpusched.cluster.microk8s.watch as watch

    monkeypatch.setattr(watch, "WATCH_S", 1.0)
    emulator.fault("watch", "deployments", hang_s=60)
    act(held, scale(2))
    began_s = time.monotonic()
    held.wait_ready(2, 10)
    assert time.monotonic() - began_s < 4.0


def test_a_pod_that_never_gets_ready_is_told_with_its_reason(emulator: Emulator, held: Hold) -> None:
    emulator.world.never_ready = True
    act(held, scale(3))
    began_s = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"1 of 3 replicas ready after 1 s .*ContainersNotReady.*ready_timeout_s"
    ):
        held.wait_ready(3, 1.0)
    assert time.monotonic() - began_s < 2.5


QUOTA = 'pods "triton-5d4f7c9b8d-abcde" is forbidden: exceeded quota: compute'


def test_pods_that_cannot_be_created_are_told_with_the_reason(emulator: Emulator, held: Hold) -> None:
    emulator.world.quota = QUOTA
    act(held, scale(3))
    with pytest.raises(ClusterError, match=r"1 of 3 replicas ready .*FailedCreate: .*exceeded quota"):
        held.wait_ready(3, 0.5)


def test_pods_that_a_node_rejects_are_told_with_the_reason(emulator: Emulator, held: Hold) -> None:
    """They stay as Failed, and others take their place."""
    emulator.world.rejected, emulator.world.never_ready = 2, True
    act(held, scale(3))
    with pytest.raises(
        ClusterError, match=r"ContainersNotReady.*UnexpectedAdmissionError: Pod Allocate failed"
    ) as told:
        held.wait_ready(3, 0.5)
    assert str(told.value).count("UnexpectedAdmissionError") == 1, "each reason once"


def test_a_deployment_that_goes_away_is_told(emulator: Emulator, held: Hold) -> None:
    emulator.world.never_ready = True
    act(held, scale(3))
    threading.Timer(0.3, emulator.remove, [("deployments", "gpusched", "triton"), {}]).start()
    with pytest.raises(ClusterError, match=r"was deleted while|is gone"):
        held.wait_ready(3, 5)


def test_the_heartbeat_goes_on_while_waiting(
    emulator: Emulator, held: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpusched.cluster.microk8s.journal as journal
    import gpusched.cluster.microk8s.watch as watch

    monkeypatch.setattr(journal, "RENEW_S", 0.2)
    monkeypatch.setattr(watch, "WATCH_S", 1.0)
    emulator.world.never_ready = True
    act(held, scale(2))
    beats = emulator.count("patch", "configmaps")
    with pytest.raises(ClusterError):
        held.wait_ready(2, 3.0)
    assert emulator.count("patch", "configmaps") >= beats + 2


def deployment(replicas: int, seen: int = 2, **counts: int) -> dict:
    status = {f"{key}Replicas" if key != "all" else "replicas": n for key, n in counts.items()}
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": replicas},
        "status": {**status, "observedGeneration": seen},
    }


def test_a_status_of_an_older_spec_is_not_believed() -> None:
    whole = {"all": 2, "updated": 2, "ready": 2, "available": 2}
    assert rolled_out(deployment(2, **whole), 2)
    assert not rolled_out(deployment(2, seen=1, **whole), 2)
    assert not rolled_out(deployment(2, **{**whole, "updated": 1}), 2), "a rollout is on"
    assert not rolled_out(deployment(2, **{**whole, "all": 3}), 2), "a surge pod is still there"
    assert not rolled_out(deployment(3, **whole), 2)
