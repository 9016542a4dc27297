"""Triton's model repository and command line, from the service profile and the model's description."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpusched.cluster.local.parts import Triton
from gpusched.core.service import Service
from gpusched.live.state import ModelIO

MODEL = Path(__file__).with_name("backend_model.py")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where a server finds its models and backends."""

    models: Path
    backends: Path


def write(
    folder: Path, triton: Triton, service: Service, model: ModelIO, told: Mapping[str, object]
) -> Repository:
    """Write the repository of one model into the folder; all replicas read the same one. `told`: see backend_model."""
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for path in triton.backend:
        (backend / path.name).symlink_to(path)  # its libraries are found relative to where it really is
    version = folder / "models" / model.model / "1"
    version.mkdir(parents=True)
    shutil.copy(MODEL, version / "model.py")
    (version.parent / "config.pbtxt").write_text(config_text(service, model, told))
    return Repository(models=folder / "models", backends=folder / "backends")


def config_text(service: Service, model: ModelIO, told: Mapping[str, object]) -> str:
    """Return config.pbtxt: batching, queue and instances as the service profile says."""
    shape = ", ".join(map(str, model.shape))
    return f"""\
name: "{model.model}"
backend: "python"
max_batch_size: {service.max_batch.value:.0f}
input [ {{ name: "{model.input}" data_type: TYPE_{model.dtype} dims: [ {shape} ] }} ]
output [ {{ name: "{model.output}" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {service.instances.value:.0f} }} ]
{_parameters(told)}{_batching(service)}"""


def _parameters(told: Mapping[str, object]) -> str:
    return "".join(
        f'parameters: {{ key: "{k}" value: {{ string_value: "{v}" }} }}\n' for k, v in told.items()
    )


def _batching(service: Service) -> str:
    """Any queue policy makes Triton form batches only when an instance is idle, as the simulator does."""
    lines = [f"  max_queue_delay_microseconds: {service.queue_delay_s.value * 1e6:.0f}"]
    if service.preferred_batches:
        lines.append(f"  preferred_batch_size: [ {', '.join(map(str, service.preferred_batches))} ]")
    policy = []
    if service.queue_size.value:
        policy.append(f"max_queue_size: {service.queue_size.value:.0f}")
    if service.queue_timeout_s.value:
        policy.append(
            f"default_timeout_microseconds: {service.queue_timeout_s.value * 1e6:.0f} timeout_action: REJECT"
        )
    if policy:
        lines.append(f"  default_queue_policy {{ {' '.join(policy)} }}")
    return "dynamic_batching {\n" + "\n".join(lines) + "\n}\n"


def command(
    triton: Triton, at: Repository, identity: str, http_port: int, metrics_port: int, exit_s: float
) -> list[str]:
    """Return the command line of one server; `identity` is what GET /v2 calls it, and its shared memory too."""
    options = {
        "id": identity,
        "model-repository": at.models,
        "backend-directory": at.backends,
        "http-address": "127.0.0.1",
        "http-port": http_port,
        "http-thread-count": 4,
        "allow-grpc": "false",
        "metrics-address": "127.0.0.1",
        "metrics-port": metrics_port,
        "metrics-interval-ms": 1000,
        "metrics-config": "summary_latencies=true",
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
        "exit-timeout-secs": max(1, round(exit_s)),
        "backend-config": f"python,shm-region-prefix-name={identity}",
    }
    return [
        str(triton.server),
        "--disable-auto-complete-config",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
