"""Renews a policy in service: look for drift, learn on in the simulator, promote only what is not worse.

The load option of the run is what the service meets now; the policy's training load is what it was made for. The new
policy must be no worse on both, so that it does not forget. The folder in service changes last, or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpusched.core.errors import InputError, StoreError, refuse
from gpusched.core.ports import Load
from gpusched.core.seeds import stream
from gpusched.job.progress import bar
from gpusched.job.record import artifacts, params, run_tags
from gpusched.job.setup import Job, Result, Setup
from gpusched.policy.ppo import CARD, PPO, PROGRAM
from gpusched.tracking.run import Run
from gpusched.tracking.store import Store

if TYPE_CHECKING:
    from gpusched.policy.network import Network
    from gpusched.rl.renew import Drift, Exam, Lived

log = logging.getLogger(__name__)


class PromoteJob(Job):
    """Trains on from the policy in service and puts the result into its folder where it is not worse."""

    @dataclass(kw_only=True)
    class Config:
        """The folder of the policy in service, and how a new one is judged."""

        folder: str
        margin: float
        episodes: int
        only_on_drift: bool

        def __post_init__(self) -> None:
            if not self.margin > 0:
                raise refuse("margin", self.margin, "must be greater than 0")
            if self.episodes < 4:
                raise refuse("episodes", self.episodes, "must be at least 4, for a test")

    config: Config

    def run(self, setup: Setup, store: Store, parent: str | None) -> Result:
        policy = setup.policy
        if not isinstance(policy, PPO):
            raise InputError(f"policy = {setup.names['policy']!r}: does not learn on. Choose policy=ppo.")
        in_service = _load(setup, policy, self.config.folder)
        title = f"renew {setup.names['policy']} on {setup.names['load']}, seed {setup.seed}"
        tags = {**run_tags(setup), "fingerprint": f"renewed {setup.fingerprint}", "job": "promote"}
        with store.start(
            "training", study=setup.study, name=title, params=params(setup), tags=tags, parent=parent
        ) as run:
            artifacts(run, setup)
            values = self._renew(setup, policy, in_service, run)
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values, run_id=run.id)

    def _renew(self, setup: Setup, policy: PPO, in_service: Network, run: Run) -> dict[str, float]:
        loads = {"trained on": setup.train_load, "meets now": setup.load}
        before = {what: self._lived(setup, policy, in_service, what, load) for what, load in loads.items()}
        found = _drift(policy, before["trained on"], before["meets now"])
        for one in found:
            log.info("drift: %s moved by %+.1f standard deviations (Holm p %.2g)", one.feature, one.d, one.p)
        values = {"drift_features": float(len(found))}
        run.tags({"drift": ", ".join(f"{one.feature} {one.d:+.1f}" for one in found) or "none"})
        if self.config.only_on_drift and not found:
            log.info("no drift: the policy in service stays")
            return _kept(run, {**values, "promoted": 0.0})
        with tempfile.TemporaryDirectory() as folder:
            candidate = _learn_on(setup, policy, in_service, Path(folder), run)
            exams = [
                self._examined(setup, policy, candidate, what, load, before[what])
                for what, load in loads.items()
            ]
            passed = all(exam.passed for exam in exams)
            run.tags({"promotion": "; ".join(exam.text for exam in exams), "promoted": str(passed).lower()})
            run.model(Path(folder))
            if passed:
                replace_policy(Path(folder), Path(self.config.folder))
        for exam in exams:
            log.info("%s", exam.text)
        log.info("%s", f"promoted into {self.config.folder}" if passed else "the policy in service stays")
        now = exams[-1]
        values |= {
            "reward_in_service": now.in_service,
            "reward_candidate": now.candidate,
            "promoted": float(passed),
        }
        return _kept(run, values)

    def _lived(self, setup: Setup, policy: PPO, network: Network, what: str, load: Load) -> Lived:
        """Let a policy live through the promotion's own episodes of a load; the same ones whoever lives through them.

        Streams are named after what the load is to the policy, not after its class: the test for drift takes the two
        samples as independent, also where both are the same option.
        """
        from gpusched.rl.episodes import Episodes
        from gpusched.rl.renew import live_through
        from gpusched.rl.venv import ClusterEnv

        source = stream(setup.study, what, setup.seed, "promote")
        with closing(setup.simulator(self.config.episodes)) as cluster:
            episodes = Episodes(load, cluster.trial.end_s, source, setup.trouble)
            return live_through(ClusterEnv(cluster, policy, setup.reward, episodes), network, episodes)

    def _examined(
        self, setup: Setup, policy: PPO, candidate: Network, what: str, load: Load, before: Lived
    ) -> Exam:
        from gpusched.rl.renew import examine

        after = self._lived(setup, policy, candidate, what, load)
        return examine(
            f"the load it {what.replace('trained', 'was trained')}", before, after, self.config.margin
        )


def replace_policy(new: Path, folder: Path) -> None:
    """Put a policy's files into the folder in service. Whoever reads it finds the old policy, the new one, or, between
    the two renames, weights that the card does not describe, which `PPO.load` refuses."""
    try:
        for name in (PROGRAM, CARD):
            waiting = folder / f".new.{name}"
            shutil.copyfile(new / name, waiting)
        for name in (PROGRAM, CARD):
            os.replace(folder / f".new.{name}", folder / name)
    except OSError as error:
        raise StoreError(
            f"{folder}: the new policy cannot be put there ({error.strerror}). Give write permission or space; it is kept "
            "with the run as its model."
        ) from error


def _load(setup: Setup, policy: PPO, folder: str) -> Network:
    """Return the network in a folder. Raises InputError where there is none, or none that fits this run."""
    policy.load(folder)
    policy.reset(setup.limits, setup.policy_seed)
    hidden = policy.network.shape[1:-1]
    if hidden != list(policy.config.network.hidden):
        raise refuse(
            "policy.network.hidden", policy.config.network.hidden, f"must be that of {folder}: {hidden}"
        )
    return policy.network


def _drift(policy: PPO, then: Lived, now: Lived) -> list[Drift]:
    from gpusched.policy.encoder import feature_names
    from gpusched.rl.renew import drift

    encoder = policy.config.encoder
    return drift(then, now, feature_names(encoder))


def _learn_on(setup: Setup, policy: PPO, in_service: Network, folder: Path, run: Run) -> Network:
    """Train on from the policy in service, on the load it meets now; return the best validated network."""
    from gpusched.rl.train import train

    with bar("training on", policy.config.training.frames) as show:

        def on_update(frames: int, values: dict[str, float]) -> None:
            run.metrics(frames, {f"train/{key}": value for key, value in values.items()})
            show(frames)

        verdict = train(
            policy=policy, make_cluster=setup.simulator, load=setup.load, reward=setup.reward, seed=setup.seed,
            study=setup.study, folder=folder, on_update=on_update, start=in_service, trouble=setup.trouble,
        )  # fmt: skip
    run.tags({"converged": str(verdict.converged).lower(), "verdict": verdict.reason})
    return _load(setup, policy, str(folder))


def _kept(run: Run, values: dict[str, float]) -> dict[str, float]:
    run.metrics(0, {f"promote/{name}": value for name, value in values.items()})
    return values
