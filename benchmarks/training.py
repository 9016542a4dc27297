"""Frames per second of PPO training, next to Stable-Baselines3 and to a bare single-file loop.

    python benchmarks/training.py [--updates 6] [--rounds 3] [--out outputs/bench/training.json]

All three on the same simulator, observations, network, rollout, minibatch and epochs, one thread each, in turns within
each round; ratios are taken within a round. Ours is what a training does without its validations. Stable-Baselines3 is
left out, and said to be, where it is not installed: pip install --no-deps stable-baselines3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from machine import ROOT, describe, write
from omegaconf import open_dict
from torch import nn

from gpusched.core.seeds import stream
from gpusched.job.build import setup
from gpusched.job.setup import Setup
from gpusched.rl.episodes import Episodes
from gpusched.rl.train import Learner
from gpusched.rl.validate import Validator
from gpusched.rl.venv import ClusterEnv

try:
    from stable_baselines3 import PPO as SB3PPO
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv
except ImportError:
    SB3PPO, VecEnv = None, object

GOALS = {"fps_per_sb3": 1.2, "fps_per_bare": 1.0}


def configured() -> Setup:
    """Return the shipped PPO with what the other programs can do, too: every epoch, a critic like theirs."""
    overrides = ["policy=ppo"]
    overrides += [f"policy.training.{key}=0" for key in ("kl_stop", "critic_ahead", "critic_epochs")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return setup(config, choices, overrides)[1]


def environment(made: Setup, seed: int) -> ClusterEnv:
    """Return the training environment at its beginning."""
    cluster = made.simulator(made.policy.config.training.envs)
    episodes = Episodes(made.train_load, cluster.trial.end_s, stream("bench", "training", seed, "train"))
    return ClusterEnv(cluster, made.policy, made.reward, episodes, stagger=True)


def ours(made: Setup, updates: int, seed: int) -> float:
    """Return the seconds of so many updates of our training."""
    torch.manual_seed(seed)
    env = environment(made, seed)
    learner = Learner(made.policy, env, Validator(env, lambda: env.episodes))
    learner._measure()
    begin_s = time.perf_counter()
    for _ in range(updates):
        learner._update()
    return time.perf_counter() - begin_s


def sb3(made: Setup, updates: int, seed: int) -> float:
    """Return the seconds of so many updates of Stable-Baselines3."""
    spec = made.policy.config.training
    env = ForSB3(environment(made, seed))
    model = SB3PPO(
        "MlpPolicy", env, n_steps=spec.rollout, batch_size=spec.minibatch, n_epochs=spec.epochs, seed=seed, device="cpu",
        gamma=spec.gamma, gae_lambda=spec.gae_lambda, ent_coef=spec.entropy_weight,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": nn.Tanh},
    )  # fmt: skip
    torch.set_num_threads(1)
    begin_s = time.perf_counter()
    model.learn(updates * spec.rollout_frames)
    return time.perf_counter() - begin_s


class ForSB3(VecEnv):  # type: ignore[misc,valid-type]
    """The environment as Stable-Baselines3 wants it: it resets what has ended by itself."""

    def __init__(self, env: ClusterEnv) -> None:
        self.inner = env
        box, choices = env.get_env_attr("observation_space")[0], env.get_env_attr("action_space")[0]
        super().__init__(env.env_num, box, choices)

    def reset(self) -> Any:
        return self.inner.reset()[0]

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        obs, reward, terminated, truncated, _ = self.inner.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        if done.any():
            ids = np.flatnonzero(done)
            for e in ids:
                infos[e] = {"terminal_observation": obs[e].copy(), "TimeLimit.truncated": True}
            obs = obs.copy()
            obs[ids] = self.inner.reset(ids)[0]
        return obs, reward, done, infos

    def close(self) -> None:
        self.inner.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **more: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def bare(made: Setup, updates: int, seed: int) -> float:
    """Return the seconds of so many updates of PPO as one plain loop."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    spec, env = made.policy.config.training, environment(made, seed)
    actor, critic = _mlp(env.width, sum(env.sizes)), _mlp(env.width, 1)
    optimiser = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=spec.learning_rate, eps=1e-5)
    obs, _ = env.reset()
    begin_s = time.perf_counter()
    for _ in range(updates):
        obs, rollout = _collect(env, actor, critic, obs, spec.rollout, spec.gamma, spec.gae_lambda)
        _descend(rollout, actor, critic, optimiser, env.sizes, spec)
    return time.perf_counter() - begin_s


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


