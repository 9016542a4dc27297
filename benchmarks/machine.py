"""What the benchmarks share: the service profile, a description of the machine, and how results are written."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import yaml

from gpusched.core.service import Constant, Service

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "conf/service/mobilenetv4-rtx3080.yaml"


def profile() -> str:
    """Name of the service profile."""
    return PROFILE.stem


def service(**values: float) -> Service:
    """Return the shipped service profile with some of its constants replaced."""
    fields: dict[str, Any] = yaml.safe_load(PROFILE.read_text())
    del fields["_target_"]
    for name, field in list(fields.items()):
        if isinstance(field, dict):
            value: Any = values.get(name, field["value"])
            fields[name] = Constant(**{**field, "value": float(value)})
    return Service(**fields)


def describe() -> dict[str, Any]:
    """Processor, versions and load, without which a number means little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gcc = subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "gcc": gcc[0] if gcc else "none",
    }


@dataclass
class Spent:
    """Seconds of one process and its children."""

    wall_s: float
    cpu_s: float


def temporary_store(place: Path) -> list[str]:
    """Return the settings that keep a run's store and outputs inside a folder; the store's comes first."""
    place.mkdir(parents=True, exist_ok=True)
    return [
        f"tracking.uri=sqlite:///{place}/mlruns/mlflow.db",
        f"hydra.run.dir={place}/outputs",
        f"hydra.sweep.dir={place}/outputs",
    ]


def run_script(command: list[str], *, numba_cache: Path | None = None, quiet: bool = True) -> Spent:
    """Run one of the repository's scripts; raises SystemExit with its output where it fails."""
    env = os.environ | ({"NUMBA_CACHE_DIR": str(numba_cache)} if numba_cache else {})
    pipe = subprocess.PIPE if quiet else None
    before, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=pipe, stderr=subprocess.STDOUT if quiet else None,
        text=True, check=False,
    )  # fmt: skip
    wall_s, after = time.perf_counter() - begin_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}\n{done.stdout or ''}")
    return Spent(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(values: Iterable[float]) -> float:
    """Median as a float."""
    return float(statistics.median(values))


def write(path: Path, report: dict[str, Any]) -> None:
    """Write one benchmark's JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten: {path}")
