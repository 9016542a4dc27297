"""The eyes of a learning policy: observations → features, with a short memory per environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from gpusched.core.controls import Limits
from gpusched.core.errors import refuse
from gpusched.core.observation import Observation

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Rows = Sequence[int] | NDArray[np.int64]


@dataclass(kw_only=True)
class EncoderConfig:
    """What the features are scaled by, and what of the past they hold; all times in control steps.

    lags       ages at which the past of TREND is shown. With `changes` it enters as the change since then, otherwise as
               the value it had: neighbouring values are nearly equal, and a network that is given them learns the level
               fast and the slope slowly, if at all.
    roughness  for each window, how much the rate usually changes from step to step: users who wait for their answers
               send an even stream, arrivals that wait for nobody come in gusts
    peaks      for each window, the most users that were there now or in so many steps before: what a rule with a
               stabilisation window acts on
    troughs    for each window, the fewest: with the peak, how calm the load has been
    """

    slo_s: float
    think_s: float
    lags: list[int]
    changes: bool
    roughness: list[int]
    peaks: list[int]
    troughs: list[int]

    def __post_init__(self) -> None:
        if not self.slo_s > 0:
            raise refuse("encoder.slo_s", self.slo_s, "must be greater than 0 s")
        if self.think_s < 0:
            raise refuse("encoder.think_s", self.think_s, "must be at least 0 s")
        for key in ("lags", "roughness", "peaks", "troughs"):
            steps: list[int] = getattr(self, key)
            if any(not 1 <= k <= LONGEST for k in steps) or steps != sorted(set(steps)):
                raise refuse(f"encoder.{key}", list(steps), f"must list rising control steps in 1..{LONGEST}")

    @property
    def memory(self) -> int:
        """Past control steps that must be remembered for all of it."""
        return max([0, *self.lags, *self.roughness, *self.peaks, *self.troughs])


@dataclass
class View:
    """One observation beside the scales it is read with."""

    seen: Observation
    scale: EncoderConfig
    limits: Limits

    @property
    def population_E(self) -> Floats:
        """Users behind the load by the interactive response-time law: those who think and those who wait."""
        return self.seen.rate_rps_E * self.scale.think_s + self.seen.in_flight_E

    @property
    def idle_E(self) -> NDArray[np.bool_]:
        """Whether nobody asks: no answer in the window and no request at a replica, and both are known."""
        return np.equal(self.seen.rate_rps_E, 0.0) & np.equal(self.seen.in_flight_E, 0.0)

    @property
    def violation_share_E(self) -> Floats:
        """Share of the requests that failed or came late; what a failure calls for is learnt from lateness."""
        return self.seen.failed_share_E + (1.0 - self.seen.failed_share_E) * self.seen.slow_share_E

    def per_ready(self, amount_E: Floats) -> Floats:
        return amount_E / np.maximum(self.seen.replicas_ready_E, 1.0)

    def per_slo(self, time_s_E: Floats) -> Floats:
        return time_s_E / self.scale.slo_s


# Counts and times span decades, so they enter as log(1 + x); shares and ratios enter as they are. The
# population enters both ways: the log tells 5 users from 10, the plain count 50 from 60. How old the metrics are is
# not among them: it depends on the monitoring, hardly varies in training, and says nothing of the load.
FEATURES: dict[str, Callable[[View], Floats]] = {
    "population": lambda v: np.log1p(v.population_E),
    "population_count": lambda v: v.population_E,
    "population_per_ready": lambda v: np.log1p(v.per_ready(v.population_E)),
    "rate": lambda v: np.log1p(v.seen.rate_rps_E),
    "in_flight_per_ready": lambda v: np.log1p(v.per_ready(v.seen.in_flight_E)),
    "latency_mean": lambda v: np.log1p(v.per_slo(v.seen.latency_mean_s_E)),
    "latency_p95": lambda v: np.log1p(v.per_slo(v.seen.latency_p95_s_E)),
    "queue": lambda v: np.log1p(v.per_slo(v.seen.queue_s_E)),
    "batch_size": lambda v: np.log1p(v.seen.batch_size_E),
    "violation_share": lambda v: v.violation_share_E,
    "cpu_utilization": lambda v: np.log1p(v.seen.cpu_utilization_E),
    "gpu_utilization": lambda v: v.seen.gpu_utilization_E,
    "replicas_spec": lambda v: v.seen.replicas_spec_E / v.limits.max_replicas,
    "replicas_ready": lambda v: v.seen.replicas_ready_E / v.limits.max_replicas,
    "hpa_target": lambda v: np.log1p(v.seen.hpa_target_E),
    "cpu_limit": lambda v: v.seen.cpu_limit_cores_E / max(v.limits.cpu_cores),
    "instances": lambda v: v.seen.instances_E / max(v.limits.instances),
    "gpu_share": lambda v: v.seen.gpu_share_E / max(v.limits.gpu_shares),
}

LONGEST = 100
"""Control steps that may be remembered at most."""

TREND = ("population_count", "violation_share", "replicas_ready")
"""The features whose past is remembered: where the load, the violations and the capacity come from."""

REMEMBERED_COLUMNS = [list(FEATURES).index(name) for name in (*TREND, "rate")]

PER_REQUEST_F = np.isin(
    list(FEATURES), ["latency_mean", "latency_p95", "queue", "batch_size", "violation_share"]
)
"""Whether a feature cannot be measured while nobody asks."""

USERS, RATE = TREND.index("population_count"), len(TREND)
"""Where they stand in what is remembered."""

CALM = 0.01
"""Share of the rate by which its estimate varies where nothing changes; less is not told apart."""


def feature_names(config: EncoderConfig) -> list[str]:
    """Return the name of every feature; `violation_share-2` belongs to two control steps ago."""
    past = [f"{name}-{age}" for age in config.lags for name in TREND]
    rough = [f"roughness-{window}" for window in config.roughness]
    peaks = [f"population_peak-{window}" for window in config.peaks]
    troughs = [f"population_trough-{window}" for window in config.troughs]
    return [*FEATURES, *past, *rough, *peaks, *troughs]


class Encoder:
    """Turns the observations of E environments into features [E, F], float32, finite, the same every time.

    A missing value (NaN) reads as the last one there was, as autoscalers hold on to what they know while monitoring is
    down, or 0 where there was none. What is measured per request has no value either while nobody asks; that is known, so it
    reads as 0. At the start of an episode the past is filled with the first observation.
    """

    def __init__(self, config: EncoderConfig, limits: Limits, envs: int) -> None:
        self.config, self.limits = config, limits
        self._last_EF: Features = np.zeros((envs, len(FEATURES)), dtype=np.float32)
        self._past_EHF: Features = np.zeros((envs, config.memory, len(REMEMBERED_COLUMNS)), dtype=np.float32)

    @property
    def size(self) -> int:
        """Number of features F."""
        return len(feature_names(self.config))

    def start(self, observation: Observation, envs: Rows | None = None) -> Features:
        """Begin an episode in the given environments (all by default); return their rows of features."""
        rows: Rows | EllipsisType = ... if envs is None else envs
        self._last_EF[rows] = 0.0
        now_EF = self._read(observation)[rows]
        self._last_EF[rows] = now_EF
        self._past_EHF[rows] = now_EF[:, None, REMEMBERED_COLUMNS]
        return self._join(now_EF, self._past_EHF[rows])

    def follow(self, observation: Observation) -> Features:
        """Return the features of the next control step of every environment's episode, shape [E, F]."""
        self._last_EF = now_EF = self._read(observation)
        features_EF = self._join(now_EF, self._past_EHF)
        self._past_EHF = np.roll(self._past_EHF, 1, axis=1)
        self._past_EHF[:, :1] = now_EF[:, None, REMEMBERED_COLUMNS]
        return features_EF

    def _read(self, observation: Observation) -> Features:
        view = View(observation, self.config, self.limits)
        now_EF = np.empty((observation.envs, len(FEATURES)), dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for f, feature in enumerate(FEATURES.values()):
                now_EF[:, f] = feature(view)
        known_EF = np.where(view.idle_E[:, None] & PER_REQUEST_F, np.float32(0.0), self._last_EF)
        return np.where(np.isfinite(now_EF), now_EF, known_EF)

    def _join(self, now_EF: Features, past_EHF: Features) -> Features:
        remembered_EF = now_EF[:, REMEMBERED_COLUMNS]
        past_ELF = past_EHF[:, [age - 1 for age in self.config.lags], : len(TREND)]
        if self.config.changes:
            past_ELF = remembered_EF[:, None, : len(TREND)] - past_ELF
        course = course_of(np.concatenate([remembered_EF[:, None], past_EHF], axis=1), self.config)
        return np.concatenate(
            [now_EF, past_ELF.reshape(len(now_EF), -1), *(x[:, None] for x in course)], axis=1
        )


def course_of(past_EHF: Features, config: EncoderConfig) -> list[Features]:
    """Return what the course of rate and users says, shape [E] each. past_EHF: what is remembered, from now backwards."""
    users_EH, rate_EH = past_EHF[:, :, USERS], past_EHF[:, :, RATE]
    course = [roughness(rate_EH[:, : window + 1]) for window in config.roughness]
    course += [users_EH[:, : window + 1].max(axis=1) for window in config.peaks]
    return course + [users_EH[:, : window + 1].min(axis=1) for window in config.troughs]


def roughness(log_rate_EH: NDArray[np.floating]) -> Features:
    """Return the log of the median change of the rate from one control step to the next, as a share of it, shape [E].

    The rate is given as its log. A median, since it is gusts that are to be told, not the single jumps a load makes.
    """
    usual_E = np.median(np.abs(np.diff(log_rate_EH, axis=1)), axis=1)
    return np.asarray(np.log(CALM + usual_E), dtype=np.float32)
