"""What a violated request may cost before another policy is the cheapest one. Axis S counts seeds, axis P prices.

A trial costs its replica-seconds and, for each request in violation, a price given in replica-seconds. Prices at
which two policies differ by no more than chance follow from the interval of the paired difference, as in Fieller
(1954): the set is one range, two half-open ones, everything, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gpusched.report.dataset import Study, Trial
from gpusched.report.measures import COST
from gpusched.report.statistics import FLAT, LEVEL, Estimate, paired

Floats = NDArray[np.float64]
Range = tuple[float, float]


@dataclass(kw_only=True, frozen=True)
class Bill:
    """What one policy's trials under one load took: replica-seconds and violated requests, a value per seed."""

    policy: str
    load: str
    seeds: tuple[int, ...]
    replica_s_S: Floats
    violations_S: Floats
    runs: tuple[str, ...]

    def at(self, seeds: Sequence[int]) -> Bill:
        """Return the bill of some of its seeds, in their order."""
        keep = [self.seeds.index(seed) for seed in seeds]
        return Bill(policy=self.policy, load=self.load, seeds=tuple(seeds), runs=self.runs,
                    replica_s_S=self.replica_s_S[keep], violations_S=self.violations_S[keep])  # fmt: skip


@dataclass(kw_only=True, frozen=True)
class Crossing:
    """Two policies under one load: `other` takes `extra` more replica-seconds and avoids `avoided` violations.

    price is the one at which both cost the same, NaN where there is none above 0. `best` names the policies
    below and above it, one where the order never changes, none where both are equal. `open_ranges` are the prices
    at which the data cannot tell the two apart.
    """

    load: str
    cheap: str
    other: str
    extra: Estimate
    avoided: Estimate
    price: float
    best: tuple[str, ...]
    open_ranges: list[Range]
    seeds: int
    runs: tuple[str, ...]


def violations(trial: Trial) -> float:
    """Return how many requests of a trial were in violation, NaN where its KPIs do not tell.

    The violation rate is bad / (good + bad), so bad = good·rate / (1 - rate). Nothing good leaves it open.
    """
    good = trial.values["goodput_rps"] * float(trial.params.get("trial.duration_s", "nan"))
    rate = trial.values["qos_violation_rate"]
    return good * rate / (1.0 - rate) if rate < 1.0 else math.nan


def bills(study: Study, load: str, policies: Sequence[str]) -> list[Bill]:
    """Return the bill of every policy that has at least one seed with both numbers under the load."""
    return [bill for policy in policies if (bill := _bill(study, load, policy)).seeds]


def common_seeds(owed: Sequence[Bill]) -> list[int]:
    """Return the seeds that all bills have, in order."""
    shared = set.intersection(*(set(bill.seeds) for bill in owed)) if owed else set()
    return sorted(shared)


def undecided_prices(cost_S: Floats, avoided_S: Floats) -> list[Range]:
    """Return the prices p >= 0 at which the 95 % t-interval of cost - p·avoided contains 0; all with one seed.

    (mean cost - p·mean avoided)² <= t²/n·var(cost - p·avoided) is a quadratic inequality a·p² - 2b·p + c <= 0.
    """
    n = len(cost_S)
    if n < 2:
        return [(0.0, math.inf)]
    k = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) ** 2 / n
    x, y = _flat(cost_S), _flat(avoided_S)
    (v_xx, v_xy), (_, v_yy) = np.cov(x, y)
    a = float(y.mean() ** 2 - k * v_yy)
    b = float(x.mean() * y.mean() - k * v_xy)
    c = float(x.mean() ** 2 - k * v_xx)
    return _from_zero(_at_most_zero(a, b, c))


def crossing(one: Bill, other: Bill) -> Crossing:
    """Compare two policies by the seeds both have."""
    seeds = common_seeds([one, other])
    one, other = one.at(seeds), other.at(seeds)
    cheap, dear = (one, other) if _rank(one) <= _rank(other) else (other, one)
    extra = paired(dear.replica_s_S, cheap.replica_s_S).difference
    avoided = paired(cheap.violations_S, dear.violations_S).difference
    best: tuple[str, ...] = () if extra.mean == 0.0 == avoided.mean else (cheap.policy,)
    crosses = extra.mean > 0.0 and avoided.mean > 0.0
    return Crossing(
        load=one.load, cheap=cheap.policy, other=dear.policy, extra=extra, avoided=avoided,
        price=extra.mean / avoided.mean if crosses else math.nan, best=(*best, dear.policy) if crosses else best,
        open_ranges=undecided_prices(dear.replica_s_S - cheap.replica_s_S, cheap.violations_S - dear.violations_S),
        seeds=len(seeds), runs=tuple(dict.fromkeys((*cheap.runs, *dear.runs))),
    )  # fmt: skip


