"""A sweep: checked as a whole before it starts, shown while it runs, summed up however it ends."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from gpusched.core.errors import InputError
from gpusched.job.build import setup
from gpusched.job.progress import bar
from gpusched.job.refusals import Through
from gpusched.job.setup import STATUS, Result
from gpusched.job.summary import show_sweep

log = logging.getLogger(__name__)

PARENT = "parent_run"
"""File in a sweep's folder that tells its jobs, in whatever process they run, below which run they belong."""


class Failed(Exception):
    """Some jobs of the sweep failed; the others are whole."""


class Sweep:
    """The sweep this process runs, from the check of its jobs to the table at its end."""

    def __init__(self, config: DictConfig) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.jobs = check(config)
        self._before = self._written()
        self._run, self._bar = ExitStack(), ExitStack()
        self._done = 0

    def begin(self, config: DictConfig) -> None:
        """Open the store and the sweep's run, and show the bar."""
        from gpusched.job.record import open_store

        words = list(config.hydra.overrides.task)
        store = open_store(config.tracking.uri, config.tracking.artifacts)
        self.folder.mkdir(parents=True, exist_ok=True)
        run = store.start(
            "sweep",
            study=config.study,
            name=f"sweep {' '.join(words)}",
            params={"jobs": len(self.jobs)},
            tags={},
        )
        self._run.enter_context(run)
        (self.folder / PARENT).write_text(run.id)
        if self.jobs:
            self._bar.enter_context(composed_once())
        self._show = self._bar.enter_context(bar("sweep", len(self.jobs)))

    def job_done(self) -> None:
        self._done += 1
        self._show(self._done)

    def end(self, error: BaseException | None) -> None:
        """Print the table and close the sweep's run; raise Failed where jobs failed."""
        self._bar.close()
        new = [path for path, when_ns in self._written().items() if self._before.get(path) != when_ns]
        results = [r for path in new if (r := Result.read(path))]
        try:
            show_sweep(sorted(results, key=lambda r: (r.names["load"], r.names["policy"], r.seed)))
        except (OSError, SystemExit) as unseen:  # nobody reads what we print any more
            log.warning("the table could not be shown: %r", unseen)
        failed = [r for r in results if r.status == "failed"]
        missing = max(len(self.jobs) - len(results), 0)
        if isinstance(error, BrokenExecutor):  # a worker was killed: its job is among the missing
            error = None
        if error is None and (failed or missing):
            error = Failed(self._account(failed, missing))
        self._run.__exit__(type(error) if error else None, error, None)
        if isinstance(error, Failed):
            raise error

    def _written(self) -> dict[Path, int]:
        """Return when each job's status file was written, ns; the folder may hold those of an earlier sweep."""
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob(STATUS)}

    def _account(self, failed: Sequence[Result], missing: int) -> str:
        lines = [f"{len(failed) + missing} of {len(self.jobs)} jobs failed, the others are stored."]
        lines += [f"  {r.names['policy']} on {r.names['load']}, seed {r.seed}: {r.error}" for r in failed]
        lines += [f"  {missing} ended without a word (killed?)"] if missing else []
        return "\n".join(
            [*lines, f"Logs: {self.folder}. Run the same command with resume=true to do only these again."]
        )


class SweepCallback(Callback):
    """Hydra's hooks into a sweep; `current` is the one that runs in this process."""

    current: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            SweepCallback.current = sweep = Sweep(config)
            sweep.begin(config)
        except Exception as error:
            SweepCallback.current = None
            raise Through(error) from error

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        if SweepCallback.current:
            words = " ".join(config.hydra.overrides.task)
            log.info("job %d of %d: %s", config.hydra.job.num + 1, len(SweepCallback.current.jobs), words)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if SweepCallback.current:
            SweepCallback.current.job_done()


def check(config: DictConfig) -> list[list[str]]:
    """Compose and build the jobs of a sweep, so that a mistake in the last one shows before the first one starts.

    Every seed and everything else in every combination; not every combination of the two, which is most of the jobs and
    can go wrong in no other way. Only for Hydra's own sweeper: others choose their jobs as they go.
    """
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return []
    jobs = expand([f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
                  + list(config.hydra.overrides.task))  # fmt: skip
    check_told_apart(jobs)
    for overrides in unlike(jobs):
        whole = compose(config.hydra.job.config_name, overrides=overrides, return_hydra_config=True)
        choices = OmegaConf.to_container(whole.hydra.runtime.choices)
        with open_dict(whole):
            del whole["hydra"]
        assert isinstance(choices, dict)
        job, made = setup(whole, {str(k): str(v) for k, v in choices.items()}, overrides)
        job.prepare(made)
    return jobs


def check_told_apart(jobs: Sequence[Sequence[str]]) -> None:
    """Raise InputError where jobs differ in nothing a study tells trials apart by: the last one would replace the others."""
    if any(word in ("job=train", "job=tune") for job in jobs for word in job):
        return
    apart = [tuple(word for word in job if _tells(word)) for job in jobs]
    if (count := len(jobs) - len(set(apart))) > 0:
        swept = sorted(
            {
                word
                for job in jobs
                for word in job
                if not _tells(word) and any(word not in other for other in jobs)
            }
        )
        raise InputError(
            f"{' '.join(swept) or 'the sweep'}: {count} of {len(jobs)} jobs are the same policy, load and seed as others, and "
            "would replace them in the study. Run them one by one, each with a study=NAME of its own."
        )


def _tells(word: str) -> bool:
    """Whether an override is part of what a study tells trials apart by."""
    key = word.partition("=")[0].lstrip("+~")
    group, _, package = key.partition("@")
    return key in ("seed", "study", "cluster") or (package or group).partition(".")[0] in (
        "policy",
        "load",
        "fault",
        "job",
        "experiment",
    )


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job: the product of all sweeps, as Hydra's own sweeper makes it.

    Raises InputError for a sweep that has no values, or not so many.
    """
    choices: dict[str, list[str]] = {}
    whole = GlobalHydra.instance()
    loader = whole.config_loader() if whole.is_initialized() else None  # it knows what glob(*) stands for
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise InputError(
                f"{override.input_line}: has no end. Name the values: {key}=1,2,3 or {key}=range(5)."
            )
        swept = override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
        if not choices[key]:
            raise InputError(f"{override.input_line}: the sweep is empty. Name at least one value.")
    return [list(job) for job in itertools.product(*choices.values())]


@contextmanager
def composed_once() -> Iterator[None]:
    """Spare Hydra's own composing of every job, a tenth of a second each: they were all checked just now.

    Hydra has no switch for it and makes the sweeper itself, so its base is changed, until the sweep ends. The base, not
    Hydra's own sweeper: looking for plugins, Hydra loads that module once more, and a class imported here is another one.
    """
    before = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]


def unlike(jobs: Sequence[list[str]]) -> list[list[str]]:
    """Return the jobs without those whose seed and whose other overrides other jobs have, too."""
    seeds: set[str] = set()
    others: set[tuple[str, ...]] = set()
    kept = []
    for job in jobs:
        seed = next((word for word in job if word.startswith("seed=")), "")
        other = tuple(word for word in job if word != seed)
        if seed not in seeds or other not in others:
            kept.append(job)
        seeds.add(seed)
        others.add(other)
    return kept


def parent_run() -> str | None:
    """Return the run of the sweep the current job belongs to."""
    path = Path(HydraConfig.get().sweep.dir) / PARENT
    return path.read_text() if path.exists() else None
