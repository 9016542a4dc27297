"""Training learns what is known to be best and repeats itself; models are taken back only where they fit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import LEVELS, TRIAL, Levels, Price, Replicas, Setup, ToyCluster, TwoLevers, best_replicas, price

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError
from gpusched.core.ports import Policy
from gpusched.core.seeds import stream
from gpusched.policy.network import read_network
from gpusched.policy.ppo import FORMAT, PPO, ConvergenceConfig
from gpusched.rl.episodes import Episodes
from gpusched.rl.train import Verdict, train

pytestmark = pytest.mark.slow

SHORT = Setup(frames=6 * 1024)


def run(
    setup: Setup, folder: Path, seed: int = 0, on_update: Any = lambda frames, metrics: None
) -> tuple[PPO, Verdict]:
    policy = setup.policy()
    verdict = train(
        policy=policy, make_cluster=ToyCluster, load=Levels(None), reward=Price(None), seed=seed, study="toy",
        folder=folder, on_update=on_update,
    )  # fmt: skip
    return policy, verdict


def digest(folder: Path) -> str:
    return read_network(folder / "policy.pt2").digest


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    run(SHORT, folder)
    return folder


def rewards(act: Any, envs: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return the reward per episode of a policy on trial episodes, and of a clairvoyant, both shape [E]."""
    cluster = ToyCluster(envs)
    seen = cluster.reset(Episodes(Levels(None), TRIAL.end_s, stream("toy", "levels", 0, "trial")).draw(envs))
    got, best = [], []
    for _ in range(TRIAL.steps):
        users = [int(p.users_at(np.array([t]))[0]) for p, t in zip(cluster.plans, cluster.t_s_E, strict=True)]
        seen = cluster.step(act(seen))
        got.append(Price(None).score(cluster.outcome()))
        counts = np.array([best_replicas(u) for u in users])
        late = 1 - np.minimum(1, counts * 15 / np.array(users))
        best.append(price(counts, late, 6))
    return np.mean(got, axis=0), np.mean(best, axis=0)


def test_it_learns_almost_all_that_can_be_learnt(tmp_path: Path) -> None:
    policy, verdict = run(Setup(frames=64 * 1024), tmp_path)
    assert verdict.converged, verdict.reason
    policy.load(str(tmp_path))
    policy.reset(Limits(), np.random.SeedSequence(0), envs=64)
    got_E, best_E = rewards(policy.act)
    fixed = max(rewards(lambda seen, k=k: Replicas(None).decode(np.full((64, 1), k), Limits()))[0].mean()
                for k in range(6))  # fmt: skip
    # A jump is seen one step late, so the clairvoyant's last bit is out of reach: of the gap between the best
    # constant and the clairvoyant, most must be closed.
    closed = (got_E.mean() - fixed) / (best_E.mean() - fixed)
    assert closed > 0.8