def envelope(owed: Sequence[Bill]) -> list[Bill]:
    """Return the bills that are the cheapest at some price, by rising price; of equal ones the first."""
    left = sorted(owed, key=_rank)
    chain = left[:1]
    while chain:
        here = chain[-1]
        ahead = [b for b in left if b.violations_S.mean() < here.violations_S.mean()]
        if not ahead:
            break
        chain.append(min(ahead, key=lambda b: (_price(here, b), b.violations_S.mean())))
    return chain


def contenders(owed: Sequence[Bill], price_P: Floats) -> list[tuple[str, ...]]:
    """Return per price the cheapest policy, then every other one whose paired difference to it may be 0.

    The bills stand in the same order of seeds. One seed has no interval, so it rules nobody out.
    """
    total_IPS = np.array([b.replica_s_S + price_P[:, None] * b.violations_S for b in owed])
    n = total_IPS.shape[2]
    first_P = total_IPS.mean(axis=2).argmin(axis=0)
    gap_IPS = total_IPS - total_IPS[first_P, np.arange(len(price_P))]
    low_IP = np.full(total_IPS.shape[:2], -math.inf)
    if n > 1:
        half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) / math.sqrt(n)
        low_IP = gap_IPS.mean(axis=2) - half * gap_IPS.std(axis=2, ddof=1)
    open_IP = low_IP <= FLAT * np.abs(total_IPS).max(axis=(0, 2))
    names = [b.policy for b in owed]
    return [
        (names[first], *(name for i, name in enumerate(names) if i != first and open_I[i]))
        for first, open_I in zip(first_P, open_IP.T, strict=True)
    ]


def _bill(study: Study, load: str, policy: str) -> Bill:
    """Return what a policy costs by seed; a seed of which one repeat cannot be billed is left out, with all its repeats."""
    costs: dict[int, list[tuple[float, float]]] = {}
    for t in study.of(policy, load):
        costs.setdefault(t.seed, []).append((t.values[COST], violations(t)))
    costs = {seed: own for seed, own in costs.items() if np.isfinite(own).all()}
    runs = [t.id for t in study.of(policy, load) if t.seed in costs]
    seeds = tuple(sorted(costs))
    means = np.array([np.mean(costs[seed], axis=0) for seed in seeds]).reshape(-1, 2)
    return Bill(policy=policy, load=load, seeds=seeds, replica_s_S=means[:, 0], violations_S=means[:, 1],
                runs=tuple(runs))  # fmt: skip


def _rank(bill: Bill) -> tuple[float, float]:
    return float(bill.replica_s_S.mean()), float(bill.violations_S.mean())


def _price(cheap: Bill, good: Bill) -> float:
    """Return the price at which both cost the same in the mean."""
    extra = float(good.replica_s_S.mean() - cheap.replica_s_S.mean())
    return max(extra, 0.0) / float(cheap.violations_S.mean() - good.violations_S.mean())


def _flat(x_S: Floats) -> Floats:
    """Return the values without the spread that is only rounding."""
    scale = float(np.abs(x_S).max())
    return np.full_like(x_S, x_S.mean()) if float(np.ptp(x_S)) <= FLAT * scale else x_S


def _at_most_zero(a: float, b: float, c: float) -> list[Range]:
    """Return where a·p² - 2b·p + c <= 0."""
    if a == 0.0:
        if b == 0.0:
            return [(-math.inf, math.inf)] if c <= 0.0 else []
        return [(c / (2.0 * b), math.inf)] if b > 0.0 else [(-math.inf, c / (2.0 * b))]
    root = b * b - a * c
    if root < 0.0:
        return [] if a > 0.0 else [(-math.inf, math.inf)]
    low, high = sorted(((b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a))
    return [(low, high)] if a > 0.0 else [(-math.inf, low), (high, math.inf)]


def _from_zero(ranges: list[Range]) -> list[Range]:
    """Return the parts at and above 0."""
    return [(max(low, 0.0), high) for low, high in ranges if high >= 0.0]
