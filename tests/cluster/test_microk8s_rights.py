"""The Role in manifests/base allows every request of a trial and of the doctor, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import rbac
from emulated_control import Times, World
from emulator import Emulator, Seen
from rbac import Right, allows
from scene import act, cluster, hold, old_hpa, scale

import gpusched.cluster.microk8s.journal as journal
from gpusched.cluster.microk8s import checks
from gpusched.cluster.microk8s.checks import RIGHTS
from gpusched.cluster.microk8s.client import Deadline
from gpusched.core.controls import Controls, HPADirection, HPASpec
from gpusched.core.errors import ClusterError


def rights(seen: list[Seen]) -> set[Right]:
    """Return (verb, resource, name) of every request inside the namespace."""
    asked = {(s.verb, s.kind, s.name) for s in seen if s.namespace == "gpusched"}
    # Applying an object that is not there needs the right to create it too.
    if any(verb == "patch" and kind == "horizontalpodautoscalers" for verb, kind, _ in asked):
        asked.add(("create", "horizontalpodautoscalers", ""))
    return asked


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> set[Right]:
    """Every right that trials with every lever, a dead trial's restoration and a slow start ask for."""
    seen: list[Seen] = []
    for resize in (True, False):
        world = World(times=Times(ready_s=0.1))
        with cluster(("horizontalpodautoscalers", old_hpa()), resize=resize, world=world) as emulator:
            live_through(emulator, tmp_path_factory.mktemp("k"))
            seen += emulator.seen
    return rights(seen)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> set[Right]:
    """Every right that the doctor asks for beside those."""
    with cluster() as emulator:
        checks.run(hold(emulator, tmp_path_factory.mktemp("k")), "triton", "", most=6)
        return rights(emulator.seen)


def live_through(emulator: Emulator, folder: Path) -> None:
    dead = hold(emulator, folder)
    dead.take(5)
    act(dead, scale(2))
    one = hold(emulator, folder)
    one.take(5)
    act(one, scale(3, cpu_cores=2.0, instances=2))
    one.wait_ready(3, 5)
    assert one.journal is not None
    one.journal._renewed_s = -journal.RENEW_S * 2
    one.state(Deadline(1))
    assert one.actuator is not None
    one.actuator.hpa_from = Deadline(0)
    act(one, Controls.autoscale(HPASpec(scale_down=HPADirection(stabilization_s=10)), 1))
    act(one, Controls.autoscale(HPASpec(), 1))
    act(one, scale(2, cpu_cores=0.5))
    one.give_back(5)
    from gpusched.cluster.microk8s import address

    with pytest.raises(ClusterError):
        address.service_url(one.api, "gpusched", "triton", Deadline(1))


def test_every_request_is_allowed(asked: set[Right], looked: set[Right]) -> None:
    rules = rbac.rules()
    missing = [right for right in sorted(asked | looked) if not any(allows(rule, right) for rule in rules)]
    assert missing == []


def test_the_doctor_asks_for_exactly_these_rights(asked: set[Right]) -> None:
    named = {(verb, kind.plural + (f"/{kind.sub}" if kind.sub else "")) for verb, kind in RIGHTS}
    assert named == {(verb, kind) for verb, kind, _ in asked}


def test_nothing_is_granted_that_nobody_asks_for(asked: set[Right], looked: set[Right]) -> None:
    granted = {
        (verb, group, what)
        for rule in rbac.rules()
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for what in rule["resources"]
    }
    assert granted == {(verb, *rbac.resource(kind)) for verb, kind, _ in asked | looked}
