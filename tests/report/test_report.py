"""The written report: complete, the same bytes twice, every number with its runs, nothing half written."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import MadeUp

from gpusched.core.errors import InputError, StoreError
from gpusched.report import build as builder
from gpusched.report.analysis import Choice, analyse
from gpusched.report.build import Report, build, folder_name
from gpusched.report.tables import to_csv
from gpusched.tracking.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"pareto", "breakeven", "convergence", "forest", "profiles", "qq", "time_low", "time_high", "latency_low",
           "latency_high", "kpi_reward_mean", "kpi_latency_p95_s"}  # fmt: skip


def made_up(study: str, **changes: object) -> Choice:
    return Choice(study=study, allow_synthetic=True, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def logged(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The made-up study with the requests of every trial."""
    folder = shutil.copytree(filled, tmp_path_factory.mktemp("logged") / "mlruns")
    store = Store(f"sqlite:///{folder}/mlflow.db")
    for i, trial in enumerate(store.find("study", "trial")):
        rng = np.random.default_rng(i)
        place = folder / "artifacts" / trial.id / "artifacts"
        np.savez(place / "requests.npz", start_s=rng.uniform(-60, 600, 500).astype(np.float32),
                 latency_s=rng.lognormal(-2, 0.4, 500).astype(np.float32), status=np.zeros(500, dtype=np.int8))  # fmt: skip
    return store


@pytest.fixture(scope="module")
def report(logged: Store, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build(logged, out=tmp_path_factory.mktemp("out"), choice=made_up("study"))


def test_everything_is_there(report: Report) -> None:
    names = {str(p.relative_to(report.folder)) for p in report.folder.rglob("*") if p.is_file()}
    assert {f"figures/{name}.pdf" for name in FIGURES} <= names
    tables = {"comparison", "tests", "means", "trainings", "breakeven"}
    assert {f"tables/{name}.{ending}" for name in tables for ending in ("csv", "tex")} <= names
    assert {"index.html", "report.md", "provenance.json", "tables/runs.csv", "tables/kpis.csv"} <= names
    assert len([n for n in names if n.startswith("figures/kpi_")]) == 8
    assert [p.name for p in report.folder.parent.iterdir()] == ["study"]  # no temporary folder is left


def test_the_same_store_gives_the_same_tables(report: Report, logged: Store) -> None:
    analysis = analyse(logged, made_up("study"))
    for name, table in analysis.tables.items():
        assert to_csv(table) == (report.folder / f"tables/{name}.csv").read_text()


AGAIN = """
import sys
from pathlib import Path
from gpusched.report import drawings
from gpusched.report.analysis import Choice
from gpusched.report.build import build
from gpusched.tracking.store import Store

if __name__ == "__main__":
    drawings.LARGE = 1
    build(Store(sys.argv[1]), out=Path(sys.argv[2]), choice=Choice(study="study", allow_synthetic=True))
"""


def test_the_same_store_gives_the_same_bytes(report: Report, logged: Store, tmp_path: Path) -> None:
    """In another process, with another order of sets, and with the figures shared between two processes."""
    (tmp_path / "again.py").write_text(AGAIN)
    subprocess.run([sys.executable, str(tmp_path / "again.py"), logged.uri, str(tmp_path / "out")], check=True,
                   env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)})  # fmt: skip
    again = tmp_path / "out" / "study"
    paths = sorted(p.relative_to(report.folder) for p in report.folder.rglob("*") if p.is_file())
    assert paths == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    unlike = [str(p) for p in paths if (report.folder / p).read_bytes() != (again / p).read_bytes()]
    assert unlike == []


def test_csv_holds_si_values_and_the_runs(report: Report, logged: Store) -> None:
    rows = list(csv.DictReader(io.StringIO((report.folder / "tables/comparison.csv").read_text())))
    row = next(r for r in rows if (r["load"], r["metric"]) == ("high", "latency_p95_s"))
    made = MadeUp()
    pairs = [(made.values("ppo", "high", s)["latency_p95_s"], made.values("hpa", "high", s)["latency_p95_s"])
             for s in range(5)]  # fmt: skip
    assert float(row["difference_mean"]) == pytest.approx(sum(a - b for a, b in pairs) / 5, rel=1e-9)
    assert float(row["candidate_mean"]) == pytest.approx(sum(a for a, _ in pairs) / 5, rel=1e-9)
    found = {f.id for f in logged.find("study", "trial", tags={"load": "high"})}
    assert set(row["run_ids"].split()) == found
    assert len(found) == 10


def test_every_number_names_its_runs(report: Report) -> None:
    stored = json.loads((report.folder / "provenance.json").read_text())
    for table in report.tables.values():
        for cell in stored["tables"][table.name]:
            assert cell["runs"]
            assert set(cell["runs"]) <= stored["runs"].keys()
    assert stored["figures"].keys() >= FIGURES
    assert all(set(runs) <= stored["runs"].keys() and runs for runs in stored["figures"].values())
    assert {v["load"]: len(v["runs"]) for v in stored["verdicts"]} == {"low": 10, "high": 10}
    run = stored["runs"][report.study.trials[0].id]
    assert run["git_commit"] == "0123456789abcdef"
    assert {"config_hash", "lock_hash"} <= run.keys()
    assert (report.folder / "report.md").read_text().count("Runs: `") >= 4


