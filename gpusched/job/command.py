"""The command `run.py`: one job as Hydra calls it, and what a person sees of its end."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gpusched.core.errors import GpuschedError, InputError
from gpusched.job.build import setup
from gpusched.job.refusals import Through, explain, flag_amid
from gpusched.job.setup import Chore, Job, Result, Setup
from gpusched.job.sweep import Failed, SweepCallback, parent_run

log = logging.getLogger(__name__)

# Hydra composes every job of a sweep anew. A third of that is reading YAML in Python; libyaml feeds the same constructors.
# More than a tenth is the garbage collector, which after every 700 new objects may look through all there are
# (benchmarks/compose.py).
if hasattr(yaml, "CSafeLoader"):
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
gc.set_threshold(50_000)

OK, SOME_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def one_job(config: DictConfig) -> float:
    """Build and do one job, leave its status.json, and return its mean reward (NaN without one).

    In a sweep a job that fails is recorded and the next one begins; alone, it raises.
    """
    hydra = HydraConfig.get()
    swept = hydra.mode == RunMode.MULTIRUN
    try:
        return _one_job(config, hydra, swept)
    except Exception as error:
        if not swept:
            raise Through(error) from error
        log.error("job failed: %s", error, exc_info=not isinstance(error, GpuschedError))
        return math.nan


def _one_job(config: DictConfig, hydra: HydraConf, swept: bool) -> float:
    if hydra.job.chdir:
        raise InputError("hydra.job.chdir = true: every job would keep a store of its own. Leave it out.")
    job, made = setup(config, dict(hydra.runtime.choices), list(hydra.overrides.task))
    made = job.prepare(made)
    result = Result(status="failed", names=made.names, seed=made.seed)
    try:
        result = _do(job, made, swept)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        raise
    except BaseException:
        result.status = "killed"
        raise
    finally:
        result.write(Path(hydra.runtime.output_dir))
    return result.values.get("reward_mean", math.nan)


def _do(job: Job, made: Setup, swept: bool) -> Result:
    from gpusched.job.record import open_store
    from gpusched.job.summary import line, show_job

    if isinstance(job, Chore):
        return job.do(made)
    if not swept:
        log.info("%s on %s, seed %d", made.names["policy"], made.names["load"], made.seed)
    result = job.run(made, open_store(made.uri, made.artifacts), parent_run() if swept else None)
    if swept:
        log.info("%s on %s, seed %d: %s", made.names["policy"], made.names["load"], made.seed, line(result))
    else:
        show_job(result)
    return result


def run(app: Callable[[], object]) -> int:
    """Let Hydra run the app with the command line's arguments and return the exit code.

    0 done, 1 jobs of a sweep failed, 2 refused (one message says why), 130 interrupted.
    """
    traced = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if misplaced := flag_amid(sys.argv[1:]):
        print(
            f"{misplaced}: stands between key=value words. Put it before the first of them.", file=sys.stderr
        )
        return REFUSED
    try:
        with _errors_let_through():
            _run(app)
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished runs are stored; the same command with resume=true goes on.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as error:
        return _refusal(error, traced)
    return OK


@contextmanager
def _errors_let_through() -> Iterator[None]:
    """Make Hydra raise what it would print, and leave the environment as it was."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _run(app: Callable[[], object]) -> None:
    try:
        app()
    except Through as through:
        raise through.error from through.error.__cause__
    except BaseException as error:
        if SweepCallback.current:
            SweepCallback.current.end(error)
        raise
    if SweepCallback.current:
        SweepCallback.current.end(None)


def _refusal(error: Exception, traced: bool) -> int:
    """Print one message for what a person can mend; anything else is a bug and keeps its traceback."""
    message = str(error) if isinstance(error, Failed | GpuschedError) else explain(error, sys.argv[1:])
    if message is None or traced:
        raise error
    print(message, file=sys.stderr)
    return SOME_FAILED if isinstance(error, Failed) else REFUSED
