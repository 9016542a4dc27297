"""Figures over time: what each policy did under a load, and how the trainings converged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

from gpusched.report import series
from gpusched.report.dataset import Record, Source, Study
from gpusched.report.names import file_name
from gpusched.report.series import Floats, Series
from gpusched.report.style import COLOURS, LINES, MARKERS, Drawing, Look, finish, legend_of, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("users", "Users\n(count)", 1.0),
    ("replicas_ready", "Ready replicas\n(count)", 1.0),
    ("latency_p95_s", "Latency p95\n(ms)", 1000.0),
    ("gpu_busy", "GPU utilization\n(%)", 100.0),
)
Logs = dict[str, Series]
SMOOTH_S = 30.0
"""Window of the running mean; ticks alone are too noisy to read. The KPIs never see it."""
TRAINING = (
    ("train/reward", "Validation reward (per step)"),
    ("train/agreement", "Policy agreement (share)"),
    ("train/kl", "KL divergence (nat)"),
    ("train/entropy", "Entropy (nat)"),
)


def read(study: Study, source: Source, policies: list[str]) -> tuple[dict[str, Logs], list[str]]:
    """Return the tick logs by load and policy, and a warning where runs have none."""
    found: dict[str, Logs] = {}
    lost: list[str] = []
    for load in study.loads:
        for policy in policies:
            logs, missing = series.read(source, study.of(policy, load), [name for name, _, _ in PANELS])
            lost += missing
            if logs:
                found.setdefault(load, {})[policy] = logs
    return found, without(lost, "time series")


def without(lost: list[str], what: str) -> list[str]:
    """Return the warning that runs have no log of a kind."""
    one = len(lost) == 1
    many = f"{len(lost)} runs have no {what}; the first is {lost[0] if lost else ''}."
    return [f"Run {lost[0]} has no {what}." if one else many] if lost else []


def time_figure(study: Study, load: str, logs: Logs, policies: list[str]) -> Drawing:
    """Return users, replicas, latency and utilization over time under one load."""
    figure, axes = plt.subplots(len(PANELS), 1, figsize=(6.6, 6.0), sharex=True, height_ratios=[0.6, 1, 1, 1])
    look = looks(policies)
    for policy, own in logs.items():
        for ax, (column, _, scale) in zip(axes, PANELS, strict=True):
            _band(ax, own, column, scale, look[policy], policy)
    _slo(axes[2], study, load)
    for ax, (_, label, _) in zip(axes, PANELS, strict=True):
        ax.set_ylabel(label, fontsize=8)
        ax.set_ylim(bottom=0)
    axes[-1].set_xlabel("Time since the end of the warm-up (s)")
    figure.align_ylabels()
    legend_of(figure, axes[1])
    runs = tuple(run for own in logs.values() for run in own.runs)
    caption = (
        f"Load {load} over time: mean over the runs (line) and their range (band); latency and utilization as running "
        f"means over {SMOOTH_S:g} s."
    )
    return finish(figure, f"time_{file_name(load)}", caption, runs, study.assumed)


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


def _band(ax: Axes, logs: Series, column: str, scale: float, look: Look, label: str) -> None:
    """Draw the mean over the runs at each tick and the range between the lowest and the highest run."""
    values_RT = scale * _smooth(logs, column)
    known_T = np.isfinite(values_RT).any(axis=0)
    t_s_T, values_RT = logs.t_s_T[known_T], values_RT[:, known_T]
    ax.plot(t_s_T, np.nanmean(values_RT, axis=0), color=look.colour, ls=look.line, label=label, lw=1.3,
            marker=look.marker, ms=3.5, mfc=look.colour if look.filled else "white", markevery=0.17)  # fmt: skip
    if len(values_RT) > 1:
        ax.fill_between(t_s_T, np.nanmin(values_RT, axis=0), np.nanmax(values_RT, axis=0), color=look.colour, alpha=0.16,
                        lw=0)  # fmt: skip


def _smooth(logs: Series, column: str) -> Floats:
    """Return the running mean over SMOOTH_S; a step function of few values (users, replicas) keeps its edges."""
    values_RT, step_s_T = logs.columns[column], np.diff(logs.t_s_T)
    if len(step_s_T) == 0 or column in ("users", "replicas_ready"):
        return values_RT
    return series.running_mean(values_RT, max(1, round(SMOOTH_S / float(np.median(step_s_T)))))


def slo_ms(study: Study, load: str) -> float | None:
    """Return the latency objective in ms where all runs of the load agree on it, else None."""
    slos = {t.params.get("reward.slo_s") for t in study.of(load=load)} - {None}
    return 1000.0 * float(str(slos.pop())) if len(slos) == 1 else None


def _slo(ax: Axes, study: Study, load: str) -> None:
    """Draw the latency objective."""
    if (objective := slo_ms(study, load)) is not None:
        ax.axhline(objective, color="#444444", lw=0.9, ls=(0, (4, 3)))
        ax.annotate(
            "SLO", (1.0, objective), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom"
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
    if {f"{metric}_low", f"{metric}_high"} <= record.metrics.keys():
        (_, low), (_, high) = (source.series(record.id, f"{metric}_{end}") for end in ("low", "high"))
        if len(low) == len(high) == len(steps):
            ax.fill_between(thousands, low, high, color=colour, alpha=0.14, lw=0)
