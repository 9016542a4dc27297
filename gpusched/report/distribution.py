"""The distribution of latencies per load: CDF, and its complement on a logarithmic axis, where the tail is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from gpusched.report.curves import slo_ms, without
from gpusched.report.dataset import Source, Study
from gpusched.report.latencies import EDGE_B, Latencies, latencies, slower
from gpusched.report.names import file_name
from gpusched.report.style import Drawing, Look, finish, legend_of, looks, plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = ((50.0, "p50"), (5.0, "p95"), (1.0, "p99"))
"""Shares of slower requests, in %, that have a name."""
Pooled = dict[str, Latencies]


def read(study: Study, source: Source, policies: list[str]) -> tuple[dict[str, Pooled], list[str]]:
    """Return the latencies by load and policy, and a warning where runs have no request log."""
    found: dict[str, Pooled] = {}
    lost: list[str] = []
    for load in study.loads:
        for policy in policies:
            counted, missing = latencies(source, study.of(policy, load))
            lost += missing
            if counted.runs:
                found.setdefault(load, {})[policy] = counted
    return found, without(lost, "request log")


def distribution_figure(study: Study, load: str, pooled: Pooled, policies: list[str]) -> Drawing:
    """Return CDF and complementary CDF of the latencies under one load."""
    figure, (cdf, ccdf) = plt.subplots(1, 2, figsize=(6.8, 3.0))
    look = looks(policies)
    for policy, counted in pooled.items():
        _curves(cdf, ccdf, counted, look[policy], policy)
    _axes(cdf, ccdf, pooled)
    if (objective := slo_ms(study, load)) is not None:
        for ax in (cdf, ccdf):
            ax.axvline(objective, color="#444444", lw=0.9, ls=(0, (4, 3)))
            ax.annotate("SLO", (objective, 1.0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom",
                        ha="left", xytext=(2, 0), textcoords="offset points")  # fmt: skip
    legend_of(figure, cdf)
    runs = tuple(run for counted in pooled.values() for run in counted.runs)
    total = sum(int(counted.pooled_B.sum()) for counted in pooled.values())
    caption = (
        f"Latency of the answered requests under load {load}: share up to a latency (left) and share slower than it (right, "
        f"logarithmic). Line: the {_spaced(total)} requests of all runs together; band: from the lowest to the highest run."
    )
    return finish(figure, f"latency_{file_name(load)}", caption, runs, study.assumed)


def _curves(cdf: Axes, ccdf: Axes, counted: Latencies, look: Look, label: str) -> None:
    """Draw one policy in both panels."""
    bins = counted.shown
    x_ms = 1000.0 * EDGE_B[bins]
    line_B, band_RB = 100.0 * slower(counted.pooled_B)[bins], 100.0 * slower(counted.count_RB)[:, bins]
    marks: Any = {
        "marker": look.marker,
        "ms": 4,
        "mfc": look.colour if look.filled else "white",
        "markevery": 0.14,
    }
    for ax, share_B, low_B, high_B in (
        (cdf, 100.0 - line_B, 100.0 - band_RB.max(axis=0), 100.0 - band_RB.min(axis=0)),
        (ccdf, line_B, band_RB.min(axis=0), band_RB.max(axis=0)),
    ):  # fmt: skip
        ax.plot(x_ms, share_B, color=look.colour, ls=look.line, lw=1.4, label=label, **marks)
        if len(band_RB) > 1:
            ax.fill_between(x_ms, np.maximum(low_B, 1e-12), high_B, color=look.colour, alpha=0.18, lw=0)


def _axes(cdf: Axes, ccdf: Axes, pooled: Pooled) -> None:
    spans = [1000.0 * EDGE_B[counted.shown] for counted in pooled.values()]
    for ax in (cdf, ccdf):
        ax.set_xscale("log")
        ax.set_xlim(min(x_ms[0] for x_ms in spans), max(x_ms[-1] for x_ms in spans))
        plain_log(ax.xaxis)
        ax.set_xlabel("Client latency (ms)")
        ax.grid(axis="x")
    cdf.set_ylabel("Requests up to it (%)")
    cdf.set_ylim(0.0, 100.0)
    ccdf.set_yscale("log")
    plain_log(ccdf.yaxis, (1.0,))
    ccdf.set_ylabel("Slower requests (%)")
    most = max(int(counted.pooled_B.sum()) for counted in pooled.values())
    ccdf.set_ylim(70.0 / most, 100.0)
    for share, name in NAMED:
        ccdf.annotate(name, (1.0, share), xycoords=("axes fraction", "data"), fontsize=6.5, color="#444444",
                      va="center", ha="left", xytext=(2, 0), textcoords="offset points", annotation_clip=False)  # fmt: skip
        ccdf.axhline(share, color="#bbbbbb", lw=0.7, ls=":", zorder=0.5)


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", "\u2009")
