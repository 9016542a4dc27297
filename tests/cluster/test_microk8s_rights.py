"""The Role in manifests/base allows every request a trial makes, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_control import Times, World
from emulator import Emulator, Seen
from scene import act, cluster, hold, old_hpa, scale

import gpusched.cluster.microk8s.journal as journal
from gpusched.cluster.microk8s.checks import RIGHTS
from gpusched.cluster.microk8s.client import Deadline
from gpusched.core.controls import Controls, HPADirection, HPASpec
from gpusched.core.errors import ClusterError

RBAC = Path(__file__).parents[2] / "manifests" / "base" / "rbac.yaml"
GROUPS = {"deployments": "apps", "horizontalpodautoscalers": "autoscaling"}
Right = tuple[str, str, str]


def rules() -> list[dict[str, Any]]:
    if not RBAC.exists():
        pytest.skip("manifests/base/rbac.yaml is not there")
    roles = [
        t
        for t in yaml.safe_load_all(RBAC.read_text())
        if t and t["kind"] == "Role" and t["metadata"]["name"] == "gpusched"
    ]
    return [rule for role in roles for rule in role["rules"]]


def rights(seen: list[Seen]) -> set[Right]:
    """Return (verb, resource, name) of every request inside the namespace."""
    asked = {(s.verb, s.kind, s.name) for s in seen if s.kind and s.kind.partition("/")[0] != "nodes"}
    # Applying an object that is not there needs the right to create it too.
    if any(verb == "patch" and kind == "horizontalpodautoscalers" for verb, kind, _ in asked):
        asked.add(("create", "horizontalpodautoscalers", ""))
    return asked


def allows(rule: dict[str, Any], right: Right) -> bool:
    verb, kind, name = right
    return (
        GROUPS.get(kind.partition("/")[0], "") in rule["apiGroups"]
        and kind in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or name in rule["resourceNames"])
    )


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
    act(one, Controls.autoscale(HPASpec(scale_down=HPADirection(stabilization_s=10)), 1))
    act(one, Controls.autoscale(HPASpec(), 1))
    act(one, scale(2, cpu_cores=0.5))
    one.give_back(5)
    from gpusched.cluster.microk8s import address

    with pytest.raises(ClusterError):
        address.service_url(one.api, "gpusched", "triton", Deadline(1))


def test_every_request_of_a_trial_is_allowed(asked: set[Right]) -> None:
    missing = [right for right in sorted(asked) if not any(allows(rule, right) for rule in rules())]
    assert missing == []


def test_the_doctor_asks_for_exactly_these_rights(asked: set[Right]) -> None:
    named = {(verb, kind.plural + (f"/{kind.sub}" if kind.sub else "")) for verb, kind in RIGHTS}
    assert named == {(verb, kind) for verb, kind, _ in asked}


def test_nothing_is_granted_that_no_trial_asks_for(asked: set[Right]) -> None:
    granted = {(verb, kind) for rule in rules() for verb in rule["verbs"] for kind in rule["resources"]}
    assert granted == {(verb, kind) for verb, kind, _ in asked}
