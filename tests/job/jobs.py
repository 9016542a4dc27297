"""Jobs composed as run.py composes them, on the double cluster and a store in a temporary folder."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from gpusched.job.build import setup
from gpusched.job.setup import Job, Setup

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).parent / "conf"
SHORT = ["cluster=double", "trial.duration_s=120", "trial.warmup_s=30"]


def make(*overrides: str) -> tuple[Job, Setup]:
    """Compose and build one job."""
    mine = list(overrides)
    if "policy=ppo" in mine and not any("train_cluster" in one for one in mine):
        mine.append("cluster@policy.train_cluster=double")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "config", [f"hydra.searchpath=[file://{CONF}]", *SHORT, *mine], return_hydra_config=True
        )
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return setup(config, choices, mine)
