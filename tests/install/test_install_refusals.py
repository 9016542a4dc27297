"""install.sh on a made-up machine: what it refuses, its options, what it leaves, and the text of the script itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_machine import ROOT, STUB, Machine

INSTALL = (ROOT / "install.sh").read_text()
METALLB = ("--with", "metallb", "--metallb-range", "192.168.1.240-192.168.1.249")
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


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- what it refuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem", "cure"),
    [
        (lambda m: m.system("ubuntu", "22.04"), "this is ubuntu 22.04, not Ubuntu 24.04", "manifests/"),
        (lambda m: m.put("machine", "aarch64"), "this is aarch64", "x86_64"),
        (lambda m: m.put("no-sudo"), "sudo refuses you", "group sudo"),
        (lambda m: (m.bin / "snap").unlink(), "there is no snap", "apt-get install snapd"),
        (lambda m: m.put("disk", "30"), "30 GiB free", "larger disk"),
        (lambda m: m.memory(8), "8 GiB of memory", "16 GiB"),
        (lambda m: m.drop("gpu"), "no NVIDIA GPU", "--skip gpu"),
        (lambda m: m.drop("driver"), "no working driver", "ubuntu-drivers install"),
        (lambda m: m.put("driver", "535.183.01"), "driver 535.183.01", "ubuntu-drivers install"),
    ],
)
def test_it_refuses_early_and_says_what_helps(machine: Machine, change: Any, problem: str, cure: str) -> None:
    change(machine)
    result = machine.run()
    assert result.code == 2
    assert result.calls == []
    told = next(i for i, line in enumerate(result.out.splitlines()) if problem in line)
    assert cure in result.out.splitlines()[told + 1]


@pytest.mark.slow
def test_it_tells_of_secure_boot_where_the_driver_does_not_load(machine: Machine) -> None:
    machine.put("secure-boot", "SecureBoot enabled")
    assert machine.run().code == 0, "harmless where the driver works"
    machine.drop("driver")
    result = machine.run("--only", "check,gpu")
    assert result.code == 2 and "Secure Boot is on" in result.out and "mokutil --import" in result.out


def test_it_tells_of_all_problems_at_once(machine: Machine) -> None:
    machine.memory(4)
    machine.drop("driver")
    machine.put("disk", "1")
    assert "3 problem(s)" in machine.run().out


def test_it_wants_to_be_started_without_sudo(machine: Machine) -> None:
    machine.put("uid", "0")
    result = machine.run(SUDO_USER="tester")
    assert result.code == 2 and "run ./install.sh as tester" in result.out and result.calls == []


@pytest.mark.slow
def test_root_himself_needs_neither_sudo_nor_the_group(machine: Machine) -> None:
    machine.put("uid", "0")
    (machine.bin / "sudo").unlink()
    (machine.bin / "sg").unlink()
    result = machine.run()
    assert result.code == 0, result.out
    assert "microk8s enable dns" in result.calls and not [
        c for c in result.calls if c.startswith(("root", "group"))
    ]


@pytest.mark.slow
def test_a_chart_and_the_addon_never_both(machine: Machine) -> None:
    machine.run("--skip", "gpu,sharing,service,kubeconfig")
    machine.put("release-by-hand", "gpu-operator-1718 gpu-operator deployed gpu-operator-v25.3.0")
    result = machine.run()
    assert result.code == 2
    assert "helm3 uninstall gpu-operator-1718 -n gpu-operator" in result.out
    assert not [call for call in result.calls if "nvidia" in call]


@pytest.mark.slow
def test_a_second_prometheus_stack_is_not_installed(machine: Machine) -> None:
    machine.run("--only", "microk8s,access,addons")
    machine.put("release-by-hand", "prom monitoring deployed kube-prometheus-stack-70.0.0")
    result = machine.run("--only", "monitoring")
    assert (
        result.code == 2 and "namespace monitoring" in result.out and "cluster.prometheus=URL" in result.out
    )
    assert result.calls == []


@pytest.mark.slow
@pytest.mark.parametrize("api", ["external", "custom"])
def test_the_server_of_a_metrics_api_is_not_taken_over(machine: Machine, api: str) -> None:
    """One APIService of that name in a cluster: KEDA's, or another adapter's."""
    name = f"v1beta1.{api}.metrics.k8s.io"
    machine.put("apiservices", f"NAME  NS\nv1.apps  <none>\n{name}   keda")
    result = machine.run()
    assert result.code == 2
    assert f"another server: {name} of keda" in result.out and "--with keda" in result.out
    assert not [call for call in result.calls if "apply -k" in call]
    machine.put("apiservices", f"v1.apps  <none>\n{name}   gpusched-metrics")
    assert machine.run().code == 0, "our own is no hindrance"


@pytest.mark.slow
def test_a_broken_operator_is_made_anew(machine: Machine) -> None:
    machine.run("--skip", "gpu,sharing,service,kubeconfig")
    machine.put("release-gpu", "gpu-operator gpu-operator-resources failed gpu-operator-v25.10.0")
    result = machine.run()
    assert result.code == 0, result.out
    assert result.index("group: microk8s helm3 uninstall gpu-operator --namespace gpu") < result.index(
        "group: microk8s enable nvidia"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "chart", "again"),
    [
        ("gpu", "gpu-operator gpu-operator-resources", "gpu-operator-v25.10.0", "enable nvidia"),
        ("prom", "kube-prom-stack observability", "kube-prometheus-stack-76.4.1", "enable observability"),
        ("keda", "keda keda", "keda-2.18.1", "helm3 upgrade --install keda"),
    ],
)
def test_what_helm_broke_off_is_cleared_away(
    machine: Machine, file: str, name: str, chart: str, again: str
) -> None:
    """Neither the addons' `disable`, which sees deployed and failed releases only, nor `helm upgrade` gets over it."""
    machine.run("--skip", "monitoring,gpu,sharing,service,kubeconfig")
    machine.put(f"release-{file}", f"{name} pending-install {chart}")
    result = machine.run("--with", "keda")
    assert result.code == 0, result.out
    first, second = name.split()
    gone = result.index(f"group: microk8s helm3 uninstall {first} --namespace {second}")
    assert gone < result.index(f"group: microk8s {again}")
    assert not [call for call in machine.run("--with", "keda").calls if "uninstall" in call]


