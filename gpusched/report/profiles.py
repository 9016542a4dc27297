"""Performance profiles as a figure: how many seeds improve on the baseline by more than so much."""

from __future__ import annotations

from matplotlib import pyplot as plt

from gpusched.report.dataset import Study
from gpusched.report.measures import COST, QOS, measure
from gpusched.report.robust import profiles
from gpusched.report.style import Drawing, finish, legend_of, looks

SHOWN = (QOS, COST)


def profile_figure(study: Study, policies: list[str], baseline: str) -> Drawing | None:
    """Return the profiles of cost and QoS violations, None where no score can be formed."""
    found = {name: profiles(study, policies, baseline, name) for name in SHOWN}
    found = {name: curves for name, curves in found.items() if curves}
    if not found:
        return None
    look = looks(policies)
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.0), squeeze=False)
    for ax, (name, curves) in zip(axes[0], found.items(), strict=True):
        for curve in curves:
            v = look[curve.policy]
            x = 100.0 * curve.tau_T
            ax.step(x, 100.0 * curve.share_T, where="post", color=v.colour, ls=v.line, label=curve.policy,
                    marker=v.marker, ms=4, markevery=0.16, mfc=v.colour if v.filled else "white")  # fmt: skip
            ax.fill_between(
                x, 100.0 * curve.low_T, 100.0 * curve.high_T, step="post", color=v.colour, alpha=0.15, lw=0
            )
        ax.axvline(0.0, color="#444444", lw=0.9)
        ax.set_ylim(-2.0, 102.0)
        ax.set_title(measure(name).label)
        ax.set_xlabel(f"Improvement over {baseline} by seed (% of its mean)", fontsize=8)
        ax.grid(axis="x")
    axes[0][0].set_ylabel("Seeds above it (%)")
    legend_of(figure, *axes[0])
    runs = tuple(dict.fromkeys(run for curves in found.values() for curve in curves for run in curve.runs))
    caption = (
        f"Performance profiles: share of the seeds, loads weighing the same, in which a policy improves on {baseline} by more "
        "than the value on the axis, paired by seed; higher and further right is better. Band: pointwise 95 % interval of "
        "a bootstrap stratified by load."
    )
    return finish(figure, "profiles", caption, runs, study.assumed)
