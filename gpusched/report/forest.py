"""The forest plot: every effect of the comparison with its interval, turned so that right is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from gpusched.report.compare import Comparison, Row
from gpusched.report.measures import REWARD
from gpusched.report.style import Drawing, finish, legend, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "better": ("#009E73", ">", True),
    "worse": ("#D55E00", "<", True),
    "higher": ("#444444", "D", True),
    "lower": ("#444444", "D", True),
    "undecided": ("#444444", "o", False),
}
"""Colour, mark and whether it is filled, by decision; colours never stand alone."""
LEGEND = (("better", "decided: better"), ("worse", "decided: worse"), ("higher", "decided, no direction"),
          ("undecided", "undecided"))  # fmt: skip
LINEAR = 2.0
"""Up to this effect the axis is linear, beyond it logarithmic: pairing makes some effects huge."""


def forest_figure(comparison: Comparison, assumed: list[str]) -> Drawing | None:
    """Return Hedges' g with its interval per load and measure, None where nothing was tested."""
    rows = [row for row in comparison.rows if math.isfinite(row.paired.g)]
    if not rows:
        return None
    loads = list(dict.fromkeys(row.load for row in comparison.rows))
    names = list(dict.fromkeys(row.measure.name for row in rows))
    down, across = panels(len(loads))
    figure, axes = plt.subplots(down, across, figsize=(1.9 * across + 1.9, (0.8 + 0.24 * len(names)) * down + 0.4),
                                squeeze=False, sharex=True, sharey=True)  # fmt: skip
    for ax, load in zip(axes.flat, loads, strict=False):
        _panel(ax, [row for row in rows if row.load == load], names)
        ax.set_title(load)
        ax.set_xlabel("Hedges’ g (standard deviations)", fontsize=8)
    for ax in list(axes.flat)[len(loads) :]:
        ax.set_visible(False)
    axes[0][0].set_xticks(*_ticks(rows))
    axes[0][0].set_yticks(range(len(names)), [_label(rows, name) for name in names])
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    _legend(figure, {row.decision for row in rows})
    runs = tuple(dict.fromkeys(run for row in rows for run in row.runs))
    caption = (
        f"Effect sizes of {comparison.candidate} against {comparison.baseline}: Hedges’ g of the paired differences with its "
        "exact 95 % interval, signs turned so that right of 0 is better (GPU utilization has no better: right is higher). "
        f"Filled: decided after Holm; hollow: undecided. The axis is logarithmic beyond ±{LINEAR:g}. Missing rows have no test."
    )
    return finish(figure, "forest", caption, runs, assumed)


def _panel(ax: Axes, rows: list[Row], names: list[str]) -> None:
    ax.axvline(0.0, color="#444444", lw=0.9)
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7.5)
    for row in rows:
        turn = row.measure.better or 1
        g, low, high = turn * row.paired.g, turn * row.paired.g_low, turn * row.paired.g_high
        colour, mark, filled = LOOKS.get(row.decision, LOOKS["undecided"])
        y = names.index(row.measure.name)
        ax.plot(sorted((low, high)), (y, y), color=colour, lw=1.3, solid_capstyle="butt")
        ax.plot([g], [y], mark, color=colour, ms=5.5, mfc=colour if filled else "white", mew=1.2)


def _ticks(rows: list[Row]) -> tuple[list[float], list[str]]:
    """Return 0 and the powers of ten that the intervals reach, at most two to a side."""
    ends = [
        end
        for row in rows
        for end in (row.paired.g, row.paired.g_low, row.paired.g_high)
        if math.isfinite(end)
    ]
    most = max(1, math.floor(math.log10(max(map(abs, ends)) or 1.0)))
    powers = [10.0**k for k in sorted({1, most})]
    values = [-x for x in reversed(powers)] + [0.0] + powers
    return values, [f"{x:g}".replace("-", "−") for x in values]


def _label(rows: list[Row], name: str) -> str:
    label = next(row.measure.label for row in rows if row.measure.name == name)
    return f"{label} (training signal)" if name == REWARD else label


def _legend(figure: Figure, decisions: set[str]) -> None:
    there = decisions | ({"higher"} if "lower" in decisions else set())
    handles = []
    for decision, words in LEGEND:
        if decision in there:
            colour, mark, filled = LOOKS[decision]
            handles.append(Line2D([], [], color=colour, marker=mark, ls="none", ms=5.5, mew=1.2,
                                  mfc=colour if filled else "white", label=words))  # fmt: skip
    legend(figure, handles)
