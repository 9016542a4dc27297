"""A GPU with known constants, played by a worker and an nvidia-smi of ours, comes back as a profile; no GPU is needed.

The worker keeps the physics of the simulator's GPU: a lone process takes host + gpu seconds per batch; processes that keep
the GPU busy end 1/(g·(1 + loss)) batches per second together. What runs for real is everything else, and in the last tests
the real worker with ONNX Runtime on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs import ROOT, make

from gpusched.core.errors import ClusterError, GateError, InputError
from gpusched.job import gpu
from gpusched.job.build import option
from gpusched.live.gpu import Stretch

HOST, GPU = (4e-5, 1e-5), (1e-4, 2e-5)
TIME_SLICING_LOSS, MPS_LOSS = 0.06, 0.11
MEMORY_MIB, USED_MIB, HELD_MIB = 10240, 300, 410

WORKER = """#!{python}
import json, os, sys
host, gpu, ts, mps, note = {host}, {gpu}, {ts}, {mps}, {note!r}
open(note + ".pid", "w").write(str(os.getpid()))
print(json.dumps({{"ready": "a network"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "batch" in asked:
        b, n = asked["batch"], asked["processes"]
        h, g = host[0] + host[1] * b, gpu[0] + gpu[1] * b
        loss = mps * (n - 1) if "CUDA_MPS_PIPE_DIRECTORY" in os.environ else ts * (n > 1)
        rate = min(n / (h + g), 1 / (g * (1 + loss)))
        open(note, "w").write(str(round(100 * min(1.0, rate * g * (1 + loss)))))
        told = {{"prepared": b}}
    else:
        span = asked["end_s"] - asked["begin_s"]
        count = round(rate / n * span)
        told = {{"batches": count, "sum_s": count * n / rate, "squares": count * (n / rate) ** 2}}
    print(json.dumps(told), flush=True)
"""

SMI = """#!/bin/sh
case "$*" in
  *compute-apps=pid,used*) echo "$(cat {note}.pid), {held}" ;;
  *compute-apps*) {apps} ;;
  *name,memory*) echo "NVIDIA GeForce RTX 3080, {memory}, {used}, {idle}" ;;
  *utilization*) {share} ;;
  *throttle*) echo "Not Active, Not Active, Not Active, Not Active" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Put a GPU into this machine, and return the job's overrides for it."""

    def put(
        idle: int | str = 0, apps: str = "true", with_mps: bool = True, utilisation: str = ""
    ) -> list[str]:
        folder, note = tmp_path / "bin", tmp_path / "share"
        folder.mkdir()
        note.write_text("0")
        worker = folder / "worker"
        texts = {
            "worker": WORKER.format(
                python=sys.executable, host=HOST, gpu=GPU, ts=TIME_SLICING_LOSS, mps=MPS_LOSS, note=str(note)
            ),
            "nvidia-smi": SMI.format(
                held=HELD_MIB,
                share=f"echo '{utilisation}'" if utilisation else f"cat {note}",
                apps=apps,
                memory=MEMORY_MIB,
                used=USED_MIB,
                idle=idle,
                note=note,
            ),
        } | ({"nvidia-cuda-mps-control": "#!/bin/sh\nexit 0\n"} if with_mps else {})
        for name, text in texts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return [
            "job=gpu", f"job.python={worker}", f"job.folder={tmp_path / 'made'}", "job.batches=[1,2,4,8,16]", "job.repeats=2",
            "job.processes=[2,4]", "job.stretch_s=0.15", "job.settle_s=0",
        ]  # fmt: skip

    return put


