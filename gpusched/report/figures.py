"""Figures of KPIs: mean, interval and every raw point per policy and load; cost against violation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from gpusched.core.kpi import HEADLINE
from gpusched.report import statistics
from gpusched.report.dataset import Study, Trial
from gpusched.report.measures import COST, QOS, REWARD, Measure, measure
from gpusched.report.style import Drawing, Look, finish, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 0.62
"""Share of a load's slot that its policies take up."""


def kpi_figures(study: Study, policies: list[str]) -> list[Drawing]:
    """Return one figure per headline KPI that has a value, and one for the mean reward."""
    names = [n for n in (*HEADLINE, REWARD) if any(math.isfinite(t.values[n]) for t in study.trials)]
    return [_kpi_figure(study, policies, measure(name)) for name in names]


def pareto_figure(study: Study, policies: list[str]) -> Drawing | None:
    """Return cost against QoS violations per load with the front of the undominated policies, None without data."""
    runs = tuple(t.id for t in study.trials if _finite(t, COST, QOS))
    if not runs:
        return None
    loads = [load for load in study.loads if any(_finite(t, COST, QOS) for t in study.of(load=load))]
    figure, axes = plt.subplots(
        1, len(loads), figsize=(max(3.4, 2.6 * len(loads)), 3.3), squeeze=False, sharey=False
    )
    for ax, load in zip(axes[0], loads, strict=True):
        _pareto(ax, study, load, policies)
    axes[0][0].set_ylabel(measure(QOS).axis)
    _legend(figure, looks(policies))
    caption = (
        "Cost against QoS violations per load; left and down is better. Large marks: means with 95 % intervals; "
        "small: single runs. The stepped line is the front of policies no other one beats on both."
    )
    return finish(figure, "pareto", caption, runs, study.assumed)


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the policies no other one beats, by rising cost: at most equal on both axes and lower on one."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: (points[name], name))


def _kpi_figure(study: Study, policies: list[str], m: Measure) -> Drawing:
    loads, look = study.loads, looks(policies)
    figure, ax = plt.subplots(figsize=(max(3.4, 1.1 + 0.9 * len(loads)), 2.9))
    step = WIDTH / max(len(policies), 1)
    for i, policy in enumerate(policies):
        places = np.arange(len(loads)) + step * (i - (len(policies) - 1) / 2)
        for place, load in zip(places, loads, strict=True):
            values = [m.shown(t.values[m.name]) for t in study.of(policy, load)]
            _points(ax, float(place), step, values, look[policy])
    ax.set_xticks(range(len(loads)), loads)
    ax.set_xlim(-0.6, len(loads) - 0.4)
    ax.set_ylabel(m.axis)
    hint = {1: "higher is better", -1: "lower is better", 0: ""}[m.better]
    ax.set_title(hint, fontsize=7.5, color="#555555", loc="right")
    ax.set_xlabel("Load")
    _legend(figure, look)
    runs = tuple(t.id for t in study.trials if math.isfinite(t.values[m.name]))
    caption = (
        f"{m.label}: {m.meaning}. Mean with 95 % t-interval; small marks are the single runs, one per seed."
    )
    return finish(figure, f"kpi_{m.name}", caption, runs, study.assumed)


def _points(ax: Axes, x: float, step: float, values: list[float], look: Look) -> None:
    """Draw the raw points, spread by their order, and beside them the mean with its interval."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return
    spread = np.linspace(-0.12, 0.12, len(finite)) * step / 0.31 if len(finite) > 1 else np.zeros(1)
    ax.plot(
        x + 0.12 * step + spread,
        finite,
        look.marker,
        ms=2.8,
        mfc="none",
        mec=look.colour,
        mew=0.7,
        alpha=0.75,
    )
    e = statistics.interval(finite)
    half = [[e.mean - e.low], [e.high - e.mean]] if e.n > 1 else None
    ax.errorbar(x - 0.28 * step, e.mean, yerr=half, fmt=look.marker, ms=6, color=look.colour, capsize=3, elinewidth=1.4,
                mfc=look.colour if look.filled else "white", mew=1.4)  # fmt: skip


def _legend(figure: Figure, look: dict[str, Look]) -> None:
    handles = [
        Line2D(
            [], [], color=v.colour, marker=v.marker, ls="none", mfc=v.colour if v.filled else "white", mew=1.4
        )
        for v in look.values()
    ]
    columns = min(len(look), 4)
    figure.legend(
        handles, list(look), loc="outside upper left", ncols=columns, handletextpad=0.1, columnspacing=1.2
    )


def _pareto(ax: Axes, study: Study, load: str, policies: list[str]) -> None:
    look, means = looks(policies), {}
    cost, qos = measure(COST), measure(QOS)
    for policy in policies:
        trials = [t for t in study.of(policy, load) if _finite(t, COST, QOS)]
        if not trials:
            continue
        x = statistics.interval([cost.shown(t.values[COST]) for t in trials])
        y = statistics.interval([qos.shown(t.values[QOS]) for t in trials])
        v = look[policy]
        for t in trials:
            ax.plot(cost.shown(t.values[COST]), qos.shown(t.values[QOS]), v.marker, ms=3, mfc="none", mec=v.colour,
                    mew=0.7, alpha=0.7)  # fmt: skip
        ax.errorbar(x.mean, y.mean, xerr=_half(x), yerr=_half(y), fmt=v.marker, ms=7, color=v.colour, capsize=2.5,
                    mfc=v.colour if v.filled else "white", mew=1.4, zorder=3)  # fmt: skip
        means[policy] = (x.mean, y.mean)
    edge = [means[name] for name in front(means)]
    ax.step([x for x, _ in edge], [y for _, y in edge], where="post", color="#777777", lw=1, ls=":", zorder=1)
    ax.set_title(load)
    ax.set_xlabel(cost.axis)
    ax.grid(axis="x")
    ax.margins(0.12)


def _half(e: statistics.Estimate) -> list[list[float]] | None:
    return [[e.mean - e.low], [e.high - e.mean]] if e.n > 1 else None


def _finite(trial: Trial, *names: str) -> bool:
    return all(math.isfinite(trial.values[name]) for name in names)
