"""A search on the toy: what it finds, what it spends to the step, and that it can be repeated."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import THINK_S, TRIAL, Levels, Price, Setup, ToyCluster, best_replicas

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError
from gpusched.core.observation import Observation
from gpusched.core.ports import Episode
from gpusched.core.seeds import PURPOSES, stream
from gpusched.policy.table import Space, Table
from gpusched.policy.tuned import CARD, SearchConfig
from gpusched.rl.episodes import Episodes
from gpusched.rl.search import REPEATS, Searched, is_worse, search

pytestmark = pytest.mark.slow

SPACE: dict[str, Any] = {"users": [2.0, 60.0], "gap": [0.0, 60.0], "band": [0.0, 0.3], "hold": [0, 3]}
BATCH = 4


class Counted(ToyCluster):
    """Counts what is simulated and remembers which episodes were."""

    steps: int = 0
    begun: list[tuple[int, ...]]

    def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
        self.begun = [*getattr(self, "begun", []), *(identity(e.seed) for e in episodes)]
        return super().reset(episodes, envs)

    def step(self, controls: Controls) -> Observation:
        self.steps += self.envs
        return super().step(controls)


def identity(seed: np.random.SeedSequence) -> tuple[int, ...]:
    return tuple(int(word) for word in seed.generate_state(4))


def run(folder: Path, frames: int = 16_000, seed: int = 0, **space: Any) -> tuple[Searched, Counted, Table]:
    spec = SearchConfig(frames=frames, episodes=12, batch=BATCH, finalists=3, validate_episodes=8)
    policy = Table(
        Table.Config(search=spec, train_load=None, think_s=THINK_S, space=Space(**{**SPACE, **space}))
    )
    made: list[Counted] = []

    def make_cluster(envs: int) -> Counted:
        made.append(Counted(envs))
        return made[-1]

    found = search(
        policy=policy, make_cluster=make_cluster, load=Levels(None), reward=Price(None), seed=seed, study="toy",
        folder=folder, on_candidate=lambda steps, values: None,
    )  # fmt: skip
    (cluster,) = made
    assert cluster.closed
    return found, cluster, policy


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Searched, Counted, Table, Path]:
    folder = tmp_path_factory.mktemp("found")
    return *run(folder), folder


def rows(found: Searched) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(found.table)))


def fresh_reward(act: Any, seed: int = 99) -> float:
    """Return the mean reward of a policy on episodes of a stream no search draws from."""
    cluster = ToyCluster(16)
    episodes = Episodes(Levels(None), TRIAL.end_s, stream("toy", "Levels", seed, "trial")).draw(16)
    seen, total = cluster.reset(episodes), 0.0
    for _ in range(TRIAL.steps):
        seen = cluster.step(act(seen, cluster))
        total += float(Price(None).score(cluster.outcome()).mean())
    return total / TRIAL.steps


def clairvoyant(seen: Observation, cluster: ToyCluster) -> Controls:
    users = [int(p.users_at(np.array([t]))[0]) for p, t in zip(cluster.plans, cluster.t_s_E, strict=True)]
    return Controls.scale([best_replicas(n) for n in users])


def test_what_is_found_is_near_what_a_clairvoyant_earns(once: tuple[Searched, Counted, Table, Path]) -> None:
    _, _, policy, folder = once
    policy.load(str(folder))
    policy.reset(Limits(), np.random.SeedSequence(0), envs=16)
    best = fresh_reward(clairvoyant)
    constants = [fresh_reward(lambda seen, cluster, k=k: Controls.scale(np.full(16, k))) for k in range(1, 7)]
    own = fresh_reward(lambda seen, cluster: policy.act(seen))
    assert max(constants) < own <= best + 1e-9
    assert best - own < 0.3 * (best - max(constants))


def test_the_ledger_counts_every_step_that_was_simulated(
    once: tuple[Searched, Counted, Table, Path],
) -> None:
    found, cluster, _, _ = once
    ledger = found.ledger
    assert ledger.steps == cluster.steps <= 16_000
    assert ledger.episodes == len(cluster.begun) == ledger.steps // TRIAL.steps
    assert ledger.validate_steps == 3 * 8 * TRIAL.steps
    told = rows(found)
    assert ledger.candidates == len(told)
    assert ledger.dropped == sum(row["state"] == "dropped" for row in told)
    development = sum(int(row["episodes"]) for row in told) * TRIAL.steps
    assert development + ledger.validate_steps == ledger.steps
    assert 16_000 - ledger.steps < BATCH * TRIAL.steps  # what is left would not pay for one more batch
    assert found.reason == "budget of 16000 control steps spent"


def test_hopeless_candidates_are_dropped_and_the_best_is_not(
    once: tuple[Searched, Counted, Table, Path],
) -> None:
    found, *_ = once
    told = rows(found)
    dropped = [row for row in told if row["state"] == "dropped"]
    assert dropped
    assert all(int(row["episodes"]) in (4, 8) for row in dropped[:-1])
    whole = sorted((row for row in told if row["state"] == "whole"), key=lambda row: -float(row["reward"]))
    finals = [row for row in told if row["validation_reward"]]
    assert {row["number"] for row in finals} == {row["number"] for row in whole[:3]}
    winner = max(finals, key=lambda row: float(row["validation_reward"]))
    assert json.loads(winner["parameters"]) == found.values
    assert float(winner["validation_reward"]) == pytest.approx(found.reward, abs=1e-6)


def test_worse_is_what_a_signed_rank_test_says() -> None:
    best_P = np.linspace(0.0, 1.0, 32)
    assert is_worse(best_P[:8] - 0.1, best_P), "eight of eight behind"
    assert not is_worse(best_P[:8], best_P), "nothing tells them apart"
    even_P = np.array([0.1, -0.1] * 4)
    assert not is_worse(best_P[:8] - even_P, best_P), "as often ahead as behind"
    # Seven of eight hardly behind, one far ahead: the mean decides that it lives on.
    assert not is_worse(best_P[:8] - np.array([0.01] * 7 + [-9.0]), best_P)


def test_all_candidates_meet_the_same_users(once: tuple[Searched, Counted, Table, Path]) -> None:
    _, cluster, *_ = once
    assert len(set(cluster.begun)) == 12 + 8
    development = [
        identity(e.seed) for e in Episodes(Levels(None), 60.0, stream("toy", "Levels", 0, "tune")).draw(12)
    ]
    validation = [
        identity(e.seed) for e in Episodes(Levels(None), 60.0, stream("toy", "Levels", 0, "validate")).draw(8)
    ]
    assert set(cluster.begun) == {*development, *validation}
    assert cluster.begun[:12] == development  # the first candidate has nobody to be worse than
    assert cluster.begun[-24:] == 3 * validation


def test_development_validation_and_test_episodes_are_disjoint() -> None:
    seen: dict[tuple[int, ...], str] = {}
    for purpose in PURPOSES:
        source = stream("toy", "Levels", 0, purpose)
        for episode in Episodes(Levels(None), 60.0, source).draw(200):
            assert seen.setdefault(identity(episode.seed), purpose) == purpose
    assert len(seen) == 200 * len(PURPOSES)


def test_the_same_seed_finds_the_same_and_another_one_searches_elsewhere(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, frames=5_000)[0] for name in "ab")
    assert (first.values, first.reward, first.table) == (second.values, second.reward, second.table)
    assert (tmp_path / "a" / CARD).read_text() == (tmp_path / "b" / CARD).read_text()
    other, cluster, _ = run(tmp_path / "c", frames=5_000, seed=1)
    assert other.table != first.table
    assert not set(cluster.begun) & set(run(tmp_path / "d", frames=5_000)[1].begun)


def test_the_file_names_what_was_found(once: tuple[Searched, Counted, Table, Path]) -> None:
    found, _, _, folder = once
    card = json.loads((folder / CARD).read_text())
    assert card["values"] == found.values
    assert (card["rule"], card["study"], card["seed"], card["reward"]) == ("Table", "toy", 0, found.reward)
    assert [path.name for path in folder.iterdir()] == [CARD]


def test_a_space_with_one_point_costs_one_candidate(tmp_path: Path) -> None:
    fixed = {"users": [20.0, 20.0], "gap": [15.0, 15.0], "band": [0.1, 0.1], "hold": [1, 1]}
    found, cluster, _ = run(tmp_path, **fixed)
    assert found.ledger.candidates == 1  # what is tried first, moved into the space
    assert found.reason == f"space exhausted: the last {REPEATS} candidates were known"
    assert cluster.steps == found.ledger.steps == (12 + 8) * TRIAL.steps
    assert found.values["users"] == 20.0


def test_what_goes_wrong_befalls_every_episode_of_a_search_and_of_a_training(tmp_path: Path) -> None:
    train = pytest.importorskip("gpusched.rl.train")
    met: list[Episode] = []

    class Watched(Counted):
        def reset(self, episodes: Sequence[Episode], envs: Sequence[int] | None = None) -> Observation:
            met.extend(episodes)
            return super().reset(episodes, envs)

    def wrong(episode: Episode, source: np.random.SeedSequence) -> Episode:
        return replace(episode, start_replicas=int(source.generate_state(1)[0] % 5))

    world: dict[str, Any] = {
        "make_cluster": Watched, "load": Levels(None), "reward": Price(None), "seed": 0, "study": "toy", "folder": tmp_path,
        "trouble": wrong,
    }  # fmt: skip
    spec = SearchConfig(frames=6_000, episodes=12, batch=BATCH, finalists=1, validate_episodes=4)
    rule = Table(Table.Config(search=spec, train_load=None, think_s=THINK_S, space=Space(**SPACE)))
    search(policy=rule, on_candidate=lambda steps, values: None, **world)
    assert {e.start_replicas for e in met} == {0, 1, 2, 3, 4}, "each draws its own, and none is spared"
    met.clear()
    train.train(policy=Setup(frames=2048).policy(), on_update=lambda frames, values: None, **world)
    assert {e.start_replicas for e in met} == {0, 1, 2, 3, 4}


def test_a_budget_that_pays_for_nothing_is_refused(tmp_path: Path) -> None:
    least = (3 * 8 + 2 * 12) * TRIAL.steps
    with pytest.raises(InputError, match=rf"search\.frames = {least - 1}: .*\({least} control steps\)"):
        run(tmp_path, frames=least - 1)
    assert not list(tmp_path.iterdir())
    found, *_ = run(tmp_path, frames=least)
    assert [row["state"] for row in rows(found)].count("whole") >= 1
    assert found.ledger.steps <= least
