"""A tuned policy for a job: its parameters searched once, with a ledger, and stored."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpusched.action.replicas import Replicas
from gpusched.core.errors import InputError
from gpusched.job.gates import action_sensitivity
from gpusched.job.progress import bar
from gpusched.job.record import artifacts, params, run_tags
from gpusched.job.setup import Job, Result, Setup
from gpusched.policy.tuned import Tuned
from gpusched.tracking.store import Store

log = logging.getLogger(__name__)

LEDGER = "ledger/"


class TuneJob(Job):
    """Searches the policy's parameters unless the store holds them already."""

    @dataclass(kw_only=True)
    class Config:
        """Nothing to choose: the budget and the space are the policy's."""

    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        if not isinstance(setup.policy, Tuned):
            cure = "Train it with job=train." if setup.policy.trained else "Run trials with it."
            raise InputError(f"policy = {setup.names['policy']!r}: has nothing to search. {cure}")
        from gpusched.job.train import trained

        found = trained(setup, store, parent)
        values = {
            key: value
            for key, value in found.metrics.items()
            if key.startswith(LEDGER) or key == "tune/validation_reward"
        }
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values, run_id=found.id)


def tune(setup: Setup, store: Store, parent: str | None) -> None:
    """Search the parameters and store them as the model of a run of kind "tuning"."""
    from gpusched.rl.search import search

    assert isinstance(setup.policy, Tuned)
    names = f"{setup.names['policy']}, seed {setup.seed}"
    # Every tuned policy holds one lever, the replicas, whatever action the configuration names.
    sensitivity = action_sensitivity(replace(setup, action=Replicas(Replicas.Config())))
    log.info("%s: searching on %s", names, setup.train_name)
    tags = {**run_tags(setup), "fingerprint": setup.fingerprint, "load": setup.train_name}
    with store.start(
        "tuning", study=setup.study, name=f"tune {names}", params=params(setup), tags=tags, parent=parent
    ) as run:
        run.gate(sensitivity.name, sensitivity.ok, sensitivity.detail)
        artifacts(run, setup)
        with bar(f"tuning {names}", setup.policy.config.search.frames) as show:

            def on_candidate(steps: int, values: dict[str, float]) -> None:
                run.metrics(steps, {f"tune/{key}": value for key, value in values.items()})
                show(steps)

            with tempfile.TemporaryDirectory() as folder:
                found = search(
                    policy=setup.policy,
                    make_cluster=setup.simulator,
                    load=setup.train_load,
                    reward=setup.reward,
                    seed=setup.seed,
                    study=setup.study,
                    folder=Path(folder),
                    on_candidate=on_candidate,
                    trouble=setup.trouble,
                )
                run.model(Path(folder))
        run.text("candidates.csv", found.table)
        run.tags({"verdict": found.reason})
        spent = {f"{LEDGER}{key}": float(value) for key, value in asdict(found.ledger).items()}
        run.metrics(found.ledger.steps, {"tune/validation_reward": found.reward, **spent})
    log.info(
        "%s: found after %d candidates, %d control steps, %.0f s: %s",
        names, found.ledger.candidates, found.ledger.steps, found.ledger.wall_s, found.values,
    )  # fmt: skip
