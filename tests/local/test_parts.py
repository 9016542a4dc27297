"""What is missing is said with its cure; what Triton is told follows from the profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_setup import make

from gpusched.cluster.local import parts, repository
from gpusched.core.errors import ClusterError, InputError

GOOD: dict[str, Any] = {"numpy": "1.26.4", "onnxruntime": "1.32.0", "python": [3, 11], "libdir": "/lib"}


def environment(folder: Path, **found: Any) -> Path:
    """Return an environment whose Python says that it holds these."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pytriton").mkdir()
    told = {**GOOD, "pytriton": str(folder / "pytriton"), **found}
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    python.chmod(0o755)
    return folder


def installed(folder: Path) -> None:
    root = folder / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ({"pytriton": ""}, "nvidia-pytriton is missing"),
        ({"onnxruntime": "!ModuleNotFoundError: not there"}, "onnxruntime is missing or broken"),
        ({"numpy": "2.4.6"}, "needs numpy < 2"),
        ({}, "bin/tritonserver: is not there"),
    ],
)
def test_an_environment_that_cannot_serve_is_refused(
    tmp_path: Path, found: dict[str, Any], what: str
) -> None:
    with pytest.raises(ClusterError, match=what) as refusal:
        parts.triton(environment(tmp_path / "venv", **found))
    assert "make local" in str(refusal.value)


def test_a_python_that_triton_has_no_helper_for_is_named(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv", python=[3, 14])
    installed(venv)
    with pytest.raises(ClusterError, match=r"Python 3\.14 too new"):
        parts.triton(venv)


def test_an_environment_that_is_not_there_or_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"not installed there\. Run `make local`"):
        parts.triton(tmp_path / "nowhere")
    venv = environment(tmp_path / "venv")
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ClusterError, match="does not run"):
        parts.triton(venv)


def test_the_models_run_in_tritons_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    venv = environment(tmp_path / "venv")
    installed(venv)
    stub = venv / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    found = parts.triton(venv)
    assert found.environment["PATH"].startswith(f"{venv}/bin:")
    assert "PYTHONPATH" not in found.environment
    assert found.environment["LD_LIBRARY_PATH"].startswith("/lib")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match=r"needs haproxy.*sudo apt install haproxy"):
        parts.program("haproxy", "haproxy")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="make local"):
        parts.network(tmp_path, "")
    with pytest.raises(ClusterError, match=r"cluster.onnx = 'my.onnx'"):
        parts.network(tmp_path, "my.onnx")


def test_free_ports_differ() -> None:
    assert len(set(parts.free_ports(20))) == 20


def service(**values: float) -> Any:
    made = make()[1].service
    return replace(
        made, **{name: replace(getattr(made, name), value=value) for name, value in values.items()}
    )


def text(preferred: list[int], **values: float) -> str:
    io = make()[1].cluster_config.endpoint
    return repository.config_text(
        replace(service(**values), preferred_batches=preferred), io, {"onnx": "/m.onnx"}
    )


def test_triton_batches_as_the_profile_says() -> None:
    told = text([4, 8], max_batch=8, queue_delay_s=0.005, queue_size=32, queue_timeout_s=0.2, instances=2)
    for line in (
        "max_batch_size: 8",
        "max_queue_delay_microseconds: 5000",
        "preferred_batch_size: [ 4, 8 ]",
        "max_queue_size: 32",
        "default_timeout_microseconds: 200000 timeout_action: REJECT",
        "count: 2",
        "dims: [ 3, 96, 96 ]",
        'key: "onnx" value: { string_value: "/m.onnx" }',
    ):
        assert line in told


def test_without_bounds_triton_is_given_no_queue_policy() -> None:
    assert "default_queue_policy" not in text([], queue_size=0, queue_timeout_s=0)


def test_levers_that_processes_do_not_have_are_refused() -> None:
    with pytest.raises(InputError, match=r"action.cpu_cores.*action=replicas"):
        make("action=full")[1].cluster()


@pytest.mark.parametrize(
    "change", ["threads=0", "advisor_s=0", "hpa_sync_s=-1", "metrics_server_s=0", "scrape_s=0"]
)
def test_values_out_of_range_are_refused(change: str) -> None:
    with pytest.raises(InputError, match=f"cluster.{change.split('=')[0]}"):
        make(f"cluster.{change}")