@pytest.mark.slow
def test_replicas_make_room_before_the_gpu_is_shared_in_another_way(machine: Machine) -> None:
    assert machine.run().code == 0
    machine.put("deployment")
    result = machine.run("--only", "sharing,service", "--sharing", "mps")
    assert result.code == 0, result.out
    scale = "group: microk8s kubectl -n gpusched scale deployment/triton --replicas="
    order = [scale + "0", "group: microk8s kubectl -n gpusched wait", "group: microk8s kubectl label nodes",
             "group: microk8s kubectl apply", scale + "1"]  # fmt: skip
    assert [result.index(call) for call in order] == sorted(result.index(call) for call in order)
    assert not [c for c in machine.run("--only", "sharing,service", "--sharing", "mps").calls if "scale" in c]


@pytest.mark.slow
def test_the_volume_of_a_deleted_namespace_is_set_free(machine: Machine) -> None:
    assert machine.run().code == 0
    machine.put("volume", "Released")
    result = machine.run("--only", "service")
    assert result.index("group: microk8s kubectl patch pv") < result.index("group: microk8s kubectl apply")
    assert not [call for call in machine.run("--only", "service").calls if "patch" in call]


@pytest.mark.slow
def test_a_kubeconfig_whose_account_is_gone_is_written_anew(machine: Machine) -> None:
    assert machine.run().code == 0
    path = machine.home / ".kube" / "gpusched.config"
    path.write_text("of an account that was deleted")
    assert machine.run("--only", "kubeconfig").code == 0
    assert path.read_text() == "of an account that was deleted", "it answers"
    machine.put("unauthorized")
    assert machine.run("--only", "kubeconfig").code == 0
    assert "a-very-secret-token" in path.read_text()