def test_same_seed_same_weights_whatever_happened_before(short: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    np.random.seed(99)
    np.random.random(7)
    run(SHORT, tmp_path)
    assert digest(tmp_path) == digest(short)


def test_another_seed_gives_other_weights(short: Path, tmp_path: Path) -> None:
    run(SHORT, tmp_path, seed=1)
    assert digest(tmp_path) != digest(short)


def test_same_weights_in_another_process(short: Path, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import *
run(SHORT, Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert digest(tmp_path) == digest(short)


def test_global_randomness_and_threads_are_left_as_found(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(SHORT, tmp_path)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_every_update_is_told_and_validations_come_with_an_interval(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    _, verdict = run(SHORT, tmp_path, on_update=lambda frames, metrics: told.append((frames, metrics)))
    assert [frames for frames, _ in told] == [1024 * k for k in range(2, 7)]
    assert all({"kl", "entropy", "value_loss", "lr", "rollout_reward"} <= set(metrics) for _, metrics in told)
    validated = [m for _, m in told if "reward" in m]
    assert len(validated) == 2  # every fourth update and the last
    assert all(
        m["reward_low"] < m["reward"] < m["reward_high"] and 0 <= m["agreement"] <= 1 for m in validated
    )
    assert told[0][1]["lr"] > told[-1][1]["lr"]
    assert verdict.frames == 6 * 1024 and verdict.wall_s > 0
    assert not verdict.converged and verdict.reason.startswith(
        "not converged: budget of 6144 frames spent; only 2 of 3"
    )


@pytest.mark.parametrize(("stop_early", "frames"), [(True, 13 * 1024), (False, 16 * 1024)])
def test_a_converged_training_ends_early_only_where_it_may(
    tmp_path: Path, stop_early: bool, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = ConvergenceConfig(
        window=3, reward_tolerance=9.0, kl_max=9.0, entropy_tolerance=9.0, agreement_min=0.0
    )
    setup = Setup(frames=16 * 1024, stop_early=stop_early)
    policy = setup.policy()
    policy.config.convergence = loose
    monkeypatch.setattr(setup, "policy", lambda: policy)
    _, verdict = run(setup, tmp_path)  # a validation every 4 updates; the first rollout only measures
    assert verdict.converged and verdict.frames == frames


def test_the_best_validated_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(self: Any, network: Any) -> tuple[np.ndarray, float]:
        seen.append(network.digest)
        return np.array([0.0, 0.1]) + [0.0, 5.0, 3.0][len(seen) - 1], 1.0

    monkeypatch.setattr("gpusched.rl.train.Validator.look", look)
    _, verdict = run(SHORT, tmp_path)
    assert digest(tmp_path) == seen[1]
    assert verdict.values["best_reward"] == pytest.approx(5.05) and verdict.values["best_frames"] == 5 * 1024


def test_an_interrupt_passes_through_and_leaves_no_model(tmp_path: Path) -> None:
    clusters: list[ToyCluster] = []

    def make_cluster(envs: int) -> ToyCluster:
        clusters.append(ToyCluster(envs))
        return clusters[-1]

    def interrupt(frames: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(policy=SHORT.policy(), make_cluster=make_cluster, load=Levels(None), reward=Price(None), seed=0,
              study="toy", folder=tmp_path, on_update=interrupt)  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert all(cluster.closed for cluster in clusters)


def test_the_model_acts_through_its_encoder_and_action(short: Path) -> None:
    policy: Policy = SHORT.policy()
    policy.load(str(short))
    policy.reset(Limits(), np.random.SeedSequence(0), envs=4)
    cluster = ToyCluster(4)
    seen = cluster.reset(Episodes(Levels(None), TRIAL.end_s, np.random.SeedSequence(0)).draw(4))
    for _ in range(3):
        asked_E = policy.act(seen).replicas_E
        assert asked_E.shape == (4,) and ((asked_E >= 1) & (asked_E <= 6)).all()
        seen = cluster.step(policy.act(seen))


def test_a_reset_forgets_the_episode_before(short: Path) -> None:
    policy = SHORT.policy()
    policy.load(str(short))
    chosen = []
    for _ in range(2):
        policy.reset(Limits(), np.random.SeedSequence(0), envs=2)
        cluster = ToyCluster(2)
        seen = cluster.reset(Episodes(Levels(None), TRIAL.end_s, np.random.SeedSequence(0)).draw(2))
        chosen.append([(seen := cluster.step(policy.act(seen))).replicas_spec_E.tolist() for _ in range(10)])
    assert chosen[0] == chosen[1]


def test_a_model_with_two_levers(tmp_path: Path) -> None:
    setup = Setup(frames=2 * 1024, action=TwoLevers(None))
    policy, _ = run(setup, tmp_path)
    policy.load(str(tmp_path))
    assert json.loads((tmp_path / "policy.json").read_text())["action_sizes"] == [6, 3]
    with pytest.raises(InputError, match="action"):
        SHORT.policy().load(str(tmp_path))


class Priced(Replicas):
    """Each replica costs a replica."""

    def expense(self, limits: Limits) -> np.ndarray:
        return np.arange(limits.max_replicas - limits.min_replicas + 1, dtype=float)


def replicas_asked(setup: Setup, folder: Path) -> np.ndarray:
    """Return what a short training's policy asks for on fixed episodes it does not influence, shape [T, E]."""
    policy, _ = run(setup, folder)
    policy.load(str(folder))
    policy.reset(Limits(), np.random.SeedSequence(0), envs=32)
    cluster = ToyCluster(32)
    seen = cluster.reset(Episodes(Levels(None), TRIAL.end_s, np.random.SeedSequence(0)).draw(32))
    asked = []
    for _ in range(TRIAL.steps):
        asked.append(policy.act(seen).replicas_E)
        seen = cluster.step(Controls.scale(np.full(32, 3)))
    return np.array(asked)


def test_thrift_asks_for_fewer_replicas_and_never_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first look counts as the best, so all have the weights the training began with.
    monkeypatch.setattr("gpusched.rl.train.Validator.look", lambda self, network: (np.zeros(16), 1.0))
    asked = [
        replicas_asked(replace(SHORT, action=Priced(None), thrift=thrift), tmp_path / f"{thrift}")
        for thrift in (0.0, 0.02, 20.0)
    ]
    assert (asked[1] <= asked[0]).all() and asked[1].sum() < asked[0].sum()
    assert (asked[2] == 1).all() and (asked[0] > 1).any()


def test_a_training_is_validated_with_its_thrift(tmp_path: Path) -> None:
    rewards: list[float] = []
    run(replace(SHORT, action=Priced(None), thrift=20.0), tmp_path,
        on_update=lambda frames, metrics: rewards.extend([metrics["reward"]] if "reward" in metrics else []))  # fmt: skip
    assert len(rewards) > 1 and len(set(rewards)) == 1, "one replica, whatever the network has learnt"


def refused(folder: Path, setup: Setup = SHORT) -> str:
    with pytest.raises(InputError) as caught:
        setup.policy().load(str(folder))
    return str(caught.value)


def test_no_model(tmp_path: Path) -> None:
    assert "no trained policy here" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_card(short: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.json").write_text(text)
    assert "policy.json" in refused(tmp_path) and "Train it again" in refused(tmp_path)


def test_other_features(short: Path) -> None:
    message = refused(short, replace(SHORT, history=5))
    assert (
        message.index("encoder") < message.index("'lags': [1, 2]") < message.index("'lags': [1, 2, 3, 4, 5]")
    )


def copy(short: Path, folder: Path, **changes: Any) -> Path:
    card = json.loads((short / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | changes))
    (folder / "policy.pt2").write_bytes((short / "policy.pt2").read_bytes())
    return folder


def test_another_format(short: Path, tmp_path: Path) -> None:
    assert f"format = 99, this run has {FORMAT}" in refused(copy(short, tmp_path, format=99))


def test_weights_of_another_model(short: Path, tmp_path: Path) -> None:
    assert "not the weights" in refused(copy(short, tmp_path, weights_sha256="0" * 64))


def test_another_thrift(short: Path) -> None:
    assert "thrift = 0.0, this run has 1.0" in refused(short, replace(SHORT, thrift=1.0))


def test_other_limits(short: Path) -> None:
    policy = SHORT.policy()
    policy.load(str(short))
    with pytest.raises(InputError, match=r"action_sizes = \[6\], this run has \[8\]"):
        policy.reset(Limits(max_replicas=8), np.random.SeedSequence(0))


def test_the_policy_needs_no_torch(short: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy import *
policy = Setup(frames=6 * 1024).policy(); policy.load({str(short)!r})
policy.reset(Limits(), np.random.SeedSequence(0)); cluster = ToyCluster(1)
plan = Levels(None).plan(600, np.random.default_rng(0))
policy.act(cluster.reset([Episode(plan=plan, seed=np.random.SeedSequence(0))]))
assert not {{"torch", "tianshou"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_levels_of_the_toy_are_told_apart() -> None:
    assert len({best_replicas(users) for users in LEVELS}) == len(LEVELS)