def _collect(env: ClusterEnv, actor: nn.Module, critic: nn.Module, obs: Any, steps: int, gamma: float,
             lam: float) -> tuple[Any, tuple[torch.Tensor, ...]]:  # fmt: skip
    """Live through one rollout; return the last observation and flat tensors with GAE advantages."""
    seen, acts, logps, values, rewards, dones = [], [], [], [], [], []
    with torch.no_grad():
        for _ in range(steps):
            x = torch.as_tensor(obs)
            act, logp = _sample(actor(x), env.sizes)
            seen.append(x)
            acts.append(act)
            logps.append(logp)
            values.append(critic(x).flatten())
            obs, reward, _, truncated, _ = env.step(act.numpy())
            # A truncated episode goes on where nobody looks: its value stands in for the rest.
            rewards.append(torch.as_tensor(reward, dtype=torch.float32))
            if truncated.any():
                ids = np.flatnonzero(truncated)
                rewards[-1][ids] += gamma * critic(torch.as_tensor(obs[ids])).flatten()
                obs = obs.copy()
                obs[ids] = env.reset(ids)[0]
            dones.append(torch.as_tensor(truncated))
        after, advantage, advantages = critic(torch.as_tensor(obs)).flatten(), torch.zeros(env.env_num), []
        for t in reversed(range(steps)):
            keep = (~dones[t]).float()
            delta = rewards[t] + gamma * keep * after - values[t]
            advantage = delta + gamma * lam * keep * advantage
            advantages.append(advantage)
            after = values[t]
    advantages.reverse()
    flat = [torch.stack(x).flatten(0, 1) for x in (seen, acts, logps, advantages, values)]
    return obs, (*flat[:4], flat[3] + flat[4])


def _sample(logits: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [torch.distributions.Categorical(logits=p) for p in torch.split(logits, list(sizes), dim=-1)]
    acts = [p.sample() for p in parts]
    return torch.stack(acts, -1), sum(p.log_prob(a) for p, a in zip(parts, acts, strict=True))


def _descend(
    rollout: Any, actor: nn.Module, critic: nn.Module, optimiser: Any, sizes: Sequence[int], spec: Any
) -> None:
    seen, acts, logps, advantages, returns = rollout
    for _ in range(spec.epochs):
        for i in torch.randperm(len(seen)).split(spec.minibatch):
            parts = [
                torch.distributions.Categorical(logits=p)
                for p in torch.split(actor(seen[i]), list(sizes), dim=-1)
            ]
            ratio = (sum(p.log_prob(acts[i, k]) for k, p in enumerate(parts)) - logps[i]).exp()
            adv = (advantages[i] - advantages[i].mean()) / (advantages[i].std() + 1e-8)
            policy_loss = -torch.min(ratio * adv, ratio.clamp(1 - spec.clip, 1 + spec.clip) * adv).mean()
            value_loss = (critic(seen[i]).flatten() - returns[i]).pow(2).mean()
            entropy = sum(p.entropy() for p in parts).mean()
            loss = policy_loss + spec.value_weight * value_loss - spec.entropy_weight * entropy
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], spec.max_grad_norm)
            optimiser.step()


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/training.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = configured()
    programs: dict[str, Callable[[Setup, int, int], float]] = {"ours": ours, "bare": bare}
    if SB3PPO is not None:
        programs["sb3"] = sb3
    else:
        print("Stable-Baselines3 is not installed and left out: pip install --no-deps stable-baselines3")
    for work in programs.values():
        work(made, 1, 0)  # compiles
    frames = args.updates * made.policy.config.training.rollout_frames
    rounds = []
    for seed in range(1, args.rounds + 1):
        order = list(programs) if seed % 2 else list(reversed(programs))
        rounds.append({name: programs[name](made, args.updates, seed) for name in order})
    report: dict[str, Any] = {"machine": describe(), "goals": GOALS, "frames": frames, "rounds": rounds}
    for name in programs:
        fps = statistics.median(frames / row[name] for row in rounds)
        report[f"fps_{name}"] = fps
        print(f"{name:6} {fps:10,.0f} frames/s")
    for name in set(programs) - {"ours"}:
        ratios = [row[name] / row["ours"] for row in rounds]
        key = f"fps_per_{name}"
        report[key] = statistics.median(ratios)
        met = "met" if report[key] >= GOALS[key] else "MISSED"
        print(f"  {key} {report[key]:.2f} ({min(ratios):.2f}-{max(ratios):.2f}), goal >= {GOALS[key]}: {met}")
    write(args.out, report)


if __name__ == "__main__":
    main()
