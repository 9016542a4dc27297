"""Normal Q-Q plots of the paired differences: shown beside the tests, never used to choose one."""

from __future__ import annotations

from matplotlib import pyplot as plt

from gpusched.report.checks import qq
from gpusched.report.compare import Comparison
from gpusched.report.style import COLOURS, MARKERS, Drawing, finish, panels


def quantile_figure(comparison: Comparison, assumed: list[str]) -> Drawing | None:
    """Return one panel per load with every measure's differences, None where there are too few pairs."""
    found = qq(comparison)
    if not found:
        return None
    loads = list(dict.fromkeys(points.load for points in found))
    names = list(dict.fromkeys(points.measure.name for points in found))
    down, across = panels(len(loads))
    figure, axes = plt.subplots(down, across, figsize=(1.9 * across + 1.9, 2.3 * down), squeeze=False, sharex=True,
                                sharey=True)  # fmt: skip
    for ax, load in zip(axes.flat, loads, strict=False):
        ax.axline((0.0, 0.0), slope=1.0, color="#999999", lw=0.9, ls=(0, (4, 3)))
        for points in (p for p in found if p.load == load):
            i = names.index(points.measure.name)
            ax.plot(points.theory_S, points.observed_S, MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], ms=4,
                    mfc="none", mew=1.0, label=points.measure.label)  # fmt: skip
        ax.set_title(load)
        ax.set_xlabel("Normal quantile")
    for ax in list(axes.flat)[len(loads) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("Standardised difference")
    entries = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(
        entries.values(), entries.keys(), loc="outside right upper", fontsize=7.5, handletextpad=0.1
    )
    runs = tuple(dict.fromkeys(run for points in found for run in points.runs))
    caption = (
        f"Normal Q-Q plot of the paired differences {comparison.candidate} − {comparison.baseline}, standardised per measure: "
        "on the line they are as normal ones would be. So few pairs cannot verify it; no test was chosen by it."
    )
    return finish(figure, "qq", caption, runs, assumed)
