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
from gpusched.report.style import Drawing, Look, finish, legend, looks, panels

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
    down, across = panels(len(loads))
    size = max(3.4, 0.4 + 2.05 * across), 0.6 + (2.5 if down == 1 else 1.9) * down
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    for ax, load in zip(axes.flat, loads, strict=False):
        _pareto(ax, study, load, policies)
    for ax in list(axes.flat)[len(loads) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(measure(QOS).axis)
    _legend(figure, looks(policies))
    caption = (
        "Cost against QoS violations per load; left and down is better. Large marks: means over the seeds with 95 % "
        "intervals; small: single runs. The line is the front of policies no other one beats on both; grey: dominated."
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
    figure, ax = plt.subplots(figsize=(max(3.6, 0.9 + len(loads) * (0.5 + 0.12 * len(policies))), 2.9))
    step = WIDTH / max(len(policies), 1)
    for i, policy in enumerate(policies):
        place = step * (i - (len(policies) - 1) / 2)
        _points(ax, study, policy, m, place, step, look[policy])
    ax.set_xticks(range(len(loads)), loads)
    ax.set_xlim(-0.6, len(loads) - 0.4)
    ax.set_ylabel(m.axis)
    hint = {1: "higher is better", -1: "lower is better", 0: ""}[m.better]
    ax.set_title(hint, fontsize=7.5, color="#555555", loc="right")
    ax.set_xlabel("Load")
    _legend(figure, look)
    runs = tuple(t.id for t in study.trials if math.isfinite(t.values[m.name]))
    caption = (
        f"{m.label}: {m.meaning}. Mean over the seeds with 95 % t-interval; small marks are the single runs."
    )
    return finish(figure, f"kpi_{m.name}", caption, runs, study.assumed)


def _points(ax: Axes, study: Study, policy: str, m: Measure, place: float, step: float, look: Look) -> None:
    """Draw under every load the raw points, spread by their order, and beside them the mean with its interval."""
    x_N: list[float] = []
    y_N: list[float] = []
    means: list[tuple[float, float, float]] = []
    for x, load in enumerate(study.loads):
        raw = [m.shown(v) for t in study.of(policy, load) if math.isfinite(v := t.values[m.name])]
        if not raw:
            continue
        spread = np.linspace(-0.39, 0.39, len(raw)) if len(raw) > 1 else np.zeros(1)
        x_N += list(x + place + step * (0.12 + spread))
        y_N += raw
        e = statistics.interval([m.shown(value) for value in study.by_seed(policy, load, m.name).values()])
        means.append((x + place - 0.28 * step, e.mean, e.high - e.mean if e.n > 1 else math.nan))
    ax.plot(x_N, y_N, look.marker, ms=2.8, mfc="none", mec=look.colour, mew=0.7, alpha=0.75)
    if means:
        x_L, mean_L, half_L = zip(*means, strict=True)
        ax.errorbar(x_L, mean_L, yerr=half_L, fmt=look.marker, ms=6, color=look.colour, capsize=3, elinewidth=1.4,
                    mfc=look.colour if look.filled else "white", mew=1.4)  # fmt: skip


def _legend(figure: Figure, look: dict[str, Look]) -> None:
    legend(
        figure,
        [
            Line2D([], [], color=v.colour, marker=v.marker, ls="none", mfc=v.colour if v.filled else "white", mew=1.4,
                   label=name)
            for name, v in look.items()
        ],
    )  # fmt: skip


def _pareto(ax: Axes, study: Study, load: str, policies: list[str]) -> None:
    look, means = looks(policies), {}
    cost, qos = measure(COST), measure(QOS)
    for policy in policies:
        trials = [t for t in study.of(policy, load) if _finite(t, COST, QOS)]
        if not trials:
            continue
        x = statistics.interval([cost.shown(v) for v in study.by_seed(policy, load, COST).values()])
        y = statistics.interval([qos.shown(v) for v in study.by_seed(policy, load, QOS).values()])
        v = look[policy]
        raw = [(cost.shown(t.values[COST]), qos.shown(t.values[QOS])) for t in trials]
        ax.plot(*zip(*raw, strict=True), v.marker, ms=3, mfc="none", mec=v.colour, mew=0.7, alpha=0.7)
        # The hollow mark lies on top and is larger, so that it shows where two policies are equal.
        ax.errorbar(x.mean, y.mean, xerr=_half(x), yerr=_half(y), fmt=v.marker, ms=7 if v.filled else 9, color=v.colour,
                    capsize=2.5, mfc=v.colour if v.filled else "none", mew=1.4, zorder=3 if v.filled else 4)  # fmt: skip
        means[policy] = (x.mean, y.mean)
    ax.set_title(load)
    ax.set_xlabel(cost.axis)
    ax.grid(axis="x")
    ax.margins(0.12)
    ax.locator_params(axis="x", nbins=4)
    _dominated(ax, [means[name] for name in front(means)])


def _dominated(ax: Axes, edge: list[tuple[float, float]]) -> None:
    """Draw the front as steps to the axes' ends and shade what it dominates."""
    right, (bottom, top) = ax.get_xlim()[1], ax.get_ylim()
    ax.set_ylim(bottom=max(bottom, -0.05 * top))  # t-intervals of a rate may reach below 0, its axis need not
    x = [edge[0][0], *(x for x, _ in edge), right]
    y = [top, *(y for _, y in edge), edge[-1][1]]
    ax.fill_between(x, y, top, step="post", color="#ececec", lw=0, zorder=0)
    ax.step(x, y, where="post", color="#777777", lw=1, ls=":", zorder=1)
    ax.set_xlim(right=right)
    ax.set_ylim(top=top)


def _half(e: statistics.Estimate) -> list[list[float]] | None:
    return [[e.mean - e.low], [e.high - e.mean]] if e.n > 1 else None


def _finite(trial: Trial, *names: str) -> bool:
    return all(math.isfinite(trial.values[name]) for name in names)
