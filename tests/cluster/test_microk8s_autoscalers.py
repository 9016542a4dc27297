"""HPAs that are not the trial's: those that appear meanwhile, those that do not go, and what a controller remembers of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_control import World
from emulator import Emulator
from scene import act, cluster, hold, old_hpa, picture, scale

from gpusched.cluster.microk8s import hold as holds
from gpusched.cluster.microk8s.client import Deadline
from gpusched.core.controls import Controls, HPASpec
from gpusched.core.errors import ClusterError

HPAS = "horizontalpodautoscalers"
HPA = (HPAS, "gpusched", "triton")
DEPLOYMENT = ("deployments", "gpusched", "triton")
JOURNAL = ("configmaps", "gpusched", "gpusched-journal")
REPLICAS, OURS = scale(2), Controls.autoscale(HPASpec(), 1)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster((HPAS, old_hpa()), world=World(hpa_controller=True)) as made:
        yield made


def make(emulator: Emulator, name: str, **metadata: Any) -> None:
    """Somebody makes an HPA of the Deployment that wants four replicas at least."""
    made = old_hpa()
    made["metadata"] |= {"name": name, **metadata}
    made["spec"]["minReplicas"] = 4
    emulator.store.create(HPAS, "gpusched", made, "argocd")


# --- those that appear ---


@pytest.mark.parametrize("name", ["triton", "somebody"])
@pytest.mark.parametrize("controls", [REPLICAS, OURS, Controls.scale([-1])], ids=["replicas", "HPA", "nothing"])  # fmt: skip
def test_one_that_appears_during_the_trial_ends_it(
    emulator: Emulator, tmp_path: Path, name: str, controls: Controls
) -> None:
    """As Argo CD makes the one again that was set aside, or kubectl autoscale one of another name."""
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, scale(1))
    make(emulator, name)
    with pytest.raises(ClusterError, match=rf"{name} .*appeared during the trial.*kubectl delete hpa {name} -n gpusched"):  # fmt: skip
        act(one, controls)
    one.give_back(5)
    assert emulator.store.get((HPAS, "gpusched", name))["spec"]["minReplicas"] == 4, "not ours to remove"


def test_one_that_appears_beside_ours_ends_the_trial(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, OURS)
    copied = emulator.store.get(HPA)
    make(emulator, "copy", annotations=copied["metadata"]["annotations"])
    with pytest.raises(ClusterError, match=r"copy .*appeared during the trial"):
        act(one, OURS)


def test_one_of_another_deployment_is_left_alone(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    other = old_hpa()
    other["metadata"]["name"] = other["spec"]["scaleTargetRef"]["name"] = "web"
    emulator.store.create(HPAS, "gpusched", other, "kubectl")
    act(one, OURS)
    act(one, REPLICAS)


# --- those that do not go ---


def held_by(emulator: Emulator, *finalizers: str) -> None:
    live = emulator.store.get(HPA)
    live["metadata"]["finalizers"] = list(finalizers)
    emulator.store.update(HPA, live, "somebody")


def test_one_with_finalizers_is_refused_before_anything_is_changed(
    emulator: Emulator, tmp_path: Path
) -> None:
    held_by(emulator, "example.org/audit")
    before, one = picture(emulator), hold(emulator, tmp_path)
    with pytest.raises(
        ClusterError, match=r"finalizers \(example.org/audit\) keep it.*kubectl patch hpa triton"
    ):
        one.take(5)
    one.give_back(5)
    assert picture(emulator) == before
    assert emulator.writes() == []


def test_one_of_ours_that_does_not_go_is_told(emulator: Emulator, tmp_path: Path) -> None:
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, OURS)
    held_by(emulator, "example.org/audit")
    with pytest.raises(ClusterError, match=r"finalizers \(example.org/audit\) keep it"):
        act(one, REPLICAS)


def test_one_that_is_going_is_not_taken_for_the_one_to_give_back(emulator: Emulator, tmp_path: Path) -> None:
    """It goes once its finalizers do; without the journal nobody would make it again."""
    before, one = picture(emulator), hold(emulator, tmp_path)
    one.take(5)
    make(emulator, "triton", finalizers=["example.org/audit"])
    emulator.store.delete(HPA, {})
    with pytest.raises(ClusterError, match=r"(?s)HPA as found: .*finalizers .*job=restore"):
        one.give_back(5)
    assert JOURNAL in emulator.store.objects
    held_by(emulator)
    assert HPA not in emulator.store.objects
    hold(emulator, tmp_path).restore(5)
    emulator.settle()
    assert picture(emulator) == before


# --- what the controller remembers ---


def changes(emulator: Emulator, verb: str) -> list[float]:
    return [seen.at_s for seen in emulator.writes() if (seen.verb, seen.kind) == (verb, HPAS)]


def test_none_is_made_before_the_removed_one_is_forgotten(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "FORGET_S", 0.6)
    one = hold(emulator, tmp_path)
    one.take(5)
    act(one, scale(1))  # replicas need not wait
    with pytest.raises(TimeoutError, match="its controller forgets it in"):
        act(one, OURS, seconds=0.2)
    act(one, OURS)
    (removed_s,), (made_s, *_) = changes(emulator, "delete"), changes(emulator, "patch")
    assert made_s - removed_s >= 0.6
    began_s = time.monotonic()
    act(one, Controls.autoscale(HPASpec(target=40), 1))
    assert time.monotonic() - began_s < 0.5, "only the first waits"


def test_where_none_was_removed_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "FORGET_S", 60.0)
    with cluster() as emulator:
        one = hold(emulator, tmp_path)
        one.take(5)
        act(one, OURS)
        # Killed here; whoever restores removes it.
        other = hold(emulator, tmp_path)
        other.take(5)
        with pytest.raises(TimeoutError):
            act(other, OURS)
        assert other.state(Deadline(1)).spec == 1
