"""Figures over time: what each policy did under a load, and how the trainings converged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from gpusched.report.dataset import Record, Source, Study, ticks
from gpusched.report.style import COLOURS, LINES, MARKERS, Drawing, Look, finish, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("users", "Active users (count)", 1.0),
    ("replicas_ready", "Ready replicas (count)", 1.0),
    ("latency_p95_s", "Latency p95 (ms)", 1000.0),
    ("gpu_busy", "GPU utilization (%)", 100.0),
)
SMOOTH_S = 30.0
"""Window of the running mean; ticks alone are too noisy to read. The KPIs never see it."""
TRAINING = (
    ("train/reward", "Validation reward (per step)"),
    ("train/agreement", "Policy agreement (share)"),
    ("train/kl", "KL divergence (nat)"),
    ("train/entropy", "Entropy (nat)"),
)


def time_figures(study: Study, source: Source, policies: list[str]) -> tuple[list[Drawing], list[str]]:
    """Return one figure per load, and a warning where runs have no time series."""
    drawings, lost = [], []
    for load in study.loads:
        tables = {p: {t.id: ticks(source, t) for t in study.of(p, load)} for p in policies}
        lost += [run for per in tables.values() for run, table in per.items() if table is None]
        kept = {p: {run: t for run, t in per.items() if t is not None} for p, per in tables.items()}
        if any(kept.values()):
            drawings.append(_time_figure(study, load, kept, policies))
    note = [f"{len(lost)} runs have no time series; the first is {lost[0]}."] if lost else []
    return drawings, note


def convergence_figure(study: Study, source: Source) -> Drawing | None:
    """Return the training curves with interval and verdict, None where nothing was trained."""
    shown = [(m, label) for m, label in TRAINING
             if any(m in record.metrics for record in study.trainings)]  # fmt: skip
    if not shown:
        return None
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns + 2.0, 2.3 * rows), squeeze=False)
    for ax, (metric, label) in zip(axes.flat, shown, strict=False):
        for i, record in enumerate(study.trainings):
            _curve(ax, source, record, metric, i)
        ax.set_ylabel(label)
        ax.set_xlabel("Environment steps (thousands)")
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    caption = (
        "Trainings: validation reward with its 95 % interval, and what the verdict looks at. A filled mark at the end "
        "means converged, a hollow one not converged."
    )
    return finish(figure, "convergence", caption, tuple(r.id for r in study.trainings), study.assumed)


def _time_figure(
    study: Study, load: str, tables: dict[str, dict[str, pd.DataFrame]], policies: list[str]
) -> Drawing:
    figure, axes = plt.subplots(len(PANELS), 1, figsize=(6.6, 6.0), sharex=True, height_ratios=[0.6, 1, 1, 1])
    look = looks(policies)
    for policy in policies:
        for ax, (column, _, scale) in zip(axes, PANELS, strict=True):
            _band(ax, list(tables[policy].values()), column, scale, look[policy], policy)
    for ax, (_, label, _) in zip(axes, PANELS, strict=True):
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    axes[-1].set_xlabel("Time since the end of the warm-up (s)")
    _slo(axes[2], study, load)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper left", ncols=len(policies))
    runs = tuple(run for per in tables.values() for run in per)
    caption = f"Load {load} over time: mean over the seeds (line) and their range (band), running mean over {SMOOTH_S:g} s."
    return finish(figure, f"time_{_file_name(load)}", caption, runs, study.assumed)


def _band(ax: Axes, tables: list[pd.DataFrame], column: str, scale: float, look: Look, label: str) -> None:
    """Draw the mean over the seeds at each tick and the range between the lowest and the highest seed."""
    series = [_smooth(t.set_index(t["t_s"].round(3))[column] * scale) for t in tables if column in t]
    if not series:
        return
    table = pd.concat(series, axis=1)
    t_s = table.index.to_numpy()
    ax.plot(t_s, table.mean(axis=1), color=look.colour, ls=look.line, label=label)
    if len(series) > 1:
        ax.fill_between(t_s, table.min(axis=1), table.max(axis=1), color=look.colour, alpha=0.16, lw=0)


def _smooth(series: pd.Series[float]) -> pd.Series[float]:
    """Return the running mean over SMOOTH_S; a step function of few values (users, replicas) keeps its edges."""
    steps = np.diff(series.index.to_numpy(dtype=float))
    if len(steps) == 0 or series.name in ("users", "replicas_ready"):
        return series
    return series.rolling(max(1, round(SMOOTH_S / float(np.median(steps)))), min_periods=1).mean()


def _slo(ax: Axes, study: Study, load: str) -> None:
    """Draw the latency objective where all runs of the load agree on it."""
    slos = {t.params.get("reward.slo_s") for t in study.of(load=load)} - {None}
    if len(slos) == 1:
        slo_ms = 1000.0 * float(str(slos.pop()))
        ax.axhline(slo_ms, color="#444444", lw=0.9, ls=(0, (4, 3)))
        ax.annotate(
            "SLO", (1.0, slo_ms), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom"
        )


def _curve(ax: Axes, source: Source, record: Record, metric: str, i: int) -> None:
    steps, values = source.series(record.id, metric)
    if len(steps) == 0:
        return
    colour, converged = COLOURS[i % len(COLOURS)], record.tags.get("converged", "").lower() == "true"
    verdict = "converged" if converged else "not converged"
    label = f"{record.tags.get('policy', '?')} seed {record.tags.get('seed', '?')}: {verdict}"
    thousands = steps / 1000.0
    ax.plot(thousands, values, color=colour, ls=LINES[i % len(LINES)], lw=1.2)
    ax.plot(thousands[-1:], values[-1:], MARKERS[i % len(MARKERS)], color=colour, ms=6, mew=1.3, ls="none",
            mfc=colour if converged else "white", label=label)  # fmt: skip
    low, high = source.series(record.id, f"{metric}_low"), source.series(record.id, f"{metric}_high")
    if len(low[1]) == len(high[1]) == len(steps):
        ax.fill_between(thousands, low[1], high[1], color=colour, alpha=0.14, lw=0)


def _file_name(load: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in load)
