"""How figures look: Okabe-Ito colours that also differ by marker and line, vector output without dates."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")  # a report is written where no screen is
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008): told apart with every common colour blindness."""
# Cycles of unequal length: the eighth policy has the first one's colour, with another marker and line.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
HATCHES = ("", "..", "\\\\", "xx", "--", "++", "oo", "||", "\\\\\\\\")
LETTER_IN, HANDLE_IN, ROW_IN = 0.078, 0.55, 0.18
"""Width of a letter and of a handle in a legend, and height of its rows, inches."""
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "gpusched",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@dataclass(kw_only=True, frozen=True)
class Look:
    """How one policy is drawn, the same in every figure."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]
    filled: bool
    hatch: str


@dataclass(kw_only=True)
class Drawing:
    """A finished figure: its name, a caption with what is shown, and the runs behind it."""

    name: str
    caption: str
    svg: str
    pdf: bytes
    runs: tuple[str, ...]


def looks(policies: list[str]) -> dict[str, Look]:
    """Return the look of each policy; the first (the baseline) is drawn hollow, so grey print tells it apart."""
    return {
        policy: Look(
            colour=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            line=LINES[i % len(LINES)],
            filled=i > 0,
            hatch=HATCHES[i % len(HATCHES)],
        )
        for i, policy in enumerate(policies)
    }


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style inside the block."""
    with mpl.rc_context(RC):
        yield


def finish(figure: Figure, name: str, caption: str, runs: tuple[str, ...], assumed: list[str]) -> Drawing:
    """Put the note on assumed constants below the figure and return it as SVG and PDF, the same bytes every time.

    Raises ValueError without runs: a picture of nothing measured is not drawn.
    """
    if not runs:
        raise ValueError(f"no run stands behind figure {name}")
    if assumed:
        figure.supxlabel(assumed_note(assumed), fontsize=6.5, color="#555555", x=0.01, ha="left")
    svg, pdf = io.StringIO(), io.BytesIO()
    # With a layout engine every file would be laid out and drawn twice.
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        _lay_out(figure)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    plt.close(figure)
    return Drawing(
        name=name, caption=caption, svg=_inline(svg.getvalue(), name), pdf=pdf.getvalue(), runs=runs
    )


def _lay_out(figure: Figure) -> None:
    """Lay the figure out once and take the engine away."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)


def assumed_note(assumed: list[str]) -> str:
    """Return the footnote on assumed constants: their names, or their number where the names are many."""
    if len(assumed) <= 4:
        return f"Assumed service constants: {', '.join(assumed)}."
    return f"Rests on {len(assumed)} assumed service constants, listed in the report."


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put the labels above the figure, in as many columns as its width takes; more rows make it taller."""
    widest = max(LETTER_IN * len(str(h.get_label())) for h in handles) + HANDLE_IN
    columns = min(max(int(figure.get_figwidth() / widest), 1), len(handles))
    figure.set_figheight(figure.get_figheight() + ROW_IN * (-(-len(handles) // columns) - 1))
    figure.legend(
        handles=list(handles), loc="outside upper left", ncols=columns, columnspacing=1.2, handletextpad=0.5
    )


def panels(n: int, most: int = 3) -> tuple[int, int]:
    """Return rows and columns for n panels: beside each other, or about as many rows as columns."""
    across = n if n <= most else min(most + 1, math.isqrt(n - 1) + 1)
    return -(-n // across), across


def legend_of(figure: Figure, *axes: Axes) -> None:
    """Put the labels of the axes' lines above the figure, each once."""
    found = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend(figure, list(found.values()))


def plain_log(axis: Axis, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5, as a span of about a decade needs it."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def _inline(svg: str, name: str) -> str:
    """Make the SVG part of a page: no XML prologue, a width that follows the page, IDs of its own."""
    svg = re.sub(r" *<metadata>.*?</metadata>\n", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    return _own_ids(svg, name)


def _own_ids(svg: str, name: str) -> str:
    """Give every ID the figure's name, and clip paths a number instead of a hash.

    Figures share one page, and a clip path of one must not answer for another's. matplotlib hashes the memory
    address of some clip paths, so their IDs would differ from run to run.
    """
    hashed = dict.fromkeys(re.findall(r"\bp[0-9a-f]{10}\b", svg))
    number = {old: f"clip{i}" for i, old in enumerate(hashed)}
    svg = re.sub(r"\bp[0-9a-f]{10}\b", lambda found: number[found.group()], svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{name}-", svg)
