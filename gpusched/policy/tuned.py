"""Rules whose parameters are searched, with a budget, before their first trial: how they say what may be chosen.

A rule reads every parameter through a Picker. The search hands it one that draws values, `load` one that
returns what the search has found: the space and its meaning stand in one place and cannot drift apart.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Controls, HPASpec, Limits
from gpusched.core.errors import InputError, refuse
from gpusched.core.observation import Observation
from gpusched.core.ports import Policy

FORMAT = 1
"""Version of the file; raised whenever a parameter's meaning changes."""

CARD = "policy.json"

Value = float | int | str
Span = Sequence[float]
"""Lowest and highest value of a parameter, both included; equal ends fix it."""


class Picker(Protocol):
    """Gives the value of a rule's parameter, by name."""

    def real(self, name: str, span: Span, log: bool = False) -> float:
        """Return a number of the span; `log` where its order of magnitude is what matters."""

    def whole(self, name: str, span: Span) -> int:
        """Return a whole number of the span."""

    def one_of(self, name: str, options: Sequence[str]) -> str:
        """Return one of the options."""


class Rule(Protocol):
    """What a tuned policy does once every parameter has its value."""

    def reset(self, limits: Limits, envs: int) -> None:
        """Begin an episode in every environment."""

    def act(self, observation: Observation) -> Controls:
        """Return the controls to hold until the next control tick."""


@dataclass(kw_only=True)
class SearchConfig:
    """The budget of a search and how it is spent; a frame is one control interval of one environment.

    frames             all that is simulated, validation included
    episodes           development episodes a candidate is judged by, the same ones for all
    batch              of them lived through together; after each batch a candidate that is clearly worse is dropped
    finalists          best candidates, judged once more by episodes the search has never seen
    validate_episodes  such episodes
    """

    frames: int
    episodes: int
    batch: int
    finalists: int
    validate_episodes: int

    def __post_init__(self) -> None:
        for key in ("frames", "batch", "finalists"):
            if getattr(self, key) < 1:
                raise refuse(f"search.{key}", getattr(self, key), "must be at least 1")
        for key in ("episodes", "validate_episodes"):
            count = getattr(self, key)
            if count < self.batch or count % self.batch:
                raise refuse(f"search.{key}", count, f"must be a multiple of search.batch ({self.batch})")


class Tuned(Policy, ABC):
    """A rule that plays with the parameters a search found best on development episodes."""

    trained = True

    @dataclass(kw_only=True)
    class Config:
        """`train_load` is the load option the parameters are searched on, `train_fault` what goes wrong meanwhile; the caller builds both."""

        search: SearchConfig
        train_load: Any
        train_fault: Any = None

    def __init__(self, config: Any, action: object = None) -> None:
        """Take the configuration; the levers are the rule's own, so the action option is not asked."""
        super().__init__(config)
        self._card: dict[str, Any] | None = None

    @abstractmethod
    def rule(self, pick: Picker, limits: Limits) -> Rule:
        """Return the rule whose parameters `pick` gives."""

    @abstractmethod
    def first(self, limits: Limits) -> dict[str, Value]:
        """Return the parameters the search tries first; what a person would set."""

    def load(self, folder: str) -> None:
        """Take the parameters in `folder`; InputError if they are missing, damaged or another policy's."""
        self._path = Path(folder) / CARD
        self._card = _read(self._path)
        self._must_fit({"format": FORMAT, "rule": type(self).__name__})

    def reset(self, limits: Limits, seed: np.random.SeedSequence, envs: int = 1) -> None:
        """Begin an episode; InputError if the parameters were searched within other limits."""
        if self._card is None:
            raise RuntimeError(f"{type(self).__name__}.reset before load")
        self._must_fit({"limits": asdict(limits)})
        self._rule = self.rule(Chosen(self._card["values"], str(self._path)), limits)
        self._rule.reset(limits, envs)

    def act(self, observation: Observation) -> Controls:
        return self._rule.act(observation)

    def card(self, values: Mapping[str, Value], limits: Limits) -> dict[str, Any]:
        """Return what the file of the found parameters says, ready for JSON."""
        return {
            "format": FORMAT,
            "rule": type(self).__name__,
            "limits": asdict(limits),
            "values": dict(values),
        }

    def _must_fit(self, mine: dict[str, Any]) -> None:
        assert self._card is not None
        for key, value in mine.items():
            if self._card.get(key) != value:
                raise InputError(
                    f"{self._path}: the parameters were searched with {key} = {self._card.get(key)}, "
                    f"this run has {value}. Tune the policy for this configuration."
                )


class Chosen:
    """A Picker that returns values found before; InputError where one is missing or outside what is allowed."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def real(self, name: str, span: Span, log: bool = False) -> float:
        value = self._value(name)
        if isinstance(value, str) or not span[0] <= value <= span[1]:
            raise self._refusal(name, f"must lie in {span[0]:g}..{span[1]:g}")
        return float(value)

    def whole(self, name: str, span: Span) -> int:
        return round(self.real(name, span))

    def one_of(self, name: str, options: Sequence[str]) -> str:
        value = self._value(name)
        if value not in options:
            raise self._refusal(name, f"must be one of {', '.join(options)}")
        return str(value)

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise InputError(f"{self._where}: has no {name}. Tune the policy again.")
        return self._values[name]

    def _refusal(self, name: str, allowed: str) -> InputError:
        return InputError(
            f"{self._where}: {refuse(name, self._values[name], allowed, 'Tune the policy again.')}"
        )


class HandOver:
    """The rule of a tuned HPA: hands the replica count to one HPA and leaves it there."""

    def __init__(self, spec: HPASpec) -> None:
        self.spec = spec

    def reset(self, limits: Limits, envs: int) -> None:
        self._controls = Controls.autoscale(self.spec, envs)

    def act(self, observation: Observation) -> Controls:
        return self._controls


class Hold:
    """Delays scale-down: the largest of the last `steps` + 1 wishes counts, as in an HPA's stabilisation window."""

    def __init__(self, steps: int, envs: int) -> None:
        self._past_HE = np.zeros((steps + 1, envs), dtype=np.int64)

    def pass_on(self, wish_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the replicas to ask for now."""
        self._past_HE = np.roll(self._past_HE, 1, axis=0)
        self._past_HE[0] = wish_E
        largest_E: NDArray[np.int64] = self._past_HE.max(axis=0)
        return largest_E


def population(seen: Observation, think_s: float) -> NDArray[np.float64]:
    """Return the users behind the load: those who think and those who wait, X·Z + in flight; NaN without metrics.

    The interactive response-time law, N = X·(R + Z), with X·R in flight. The count does not saturate when the
    service does, as a rate would.
    """
    return np.asarray(seen.rate_rps_E * think_s + seen.in_flight_E)


def check_span(key: str, span: Span, low: float, high: float = float("inf")) -> None:
    """Raise InputError unless `span` is a lowest and a highest value within low..high."""
    if len(span) != 2 or not low <= span[0] <= span[1] <= high:
        raise refuse(key, list(span), f"must be [lowest, highest] within {low:g}..{high:g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no tuned policy here. Tune one, or give the folder of one.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a tuned policy ({error}). Tune it again.") from error
    if not isinstance(card, dict) or not isinstance(card.get("values"), dict):
        raise InputError(f"{path}: not a tuned policy. Tune it again.")
    return card
