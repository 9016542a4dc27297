"""The house: who may import whom, which room holds which client, how big files and functions get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gpusched"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"job"},
    {"rl"},
    {"policy", "cluster", "load", "reward", "action", "fault", "tracking", "report"},
    {"sim"},
    {"live"},
    {"core"},
]
"""From the top down: a room imports lower floors and itself, nothing else."""

CLIENTS = {
    "torch": {"rl", "policy/ppo", "live/gpu_worker"},
    "tianshou": {"rl"},
    "optuna": {"rl"},
    "gymnasium": {"rl"},
    "mlflow": {"tracking"},
    "hydra": {"job"},
    "omegaconf": {"job"},
    "numba": {"sim"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "statsmodels": {"report"},
    "scipy": {"report", "rl/search"},
    "pandas": {"report"},
    "rich": {"job"},
    "kubernetes": {"cluster/microk8s"},
    "locust": {"live"},
    "tritonclient": {"live"},
    "prometheus_api_client": {"live"},
}
"""Where each third-party client may be imported; a room, or a file in one."""

LONG_FILES = {"sim"}
"""Compiled code stays in one file: numba's cache does not notice edits in another."""


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def rooms(path: Path) -> set[str]:
    """Return the rooms of ours a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("gpusched.")}


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_point_down(path: Path) -> None:
    own = place(path).partition("/")[0]
    if own == "__init__":
        assert not rooms(path)
        return
    upward = {room for room in rooms(path) - {own} if floor(room) <= floor(own)}
    assert not upward, f"{place(path)} imports {upward} from its own floor or above"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_third_party_clients_stay_in_their_room(path: Path) -> None:
    here = place(path)
    for client in {name.partition(".")[0] for name in imports(path)} & set(CLIENTS):
        allowed = CLIENTS[client]
        assert any(here == a or here.startswith((a + "/", a + "_")) for a in allowed), (
            f"{here} imports {client}"
        )


def test_every_room_stands_on_a_floor() -> None:
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} <= set.union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_files_and_functions_stay_short(path: Path) -> None:
    if place(path).partition("/")[0] in LONG_FILES:
        return
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{place(path)}: {node.name}"


def modules_after(code: str) -> set[str]:
    """Return what a fresh process has imported after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split())


def test_running_hpa_imports_neither_torch_nor_tianshou() -> None:
    code = """
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
with initialize_config_dir(str(__import__("pathlib").Path("conf").resolve()), version_base="1.3"):
    config = compose("config", ["policy=hpa"], return_hydra_config=True)
choices = dict(config.hydra.runtime.choices)
with open_dict(config): del config["hydra"]
from gpusched.job.build import setup
import gpusched.job.trial
setup(config, choices)
"""
    modules = modules_after(code)
    assert "gpusched.policy.hpa" in modules
    assert not {"torch", "tianshou", "matplotlib"} & modules


def test_importing_the_package_imports_nothing_else() -> None:
    assert not {"numpy", "torch", "hydra", "mlflow", "numba"} & modules_after("import gpusched")
