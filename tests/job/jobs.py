"""Jobs composed as run.py composes them, on the double cluster and a store in a temporary folder."""

from __future__ import annotations

from pathlib import Path

from composing import composed

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
    return setup(*composed(*SHORT, *mine, more=CONF), mine)
