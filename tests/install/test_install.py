"""install.sh on a made-up machine: what it runs, in which order and how often; resuming, taking back, dry runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fake_machine import ROOT, STUB, Machine

INSTALL = (ROOT / "install.sh").read_text()
STEPS = [
    "check",
    "docker",
    "microk8s",
    "access",
    "addons",
    "metallb",
    "monitoring",
    "gpu",
    "sharing",
    "keda",
    "python",
    "model",
    "service",
    "kubeconfig",
]
EVERYTHING = ("--with", "docker,metallb", "--metallb-range", "192.168.1.240-192.168.1.249")

VALUES = "--gpu-operator-values=/repo/manifests/values/gpu-operator.yaml"
CLUSTER = [
    "root: snap install microk8s --classic --channel=1.35/stable",
    "root: snap refresh --hold microk8s",
    "root: microk8s status --wait-ready --timeout 600",
    "root: usermod -a -G microk8s tester",
    *(
        call
        for addon in ("dns", "rbac", "hostpath-storage", "metrics-server", "helm3")
        for call in (f"group: microk8s enable {addon}", "group: microk8s status --wait-ready --timeout 600")
    ),
]
MONITORING = [
    "group: microk8s enable observability --without-tempo --loki-stack-version=2.10.2 --kube-prometheus-stack-version=76.4.1"
    " --kube-prometheus-stack-values=/repo/manifests/values/observability.yaml"
]
GPU = [
    f"group: microk8s enable nvidia --gpu-operator-driver=host --gpu-operator-version=v25.10.0 {VALUES}",
    "group: microk8s kubectl label nodes -l nvidia.com/gpu.present=true nvidia.com/device-plugin.config=time-slicing --overwrite",
]
SELF = [
    "root: apt-get install -y make python3-venv",
    "make -C /repo setup",
    "pip install --quiet -c /repo/constraints.txt -e /repo[model]",
    "python /repo/manifests/model/export.py --out /repo/outputs/models --force",
]
APPLY = [
    "group: microk8s kubectl apply -k /repo/manifests/overlays/time-slicing",
    "group: microk8s kubectl apply -k /repo/manifests/monitoring",
    "group: microk8s kubectl apply -k /repo/manifests/overlays/prometheus-adapter",
]
DELETE = [
    "group: microk8s kubectl delete --ignore-not-found -k /repo/manifests/overlays/prometheus-adapter",
    "group: microk8s kubectl -n observability delete role,rolebinding -l app.kubernetes.io/part-of=gpusched",
    "group: microk8s kubectl delete --ignore-not-found -k /repo/manifests/overlays/time-slicing",
]

UNMONITOR = [
    "group: microk8s helm3 uninstall kube-prom-stack --namespace observability",
    "group: microk8s kubectl -n kube-system delete service kube-prom-stack-kube-prome-kubelet --ignore-not-found",
    "group: microk8s kubectl delete namespace observability --ignore-not-found",
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_fresh_machine(machine: Machine) -> None:
    result = machine.run()
    assert result.code == 0, result.out
    assert result.calls == CLUSTER + MONITORING + GPU + SELF + APPLY
    assert (machine.state / "models" / "mobilenetv4" / "config.pbtxt").exists()


@pytest.mark.slow
def test_a_second_run_changes_nothing_but_applies_again(machine: Machine) -> None:
    assert machine.run().code == 0
    before = machine.files()
    again = machine.run()
    assert again.code == 0, again.out
    assert again.calls == APPLY
    after = machine.files()
    log = "home/.local/state/gpusched/install.log"
    assert {k: v for k, v in after.items() if k != log} == {k: v for k, v in before.items() if k != log}
    assert after[log].startswith(before[log]), "the log grows"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "done", "rest"),
    [
        ("rbac", 6, [CLUSTER[6], *CLUSTER[7:], *MONITORING, *GPU, *SELF, *APPLY]),
        ("observability", 14, [*MONITORING, *GPU, *SELF, *APPLY]),
        ("apply", 21, APPLY),
    ],
)
def test_it_goes_on_after_the_step_that_failed(
    machine: Machine, failing: str, done: int, rest: list[str]
) -> None:
    whole = CLUSTER + MONITORING + GPU + SELF + APPLY
    machine.put(f"fails-{failing}", "once")
    first = machine.run()
    assert first.code == 2
    assert "Cure: " in first.out and "install.log" in first.out and "goes on from here" in first.out
    assert first.calls == whole[: done + 1], "stops at once"
    second = machine.run()
    assert second.code == 0, second.out
    assert second.calls == rest


@pytest.mark.slow
def test_what_is_there_is_left_as_it_is_and_not_taken_away(machine: Machine) -> None:
    machine.put("snap")
    (machine.bin / "microk8s").symlink_to(STUB)
    for name in ("group", "addon-dns", "addon-helm3"):
        machine.put(name)
    result = machine.run()
    assert result.code == 0
    assert not [
        call for call in result.calls if "snap " in call or "enable dns" in call or "enable helm3" in call
    ]
    back = machine.run("--uninstall")
    assert back.code == 0, back.out
    assert back.calls == [
        *DELETE,
        "group: microk8s kubectl label nodes -l nvidia.com/gpu.present=true nvidia.com/device-plugin.config-",
        "group: microk8s disable nvidia",
        *UNMONITOR,
        "group: microk8s disable metrics-server",
        "group: microk8s disable hostpath-storage",
        "group: microk8s disable rbac",
    ]
    assert not list((machine.state / "owned").iterdir())
    assert machine.run("--uninstall").calls == [], "nothing is left to take back"


@pytest.mark.slow
def test_uninstall_takes_back_everything_it_brought_in_reverse(machine: Machine) -> None:
    there = machine.run(*EVERYTHING)
    assert there.code == 0, there.out
    back = machine.run("--uninstall")
    assert back.code == 0, back.out
    assert back.calls == [
        *DELETE,
        "group: microk8s kubectl label nodes -l nvidia.com/gpu.present=true nvidia.com/device-plugin.config-",
        "group: microk8s disable nvidia",
        *UNMONITOR,
        "group: microk8s disable metallb",
        # The addons go with the snap.
        "root: gpasswd -d tester microk8s",
        "root: snap remove --purge microk8s",
        "root: apt-get remove -y docker.io",
    ]
    assert not (machine.state / "models" / "mobilenetv4").exists()
    assert not (machine.home / ".kube" / "gpusched.config").exists()
    assert not list((machine.state / "owned").iterdir())


@pytest.mark.slow
def test_uninstall_deletes_each_overlay_that_was_applied_and_no_other(machine: Machine) -> None:
    """KEDA's APIService has the name of prometheus-adapter's; mps has a ClusterRole that no other overlay has."""
    machine.put("gpus", "6")
    machine.run("--with", "keda")
    machine.run("--with", "keda", "--only", "sharing,service", "--sharing", "mps")
    back = machine.run("--uninstall", "--only", "service", "--with", "keda")
    assert back.calls == [
        DELETE[1],
        "group: microk8s kubectl delete --ignore-not-found -k /repo/manifests/overlays/mps",
        DELETE[2],
    ]
    machine.run("--only", "service", "--with", "keda")
    assert "prometheus-adapter" not in machine.run("--uninstall", "--dry-run", "--with", "keda").out


@pytest.mark.slow
def test_what_monitoring_leaves_outside_our_namespace_carries_our_label() -> None:
    """Taken back by its label."""
    things = [
        t for t in yaml.safe_load_all((ROOT / "manifests/monitoring/prometheus-access.yaml").read_text()) if t
    ]
    for thing in things:
        assert thing["kind"] in ("Role", "RoleBinding")
        assert thing["metadata"]["namespace"] == "observability"
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "gpusched"


@pytest.mark.slow
def test_uninstall_of_one_step(machine: Machine) -> None:
    machine.run()
    back = machine.run("--uninstall", "--only", "sharing")
    assert [call.split()[-1] for call in back.calls] == ["nvidia.com/device-plugin.config-"]


@pytest.mark.slow
def test_uninstall_where_microk8s_is_gone(machine: Machine) -> None:
    machine.run()
    (machine.bin / "microk8s").unlink()
    back = machine.run("--uninstall")
    assert back.code == 0, back.out
    assert "MicroK8s is gone" in back.out
    assert back.calls == ["root: gpasswd -d tester microk8s", "root: snap remove --purge microk8s"]


# --- dry run ----------------------------------------------------------------------------------------------------------


def printed(out: str) -> list[str]:
    return [line[2:] for line in out.splitlines() if line.startswith("+ ")]


@pytest.mark.slow
def test_a_dry_run_prints_what_a_run_does_and_does_nothing(machine: Machine) -> None:
    before = machine.files()
    dry = machine.run(*EVERYTHING, "--dry-run")
    assert dry.code == 0, dry.out
    assert dry.calls == [] and machine.files() == before
    real = machine.run(*EVERYTHING)
    assert real.code == 0, real.out

    def plain(line: str) -> str:
        """Return a printed command as the stub at its end records it."""
        line = line.replace(str(machine.folder), "").partition(" # attempt")[0].replace("\\", "")
        line = re.sub(r"^sudo ", "root: ", re.sub(r"^sg microk8s -c ", "group: ", line))
        return re.sub(r"^/repo/.venv/bin/", "", line)

    told = [plain(line) for line in printed(dry.out)]
    told = [line for line in told if not re.match(r"(root: )?(install -[Dd]|cp|write|/repo)", line)]
    did = [re.sub("^group: (timeout).*( [0-9]+)$", r"\1\2", call) for call in real.calls]
    at = did.index("timeout 300")
    did[at : at + 2] = ["timeout 300 " + did[at + 1].removeprefix("group: ")]
    assert told == did


def test_a_dry_run_where_there_is_nothing_at_all(tmp_path: Path) -> None:
    """On Debian, without snap, sudo or a GPU: it tells of that and goes on telling."""
    machine = Machine(tmp_path, stubs=False)
    machine.system("debian", "12")
    before = machine.files()
    result = machine.run("--dry-run", *EVERYTHING)
    assert result.code == 0, result.out
    assert machine.files() == before
    for text in ("not Ubuntu 24.04", "there is no snap", "no lspci", "no sudo"):
        assert text in result.out
    assert result.out.count("PROBLEM") == result.out.count("Cure") == 4
    assert [line.split(":")[0][3:] for line in result.out.splitlines() if line.startswith("== ")] == [
        step for step in STEPS if step != "keda"
    ]
    assert "snap install microk8s --classic --channel=1.35/stable" in result.out


@pytest.mark.slow
def test_a_dry_run_knows_what_is_there(machine: Machine) -> None:
    machine.run()
    assert len([line for line in printed(machine.run("--dry-run").out) if "install" in line]) == 0


@pytest.mark.slow
def test_a_dry_uninstall(machine: Machine) -> None:
    machine.run()
    before = machine.files()
    dry = machine.run("--uninstall", "--dry-run")
    assert dry.calls == [] and machine.files() == before
    assert any("snap remove --purge microk8s" in line for line in printed(dry.out))


def test_what_is_printed_lies_in_the_repository(machine: Machine) -> None:
    out = machine.run("--dry-run", *EVERYTHING).out
    for path in re.findall(rf"{machine.repo}/(manifests/\S+)", out):
        assert (ROOT / path).exists(), path
