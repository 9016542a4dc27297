"""A sweep on other machinery: Hydra's launchers spread its jobs, the store and the table stay the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpusched.tracking.store import Store

ROOT = Path(__file__).parents[2]
CURES = {
    "joblib": ("hydra_joblib_launcher", "pip install 'gpusched[parallel]'"),
    "submitit_local": ("hydra_submitit_launcher", "pip install 'gpusched[slurm]'"),
    "ray": ("hydra_ray_launcher", "make ray"),
}


def is_installed(plugin: str) -> bool:
    return importlib.util.find_spec("hydra_plugins") is not None and bool(
        importlib.util.find_spec(f"hydra_plugins.{plugin}")
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", CURES)
def test_every_job_of_a_spread_sweep_is_stored_once_below_it(launcher: str, tmp_path: Path) -> None:
    plugin, cure = CURES[launcher]
    if not is_installed(plugin):
        pytest.skip(f"the launcher is not installed: {cure}")
    command = [sys.executable, str(ROOT / "run.py"), "-m", "policy=static,hpa", "load=low", "seed=0,1",
               "trial.duration_s=60", "trial.warmup_s=15", "cluster.threads=1", f"hydra/launcher={launcher}",
               f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"]  # fmt: skip
    (tmp_path / "mlruns").mkdir()
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    store = Store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (sweep,) = store.find("main", "sweep")
    runs = store.find("main", "trial")
    assert sorted((run.tags["policy"], run.tags["seed"]) for run in runs) == [
        ("hpa", "0"), ("hpa", "1"), ("static", "0"), ("static", "1"),
    ]  # fmt: skip
    assert {run.tags["mlflow.parentRunId"] for run in runs} == {sweep.id}
    assert "means over the seeds" in done.stdout