@pytest.mark.slow
def test_beside_another_prometheus_nothing_of_ours_is_applied_to_it(machine: Machine) -> None:
    machine.put("release-prom", "stack monitoring deployed kube-prometheus-stack-76.4.1")
    assert "--skip monitoring" in machine.run().out
    result = machine.run("--skip", "monitoring")
    assert result.code == 0, result.out
    assert [c.rpartition("manifests/")[2] for c in result.calls if "apply -k" in c] == [
        "overlays/time-slicing"
    ]


@pytest.mark.slow
def test_an_addon_that_hides_its_failure_is_found_out(machine: Machine) -> None:
    machine.put("fails-nvidia", "once")
    machine.put("never-nvidia-device-plugin-daemonset")
    result = machine.run()
    assert result.code == 2 and "the GPU Operator does not come up" in result.out
    assert not [call for call in result.calls if "label nodes" in call]
    machine.drop("never-nvidia-device-plugin-daemonset")
    assert machine.run().code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("never", "text"),
    [
        ("statefulset/prometheus-kube-prom-stack-kube-prome-prometheus", "Prometheus does not come up"),
        ("deployment/triton", "Triton does not become ready"),
    ],
)
def test_what_never_comes_up_is_told(machine: Machine, never: str, text: str) -> None:
    machine.put(f"never-{never.rpartition('/')[2]}")
    result = machine.run()
    assert result.code == 2 and text in result.out and "Cure: microk8s kubectl" in result.out


# --- metallb ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_metallb_is_tried_again_until_it_has_addresses(machine: Machine) -> None:
    machine.put("fails-metallb", "once\ntwice")
    result = machine.run(*METALLB)
    assert result.code == 0, result.out
    assert len([call for call in result.calls if "enable metallb:192.168.1.240-192.168.1.249" in call]) == 3


@pytest.mark.slow
def test_metallb_that_never_works(machine: Machine) -> None:
    machine.put("fails-metallb", "1\n2\n3\n4")
    result = machine.run(*METALLB)
    assert result.code == 2 and "no address pool after 3 attempts" in result.out


def test_metallb_needs_addresses(machine: Machine) -> None:
    result = machine.run("--with", "metallb")
    assert result.code == 2 and "--metallb-range" in result.out
    assert not [call for call in result.calls if "metallb" in call]


# --- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_docker_metallb_and_keda_only_where_asked(machine: Machine) -> None:
    calls = "\n".join(machine.run().calls)
    assert not re.search("docker|metallb|keda", calls)


@pytest.mark.slow
def test_keda_instead_of_the_prometheus_adapter(machine: Machine) -> None:
    result = machine.run("--with", "keda")
    assert any(
        "helm3 upgrade --install keda keda" in call and "--version 2.18.1" in call for call in result.calls
    )
    assert not [call for call in result.calls if "prometheus-adapter" in call]
    assert "group: microk8s helm3 uninstall keda --namespace keda" in machine.run("--uninstall").calls


@pytest.mark.slow
def test_keda_follows_our_prometheus_adapter(machine: Machine) -> None:
    """Helm refuses to take over the APIService that the adapter's manifests made."""
    machine.run()
    calls = machine.run("--with", "keda", "--only", "keda").calls
    delete = [k for k, call in enumerate(calls) if call.endswith("manifests/overlays/prometheus-adapter")]
    helm = [k for k, call in enumerate(calls) if "helm3 upgrade --install keda" in call]
    assert len(delete) == len(helm) == 1 and " delete " in calls[delete[0]] and delete[0] < helm[0]
    assert "prometheus-adapter" not in machine.run("--uninstall", "--dry-run").out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "overlay"),
    [
        ((), "time-slicing"),
        (("--sharing", "mps"), "mps"),
        (("--sharing", "none"), "microk8s"),
        (("--skip", "gpu,sharing"), "cpu"),
    ],
)
def test_the_overlay_fits_the_sharing(machine: Machine, words: tuple[str, ...], overlay: str) -> None:
    calls = machine.run(*words).calls
    applied = [call.rpartition("/")[2] for call in calls if "apply -k" in call]
    assert applied[0] == overlay
    labels = [call for call in calls if "label nodes" in call]
    assert (
        labels == [] if overlay == "cpu" else f"config={words[1] if words else 'time-slicing'}" in labels[0]
    )


