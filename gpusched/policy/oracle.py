"""oracle: the bound. Replica counts chosen in hindsight, knowing every user, by a beam search over the simulator.

It is no competitor: it is told the trial's episode, which no policy may see. What it earns is what perfect
foresight of the load (and of every random draw) is worth, with the replica count as the only lever.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation, Outcome
from gpusched.core.ports import Cluster, Future, Policy, Reward

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_PASTS = 5000
"""Histories of recent replica counts that the guide tells apart."""


class Oracle(Policy):
    """Plays the schedule found in `foresee`, whatever it sees."""

    hindsight = True

    @dataclass(kw_only=True)
    class Config:
        """`beam` histories are followed at once; the best schedule is then improved at most `rounds` times."""

        beam: int
        rounds: int

        def __post_init__(self) -> None:
            if self.beam < 1:
                raise refuse("beam", self.beam, "must be at least 1")
            if self.rounds < 0:
                raise refuse("rounds", self.rounds, "must be at least 0")

    config: Config

    def foresee(self, future: Future) -> None:
        self._schedule_T = best_schedule(future, self.config.beam, self.config.rounds)

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        self._envs, self._step = envs, 0

    def act(self, observation: Observation) -> Controls:
        """Ask for what the schedule says; RuntimeError without one."""
        if not hasattr(self, "_schedule_T"):
            raise RuntimeError("Oracle.act before Oracle.foresee")
        replicas = self._schedule_T[min(self._step, len(self._schedule_T) - 1)]
        self._step += 1
        return Controls.scale(np.full(self._envs, replicas))


def best_schedule(future: Future, beam: int, rounds: int) -> Integers:
    """Return the replica count of every control step with the largest total reward that the search finds, shape [T].

    First every constant count is lived through. Their rewards give a guide: by dynamic programming, what is
    left to earn after each step, given the counts of the last steps (a replica serves only once it has started).
    Then the simulator is branched: each of `beam` histories tries every count, and those with the most reward so
    far plus the guide's rest go on. Last, changes are moved to and fro. Never worse than the best constant.
    """
    constants = live_constants(future)
    guide = Guide(constants)
    with closing(future.make_cluster(beam * len(constants.counts))) as cluster:
        path_T, total = refine(cluster, future, *Beam(cluster, future, guide, beam).run(), rounds)
    best = int(constants.reward_TA.sum(axis=0).argmax())
    if constants.reward_TA[:, best].sum() >= total:
        return np.full(len(path_T), constants.counts[best])
    return path_T


@dataclass(kw_only=True)
class Constants:
    """What each constant count led to, axis A: reward [T, A], replicas ready after each step [T, A], outcomes [T].

    counts  the replica counts, ascending
    start   the count at which the episode begins
    """

    counts: Integers
    start: int
    reward: Reward
    reward_TA: Floats
    ready_TA: Floats
    outcome_T: list[Outcome]


def live_constants(future: Future) -> Constants:
    """Live through the episode once with every constant replica count."""
    counts = np.arange(future.limits.min_replicas, future.limits.max_replicas + 1)
    with closing(future.make_cluster(len(counts))) as cluster:
        cluster.reset([future.episode] * len(counts))
        reward, ready, outcomes = [], [], []
        for _ in range(cluster.trial.steps):
            seen = cluster.step(Controls.scale(counts))
            outcomes.append(cluster.outcome())
            reward.append(future.reward.score(outcomes[-1]))
            ready.append(seen.replicas_ready_E)
        start = cluster.trial.start_replicas
    return Constants(
        counts=counts,
        start=start,
        reward=future.reward,
        reward_TA=np.array(reward),
        ready_TA=np.array(ready),
        outcome_T=outcomes,
    )


class Guide:
    """What is left to earn, by dynamic programming over a simplified service.

    In it, a replica serves once it has been asked for during `lag` whole steps, one that is no longer wanted is gone
    at once, and no queue outlives its step. A past is the tuple of the last `lag` choices, packed base A.
    """

    def __init__(self, constants: Constants) -> None:
        self.counts, self.size = constants.counts, len(constants.counts)
        self._start = int(np.searchsorted(constants.counts, constants.start))
        self.lag = self._lag(constants)
        self.pasts = self.size**self.lag
        digits_PL = (np.arange(self.pasts)[:, None] // self.size ** np.arange(self.lag)) % self.size
        least_P = digits_PL.min(axis=1)
        choices_A = np.arange(self.size)
        serving_PA = np.minimum(least_P[:, None], choices_A[None, :])
        self._next_PA = self.next(np.arange(self.pasts)[:, None], choices_A[None, :])
        steps = len(constants.outcome_T)
        self.left_TP = np.zeros((steps + 1, self.pasts))
        for t in reversed(range(steps)):
            gain_AA = self._gains(constants, t)
            total_PA = gain_AA[serving_PA, choices_A[None, :]] + self.left_TP[t + 1][self._next_PA]
            self.left_TP[t] = total_PA.max(axis=1)

    @property
    def begin(self) -> int:
        """The past at the start of the episode: the start replicas have long been there."""
        return int(sum(self._start * self.size**k for k in range(self.lag)))

    def next(self, past: Integers, choice: Integers) -> Integers:
        """Return the past that follows."""
        return np.asarray((past * self.size + choice) % self.pasts)

    def _lag(self, constants: Constants) -> int:
        """Return the steps until all replicas asked for at the first one are ready; fewer where pasts would be too many."""
        missing_T = constants.ready_TA[:, -1] < constants.counts[-1]
        lag = int(np.argmin(missing_T)) + 1 if not missing_T.all() else len(missing_T)
        if constants.start >= constants.counts[-1]:
            lag = 1
        while lag > 1 and self.size**lag > MOST_PASTS:
            lag -= 1
        return lag

    def _gains(self, constants: Constants, t: int) -> Floats:
        """Return the reward of step t with a[i] replicas serving and a[j] held, shape [A, A]."""
        outcome, size = constants.outcome_T[t], self.size
        held_E = np.tile(self.counts.astype(float), size)
        rows: dict[str, Any] = {
            name: np.repeat(value, size)
            for name, value in vars(outcome).items()
            if isinstance(value, np.ndarray)
        }
        per_replica_E = rows["cpu_cores_limit_E"] / np.maximum(rows["replicas_alive_E"], 1e-9)
        rows |= {"replicas_alive_E": held_E, "cpu_cores_limit_E": per_replica_E * held_E}
        return np.asarray(constants.reward.score(replace(outcome, **rows)).reshape(size, size))


class Beam:
    """`width` histories of the branched simulator, each in A environments: one for every choice."""

    def __init__(self, cluster: Cluster, future: Future, guide: Guide, width: int) -> None:
        self.cluster, self.future, self.guide, self.width = cluster, future, guide, width

    def run(self) -> tuple[Integers, float]:
        """Return the best path, shape [T], and its total reward."""
        guide, cluster = self.guide, self.cluster
        choice_E = np.tile(np.arange(guide.size), self.width)
        total_B, past_B = np.zeros(self.width), np.full(self.width, guide.begin)
        path_BT = np.zeros((self.width, 0), dtype=np.int64)
        different = 1  # all histories begin as the same one
        cluster.reset([self.future.episode], [0])
        cluster.branch(np.zeros(cluster.envs, dtype=np.int64))
        for t in range(cluster.trial.steps):
            cluster.step(Controls.scale(guide.counts[choice_E]))
            reward_E = self.future.reward.score(cluster.outcome())
            total_E = np.repeat(total_B, guide.size) + reward_E
            past_E = guide.next(np.repeat(past_B, guide.size), choice_E)
            promise_E = total_E + guide.left_TP[t + 1][past_E]
            promise_E[different * guide.size :] = -np.inf
            kept_B = spread(promise_E, past_E, self.width)
            different = min(self.width, different * guide.size)
            total_B, past_B = total_E[kept_B], past_E[kept_B]
            path_BT = np.column_stack([path_BT[kept_B // guide.size], guide.counts[choice_E[kept_B]]])
            cluster.branch(np.repeat(kept_B, guide.size))
        best = int(np.argmax(np.where(np.arange(self.width) < different, total_B, -np.inf)))
        return path_BT[best], float(total_B[best])


def spread(promise_E: Floats, past_E: Integers, width: int) -> Integers:
    """Return `width` histories: half of them the most promising, then the best of every past, then the rest.

    Histories that chose the same of late are nearly the same service: a beam full of them would follow one only.
    """
    ranked_E = np.argsort(-promise_E, kind="stable")
    rank_E = np.arange(len(ranked_E))
    _, first = np.unique(past_E[ranked_E], return_index=True)
    leads_E = np.isin(rank_E, first) & np.isfinite(promise_E[ranked_E])
    order_E = np.lexsort([rank_E, ~leads_E, rank_E >= width // 2])
    return np.asarray(ranked_E[order_E][:width])


def refine(
    cluster: Cluster, future: Future, path_T: Integers, total: float, rounds: int
) -> tuple[Integers, float]:
    """Move on to the best neighbouring schedule while there is a better one, at most `rounds` times."""
    for _ in range(rounds):
        around_NT = neighbours(path_T, future.limits)
        total_N = live_schedules(cluster, future, around_NT)
        if not len(total_N) or total_N.max() <= total:
            break
        path_T, total = around_NT[int(total_N.argmax())], float(total_N.max())
    return path_T, total


def neighbours(path_T: Integers, limits: Limits) -> Integers:
    """Return the schedules one move away, shape [N, T].

    A move brings a change forward or puts it off by a step or two, or sets a stretch of equal counts one replica
    up, one down, or to what was before it.
    """
    begins = [0, *(np.flatnonzero(np.diff(path_T)) + 1), len(path_T)]
    found: dict[bytes, Integers] = {}
    for k, (begin, end) in enumerate(pairwise(begins)):
        moves = [(begin, end, path_T[begin] + more) for more in (-1, 1)]
        if k:
            before = path_T[begin - 1]
            moves.append((begin, end, before))
            for steps in (1, 2):
                moves += [(begin - steps, begin, path_T[begin]), (begin, begin + steps, before)]
        for first, last, count in moves:
            other_T = path_T.copy()
            other_T[max(0, first) : last] = count
            if limits.min_replicas <= count <= limits.max_replicas:
                found.setdefault(other_T.tobytes(), other_T)
    found.pop(path_T.tobytes(), None)
    return np.array(list(found.values()), dtype=np.int64).reshape(-1, len(path_T))


def live_schedules(cluster: Cluster, future: Future, schedule_NT: Integers) -> Floats:
    """Return what each of N schedules earns in the episode, shape [N]."""
    total_N = np.zeros(len(schedule_NT))
    for first in range(0, len(schedule_NT), cluster.envs):
        some_NT = schedule_NT[first : first + cluster.envs]
        # The cluster steps all its environments: those left over repeat the last schedule.
        rows_E = np.minimum(np.arange(cluster.envs), len(some_NT) - 1)
        cluster.reset([future.episode], [0])
        cluster.branch(np.zeros(cluster.envs, dtype=np.int64))
        for replicas_E in some_NT[rows_E].T:
            cluster.step(Controls.scale(replicas_E))
            total_N[first : first + len(some_NT)] += future.reward.score(cluster.outcome())[: len(some_NT)]
    return total_N
