"""A trained policy for a job: found in the store by its fingerprint, or trained once and stored."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gpusched.core.errors import InputError
from gpusched.job.gates import action_sensitivity
from gpusched.job.progress import bar
from gpusched.job.record import artifacts, params, run_tags
from gpusched.job.setup import Job, Result, Setup
from gpusched.policy.tuned import Tuned
from gpusched.tracking.store import Found, Store

log = logging.getLogger(__name__)


class TrainJob(Job):
    """Trains the policy unless the store holds it already."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose."""

    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        if not setup.policy.trained:
            raise InputError(
                f"policy = {setup.names['policy']!r}: does not learn, so job=train has nothing to do."
            )
        found = trained(setup, store, parent)
        values: dict[str, float] = {
            key: found.metrics[key] for key in ("train/reward", "wall_s") if key in found.metrics
        }
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values, run_id=found.id)


def model(setup: Setup, store: Store, parent: str | None) -> Path:
    """Return the folder of the trained policy this job needs, training it first where the store has none."""
    return store.download(trained(setup, store, parent).id, "model")


def trained(setup: Setup, store: Store, parent: str | None) -> Found:
    """Return the finished training this job needs. Jobs that need the same one wait for a single training."""
    if not _find(setup, store):
        with store.lease(setup.fingerprint, lambda: bool(_find(setup, store))) as lease:
            if lease.held:
                _learn(setup, store, parent)
                return _find(setup, store)[0]
    found = _find(setup, store)
    log.info("%s, seed %d: trained already (run %s)", setup.names["policy"], setup.seed, found[0].id)
    return found[0]


def _find(setup: Setup, store: Store) -> list[Found]:
    """Return the finished trainings with this fingerprint, newest first; failed and killed ones do not count."""
    kind = "tuning" if isinstance(setup.policy, Tuned) else "training"
    return store.find(setup.study, kind=kind, tags={"fingerprint": setup.fingerprint})


def _learn(setup: Setup, store: Store, parent: str | None) -> None:
    if isinstance(setup.policy, Tuned):
        from gpusched.job.tune import tune

        tune(setup, store, parent)
    else:
        _train(setup, store, parent)


def _train(setup: Setup, store: Store, parent: str | None) -> None:
    from gpusched.policy.ppo import PPO
    from gpusched.rl.train import train  # torch: seconds that only a training pays

    assert isinstance(setup.policy, PPO)

    names = f"{setup.names['policy']}, seed {setup.seed}"
    sensitivity = action_sensitivity(setup)
    log.info("%s: training on %s", names, setup.train_name)
    began_s = time.monotonic()
    tags = {**run_tags(setup), "fingerprint": setup.fingerprint, "load": setup.train_name}
    with store.start(
        "training", study=setup.study, name=f"train {names}", params=params(setup), tags=tags, parent=parent
    ) as run:
        run.gate(sensitivity.name, sensitivity.ok, sensitivity.detail)
        artifacts(run, setup)
        with bar(f"training {names}", setup.policy.config.training.frames) as show:

            def on_update(frames: int, values: dict[str, float]) -> None:
                run.metrics(frames, {f"train/{key}": value for key, value in values.items()})
                show(frames)

            with tempfile.TemporaryDirectory() as folder:
                verdict = train(
                    policy=setup.policy,
                    make_cluster=setup.simulator,
                    load=setup.train_load,
                    reward=setup.reward,
                    seed=setup.seed,
                    study=setup.study,
                    folder=Path(folder),
                    on_update=on_update,
                    trouble=setup.trouble,
                )
                run.model(Path(folder))
        run.tags({"converged": str(verdict.converged).lower(), "verdict": verdict.reason})
        run.metrics(verdict.frames, {"wall_s": time.monotonic() - began_s, **verdict.values})
    log.info("%s: trained, %s", names, verdict.reason)
