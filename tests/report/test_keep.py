"""What is kept beside the code is small, says where it came from, and replaces what was there as a whole."""

import json
from pathlib import Path

import pytest

from gpusched.core.errors import InputError, StoreError
from gpusched.report.keep import LARGE_BYTES, keep


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    for name, size in (("tables/means.csv", 100), ("tables/runs.csv", LARGE_BYTES + 1), ("figures/pareto.pdf", 50),
                       ("index.html", 10), ("tables/means.tex", 10)):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * size)
    (folder / "tables" / "means.csv").write_text(f"load,n,run_ids\nlow,5,{'a ' * LARGE_BYTES}\n")
    runs = {f"run{k}": {"git_commit": "abc", "config_hash": str(k)} for k in range(7)}
    (folder / "provenance.json").write_text(
        json.dumps({"study": "s", "filter": "", "analysis": {}, "assumed": ["gpu_cv"], "runs": runs})
    )
    return folder


def test_small_tables_without_their_runs_and_figures_are_kept(report: Path, tmp_path: Path) -> None:
    kept = keep(report, tmp_path / "kept", "python analyze.py --study s")
    names = {str(path.relative_to(tmp_path / "kept")) for path in kept}
    assert names == {"tables/means.csv", "figures/pareto.pdf", "provenance.json"}
    assert (tmp_path / "kept" / "tables" / "means.csv").read_text() == "load,n\nlow,5\n"
    told = json.loads((tmp_path / "kept" / "provenance.json").read_text())
    assert told["command"] == "python analyze.py --study s"
    assert (told["runs"], told["git_commit"]) == (7, {"abc": 7})
    assert told["config_hash"] == "7 different"


def test_what_was_there_is_replaced_as_a_whole(report: Path, tmp_path: Path) -> None:
    (tmp_path / "kept" / "tables").mkdir(parents=True)
    (tmp_path / "kept" / "tables" / "old.csv").write_text("old")
    (tmp_path / "kept" / "provenance.json").write_text("{}")
    keep(report, tmp_path / "kept", "")
    assert not (tmp_path / "kept" / "tables" / "old.csv").exists()


@pytest.mark.parametrize("name", ["docs", "docs/results", "docs/results/..", "file", "paper"])
def test_nothing_else_is_deleted(report: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "docs" / "results" / "full").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "paper" / "figures").mkdir(parents=True)  # a thesis has folders of these names, too
    with pytest.raises(InputError, match="--keep"):
        keep(report, tmp_path / name, "")
    assert (tmp_path / "paper" / "figures").exists()
    assert (tmp_path / "docs" / "results" / "full").exists() and (tmp_path / "file").read_text() == "mine"


def test_the_folder_one_stands_in_is_refused(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="--keep"):
        keep(report, Path("."), "")


def test_a_folder_that_cannot_be_written_is_told(report: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Name another folder with --keep"):
        keep(report, tmp_path / "file" / "kept", "")
