"""How figures look: Okabe-Ito colours that also differ by marker and line, vector output without dates."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")  # a report is written where no screen is
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008): told apart with every common colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (2, 2)),
)
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
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once; both files would do it again
    svg, pdf = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    plt.close(figure)
    return Drawing(
        name=name, caption=caption, svg=_inline(svg.getvalue(), name), pdf=pdf.getvalue(), runs=runs
    )


def assumed_note(assumed: list[str]) -> str:
    """Return the footnote on assumed constants: their names, or their number where the names are many."""
    if len(assumed) <= 4:
        return f"Assumed service constants: {', '.join(assumed)}."
    return f"Rests on {len(assumed)} assumed service constants, listed in the report."


def write_pdf(drawing: Drawing, folder: Path) -> None:
    """Write the figure as folder/name.pdf."""
    (folder / f"{drawing.name}.pdf").write_bytes(drawing.pdf)


def _inline(svg: str, name: str) -> str:
    """Make the SVG part of a page: no XML prologue, a width that follows the page, IDs of its own."""
    svg = svg[svg.index("<svg") :]
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
