"""Tables: no number without a run, stored values in CSV, and Markdown that is read as it was meant."""

import pytest

from gpusched.report.tables import Cell, Table, figures, provenance, to_csv, to_markdown, words


def table(*rows: list[Cell], labels: int = 1, notes: tuple[str, ...] = ()) -> Table:
    columns = [(f"c{i}", f"Column {i}") for i in range(len(rows[0]))]
    return Table(name="t", title="Title", columns=columns, rows=list(rows), labels=labels, notes=list(notes))


def test_a_number_without_a_run_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"no run stands behind '1.0'"):
        figures("1.0", {"": 1.0}, [])
    with pytest.raises(ValueError, match=r"no run stands behind '1.0'"):
        Cell(text="1.0", values={"": 1.0})
    with pytest.raises(ValueError, match=r"no run stands behind 'three'"):
        Cell(text="three", values={"": 3})


def test_a_number_cannot_hide_in_words() -> None:
    assert words("spike 2").runs == ()  # a name of a row may hold digits
    table([words("spike 2"), words("better")])
    with pytest.raises(ValueError, match=r"table t, column c1: no run stands behind 'p = 0.01'"):
        table([words("spike"), words("p = 0.01")])
    with pytest.raises(ValueError, match=r"column c1: no run stands behind '٣'"):
        table([words("spike"), Cell(text="٣")])
    table([words("spike"), words("p = 0.01", runs=["run"])])


def test_rows_are_as_long_as_the_head() -> None:
    with pytest.raises(ValueError, match=r"another number of cells"):
        Table(name="t", title="", columns=[("a", "A")], rows=[[Cell(text="x"), Cell(text="y")]])


def test_csv_holds_values_and_runs_and_leaves_gaps_empty() -> None:
    made = table(
        [words("low"), figures("1 ± 2", {"mean": 0.1 + 0.2, "sd": float("nan")}, ["b", "a", "b"])],
        [words("high"), figures("–", {"mean": float("nan"), "sd": 2.0}, ["c"])],
    )
    assert to_csv(made) == "c0,c1_mean,c1_sd,run_ids\nlow,0.3,,b a\nhigh,,2,c\n"
    assert made.runs == ["b", "a", "c"]
    assert provenance(made)[0] == {"row": ["low"], "column": "c1", "values": {"mean": 0.1 + 0.2}, "runs": ["b", "a", "b"]}  # fmt: skip


def test_a_message_of_several_lines_stays_in_its_row() -> None:
    table = Table(
        name="x", title="X", columns=[("why", "Why")], rows=[[words("one\ntwo")]], labels=1, notes=[]
    )
    assert "| one two |" in to_markdown(table)


def test_markdown_names_few_runs_and_counts_many() -> None:
    few = table([words("a|b"), figures("1", {"": 1}, ["run1"])], notes=("A note.",))
    text = to_markdown(few)
    assert "| a\\|b | 1 |" in text
    assert "A note." in text
    assert "Runs: `run1`" in text
    many = table([words("a"), figures("1", {"": 1}, [f"run{i}" for i in range(101)])])
    assert "Runs: 101, named in provenance.json" in to_markdown(many)
    assert "Runs" not in to_markdown(table([words("a"), words("b")]))
