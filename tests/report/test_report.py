"""The written report: complete, the same bytes twice, every number with its runs, and a page a browser draws."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import MadeUp

from gpusched.core.errors import InputError, StoreError
from gpusched.report import contents, style
from gpusched.report.build import Report, build, folder_name
from gpusched.report.compare import compare
from gpusched.report.dataset import load
from gpusched.report.figures import front, pareto_figure
from gpusched.report.tables import Cell, Table, figures, latex, to_csv, to_latex, to_markdown, words
from gpusched.tracking.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build(store, out=tmp_path_factory.mktemp("out"), study="study", allow_synthetic=True)


def test_everything_is_there(report: Report) -> None:
    names = {str(p.relative_to(report.folder)) for p in report.folder.rglob("*") if p.is_file()}
    figures_ = {
        "pareto",
        "convergence",
        "time_low",
        "time_high",
        "kpi_reward_mean",
        "kpi_latency_p95_s",
    }
    assert {f"figures/{name}.pdf" for name in figures_} <= names
    tables = {"comparison", "tests", "means", "trainings"}
    assert {f"tables/{name}.{ending}" for name in tables for ending in ("csv", "tex")} <= names
    assert {"index.html", "report.md", "provenance.json", "tables/runs.csv", "tables/kpis.csv"} <= names
    assert len([n for n in names if n.startswith("figures/kpi_")]) == 8
    assert [p.name for p in report.folder.parent.iterdir()] == ["study"]  # no temporary folder is left


def test_the_same_store_gives_the_same_tables_and_pictures(report: Report, store: Store) -> None:
    study = load(store, "study", allow_synthetic=True)
    tables = contents.tables(study, compare(study, "hpa", "ppo"), ["hpa", "ppo"])
    for name, table in tables.items():
        assert to_csv(table) == (report.folder / f"tables/{name}.csv").read_text()
    with style.styled():
        drawing = pareto_figure(study, ["hpa", "ppo"])
    assert drawing is not None
    assert drawing.pdf == (report.folder / "figures/pareto.pdf").read_bytes()
    assert drawing.svg in (report.folder / "index.html").read_text()


@pytest.mark.slow
def test_the_same_store_gives_the_same_bytes(report: Report, store: Store, tmp_path: Path) -> None:
    again = build(store, out=tmp_path, study="study", allow_synthetic=True)
    assert again.digest == report.digest
    for path in report.folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again.folder / path.relative_to(report.folder)).read_bytes(), (
                path.name
            )


def test_csv_holds_si_values_and_the_runs(report: Report, store: Store) -> None:
    rows = list(csv.DictReader(io.StringIO((report.folder / "tables/comparison.csv").read_text())))
    row = next(r for r in rows if (r["load"], r["metric"]) == ("high", "latency_p95_s"))
    made = MadeUp()
    pairs = [(made.values("ppo", "high", s)["latency_p95_s"], made.values("hpa", "high", s)["latency_p95_s"])
             for s in range(5)]  # fmt: skip
    assert float(row["difference_mean"]) == pytest.approx(sum(a - b for a, b in pairs) / 5, rel=1e-9)
    assert float(row["candidate_mean"]) == pytest.approx(sum(a for a, _ in pairs) / 5, rel=1e-9)
    found = {f.id for f in store.find("study", "trial", tags={"load": "high"})}
    assert set(row["run_ids"].split()) == found
    assert len(found) == 10


def test_every_number_names_its_runs(report: Report) -> None:
    stored = json.loads((report.folder / "provenance.json").read_text())
    for table in report.tables.values():
        for cell in stored["tables"][table.name]:
            assert cell["runs"]
            assert set(cell["runs"]) <= stored["runs"].keys()
    assert all(stored["figures"].values())
    run = stored["runs"][report.study.trials[0].id]
    assert run["git_commit"] == "0123456789abcdef"
    assert {"config_hash", "lock_hash"} <= run.keys()
    text = (report.folder / "report.md").read_text()
    assert text.count("Runs: `") >= 4


def test_a_number_without_a_run_is_not_printed() -> None:
    with pytest.raises(ValueError, match=r"no run stands behind"):
        figures("1.0", {"": 1.0}, [])


def test_latex_and_markdown_are_escaped() -> None:
    table = Table(name="t", title="50 % of a_b", columns=[("a", "A & B"), ("b", "x|y")],
                  rows=[[words("load_1"), figures("−1 ± 2", {"": -1.0}, ["run1"])]], notes=["α < 0.05"])  # fmt: skip
    tex = to_latex(table)
    assert r"\caption{50 \% of a\_b}" in tex
    assert r"load\_1 & $-$1 $\pm$ 2 \\" in tex
    assert r"$\alpha$ $<$ 0.05" in tex
    assert tex.isascii()
    assert "x\\|y" in to_markdown(table)
    assert to_csv(table) == "a,b,run_ids\nload_1,-1,run1\n"
    assert latex("Hedges’ g") == "Hedges' g"
    with pytest.raises(ValueError, match=r"another number of cells"):
        Table(name="t", title="", columns=[("a", "A")], rows=[[Cell(text="x"), Cell(text="y")]])


def test_all_latex_is_plain_ascii(report: Report) -> None:
    for path in (report.folder / "tables").glob("*.tex"):
        assert path.read_text().isascii(), path.name


def test_the_page_needs_no_network(report: Report) -> None:
    page = (report.folder / "index.html").read_text()
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script" not in page
    assert page.count("<svg") == 12
    assert "Made-up numbers" in page
    assert "5 assumed service constants" in page


def test_ids_of_the_page_are_unique(report: Report) -> None:
    ids = re.findall(r'(?<=[\s"])id="([^"]+)"', (report.folder / "index.html").read_text())
    assert len(ids) == len(set(ids))


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out where a test is about words."""
    monkeypatch.setattr("gpusched.report.figures.kpi_figures", lambda *_: [])
    monkeypatch.setattr("gpusched.report.figures.pareto_figure", lambda *_: None)
    monkeypatch.setattr("gpusched.report.curves.time_figures", lambda *_: ([], []))
    monkeypatch.setattr("gpusched.report.curves.convergence_figure", lambda *_: None)