def test_a_number_of_an_unknown_run_is_not_written(logged: Store, tmp_path: Path, no_drawing: None,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def with_a_stranger(*args: object) -> object:
        found = analyse(*args)  # type: ignore[arg-type]
        first = found.tables["means"].rows[0]
        first[2] = replace(first[2], runs=("f" * 32,))
        return found

    monkeypatch.setattr(builder, "analyse", with_a_stranger)
    with pytest.raises(ValueError, match=r"means rests on run ffffffff"):
        build(logged, out=tmp_path, choice=made_up("study"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out where a test is about words."""
    from gpusched.report.drawings import Drawings

    monkeypatch.setattr("gpusched.report.drawings.draw", lambda *_: (Drawings(), []))


@pytest.mark.usefixtures("no_drawing")
def test_one_policy_only_is_described_without_comparison(own: Store, tmp_path: Path) -> None:
    MadeUp(name="lonely", policies=("hpa",), loads=("low",), series=False).write(own)
    report = build(own, out=tmp_path, choice=made_up("lonely"))
    page = (report.folder / "index.html").read_text()
    assert report.verdicts == []
    assert "Only hpa has runs that count" in page
    assert 'id="table-means"' in page
    assert not (report.folder / "tables/comparison.csv").exists()
    assert not (report.folder / "tables/breakeven.csv").exists()


def test_one_policy_one_seed_and_no_logs_are_drawn_all_the_same(own: Store, tmp_path: Path) -> None:
    MadeUp(name="bare", policies=("hpa",), loads=("low",), seeds=1, series=False).write(own)
    report = build(own, out=tmp_path, choice=made_up("bare"))
    assert {p.stem for p in (report.folder / "figures").iterdir()} >= {"pareto", "kpi_latency_p95_s"}
    page = (report.folder / "index.html").read_text()
    (run,) = report.study.trials
    assert f"Run {run.id} has no time series." in page
    assert f"Run {run.id} has no request log." in page


@pytest.mark.usefixtures("no_drawing")
def test_nothing_that_counts_is_still_a_report(own: Store, tmp_path: Path) -> None:
    MadeUp(name="spoilt", policies=("hpa",), loads=("low",), seeds=1, series=False,
           tags={"gate/readiness": "failed: not Ready"}).write(own)  # fmt: skip
    report = build(own, out=tmp_path, choice=made_up("spoilt"))
    page = (report.folder / "index.html").read_text()
    assert "No run counts" in page
    assert "gate readiness: not Ready" in page


def test_policies_that_are_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--candidate pop: .* Policies: hpa, ppo. Did you mean 'ppo'"):
        build(store, out=tmp_path, choice=made_up("study", candidate="pop"))
    with pytest.raises(InputError, match=r"are both 'ppo'"):
        build(store, out=tmp_path, choice=made_up("study", baseline="ppo", candidate="ppo"))
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written to .* --out"):
        build(store, out=tmp_path / "out", choice=made_up("study"))
    (tmp_path / "thesis" / "study").mkdir(parents=True)
    (tmp_path / "thesis" / "study" / "chapter.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"study holds something else than a report. .* --out"):
        build(store, out=tmp_path / "thesis", choice=made_up("study"))
    assert (tmp_path / "thesis" / "study" / "chapter.tex").read_text() == "mine"


@pytest.mark.usefixtures("no_drawing")
def test_a_broken_off_report_leaves_the_old_one(
    report: Report, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (report.folder / "index.html").read_bytes()
    monkeypatch.setattr("gpusched.report.page.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(store, out=report.folder.parent, choice=made_up("study"))
    assert (report.folder / "index.html").read_bytes() == before
    assert [p.name for p in report.folder.parent.iterdir()] == ["study"]


def test_study_names_as_folders() -> None:
    assert folder_name("study-1.a") == "study-1.a"
    assert re.fullmatch(r"a_b-[0-9a-f]{6}", folder_name("a/b"))
    assert folder_name("a/b") != folder_name("a b")
    assert "/" not in folder_name("../..")
    assert re.fullmatch(r"main-[0-9a-f]{6}", folder_name("main", "tags.load = 'low'"))


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "analyze.py"), *args], capture_output=True, text=True, check=False
    )


def test_analyze_writes_prints_and_logs(own: Store, tmp_path: Path) -> None:
    real = MadeUp(name="real", loads=("low",), seeds=3, tags={"synthetic": "false"})
    real.write(own)
    done = analyze("--uri", own.uri, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "low: ppo has" in done.stdout
    assert str(tmp_path / "real" / "index.html") in done.stdout
    (run,) = own.find("real", "analysis")
    assert "git_commit" in run.tags
    assert (
        own.download(run.id, "report/index.html").read_bytes() == (tmp_path / "real/index.html").read_bytes()
    )


def test_analyze_answers_mistakes_with_one_message(own: Store, tmp_path: Path) -> None:
    mistakes = {
        "There is no tracking database": ["--uri", f"sqlite:///{tmp_path}/none/mlflow.db"],
        "Did you mean 'study'": ["--uri", own.uri, "--study", "studdy"],
        "made-up numbers": ["--uri", own.uri, "--study", "study"],
    }
    for message, args in mistakes.items():
        done = analyze(*args, "--out", str(tmp_path))
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
