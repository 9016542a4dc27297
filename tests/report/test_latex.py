"""LaTeX that compiles: everything escaped, as many cells as columns, parts that fit a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from golden_study import STUDY, golden_store
from hypothesis import given
from hypothesis import strategies as st

from gpusched.report.analysis import Choice, analyse
from gpusched.report.build import NO_LATEX, add_breakeven
from gpusched.report.latex import LINES, latex, to_latex
from gpusched.report.tables import Table, figures, words

AWKWARD = (
    r"50 % of a_b & {c} #1 $x$ ~ ^ \\ [x] \ "
    '“q” ‘q’ "q" α β δ σ ≤ ≥ ≈ → √ ± × − – — … ∞ † · \u2009é ü ł 中 🙂 ² ½ µ | < >'
)


def awkward(rows: int = 2, columns: int = 3, text: str = AWKWARD) -> Table:
    head = [(f"c{i}", f"{text[:30]} {i}") for i in range(columns)]
    cells = [[words(f"[{text}"), *[figures(text, {"": 1.0}, ["run_1"])] * (columns - 1)] for _ in range(rows)]
    return Table(name="awkward", title=text, columns=head, rows=cells, notes=[text])


@pytest.fixture(scope="module")
def golden_tables() -> dict[str, Table]:
    found = analyse(golden_store(), Choice(study=STUDY))
    add_breakeven(found)
    return {name: table for name, table in found.tables.items() if name not in NO_LATEX}


def tabulars(tex: str) -> list[tuple[int, list[str]]]:
    """Return of each tabular the number of its columns, and its rows."""
    found = []
    for align, body in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", tex, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        found.append((len(re.sub(r"p\{[^}]*\}", "p", align)), rows))
    return found


def balanced(tex: str) -> bool:
    """Whether braces that are not escaped close as they open."""
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", re.sub(r"(?m)^%.*$", "", tex)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def test_special_characters_are_escaped() -> None:
    assert latex("50 % of a_b") == r"50 \% of a\_b"
    assert latex("−1 ± 2 & α < 0.05") == r"$-$1 $\pm$ 2 \& $\alpha$ $<$ 0.05"
    assert latex("Hedges’ g [95 %]") == r"Hedges' g {[}95 \%{]}"
    assert latex("é中") == "éU+4E2D"
    assert latex("a\nb") == "a b"


@given(st.text())
def test_nothing_that_latex_reads_as_a_command_is_left(text: str) -> None:
    tex = latex(text)
    assert balanced(tex)
    bare = re.sub(r"\\[a-z]+\{\}|\\[&%$#_{},]|\$[^$]*\$", "", tex)
    assert not set(bare) & set('&%$#_^~\\<>|"') - {"~"}  # a tie is meant
    assert "\\\\" not in tex


def test_structure(golden_tables: dict[str, Table]) -> None:
    for table in [*golden_tables.values(), awkward(), awkward(columns=12), awkward(rows=60)]:
        tex = to_latex(table)
        assert balanced(tex), table.name
        for command in ("table", "tabular"):
            assert tex.count(rf"\begin{{{command}}}") == tex.count(rf"\end{{{command}}}") >= 1
        for columns, rows in tabulars(tex):
            assert rows
            cells = {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows}
            assert cells == {columns}, table.name
            assert len(rows) <= LINES + 1
        labels = re.findall(r"\\label\{(.*?)\}", tex)
        assert len(labels) == len(set(labels))
        assert all(f"% {run}\n" in tex for run in table.runs)


def test_every_row_and_column_is_in_some_part() -> None:
    cells = [[words(f"row {i}"), *[figures(f"{i:02}.{k} and more words", {"": i}, ["r"]) for k in range(9)]] for i in range(80)]  # fmt: skip
    table = Table(name="big", title="Big", columns=[("l", "Label"), *[(f"c{k}", f"C{k}") for k in range(9)]],
                  rows=cells)  # fmt: skip
    tex = to_latex(table)
    assert len(tabulars(tex)) >= 4
    assert all(tex.count(cell.text) == 1 for row in cells for cell in row[1:])
    assert tex.count("(1 of ") == 1


def test_all_of_the_report_is_plain_ascii(golden_tables: dict[str, Table]) -> None:
    for name, table in golden_tables.items():
        assert to_latex(table).isascii(), name


@pytest.mark.slow
def test_it_compiles(golden_tables: dict[str, Table], tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip(
            "no pdflatex on this machine (Debian: texlive-latex-recommended): only the structure is checked"
        )
    tables = {**golden_tables, "awkward": awkward(text=AWKWARD.replace("中", "").replace("🙂", ""))}
    for name, table in tables.items():
        (tmp_path / f"{name}.tex").write_text(to_latex(table))
    inputs = "\n".join(rf"\input{{{name}}}\clearpage" for name in tables)
    (tmp_path / "all.tex").write_text(
        "\\documentclass[11pt,a4paper]{article}\\usepackage[margin=25mm]{geometry}\\usepackage[T1]{fontenc}\n"
        f"\\usepackage{{booktabs,graphicx}}\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    done = subprocess.run([pdflatex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace", timeout=300, check=False)  # fmt: skip
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert "Float too large" not in log
    assert (tmp_path / "all.pdf").stat().st_size > 20_000
