"""Every figure of a report, drawn in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from gpusched.report import curves, distribution, figures, style
from gpusched.report.analysis import Analysis
from gpusched.report.aside import Task, aside
from gpusched.report.dataset import Source, Study
from gpusched.report.deviations import deviation_figure
from gpusched.report.forest import forest_figure
from gpusched.report.pricemap import breakeven_figure
from gpusched.report.profiles import profile_figure
from gpusched.report.quantiles import quantile_figure
from gpusched.report.style import Drawing

LARGE = 30
"""From so many trials on a second process helps to draw."""


@dataclass(kw_only=True)
class Drawings:
    """The figures by where the page shows them; None and empty where the data have nothing to show."""

    pareto: Drawing | None = None
    breakeven: Drawing | None = None
    kpi: list[Drawing] = field(default_factory=list)
    latency: list[Drawing] = field(default_factory=list)
    time: list[Drawing] = field(default_factory=list)
    forest: Drawing | None = None
    profiles: Drawing | None = None
    fidelity: Drawing | None = None
    qq: Drawing | None = None
    convergence: Drawing | None = None

    @property
    def all(self) -> list[Drawing]:
        """Every figure there is, in the order of the page."""
        places = (self.pareto, self.breakeven, *self.kpi, *self.latency, *self.time, self.forest, self.profiles,
                  self.qq, self.fidelity, self.convergence)  # fmt: skip
        return [drawing for drawing in places if drawing]


def draw(analysis: Analysis, source: Source) -> tuple[Drawings, list[str]]:
    """Return the figures, and warnings about runs whose logs are missing."""
    study, policies, compared = analysis.study, analysis.policies, analysis.comparison
    tasks: dict[str, Task] = {
        "pareto": (_styled, (figures.pareto_figure, study, policies)),
        "breakeven": (_styled, (breakeven_figure, study, policies)),
        "kpi": (_styled, (figures.kpi_figures, study, policies)),
    }
    if analysis.fidelity.evidence:
        tasks["fidelity"] = (_styled, (deviation_figure, analysis.fidelity.evidence))
    if compared:
        tasks["profiles"] = (_styled, (profile_figure, study, policies, compared.baseline))
        tasks["forest"] = (_styled, (forest_figure, compared, study.assumed))
        tasks["qq"] = (_styled, (quantile_figure, compared, study.assumed))
    with aside(tasks, len(study.trials) >= LARGE) as results:
        drawn, lost = _from_logs(study, source, policies)
        return replace(drawn, **results()), lost


def _from_logs(study: Study, source: Source, policies: list[str]) -> tuple[Drawings, list[str]]:
    """Return the figures that need the runs' logs."""
    ticks, no_ticks = curves.read(study, source, policies)
    pooled, no_requests = distribution.read(study, source, policies)
    with style.styled():
        drawn = Drawings(
            latency=[distribution.distribution_figure(study, load, own, policies) for load, own in pooled.items()],
            time=[curves.time_figure(study, load, own, policies) for load, own in ticks.items()],
            convergence=curves.convergence_figure(study, source),
        )  # fmt: skip
    return drawn, [*no_ticks, *no_requests]


def _styled(task: Callable[..., Any], *args: object) -> Any:
    with style.styled():
        return task(*args)
