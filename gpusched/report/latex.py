"""Tables in LaTeX: booktabs, everything escaped, cut so that each part fits a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from gpusched.report.tables import Cell, Table

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "–": "--", "—": "---",
    "<": "$<$", ">": "$>$", "×": r"$\times$", "∞": r"$\infty$", "≥": r"$\geq$", "≤": r"$\leq$", "≈": r"$\approx$",
    "·": r"$\cdot$", "→": r"$\rightarrow$", "√": r"$\surd$", "∪": r"$\cup$", "†": r"\dag{}", "‡": r"\ddag{}",
    "\u2009": r"\,", "\u202f": r"\,", "\u00a0": "~", "\u2011": "-", "’": "'", "‘": "`", "“": "``", "”": "''",
    "…": r"\ldots{}", "²": "$^2$", "³": "$^3$", "½": "$1/2$", "µ": r"$\mu$", "μ": r"$\mu$", "α": r"$\alpha$",
    "β": r"$\beta$", "Δ": r"$\Delta$", "δ": r"$\delta$", "σ": r"$\sigma$", "τ": r"$\tau$", "ρ": r"$\rho$",
    # A bracket after the \\ of a row would be its argument.
    "[": "{[}", "]": "{]}", '"': "''", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip
FEW = 10
"""More runs than this are only counted under a table; a comment in the file names them."""
LINE, PAGE, LINES = 48, 118, 46
"""Characters of a column before its words are broken into lines, characters across a page, and lines down it."""
BROKEN = 34
"""Characters in a line of a column that is broken."""

Rows = list[list[Cell]]


def to_latex(table: Table) -> str:
    """Return the table as one or more floats, ready to be \\input; a comment names the runs behind it.

    What is too wide or too long for a page follows in a float of its own, with the labels again.
    """
    comment = "".join(f"% {run}\n" for run in table.runs)
    parts = list(_parts(table))
    floats = [_float(table, columns, rows, i, len(parts)) for i, (columns, rows) in enumerate(parts)]
    return f"% Needs \\usepackage{{booktabs,graphicx}}. Runs behind it:\n{comment}" + "\n".join(floats)


def latex(text: str) -> str:
    """Return the text with everything LaTeX reads as a command escaped; it holds only ASCII and Latin letters."""
    return "".join(LATEX.get(c) or _letter(c) for c in text)


def _letter(c: str) -> str:
    """Return a character that needs no command: LaTeX reads UTF-8, but its fonts know letters only."""
    if c.isascii() or "LATIN" in unicodedata.name(c, ""):
        return c
    return f"U+{ord(c):04X}"


def _float(table: Table, columns: list[int], rows: Rows, i: int, parts: int) -> str:
    """Return part i of the table; the last one has the notes."""
    part, label = (f" ({i + 1} of {parts})", f"-{i + 1}" if i else "") if parts > 1 else ("", "")
    notes = [latex(note) for note in table.notes] + (
        [f"Runs: {latex(_short(table.runs))}."] if table.runs else []
    )
    below = (
        "\\par\\smallskip\\raggedright\n" + "\\par\n".join(notes) + "\n" if notes and i == parts - 1 else ""
    )
    return (
        "\\begin{table}[htbp]\n\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}\\setlength{\\belowcaptionskip}{4pt}\n"
        f"\\caption{{{latex(table.title)}{part}}}\n\\label{{tab:{table.name}{label}}}\n"
        f"{_tabular(table, columns, rows)}{below}\\end{{table}}\n"
    )


def _tabular(table: Table, columns: list[int], rows: Rows) -> str:
    """Return some of the table, scaled down where it is wider than the text all the same."""
    align = "".join(_align(table, i) for i in columns)
    head = " & ".join(latex(table.columns[i][1]) for i in columns)
    return (
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{_body(table, columns, rows)}\n\\bottomrule\n"
        "\\end{tabular}}\n"
    )


def _parts(table: Table) -> Iterator[tuple[list[int], Rows]]:
    """Yield columns and rows of each part: rows with nothing to show in the columns are left out."""
    for columns in _blocks(table):
        rows = [row for row in table.rows if any(row[i].text for i in columns[table.labels :])]
        if len(columns) == table.labels:
            rows = table.rows
        pages: list[Rows] = [[]]
        lines = 0
        for row in rows:
            tall = max(-(-len(row[i].text) // BROKEN) if _broken(table, i) else 1 for i in columns)
            if pages[-1] and lines + tall > LINES:
                pages.append([])
                lines = 0
            pages[-1].append(row)
            lines += tall
        yield from ((columns, page) for page in pages if page)


def _blocks(table: Table) -> list[list[int]]:
    """Return the columns of each part: the labels, and as many of the others that say anything as fit a page."""
    widths = [
        min(max(len(text) for text in (title, *(row[i].text for row in table.rows))), LINE) + 2
        for i, (_, title) in enumerate(table.columns)
    ]
    labels = list(range(table.labels))
    blocks = [labels.copy()]
    for i in range(table.labels, len(widths)):
        if not any(row[i].text for row in table.rows):
            continue
        if len(blocks[-1]) > len(labels) and sum(widths[k] for k in (*blocks[-1], i)) > PAGE:
            blocks.append(labels.copy())
        blocks[-1].append(i)
    return blocks


def _broken(table: Table, i: int) -> bool:
    return any(len(row[i].text) > LINE for row in table.rows)


def _align(table: Table, i: int) -> str:
    """Return the type of a column: labels to the left, numbers to the right, sentences in lines."""
    if _broken(table, i):
        return r"p{0.3\linewidth}"
    return "l" if i < table.labels else "r"


def _body(table: Table, columns: list[int], rows: Rows) -> str:
    """Return the rows; where rows have several labels, the first stands once per group and a gap parts the groups."""
    lines: list[str] = []
    last = ""
    for row in rows:
        cells = [latex(row[i].text) for i in columns]
        first = row[0].text
        if table.labels > 1 and first == last:
            cells[0] = ""
        elif table.labels > 1 and lines:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(cells) + r" \\")
        last = first
    return "\n".join(lines)


def _short(runs: list[str]) -> str:
    if len(runs) > FEW:
        return f"{len(runs)}, named in provenance.json"
    return ", ".join(run[:8] for run in runs)
