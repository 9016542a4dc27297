"""ppo: a policy learnt by proximal policy optimisation. It acts here; it learns in gpusched/rl."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, Limits
from gpusched.core.errors import InputError, refuse
from gpusched.core.observation import Observation
from gpusched.core.ports import Action, Policy
from gpusched.policy.encoder import Encoder, EncoderConfig, feature_names
from gpusched.policy.network import Network, most_likely, read_network

FORMAT = 5
"""Version of the model files; raised whenever a feature's meaning or the file layout changes."""

MOST_THRIFT = 20.0
"""Log-odds that no network in use reaches: more would only name the cheapest choice."""

CARD, PROGRAM = "policy.json", "policy.pt2"


@dataclass(kw_only=True)
class NetworkConfig:
    """Shape of the actor and of the critic."""

    hidden: list[int]

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise refuse("network.hidden", self.hidden, "must list layers of at least 1 unit each")


@dataclass(kw_only=True)
class TrainingConfig:
    """How PPO learns; a frame is one control interval of one environment."""

    frames: int
    envs: int
    rollout: int
    epochs: int
    minibatch: int
    learning_rate: float
    learning_rate_end: float
    gamma: float
    gae_lambda: float
    clip: float
    kl_stop: float
    entropy_weight: float
    value_weight: float
    max_grad_norm: float
    critic_ahead: int
    critic_epochs: int
    critic_minibatch: int
    stop_early: bool
    validate_every: int
    validate_episodes: int

    def __post_init__(self) -> None:
        for key in ("frames", "envs", "rollout", "epochs", "critic_minibatch", "validate_every"):
            if getattr(self, key) < 1:
                raise refuse(f"training.{key}", getattr(self, key), "must be at least 1")
        if self.minibatch < 2:
            raise refuse(
                "training.minibatch",
                self.minibatch,
                "must be at least 2: advantages are normalised within it",
            )
        if self.rollout_frames < 2:
            raise refuse("training.rollout", self.rollout, "must give at least 2 frames with training.envs")
        for key in ("learning_rate", "clip", "max_grad_norm"):
            if not getattr(self, key) > 0:
                raise refuse(f"training.{key}", getattr(self, key), "must be greater than 0")
        for key in ("learning_rate_end", "gamma", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                raise refuse(f"training.{key}", getattr(self, key), "must lie in 0..1")
        if not 0 <= self.critic_ahead <= 100:
            raise refuse("training.critic_ahead", self.critic_ahead, "must lie in 0..100 control steps")
        for key in ("kl_stop", "entropy_weight", "value_weight", "critic_epochs"):
            if getattr(self, key) < 0:
                raise refuse(f"training.{key}", getattr(self, key), "must be at least 0")
        if self.validate_episodes < 2:
            raise refuse(
                "training.validate_episodes", self.validate_episodes, "must be at least 2, for an interval"
            )
        if self.frames < 2 * self.rollout_frames:
            least = 2 * self.rollout_frames
            raise refuse("training.frames", self.frames, f"must be at least 2 x envs x rollout ({least})")

    @property
    def rollout_frames(self) -> int:
        """Frames collected between two updates."""
        return self.envs * self.rollout

    @property
    def updates(self) -> int:
        """Updates the budget pays for; the first rollout only measures scales."""
        return self.frames // self.rollout_frames - 1


@dataclass(kw_only=True)
class ConvergenceConfig:
    """When training counts as converged, judged over the last `window` validations."""

    window: int
    reward_tolerance: float
    kl_max: float
    entropy_tolerance: float
    agreement_min: float

    def __post_init__(self) -> None:
        if self.window < 3:
            raise refuse("convergence.window", self.window, "must be at least 3 validations, for a slope")
        for key in ("reward_tolerance", "kl_max", "entropy_tolerance"):
            if not getattr(self, key) > 0:
                raise refuse(f"convergence.{key}", getattr(self, key), "must be greater than 0")
        if not 0 <= self.agreement_min <= 1:
            raise refuse("convergence.agreement_min", self.agreement_min, "must lie in 0..1")


class PPO(Policy):
    """Takes the trained network's most likely choice, through the very encoder and action it learnt with."""

    trained = True

    @dataclass(kw_only=True)
    class Config:
        """`train_load` is the load option the policy is trained on, `train_fault` what goes wrong meanwhile; the caller builds both.

        thrift  log-odds by which the network must prefer a choice for each replica it costs more. Where the choices are
                worth the same, chance decides which of them a training ends on, and the dearer one may win by a hair.
                (Logits adjusted after training: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.)
        """

        thrift: float
        encoder: EncoderConfig
        network: NetworkConfig
        training: TrainingConfig
        convergence: ConvergenceConfig
        train_load: Any
        train_fault: Any = None

        def __post_init__(self) -> None:
            if not 0 <= self.thrift <= MOST_THRIFT:
                raise refuse("thrift", self.thrift, f"must lie in 0..{MOST_THRIFT:g} log-odds per replica")

    def __init__(self, config: Config, action: Action) -> None:
        super().__init__(config)
        self.action = action
        self._network: Network | None = None

    def load(self, folder: str) -> None:
        """Take the model in `folder`; InputError if it is missing, damaged or for other features or actions."""
        self._folder, self._card = Path(folder), _read_card(Path(folder) / CARD)
        self._must_fit(self._identity())
        network = read_network(self._folder / PROGRAM)
        if network.digest != self._card.get("weights_sha256"):
            raise InputError(
                f"{self._folder / PROGRAM}: not the weights {CARD} describes. Train the policy again."
            )
        self._network = network

    @property
    def network(self) -> Network:
        """The weights that were loaded."""
        if self._network is None:
            raise RuntimeError("PPO.network before PPO.load")
        return self._network

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode; InputError if the model was trained for another action space or other limits."""
        if self._network is None:
            raise RuntimeError("PPO.reset before PPO.load")
        self._must_fit(self._space(limits))
        self._limits, self._sizes = limits, self.action.sizes(limits)
        self._handicap_C = self.handicap(limits)
        self._encoder, self._fresh = self.encoder(limits, envs), True

    def act(self, observation: Observation) -> Controls:
        """Return the controls of the most likely choice, dearer ones held back by `thrift`."""
        encode = self._encoder.start if self._fresh else self._encoder.follow
        self._fresh = False
        choice_EA = most_likely(self.network(encode(observation)), self._sizes, self._handicap_C)
        return self.action.decode(choice_EA, self._limits)

    def handicap(self, limits: Limits) -> NDArray[np.float64]:
        """Return the log-odds by which each choice is held back, shape [C]."""
        return np.asarray(self.config.thrift * self.action.expense(limits))

    def encoder(self, limits: Limits, envs: int) -> Encoder:
        """Return a new encoder for `envs` environments."""
        return Encoder(self.config.encoder, limits, envs)

    def card(self, limits: Limits, network: Network) -> dict[str, Any]:
        """Return what a model of this policy must say of itself, ready for JSON."""
        return {**self._identity(), **self._space(limits), "weights_sha256": network.digest}

    def _must_fit(self, mine: dict[str, Any]) -> None:
        for key, value in mine.items():
            if self._card.get(key) != value:
                raise InputError(
                    f"{self._folder / CARD}: the model was trained with {key} = {self._card.get(key)}, "
                    f"this run has {value}. Train a policy for this configuration, or restore the one it was trained with."
                )

    def _identity(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "action": {"option": type(self.action).__name__, **_plain(self.action.config)},
            "thrift": self.config.thrift,
            "encoder": asdict(self.config.encoder),
            "features": feature_names(self.config.encoder),
        }

    def _space(self, limits: Limits) -> dict[str, Any]:
        return {"action_sizes": self.action.sizes(limits), "limits": asdict(limits)}


def _plain(config: Any) -> dict[str, Any]:
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no trained policy here. Train one, or give the folder of a trained one."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a trained policy ({error}). Train it again.") from error
    if not isinstance(card, dict):
        raise InputError(f"{path}: not a trained policy. Train it again.")
    return card
