"""Who holds the cluster: one at a time, the living before the dead, and nobody by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulator import Emulator
from scene import act, cluster, hold, picture, scale

import gpusched.cluster.microk8s.client as client
import gpusched.cluster.microk8s.journal as journal
from gpusched.cluster.microk8s.hold import Hold
from gpusched.cluster.microk8s.owner import Owner
from gpusched.core.errors import ClusterError
from gpusched.core.process import started_s

pytestmark = pytest.mark.slow

JOURNAL = ("configmaps", "gpusched", "gpusched-journal")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster() as made:
        yield made


@pytest.fixture
def stranger() -> Iterator[Owner]:
    """A living process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = Owner.me()
    yield replace(me, pid=process.pid, started_s=started_s(process.pid), trial="theirs")
    process.kill()
    process.wait()


def taken_by(emulator: Emulator, folder: Path, owner: Owner, heartbeat_ago_s: float = 0.0) -> Hold:
    """A trial of another process in full swing."""
    one = hold(emulator, folder)
    one.owner = owner
    one.take(5)
    act(one, scale(4, instances=2))
    emulator.settle()
    beat(emulator, heartbeat_ago_s)
    return one


def beat(emulator: Emulator, ago_s: float) -> None:
    live = emulator.store.get(JOURNAL)
    heartbeat = float(live["metadata"]["annotations"]["gpusched/heartbeat"])
    live["metadata"]["annotations"]["gpusched/heartbeat"] = f"{heartbeat - ago_s:.1f}"
    emulator.store.update(JOURNAL, live, "t")


def elsewhere() -> Owner:
    return replace(Owner.me(), host="other", machine="another machine")


def dead_here() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Owner.me(), pid=process.pid, trial="dead")


def test_the_journal_stands_before_the_first_change(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path, trial="hpa on low, seed 0")
    one.take(5)
    live = emulator.store.get(JOURNAL)
    assert live["metadata"]["labels"]["app.kubernetes.io/part-of"] == "gpusched"
    owner = json.loads(live["data"]["owner"])
    assert (owner["pid"], owner["trial"]) == (os.getpid(), "hpa on low, seed 0")
    found = json.loads(live["data"]["found"])
    assert found["deployment"]["spec"]["replicas"] == 1
    assert found["hpa"] is None
    (pod,) = found["pods"].values()
    assert pod["containers"]["triton"]["limits"]["cpu"] == "1"
    assert emulator.writes() == []


def test_it_is_written_before_and_deleted_after_all_changes(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, scale(3, cpu_cores=2.0, instances=2))
    one.give_back(5)
    kinds = [(s.verb, s.kind) for s in emulator.seen if s.verb in ("create", "patch", "delete")]
    assert kinds[0] == ("create", "configmaps")
    assert kinds[-1] == ("delete", "configmaps")


def test_a_living_trial_on_this_machine_is_left_alone(
    emulator: Emulator, tmp_path: Path, stranger: Owner
) -> None:
    taken_by(emulator, tmp_path, stranger, heartbeat_ago_s=3600)
    before = picture(emulator)
    mine = hold(emulator, tmp_path)
    with pytest.raises(
        ClusterError, match=rf"held by process {stranger.pid} on .*\(trial theirs\).*One trial at a time"
    ):
        mine.take(5)
    mine.give_back(5)
    assert picture(emulator) == before
    with pytest.raises(ClusterError, match="held by"):
        hold(emulator, tmp_path).restore(5)


def test_a_dead_trial_of_this_machine_is_restored_at_once(emulator: Emulator, tmp_path: Path) -> None:
    """However fresh its heartbeat."""
    before = picture(emulator)
    taken_by(emulator, tmp_path, dead_here())
    mine = hold(emulator, tmp_path)
    mine.take(5)
    assert emulator.store.get(("deployments", "gpusched", "triton"))["spec"]["replicas"] == 1
    mine.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_a_process_that_got_a_dead_ones_number_is_not_mistaken_for_it(
    emulator: Emulator, tmp_path: Path, stranger: Owner
) -> None:
    taken_by(emulator, tmp_path, replace(stranger, started_s=stranger.started_s - 100))
    hold(emulator, tmp_path).take(5)


