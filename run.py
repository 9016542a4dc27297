"""Run a trial, a training or a whole study: `python run.py --help`."""

import gc
import sys
from pathlib import Path

# Importing MLflow and compiling the engine make many objects and free few: collecting meanwhile is time lost.
gc.set_threshold(100_000, 50, 50)

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from gpusched.job.command import one_job, run  # noqa: E402

CONF = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def app(config: DictConfig) -> float:
    """Do one job; Hydra calls this once, or once per job of a sweep."""
    return one_job(config)


if __name__ == "__main__":
    sys.exit(run(app))