@pytest.mark.usefixtures("no_drawing")
def test_one_policy_only_is_described_without_comparison(own: Store, tmp_path: Path) -> None:
    MadeUp(name="lonely", policies=("hpa",), loads=("low",), series=False).write(own)
    report = build(own, out=tmp_path, study="lonely", allow_synthetic=True)
    page = (report.folder / "index.html").read_text()
    assert report.verdicts == []
    assert "Only hpa has runs that count" in page
    assert 'id="table-means"' in page
    assert not (report.folder / "tables/comparison.csv").exists()


@pytest.mark.usefixtures("no_drawing")
def test_nothing_that_counts_is_still_a_report(own: Store, tmp_path: Path) -> None:
    MadeUp(name="spoilt", policies=("hpa",), loads=("low",), seeds=1, series=False,
           tags={"gate/readiness": "failed: not Ready"}).write(own)  # fmt: skip
    report = build(own, out=tmp_path, study="spoilt", allow_synthetic=True)
    page = (report.folder / "index.html").read_text()
    assert "No run counts" in page
    assert "gate readiness: not Ready" in page


def test_policies_that_are_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--candidate pop: .* Policies: hpa, ppo. Did you mean 'ppo'"):
        build(store, out=tmp_path, study="study", candidate="pop", allow_synthetic=True)
    with pytest.raises(InputError, match=r"are both 'ppo'"):
        build(store, out=tmp_path, study="study", baseline="ppo", allow_synthetic=True)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written to .* --out"):
        build(store, out=tmp_path / "out", study="study", allow_synthetic=True)


@pytest.mark.usefixtures("no_drawing")
def test_a_broken_off_report_leaves_the_old_one(
    report: Report, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (report.folder / "index.html").read_bytes()
    monkeypatch.setattr("gpusched.report.build._render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(store, out=report.folder.parent, study="study", allow_synthetic=True)
    assert (report.folder / "index.html").read_bytes() == before
    assert [p.name for p in report.folder.parent.iterdir()] == ["study"]


def test_study_names_as_folders() -> None:
    assert folder_name("study-1.a") == "study-1.a"
    assert re.fullmatch(r"a_b-[0-9a-f]{6}", folder_name("a/b"))
    assert folder_name("a/b") != folder_name("a b")
    assert "/" not in folder_name("../..")


def test_the_front_by_hand() -> None:
    points = {"a": (1.0, 9.0), "b": (2.0, 5.0), "c": (3.0, 5.0), "d": (4.0, 1.0), "e": (4.0, 1.0)}
    assert front(points) == ["a", "b", "d", "e"]  # c costs more than b for the same; d and e are equal


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "analyze.py"), *args], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_browser_draws_the_page(report: Report, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1440,950",
             "--enable-logging=stderr", "--v=0"]  # fmt: skip
    page = (report.folder / "index.html").as_uri()
    shot = subprocess.run([chromium, *flags, f"--screenshot={tmp_path / 'page.png'}", page],
                          capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    assert "CONSOLE" not in shot.stderr
    from matplotlib.image import imread

    pixels = imread(tmp_path / "page.png")
    assert pixels.shape[:2] == (950, 1440)
    table, pareto = pixels[300:600, 60:740, :3], pixels[320:520, 780:1380, :3]
    for part in (table, pareto):  # a blank part would have one colour
        assert part.std() > 0.05
    dumped = subprocess.run(
        [chromium, *flags, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True
    )
    assert dumped.stdout.count("<svg") == 12