def test_a_trial_elsewhere_lives_while_its_heart_beats(emulator: Emulator, tmp_path: Path) -> None:
    taken_by(emulator, tmp_path, elsewhere(), heartbeat_ago_s=30)
    with pytest.raises(ClusterError, match=r"held by process \d+ on other, heartbeat 3\d s ago"):
        hold(emulator, tmp_path).take(5)


def test_a_trial_elsewhere_is_dead_without_a_heartbeat(emulator: Emulator, tmp_path: Path) -> None:
    before = picture(emulator)
    theirs = taken_by(emulator, tmp_path, elsewhere(), heartbeat_ago_s=61)
    mine = hold(emulator, tmp_path)
    mine.take(5)
    # It was only suspended. Neither its next step nor its end touches what is ours now.
    theirs.journal._renewed_s = 0.0  # type: ignore[union-attr]
    act(mine, scale(3))
    with pytest.raises(ClusterError, match="no longer ours"):
        act(theirs, scale(6))
    theirs.give_back(5)
    assert emulator.store.get(("deployments", "gpusched", "triton"))["spec"]["replicas"] == 3
    mine.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_heartbeats_are_measured_on_the_servers_clock(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose own clock is an hour off neither kills a living trial nor spares a dead one."""
    taken_by(emulator, tmp_path, elsewhere())
    wrong = SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(client, "time", wrong)
    with pytest.raises(ClusterError, match="held by"):
        hold(emulator, tmp_path).take(5)


def test_a_heartbeat_is_written_when_due_and_not_more(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    for _ in range(5):
        act(one, scale(2))
    assert emulator.count("patch", "configmaps") == 0
    monkeypatch.setattr(journal, "RENEW_S", 0.0)
    beat(emulator, 50)
    act(one, scale(2))
    age_s = one.api.now_s() - float(
        emulator.store.get(JOURNAL)["metadata"]["annotations"]["gpusched/heartbeat"]
    )
    assert age_s < 2


def test_of_two_that_restore_one_wins(emulator: Emulator, tmp_path: Path) -> None:
    taken_by(emulator, tmp_path, dead_here())
    mine, theirs = hold(emulator, tmp_path), hold(emulator, tmp_path)
    theirs.owner = elsewhere()
    old = emulator.store.get(JOURNAL)
    from gpusched.cluster.microk8s.client import Deadline

    first = journal.Journal(mine.api, "gpusched", mine.owner).claim(old, Deadline(2))
    assert json.loads(first["data"]["owner"])["pid"] == os.getpid()
    with pytest.raises(ClusterError, match="held by another process"):
        journal.Journal(theirs.api, "gpusched", theirs.owner).claim(old, Deadline(2))


@pytest.mark.parametrize("verb", ["create", "patch", "delete"])
def test_lost_answers_do_not_confuse_the_journal(emulator: Emulator, tmp_path: Path, verb: str) -> None:
    before = picture(emulator)
    taken_by(emulator, tmp_path, dead_here())
    emulator.fault(verb, "configmaps", drop=True, after=True)
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, scale(2))
    one.give_back(5)
    emulator.settle()
    assert picture(emulator) == before


def test_of_two_that_take_at_once_one_wins(emulator: Emulator, tmp_path: Path) -> None:
    mine, theirs = hold(emulator, tmp_path), hold(emulator, tmp_path)
    theirs.owner = elsewhere()
    create = emulator.store.create

    def faster(plural: str, namespace: str, body: dict[str, Any], manager: str) -> Any:
        emulator.store.create = create  # type: ignore[method-assign]
        theirs.take(5)
        return create(plural, namespace, body, manager)

    emulator.store.create = faster  # type: ignore[method-assign]
    with pytest.raises(ClusterError, match=r"held by process .* on other"):
        mine.take(5)
    mine.give_back(5)
    assert JOURNAL in emulator.store.objects, "theirs"


@pytest.mark.parametrize("owner", ["", "[]", '{"host": "x"}'])
def test_a_journal_that_cannot_be_read_is_told(emulator: Emulator, tmp_path: Path, owner: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "gpusched-journal"},
        "data": {"owner": owner},
    }
    emulator.store.create("configmaps", "gpusched", body, "t")
    with pytest.raises(ClusterError, match="owner cannot be read"):
        hold(emulator, tmp_path).take(5)


def test_restoring_without_a_journal_does_nothing(emulator: Emulator, tmp_path: Path) -> None:
    assert hold(emulator, tmp_path).restore(5) == ["namespace gpusched: no journal, nothing to restore"]
    assert emulator.writes() == []