def profile(tmp_path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(
        (tmp_path / "made" / "service" / "mobilenetv4-rtx-3080.yaml").read_text()
    )
    return tree


@pytest.mark.slow
def test_known_constants_come_back(machine, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """nvidia-smi shows whole percents, which the constants cannot be better than."""
    job, built = make(*machine())
    job.do(built)  # type: ignore[attr-defined]
    made = profile(tmp_path)
    for name, value in zip(
        ("gpu_alpha_s", "gpu_beta_s", "host_alpha_s", "host_beta_s"), GPU + HOST, strict=True
    ):
        assert made[name]["value"] == pytest.approx(value, rel=0.08), name
        assert made[name]["status"] == "measured"
    slice_s = built.service.gpu_slice_s.value
    assert made["gpu_switch_s"]["value"] == pytest.approx(TIME_SLICING_LOSS * slice_s, rel=0.15)
    assert made["mps_interference"]["value"] == pytest.approx(MPS_LOSS, rel=0.1)
    assert made["gpu_vram_bytes"]["value"] == pytest.approx(MEMORY_MIB * 2**20, rel=1e-5)
    assert made["gpu_reserved_bytes"]["value"] == pytest.approx(USED_MIB * 2**20, rel=1e-5)
    assert made["pod_vram_bytes"]["value"] == pytest.approx(HELD_MIB * 2**20, rel=1e-5)
    assert made["client_s"] == {
        "value": built.service.client_s.value, "unit": "s", "status": "assumed", "source": built.service.client_s.source
    }  # fmt: skip


@pytest.mark.slow
def test_the_profile_is_one_the_simulator_takes(machine, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine())
    job.do(built)  # type: ignore[attr-defined]
    from gpusched.core.service import Service

    made = option(profile(tmp_path), Service, "service")
    assert made.name == "mobilenetv4-rtx-3080"
    head = (tmp_path / "made" / "service" / "mobilenetv4-rtx-3080.yaml").read_text()
    assert "# GPU: NVIDIA GeForce RTX 3080." in head
    assert "16: " in head  # sizes beyond the profile's largest batch are told, not fitted


@pytest.mark.slow
def test_without_mps_its_constant_stays(machine, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine(with_mps=False))
    job.do(built)  # type: ignore[attr-defined]
    assert profile(tmp_path)["mps_interference"]["status"] == "assumed"
    assert profile(tmp_path)["gpu_switch_s"]["status"] == "measured"


@pytest.mark.parametrize(
    "changes",
    [{"idle": 30}, {"apps": "echo '977, /usr/bin/python3'"}],
    ids=["busy", "somebody else"],
)
def test_a_gpu_in_use_is_refused(machine, changes: dict[str, Any], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine(**changes))
    with pytest.raises(GateError, match="in use"):
        job.do(built)  # type: ignore[attr-defined]
    assert not (tmp_path / "made").exists()


def test_no_gpu_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job, built = make("job=gpu")
    with pytest.raises(InputError, match=r"nvidia-smi shows no such GPU.*job\.gpu"):
        job.do(built)  # type: ignore[attr-defined]


def test_a_missing_environment_names_its_cure(machine) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine(), "job.python=/nowhere/python")
    with pytest.raises(InputError, match="make gpu"):
        job.do(built)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("job.backend=onnx-tpu", "onnx-cuda"), ("job.batches=[4,2]", "grow"), ("job.processes=[1]", "at least 2"),
        ("job.sharing=[mig]", "time_slicing"), ("job.repeats=1", "at least 2"), ("job.stretch_s=0", "greater than 0"),
        ("job.name=a/b", "name"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(wrong: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make("job=gpu", wrong)


def stretch(processes: int, batches: int, busy: float) -> Stretch:
    return Stretch(
        processes=processes, size=8, batches=batches, span_s=1.0, mean_s=0.02, var_s2=0.0, busy=busy
    )


def told_of_sharing(several: Stretch) -> dict[str, Any]:
    """Constants of a GPU that a lone process keeps busy half of the time, and these under MPS."""
    _, built = make("job=gpu")
    one = gpu.GPU(index=0, name="x", memory_bytes=1e10, used_bytes=0.0, busy=0.0)
    seen = gpu.Seen(
        gpu=one, runs="x", held_bytes=0.0, alone=[stretch(1, 50, 0.5)], shared={gpu.MPS: [several]}
    )
    return gpu.sharing(built.service, seen, "now", np.random.default_rng(0))


def test_a_gpu_that_was_never_full_tells_nothing_of_sharing() -> None:
    assert told_of_sharing(stretch(2, 90, 0.9)) == {}


def test_processes_that_gain_from_each_other_cost_nothing() -> None:
    """Kernels of several processes at once: more than the simulator's GPU can do, so the constant is its least."""
    assert told_of_sharing(stretch(3, 150, 1.0))["mps_interference"].value == 0.0


def test_a_gpu_whose_utilisation_is_not_told_is_no_profile(machine, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine(utilisation="[N/A]"))
    with pytest.raises(GateError, match="told no utilisation"):
        job.do(built)  # type: ignore[attr-defined]
    assert not (tmp_path / "made").exists()


def test_a_gpu_in_parts_is_refused(machine) -> None:  # type: ignore[no-untyped-def]
    job, built = make(*machine(idle="[N/A]"))
    with pytest.raises(InputError, match="MIG"):
        job.do(built)  # type: ignore[attr-defined]


# --- the real worker ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "network.onnx"
    subprocess.run([sys.executable, str(ROOT / "gpusched/cluster/local/network.py"), str(path)], check=True)
    return path


def command(model: Path | str, device: str = "cpu") -> list[str]:
    return [sys.executable, str(gpu.WORKER), "--library", "onnx", "--device", device, "--model", str(model)]


@pytest.mark.slow
def test_the_real_worker_runs_batches_of_the_size_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight images take a CPU longer than one, and two processes on one batch size each count their own."""
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:/nowhere")
    workers = gpu.Workers(2, command(model), 0, {})
    try:
        found = []
        for size in (1, 8):
            workers.prepare(size)
            found.append(workers.stretch(size, 0.1, 1.0))
    finally:
        workers.close()
    assert found[1].mean_s > 2.0 * found[0].mean_s
    assert all(s.batches * s.mean_s <= 2 * s.span_s * 1.2 for s in found)
    assert all(one.poll() is not None for one in workers._all)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "device", "told"), [("/nowhere.onnx", "cpu", "nowhere"), ("", "cuda", "CUDAExecutionProvider")]
)
def test_a_worker_that_cannot_run_says_why(model: Path, path: str, device: str, told: str) -> None:
    """ONNX Runtime would fall back to the CPU without a word."""
    with pytest.raises(ClusterError, match=told):
        gpu.Workers(1, command(path or model, device), 0, {})
