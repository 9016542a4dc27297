"""Figures: the front and what it dominates, looks that differ in grey, units on every axis, runs behind each."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_up import MadeUp
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from memory import Memory

from gpusched.report import style
from gpusched.report.compare import compare
from gpusched.report.dataset import Study, load
from gpusched.report.figures import front, kpi_figures, pareto_figure
from gpusched.report.forest import forest_figure
from gpusched.report.latencies import Latencies, count
from gpusched.report.pricemap import breakeven_figure, price_axis
from gpusched.report.profiles import profile_figure
from gpusched.report.quantiles import quantile_figure

pytestmark = pytest.mark.slow

UNITS = re.compile(r"\(.+\)|Load|Normal quantile|Standardised difference")
"""Axes of names and of quantities without a unit."""


@pytest.fixture
def study(memory: Memory) -> Study:
    MadeUp(loads=("low", "high"), series=False, trainings=False).write(memory)
    return load(memory, "study", allow_synthetic=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is finished, still open to be looked at."""
    figures: list[Figure] = []
    monkeypatch.setattr(style.plt, "close", figures.append)
    return figures


def everything(study: Study) -> list[style.Drawing | None]:
    from gpusched.report.distribution import distribution_figure

    pooled = {
        p: Latencies(count_RB=np.array([count(np.random.default_rng(i).lognormal(-2, 0.5, 400)) for i in range(3)]),
                     runs=("a", "b", "c"))
        for p in study.policies
    }  # fmt: skip
    compared = compare(study, "hpa", "ppo")
    with style.styled():
        return [pareto_figure(study, study.policies), *kpi_figures(study, study.policies),
                breakeven_figure(study, study.policies), forest_figure(compared, study.assumed),
                profile_figure(study, study.policies, "hpa"), quantile_figure(compared, study.assumed),
                distribution_figure(study, "low", pooled, study.policies)]  # fmt: skip


def test_the_front_by_hand() -> None:
    points = {"a": (1.0, 9.0), "b": (2.0, 5.0), "c": (3.0, 5.0), "d": (4.0, 1.0), "e": (4.0, 1.0)}
    assert front(points) == ["a", "b", "d", "e"]  # c costs more than b for the same; d and e are equal


def test_the_dominated_region_is_shaded(study: Study, drawn: list[Figure]) -> None:
    """A policy that costs more and violates more lies in the grey, one on the front does not."""
    with style.styled():
        pareto_figure(study, study.policies)
    (figure,) = drawn
    (shade,) = figure.axes[0].collections[-1:]
    (path,) = shade.get_paths()
    mean = {p: tuple(np.mean([[t.values["replica_seconds"], 100 * t.values["qos_violation_rate"]]
                              for t in study.of(p, "low")], axis=0)) for p in study.policies}  # fmt: skip
    for x, y in mean.values():
        assert path.contains_point((x * 1.001, y * 1.001))
        assert not path.contains_point((x * 0.999, y * 0.999))
    plt.close(figure)


def test_every_axis_has_a_unit_and_every_figure_its_runs(study: Study, drawn: list[Figure]) -> None:
    drawings = everything(study)
    assert all(d and d.runs and d.caption for d in drawings)
    assert len(drawn) == len(drawings)
    for figure in drawn:
        for ax in figure.axes:
            for label in (ax.get_xlabel(), ax.get_ylabel()):
                assert not label or UNITS.search(label), (label, figure)


def test_every_figure_is_an_inline_picture(study: Study) -> None:
    for drawing in everything(study):
        assert drawing is not None
        assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")
        assert drawing.pdf.startswith(b"%PDF")
        assert b"CreationDate" not in drawing.pdf
        assert b"/Subtype /Type3" not in drawing.pdf  # journals refuse such fonts
        assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", drawing.svg)


def test_looks_differ_without_colour() -> None:
    names = [f"p{i}" for i in range(24)]
    look = style.looks(names)
    assert len({(v.marker, v.line) for v in look.values()}) == len(names)
    assert len({(v.colour, v.marker) for v in look.values()}) == len(names)
    shades = sorted(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in map(to_rgb, style.COLOURS))
    assert shades[-1] < 0.75  # none fades on paper
    assert len({v.hatch for v in list(look.values())[:9]}) == 9


def test_a_figure_of_nothing_is_not_drawn() -> None:
    with pytest.raises(ValueError, match=r"no run stands behind figure empty"):
        style.finish(plt.figure(), "empty", "", (), [])
    nothing = Study(name="none", trials=[])
    assert pareto_figure(nothing, []) is None
    assert breakeven_figure(nothing, []) is None
    assert kpi_figures(nothing, []) == []


def test_the_axis_of_prices_shows_every_crossing(study: Study) -> None:
    from gpusched.report.breakeven import crossings, strips

    price_P = price_axis(strips(study, study.policies))
    prices = [c.price for c in crossings(study, study.policies, None)]
    assert len(prices) == 2
    assert all(price_P[0] < price < price_P[-1] for price in prices if math.isfinite(price))
