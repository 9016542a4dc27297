"""The networks that learn, the distribution over the levers, and the way out to a file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution

from gpusched.policy.network import FEATURE_BOUND, Network


class MLP(nn.Module):
    """Normalise, hidden layers with tanh, one linear layer; gpusched.policy.network runs the same in numpy."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, last_gain: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        widths = [inputs, *hidden, outputs]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        gains = [2**0.5] * len(hidden) + [last_gain]
        for layer, gain in zip(layers, gains, strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, features_EF: Tensor) -> Tensor:
        x = ((features_EF - self.mean) / self.std).clamp(-FEATURE_BOUND, FEATURE_BOUND)
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]

    def normalise_by(self, features_NF: NDArray[np.float32]) -> None:
        """Take mean and spread of the features from a sample; a feature that never varies keeps its scale."""
        features_NF = features_NF[:, : len(self.mean)]
        std_F = features_NF.std(axis=0)
        self.mean.copy_(torch.from_numpy(features_NF.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.where(std_F < 1e-3, 1.0, std_F).astype(np.float32)))

    def freeze(self) -> Network:
        """Return a copy of the weights, as the network that policies run."""
        return Network({name: tensor.numpy().copy() for name, tensor in self.state_dict().items()})

    def take(self, network: Network) -> None:
        """Set the weights to those of a frozen network."""
        self.load_state_dict(
            {name: torch.from_numpy(array.copy()) for name, array in network.weights.items()}
        )


class Actor(MLP):
    """Features → logits, in the signature Tianshou asks of an actor. Columns beyond its inputs are the critic's alone."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:  # type: ignore[override]
        return super().forward(torch.as_tensor(obs)[:, : len(self.mean)]), state


class Critic(MLP):
    """Features → value."""

    def forward(self, obs: Any) -> Tensor:
        return super().forward(torch.as_tensor(obs))


class Levers(Distribution):
    """Independent categorical choices, one per lever, from concatenated logits [E, C]; a choice is [E, A]."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, logits_EC: Tensor, sizes: Sequence[int]) -> None:
        super().__init__(logits_EC.shape[:-1], torch.Size([len(sizes)]), validate_args=False)
        self._log_p = [part.log_softmax(-1) for part in torch.split(logits_EC, list(sizes), dim=-1)]

    def sample(self, sample_shape: Any = None) -> Tensor:
        return torch.cat([log_p.exp().multinomial(1) for log_p in self._log_p], dim=-1)

    @property
    def mode(self) -> Tensor:
        return torch.stack([log_p.argmax(-1) for log_p in self._log_p], dim=-1)

    @property
    def stddev(self) -> Tensor:
        """Zero: only asked for by the statistics of Tianshou's own collector."""
        return torch.zeros(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        chosen = value.long().unsqueeze(-1)
        return (
            torch.stack([p.gather(-1, chosen[..., a, :]) for a, p in enumerate(self._log_p)])
            .sum(0)
            .squeeze(-1)
        )

    def entropy(self) -> Tensor:
        return torch.stack([-(p.exp() * p).sum(-1) for p in self._log_p]).sum(0)


def export(network: Network, hidden: Sequence[int], path: Path) -> None:
    """Write a frozen network as a torch.export program of any batch size: features → logits, one tensor."""
    shape = network.shape
    module = MLP(shape[0], hidden, shape[-1], last_gain=1.0).eval()
    module.take(network)
    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, shape[0]),)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=({0: batch},)), path)
