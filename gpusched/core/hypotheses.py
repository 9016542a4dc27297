"""What a study sets out to show, written down before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpusched.core.errors import did_you_mean, refuse
from gpusched.core.kpi import KPIS

CLAIMS = ("superior", "non_inferior", "equivalent")
REFERENCES = ("baseline", "absolute")


@dataclass(kw_only=True)
class Claim:
    """One primary test: the candidate is better in a KPI, or not worse, or the same, within a margin.

    `margin` None takes the study's; `of` tells what it is a share of: the baseline's mean, or it is absolute, in
    the KPI's SI unit.
    """

    kpi: str
    claim: str
    margin: float | None = None
    of: str = "baseline"

    def __post_init__(self) -> None:
        if self.kpi not in KPIS:
            raise refuse("kpi", self.kpi, "must be a KPI", did_you_mean(self.kpi, KPIS).strip())
        if self.claim not in CLAIMS:
            raise refuse("claim", self.claim, f"must be one of {', '.join(CLAIMS)}")
        if self.claim != "equivalent" and not KPIS[self.kpi].better:
            raise refuse("claim", self.claim, f"must be equivalent: {self.kpi} has no better direction")
        if self.margin is not None and not self.margin > 0:
            raise refuse("margin", self.margin, "must be greater than 0")
        if self.of not in REFERENCES:
            raise refuse("of", self.of, f"must be one of {', '.join(REFERENCES)}")


@dataclass(kw_only=True)
class Hypotheses:
    """The primary claims of a study, its level, default margin, planned seeds and stop rule."""

    candidate: str = "ppo"
    baseline: str = "hpa"
    alpha: float = 0.05
    margin: float = 0.02
    claims: list[Claim] = field(default_factory=list)
    seeds: int = 5
    stop: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise refuse("alpha", self.alpha, "must lie between 0 and 1")
        if not self.margin > 0:
            raise refuse("margin", self.margin, "must be greater than 0")
        if self.seeds < 2:
            raise refuse("seeds", self.seeds, "must be at least 2, for an interval")
        if self.candidate == self.baseline:
            raise refuse("candidate", self.candidate, "must be another policy than the baseline")
