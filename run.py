"""Run a trial, a training or a whole study: `python run.py --help`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpusched.job.command import one_job, run

CONF = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def app(config: DictConfig) -> float:
    """Do one job; Hydra calls this once, or once per job of a sweep."""
    return one_job(config)


if __name__ == "__main__":
    sys.exit(run(app))
