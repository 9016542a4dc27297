"""Tianshou's PPO with an update on plain tensors: the same weights, and the numbers that tell how it went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.algorithm.modelfree.a2c import A2CTrainingStats
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.data import Batch, SequenceSummaryStats
from torch import Tensor, nn


class ActorPolicy(ProbabilisticActorPolicy):
    """Tianshou's policy, except that an update, which needs only the distribution, samples no action."""

    @staticmethod
    def _compile() -> None:
        """Skip compiling return functions (seconds) that the update below does not call."""

    def forward(self, batch: Any, state: Any = None) -> Any:
        """Return the distribution, and an action unless in training mode, which is that of updates."""
        logits, hidden = self.actor(batch.obs, state=state, info=batch.info)
        dist = self.dist_fn(logits)
        return Batch(logits=logits, act=None if self.training else dist.sample(), state=hidden, dist=dist)

    def choose(self, obs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return a sampled choice for each row, as `forward` would while collecting."""
        logits, _ = self.actor(obs)
        return self.dist_fn(logits).sample().numpy()


@dataclass(kw_only=True)
class UpdateStats(A2CTrainingStats):
    """What one update did, averaged over its minibatches."""

    kl: float
    clip_fraction: float
    grad_norm: float
    explained_variance: float
    lr: float
    epochs: int

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth a curve, by name."""
        return {
            "kl": self.kl,
            "entropy": self.ent_loss.mean,
            "value_loss": self.vf_loss.mean,
            "policy_loss": self.actor_loss.mean,
            "clip_fraction": self.clip_fraction,
            "grad_norm": self.grad_norm,
            "explained_variance": self.explained_variance,
            "lr": self.lr,
        }


COLUMNS = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "grad_norm")


class FastPPO(PPO):
    """PPO over a RolloutBuffer; weights equal those of Tianshou's PPO bit by bit.

    What stock PPO cannot do: an update's epochs end after the one whose mean KL exceeds `kl_stop` (0: never), and
    `critic_epochs` more passes in minibatches of `critic_minibatch` frames follow for the critic alone. The better it
    foretells the return, the less noise is left in the advantages (phasic policy gradient, Cobbe et al., ICML 2021).
    """

    def __init__(
        self, *, kl_stop: float = 0.0, critic_epochs: int = 0, critic_minibatch: int = 512, **stock: Any
    ) -> None:
        if stock.get("dual_clip") or stock.get("value_clip") or stock.get("recompute_advantage"):
            raise ValueError("dual_clip, value_clip and recompute_advantage are not built")
        super().__init__(**stock)
        self.kl_stop = kl_stop
        self.critic_epochs, self.critic_minibatch = critic_epochs, critic_minibatch

    @staticmethod
    def compute_episodic_return(
        batch: Any,
        buffer: Any,
        indices: NDArray[np.int64],
        v_s_: Any = None,
        v_s: Any = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (returns, advantages) by GAE, over the rectangle [E, T] at once."""
        shape_ET = (buffer.buffer_num, -1)
        value = np.asarray(v_s, dtype=np.float64).reshape(shape_ET)
        value_next = np.asarray(v_s_, dtype=np.float64).reshape(shape_ET)
        terminated, done = batch.terminated.reshape(shape_ET), batch.done.reshape(shape_ET).copy()
        done[:, -1] = True  # the rollout ends here, the episode may not: its value is in value_next
        delta = batch.rew.reshape(shape_ET) + value_next * ~terminated * gamma - value
        keep = (1.0 - done) * (gamma * gae_lambda)
        advantage = np.zeros_like(delta)
        gae_E = np.zeros(len(delta))
        for t in range(delta.shape[1] - 1, -1, -1):
            gae_E = delta[:, t] + keep[:, t] * gae_E
            advantage[:, t] = gae_E
        return (advantage + value).ravel(), advantage.ravel()

    def _update_with_batch(self, batch: Any, batch_size: int | None, repeat: int) -> UpdateStats:
        obs = torch.as_tensor(batch.obs)
        epochs: list[Tensor] = []
        for _ in range(repeat):
            rows = [self._step(batch, obs, i) for i in minibatches(len(obs), batch_size or len(obs))]
            epochs.append(torch.stack(rows))
            if self.kl_stop and epochs[-1][:, COLUMNS.index("kl")].mean() > self.kl_stop:
                break
        for _ in range(self.critic_epochs):
            for i in minibatches(len(obs), self.critic_minibatch):
                self._descend(self.vf_coef * self._value_loss(batch, obs[i], i))
        return self._stats(batch, torch.cat(epochs).numpy().astype(float), len(epochs))

    def _step(self, batch: Any, obs: Tensor, i: Tensor) -> Tensor:
        """Take one gradient step on the rows `i`; return the numbers named by COLUMNS."""
        here = obs[i]
        dist = self.policy.dist_fn(self.policy.actor(here)[0])
        log_ratio = dist.log_prob(batch.act[i]) - batch.logp_old[i]
        ratio, advantage = log_ratio.exp(), batch.adv[i]
        if self.advantage_normalization:
            advantage = (advantage - advantage.mean()) / (advantage.std() + self._eps)
        clipped = ratio.clamp(1.0 - self.eps_clip, 1.0 + self.eps_clip)
        policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
        value_loss = self._value_loss(batch, here, i)
        entropy = dist.entropy().mean()
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy
        grad_norm = self._descend(loss)
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()  # Schulman's low-variance estimator
            clip_fraction = ((ratio - 1).abs() > self.eps_clip).float().mean()
            return torch.stack([loss, policy_loss, value_loss, entropy, kl, clip_fraction, grad_norm])

    def _value_loss(self, batch: Any, here: Tensor, i: Tensor) -> Tensor:
        loss: Tensor = (batch.returns[i] - self.critic(here).flatten()).pow(2).mean()
        return loss

    def _descend(self, loss: Tensor) -> Tensor:
        """Do what Tianshou's optimiser wrapper does, and return the gradient's norm, which it drops."""
        self.optim._optim.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self.optim._max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.optim._module.parameters(), np.inf if limit is None else limit)
        self.optim._optim.step()
        return norm

    def _stats(self, batch: Any, table: NDArray[np.float64], epochs: int) -> UpdateStats:
        column = dict(zip(COLUMNS, table.T, strict=True))
        error = float((batch.returns - batch.v_s).var() / (batch.returns.var() + 1e-8))
        return UpdateStats(
            loss=SequenceSummaryStats.from_sequence(column["loss"]),
            actor_loss=SequenceSummaryStats.from_sequence(column["policy_loss"]),
            vf_loss=SequenceSummaryStats.from_sequence(column["value_loss"]),
            ent_loss=SequenceSummaryStats.from_sequence(column["entropy"]),
            gradient_steps=len(table),
            kl=float(column["kl"].mean()),
            clip_fraction=float(column["clip_fraction"].mean()),
            grad_norm=float(column["grad_norm"].mean()),
            explained_variance=1.0 - error,
            lr=float(self.optim._optim.param_groups[0]["lr"]),
            epochs=epochs,
        )


def minibatches(rows: int, size: int) -> Iterator[Tensor]:
    """Yield shuffled row numbers; a remainder joins the last minibatch, as in Tianshou's Batch.split."""
    order = torch.from_numpy(np.random.permutation(rows))
    count = max(1, rows // size)
    for k in range(count):
        yield order[k * size : rows if k == count - 1 else (k + 1) * size]