@pytest.mark.slow
def test_a_later_run_of_one_step_sees_whether_there_is_a_gpu(machine: Machine) -> None:
    machine.run("--skip", "gpu,sharing")
    assert machine.run("--only", "service").calls[0].endswith("overlays/cpu")
    machine.put("gpus", "6")
    assert machine.run("--only", "service").calls[0].endswith("overlays/time-slicing")


@pytest.mark.slow
def test_without_a_gpu_nobody_looks_for_one(machine: Machine) -> None:
    machine.drop("gpu")
    machine.drop("driver")
    result = machine.run("--skip", "gpu,sharing")
    assert result.code == 0, result.out
    assert not [question for question in result.questions if "lspci" in question]


@pytest.mark.slow
def test_only_and_skip(machine: Machine) -> None:
    result = machine.run("--only", "microk8s,access")
    assert [call.split()[1] for call in result.calls] == ["snap", "snap", "microk8s", "usermod"]
    assert machine.run("--only", "addons", "--skip", "addons").calls == []
    machine.memory(1)
    assert machine.run("--only", "access").code == 2, "the machine is looked at in any case"
    assert machine.run("--only", "access", "--skip", "check").code == 0


def test_list_names_every_step_and_needs_nothing(machine: Machine) -> None:
    result = machine.run("--list")
    assert [line.split()[0] for line in result.out.splitlines()] == STEPS
    assert result.calls == result.questions == [] and machine.files().keys() == {
        "repo/install.sh",
        "repo/pyproject.toml",
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--only", "gpus"), "there is no step 'gpus'"),
        (("--dryrun",), "what is '--dryrun'?"),
        (("--sharing", "mig"), "time-slicing mps none"),
        (("--log",), "--log needs a value"),
    ],
)
def test_a_slip_is_one_message(machine: Machine, words: tuple[str, ...], text: str) -> None:
    result = machine.run(*words)
    assert result.code == 2 and text in result.out and "Cure: " in result.out
    assert result.calls == []


# --- what it leaves -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kubeconfig_is_ours_alone_and_the_token_is_nowhere_else(machine: Machine) -> None:
    result = machine.run()
    path = machine.home / ".kube" / "gpusched.config"
    assert path.stat().st_mode & 0o777 == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["users"] == [{"name": "gpusched", "user": {"token": "a-very-secret-token"}}]
    assert config["contexts"][0]["context"] == {
        "cluster": "microk8s",
        "user": "gpusched",
        "namespace": "gpusched",
    }
    assert config["clusters"][0]["cluster"]["certificate-authority-data"] == "Q0EK"
    others = {name: text for name, text in machine.files().items() if not name.endswith("gpusched.config")}
    assert "a-very-secret-token" not in result.out + "".join(others.values())


@pytest.mark.slow
def test_the_log_holds_commands_and_what_they_said(machine: Machine) -> None:
    machine.put("fails-observability", "once")
    machine.run("--log", str(machine.home / "my.log"))
    log = (machine.home / "my.log").read_text()
    assert "+ sudo snap install microk8s" in log and "chart not found" in log and "Cure: " in log


# --- the text itself ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [ROOT / "install.sh", ROOT / "manifests" / "check_machine.sh", STUB], ids=lambda path: path.name
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here (Debian package shellcheck)")
    done = subprocess.run(
        [shellcheck, "-x", str(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_every_version_stands_once_at_the_top() -> None:
    head, _, rest = INSTALL.partition("STEPS=(")
    versions = re.findall(r"^[A-Z0-9_]+=(v?\d[\w./]*)", head, re.M)
    assert len(versions) == 9
    assert not re.search(
        r"\bv?\d+\.\d+\.\d+\b(?<!127\.0\.0)|\d+\.\d+/stable",
        re.sub(r"[\d.]+-[\d.]+\.|127\.0\.0\.1", "", rest),
    )


@pytest.mark.parametrize(
    "word", ["newgrp ", "precompiled", "usePrecompiled", "helm3 install", "latest", "curl "]
)
def test_commands_that_are_wrong_here_are_not_used(word: str) -> None:
    code = "\n".join(
        line.partition(" # ")[0] for line in INSTALL.splitlines() if not line.lstrip().startswith("#")
    )
    assert word not in code
