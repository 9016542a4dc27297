"""One search for a rule's parameters: candidates judged by the training reward until the budget is spent.

Candidates come from Optuna's tree-structured Parzen estimator. All are judged by the same development episodes,
batch by batch; one that a signed-rank test on these pairs finds worse than the best is dropped early. The best few
are judged again by validation episodes, which the search has never seen, and the best of those is the result.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import Trial, TrialState
from scipy.stats import wilcoxon

from gpusched.core.errors import refuse
from gpusched.core.ports import Cluster, Episode, Load, Reward
from gpusched.core.seeds import stream
from gpusched.policy.tuned import CARD, Rule, SearchConfig, Span, Tuned, Value
from gpusched.rl.episodes import Episodes, Trouble

Floats = NDArray[np.float64]
OnCandidate = Callable[[int, dict[str, float]], None]

RANDOM_FIRST = 20
"""Candidates drawn at random before the estimator is asked."""
WORSE_P = 0.1
"""A candidate is dropped where the signed-rank test gives less than this chance that it is as good as the best."""
REPEATS = 50
"""Known candidates in a row after which the space counts as exhausted."""


@dataclass(kw_only=True)
class Ledger:
    """What a search has spent. A step is one control interval of one environment.

    steps           simulated, in all
    validate_steps  of them on validation episodes
    episodes        begun, each with a warm-up of its own that no step counts
    candidates      judged; dropped is how many of them were given up before their last episode
    wall_s          wall time
    """

    steps: int = 0
    validate_steps: int = 0
    episodes: int = 0
    candidates: int = 0
    dropped: int = 0
    wall_s: float = 0.0


@dataclass(kw_only=True)
class Searched:
    """How a search ended: the parameters, their mean reward per step on validation episodes, and what it took.

    table  every candidate as CSV: number, state, development and validation reward, parameters
    """

    values: dict[str, Value]
    reward: float
    reason: str
    ledger: Ledger
    table: str


def search(
    *,
    policy: Tuned,
    make_cluster: Callable[[int], Cluster],
    load: Load,
    reward: Reward,
    seed: int,
    study: str,
    folder: Path,
    on_candidate: OnCandidate,
    trouble: Trouble | None = None,
) -> Searched:
    """Search the parameters of `policy` on episodes of `load`, with `trouble` in each, write what was found into `folder`, return the outcome.

    `make_cluster(envs)` makes a cluster of that many environments. `on_candidate(steps, metrics)` is called after
    every candidate. The same arguments give the same parameters. Raises InputError where the budget is too small.
    """
    begin_s = time.perf_counter()
    spec: SearchConfig = policy.config.search
    with closing(make_cluster(spec.batch)) as cluster, _quiet():
        hunt = Hunt(policy, cluster, reward, load, study, seed, trouble)
        reason = hunt.run(on_candidate)
        best, score = hunt.finals()
    hunt.ledger.wall_s = time.perf_counter() - begin_s
    card = {**policy.card(best.params, cluster.limits), "study": study, "seed": seed, "reward": score}
    write_card(folder, card)
    return Searched(
        values=dict(best.params), reward=score, reason=reason, ledger=hunt.ledger, table=hunt.table()
    )


@dataclass
class Candidate:
    """One point of the space and what it earned: mean reward per step of each episode, shape [P]."""

    number: int
    params: dict[str, Value]
    rule: Rule
    reward_P: Floats = field(default_factory=lambda: np.zeros(0))
    validated_P: Floats = field(default_factory=lambda: np.zeros(0))
    dropped: bool = False

    @property
    def key(self) -> str:
        """The same for the same parameters."""
        return json.dumps(self.params, sort_keys=True)

    @property
    def reward(self) -> float:
        return float(self.reward_P.mean())


class Hunt:
    """The state of one search."""

    def __init__(
        self,
        policy: Tuned,
        cluster: Cluster,
        reward: Reward,
        load: Load,
        study: str,
        seed: int,
        trouble: Trouble | None,
    ) -> None:
        self.policy, self.cluster, self.reward = policy, cluster, reward
        self.spec: SearchConfig = policy.config.search
        self.ledger = Ledger()
        self.tried: dict[str, Candidate] = {}
        self._batch_steps = self.spec.batch * cluster.trial.steps
        self._final_steps = self.spec.finalists * self.spec.validate_episodes * cluster.trial.steps
        least = self._final_steps + 2 * self.spec.episodes * cluster.trial.steps
        if self.spec.frames < least:
            raise refuse("search.frames", self.spec.frames,
                         f"must pay for two candidates and the finalists ({least} control steps)")  # fmt: skip
        self._episodes = {
            purpose: Episodes(
                load, cluster.trial.end_s, stream(study, type(load).__name__, seed, purpose), trouble
            ).draw(count)
            for purpose, count in (("tune", self.spec.episodes), ("validate", self.spec.validate_episodes))
        }
        own = stream(study, type(load).__name__, seed, "tune").spawn(self.spec.episodes + 1)[-1]
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=int(own.generate_state(1)[0]),
                n_startup_trials=RANDOM_FIRST,
                group=True,
                multivariate=True,
            ),
        )
        start = Start(policy.first(cluster.limits))
        policy.rule(start, cluster.limits)
        self._study.enqueue_trial(start.asked)

    @property
    def whole(self) -> list[Candidate]:
        """Candidates that lived through every development episode, best first."""
        ended = [c for c in self.tried.values() if not c.dropped]
        return sorted(ended, key=lambda c: (-c.reward, c.number))

    def run(self, on_candidate: OnCandidate) -> str:
        """Try candidates until the budget is spent or the space is exhausted; return which."""
        repeats = 0
        while self._affords(self._batch_steps):
            trial = self._study.ask()
            rule = self.policy.rule(Draw(trial), self.cluster.limits)
            candidate = Candidate(len(self.tried), dict(trial.params), rule)
            if known := self.tried.get(candidate.key):
                self._tell(trial, known)
                repeats += 1
                if repeats == REPEATS:
                    return f"space exhausted: the last {REPEATS} candidates were known"
                continue
            repeats = 0
            self._judge(candidate)
            self._tell(trial, candidate)
            if self.whole:
                on_candidate(
                    self.ledger.steps, {"reward": candidate.reward, "best_reward": self.whole[0].reward}
                )
        return f"budget of {self.spec.frames} control steps spent"

    def _affords(self, steps: int) -> bool:
        return bool(self.ledger.steps + self._final_steps + steps <= self.spec.frames)

    def _judge(self, candidate: Candidate) -> None:
        best = next(iter(self.whole), None)
        for episodes in self._batches("tune"):
            if not self._affords(self._batch_steps):
                candidate.dropped = True
                break
            candidate.reward_P = np.append(candidate.reward_P, self._live(candidate.rule, episodes))
            lives_on = len(candidate.reward_P) < self.spec.episodes
            if best and lives_on and is_worse(candidate.reward_P, best.reward_P):
                candidate.dropped = True
                break
        self.tried[candidate.key] = candidate
        self.ledger.candidates += 1
        self.ledger.dropped += candidate.dropped

    def _tell(self, trial: Trial, candidate: Candidate) -> None:
        state = TrialState.PRUNED if candidate.dropped else TrialState.COMPLETE
        # Of a pruned trial Optuna reads how far it came and what it reported last.
        if candidate.dropped:
            trial.report(candidate.reward, len(candidate.reward_P))
        self._study.tell(trial, None if candidate.dropped else candidate.reward, state=state)

    def finals(self) -> tuple[Candidate, float]:
        """Let the finalists live through the validation episodes; return the best and its mean reward there."""
        finalists = self.whole[: self.spec.finalists]
        for finalist in finalists:
            for episodes in self._batches("validate"):
                before = self.ledger.steps
                finalist.validated_P = np.append(finalist.validated_P, self._live(finalist.rule, episodes))
                self.ledger.validate_steps += self.ledger.steps - before
        best = max(finalists, key=lambda c: (float(c.validated_P.mean()), -c.number))
        return best, float(best.validated_P.mean())

    def _batches(self, purpose: str) -> Iterator[Sequence[Episode]]:
        episodes = self._episodes[purpose]
        for begin in range(0, len(episodes), self.spec.batch):
            yield episodes[begin : begin + self.spec.batch]

    def _live(self, rule: Rule, episodes: Sequence[Episode]) -> Floats:
        """Return the mean reward per step of each episode, shape [E]."""
        rule.reset(self.cluster.limits, self.cluster.envs)
        seen = self.cluster.reset(episodes)
        total_E = np.zeros(self.cluster.envs)
        for _ in range(self.cluster.trial.steps):
            seen = self.cluster.step(rule.act(seen))
            total_E += self.reward.score(self.cluster.outcome())
        self.ledger.steps += self._batch_steps
        self.ledger.episodes += len(episodes)
        return total_E / self.cluster.trial.steps

    def table(self) -> str:
        """Return every candidate as CSV."""
        rows = ["number,state,episodes,reward,validation_reward,parameters"]
        for c in self.tried.values():
            validated = f"{c.validated_P.mean():.6f}" if len(c.validated_P) else ""
            mean = f"{c.reward:.6f}" if len(c.reward_P) else ""
            params = json.dumps(c.params, sort_keys=True).replace('"', '""')
            state = "dropped" if c.dropped else "whole"
            rows.append(f'{c.number},{state},{len(c.reward_P)},{mean},{validated},"{params}"')
        return "\n".join(rows) + "\n"


class Draw:
    """A Picker that asks Optuna."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def real(self, name: str, span: Span, log: bool = False) -> float:
        return float(self._trial.suggest_float(name, float(span[0]), float(span[1]), log=log))

    def whole(self, name: str, span: Span) -> int:
        return int(self._trial.suggest_int(name, round(span[0]), round(span[1])))

    def one_of(self, name: str, options: Sequence[str]) -> str:
        return str(self._trial.suggest_categorical(name, list(options)))


