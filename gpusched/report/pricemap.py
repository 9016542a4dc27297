"""The break-even map as a figure: per load or HPA headroom, the policy that is the cheapest at each price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from gpusched.report.breakeven import Strip, headrooms, strips
from gpusched.report.dataset import Study
from gpusched.report.prices import Floats, contenders, crossing, envelope
from gpusched.report.style import Drawing, Look, finish, legend, looks, plain_log
from gpusched.report.style import panels as grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRICES = 400
"""Prices the map is computed at, per row."""
MARGIN = 4.0
"""How far the axis goes beyond the outermost crossing, as a factor."""
WIDEST = (1e-4, 1e4)
LETTER = 0.0125
"""Width of a letter as a share of a figure-wide row: a name is written where it fits."""
OPEN: Any = {"facecolor": "#efefef", "edgecolor": "#9a9a9a", "hatch": "////", "lw": 0.0}


def breakeven_figure(study: Study, policies: Sequence[str]) -> Drawing | None:
    """Return the map, None where no two policies can be compared."""
    rows = strips(study, policies)
    if not rows:
        return None
    panels = {panel: list(group) for panel, group in groupby(rows, key=lambda row: row.panel)}
    price_P, look = price_axis(rows), _looks(study, list(policies), bool(rows[0].panel))
    down, across = grid(len(panels), 2)
    high = 0.55 + 0.33 * max(map(len, panels.values()))
    figure, axes = plt.subplots(down, across, figsize=(6.8, 0.75 + high * down), squeeze=False)
    decided: dict[str, Look] = {}
    for ax, (panel, own) in zip(axes.flat, panels.items(), strict=False):
        for y, row in enumerate(own):
            decided |= _strip(ax, y, row, price_P, look, across)
        _axes(ax, panel, own, price_P)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    handles = [
        Patch(facecolor=v.colour, edgecolor="white", hatch=v.hatch, lw=0, label=name)
        for name, v in dict(look.values()).items()
        if name in decided
    ]
    handles.append(Patch(**OPEN, label="not decided"))
    legend(figure, handles)
    runs = tuple(dict.fromkeys(run for row in rows for bill in row.owed for run in bill.runs))
    return finish(figure, "breakeven", _caption(bool(rows[0].panel)), runs, study.assumed)


def price_axis(rows: Sequence[Strip]) -> Floats:
    """Return the prices of the map: two decades around 1, widened to what the crossings need."""
    edges = [0.1, 10.0]
    for row in rows:
        chain = envelope(row.owed)
        for one, other in pairwise(chain):
            c = crossing(one, other)
            ends = [end for both in c.open_ranges for end in both] + [c.price]
            edges += [end for end in ends if WIDEST[0] < end < WIDEST[1]]
    return np.geomspace(max(min(edges) / MARGIN, WIDEST[0]), min(max(edges) * MARGIN, WIDEST[1]), PRICES)


def _looks(study: Study, policies: list[str], by_headroom: bool) -> dict[str, tuple[str, Look]]:
    """Return name and look per policy; where the row tells the headroom, all HPA variants share one."""
    room, look = headrooms(study) if by_headroom else {}, looks(policies)
    first = next((p for p in policies if p in room), "")
    return {p: ("HPA", look[first]) if p in room else (p, look[p]) for p in policies}


def _strip(
    ax: Axes, y: int, row: Strip, price_P: Floats, look: dict[str, tuple[str, Look]], across: int
) -> dict[str, Look]:
    """Draw one row; return the names and looks of the policies that win somewhere in it."""
    won: dict[str, Look] = {}
    edge_P = np.concatenate([price_P, price_P[-1:] * price_P[-1] / price_P[-2]])
    at = 0
    order = [bill.policy for bill in row.owed]
    for names, group in groupby(tuple(sorted(n, key=order.index)) for n in contenders(row.owed, price_P)):
        begin, at = at, at + len(list(group))
        low, high = edge_P[begin], edge_P[min(at, len(edge_P) - 1)]
        labels = list(dict.fromkeys(look[name][0] for name in names))
        if len(names) == 1:
            label, v = look[names[0]]
            won[label] = v
            ax.broken_barh([(low, high - low)], (y - 0.4, 0.8), facecolor=v.colour, edgecolor="white",
                           hatch=v.hatch, lw=0.0)  # fmt: skip
        else:
            ax.broken_barh([(low, high - low)], (y - 0.4, 0.8), **OPEN)
        share = math.log(high / low) / math.log(edge_P[-1] / edge_P[0])
        for text in (" or ".join(labels), "?" if len(names) > 1 else labels[0]):
            if len(text) * LETTER * across < share:
                ax.text(math.sqrt(low * high), y, text, ha="center", va="center", fontsize=7.5,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9})  # fmt: skip
                break
    return won


def _axes(ax: Axes, panel: str, rows: list[Strip], price_P: Floats) -> None:
    ax.set_xscale("log")
    ax.set_xlim(price_P[0], price_P[-1])
    plain_log(ax.xaxis, (1.0,))
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_ylabel("HPA headroom (%)" if panel else "Load")
    ax.set_xlabel("Price of a violated request (replica-seconds)")
    ax.set_title(panel)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)


def _caption(by_headroom: bool) -> str:
    rows = (
        "One row per headroom of the HPA (1 − CPU target): all policies compete in it, of the HPAs the one with that headroom."
        if by_headroom
        else "One row per load."
    )
    return (
        "Break-even map: the policy with the lowest total cost (replica-seconds + price × violated requests) at each price of "
        f"a violated request. {rows} Hatched: not decided, the 95 % interval of the paired difference between the cheapest "
        "and the named others includes 0 (not adjusted for the number of comparisons)."
    )
