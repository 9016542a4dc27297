"""The simulator's errors as a figure: every case of a comparison with its interval, and the band of the goal."""

from __future__ import annotations

from matplotlib import pyplot as plt

from gpusched.report.fidelity import MEASURES, Evidence
from gpusched.report.style import Drawing, finish

MET, MISSED = "#009E73", "#D55E00"


def deviation_figure(evidence: list[Evidence]) -> Drawing | None:
    """Return a panel per latency quantile with a goal, one line per case; None where nothing was compared."""
    if not evidence:
        return None
    points = [(one, case) for one in evidence for case in one.cases]
    names = list(evidence[0].goal)
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names) + 2.6, 0.24 * len(points) + 1.1),
                                squeeze=False, sharey=True)  # fmt: skip
    for ax, name in zip(axes[0], names, strict=True):
        goal = 100.0 * evidence[0].goal[name]
        ax.axvspan(-goal, goal, color="#000000", alpha=0.08, lw=0)
        ax.axvline(0.0, color="#444444", lw=0.9)
        for y, (one, case) in enumerate(points):
            found, within = case.measures[name], name not in one.goal or one.within(case, name)
            colour, mark = (MET, "o") if within else (MISSED, "s")
            ax.plot((100 * found.low, 100 * found.high), (y, y), color=colour, lw=1.3, solid_capstyle="butt")
            ax.plot(
                [100 * found.error],
                [y],
                mark,
                color=colour,
                ms=4.5,
                mfc=colour if within else "white",
                mew=1.2,
            )
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        ax.set_title(MEASURES[name][0].partition(",")[0])
        ax.set_xlabel("Simulated / real − 1 (%)", fontsize=8)
    axes[0][0].set_yticks(range(len(points)), [case.name for _, case in points], fontsize=7.5)
    axes[0][0].set_ylim(len(points) - 0.4, -0.6)
    caption = (
        "Error of the simulator against real Triton, with its 95 % interval; right of 0 the simulator is slower. Grey: the goal. "
        "Green circle: within it; orange hollow square: beyond it."
    )
    runs = tuple(dict.fromkeys(one.record.id for one in evidence))
    return finish(figure, "fidelity", caption, runs, [])