class Start:
    """A Picker that gives wanted values, moved into the space, and notes what was asked for."""

    def __init__(self, wanted: Mapping[str, Value]) -> None:
        self._wanted = wanted
        self.asked: dict[str, Value] = {}

    def real(self, name: str, span: Span, log: bool = False) -> float:
        value = self._wanted.get(name, span[0])
        self.asked[name] = float(np.clip(float(value), span[0], span[1]))
        return float(self.asked[name])

    def whole(self, name: str, span: Span) -> int:
        self.asked[name] = round(self.real(name, span))
        return int(self.asked[name])

    def one_of(self, name: str, options: Sequence[str]) -> str:
        value = str(self._wanted.get(name, options[0]))
        self.asked[name] = value if value in options else options[0]
        return str(self.asked[name])


def is_worse(reward_P: Floats, best_P: Floats) -> bool:
    """Return whether a signed-rank test on the episodes lived through so far finds the candidate worse than the best.

    Never where its mean so far is as good as the best's over all episodes. It is the rule of Optuna's WilcoxonPruner
    with the normal approximation, since SciPy else goes through all signs one by one wherever two differences are equal.
    """
    behind_P = reward_P - best_P[: len(reward_P)]
    if not behind_P.any() or reward_P.mean() >= best_P.mean():
        return False
    # The stubs know the method under its former name only.
    found = wilcoxon(behind_P, alternative="less", zero_method="zsplit", method="asymptotic")  # type: ignore[call-overload]
    return float(found.pvalue) < WORSE_P


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log of every trial, and its word that options of the estimator may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the file of the found parameters; it appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f".new.{CARD}"
    note.write_text(json.dumps(card, indent=2) + "\n")
    os.replace(note, folder / CARD)
