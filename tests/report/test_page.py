"""The page: one file without network, looked at in a headless browser; its first screen shows what matters."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from golden_study import STUDY, golden_store
from matplotlib.image import imread
from test_report import logged as logged
from test_report import report as report

from gpusched.report.analysis import Choice
from gpusched.report.build import Report, build

pytestmark = pytest.mark.slow

SCREENS = Path(os.environ.get("GPUSCHED_CI_OUT", Path(__file__).resolve().parents[2] / "outputs" / "ci"))
"""Where screenshots are kept; git ignores it, CI stores it."""
WIDE, HIGH = 1440, 900
FIRST = ("#verdict .verdict", "#headline", "#fig-pareto svg")
FIGURES = 18
MEASURE = """
<script>
const found = {};
for (const name of %s) {
  const box = document.querySelector(name)?.getBoundingClientRect();
  found[name] = box ? [box.left, box.top, box.right, box.bottom] : null;
}
const figures = [...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect());
found.figures = figures.filter(box => box.width > 200 && box.height > 80).length;
found.width = document.documentElement.scrollWidth;
document.documentElement.setAttribute("data-found", JSON.stringify(found));
</script>
"""


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real study with hypotheses, three loads and three policies."""
    return build(golden_store(), out=tmp_path_factory.mktemp("golden"), choice=Choice(study=STUDY))


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    return found


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page without network and return what the browser says."""
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", f"--window-size={WIDE},{HIGH}",
             "--enable-logging=stderr", "--v=0"]  # fmt: skip
    return subprocess.run([chromium(), *usual, *flags, page.as_uri()], capture_output=True, text=True, timeout=180, check=True)  # fmt: skip


def measured(page: Path, place: Path) -> dict[str, object]:
    """Return where the browser puts the parts of the first screen, and how many figures have a size."""
    copy = place / "measured.html"
    copy.write_text(page.read_text().replace("</body>", MEASURE % json.dumps(FIRST) + "</body>"))
    dump = browse(copy, place / "profile", "--dump-dom").stdout
    found = re.search(r'data-found="([^"]*)"', dump)
    assert found, "the page's script did not run"
    result: dict[str, object] = json.loads(found.group(1).replace("&quot;", '"'))
    return result


@pytest.mark.slow
def test_the_page_needs_no_network(report: Report) -> None:
    page = (report.folder / "index.html").read_text()
    assert not re.search(
        r'(src|href|action|data)="(?!#|data:|figures/|tables/|report\.md|provenance\.json)', page
    )
    assert not re.search(r"(@import|url\((?!#))", page)
    assert "<script" not in page
    assert "<link" not in page.replace('<link rel="icon" href="data:,">', "")
    assert page.count("<svg") == FIGURES
    assert "Made-up numbers" in page
    assert "5 assumed service constants" in page


@pytest.mark.slow
def test_every_link_leads_somewhere(report: Report) -> None:
    page = (report.folder / "index.html").read_text()
    ids = re.findall(r'(?<=[\s"])id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="([^"]+)"', page)) - {"data:,"}
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert all((report.folder / t).exists() for t in targets if not t.startswith("#"))


@pytest.mark.slow
def test_a_browser_draws_the_page(report: Report, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    said = browse(report.folder / "index.html", tmp_path / "profile", f"--screenshot={shot}")
    assert "CONSOLE" not in said.stderr
    found = measured(report.folder / "index.html", tmp_path)
    assert found["figures"] == FIGURES
    assert found["width"] == WIDE  # nothing sticks out to the right


@pytest.mark.slow
def test_the_first_screen_shows_verdict_table_and_front(golden: Report, tmp_path: Path) -> None:
    page, shot = golden.folder / "index.html", tmp_path / "page.png"
    said = browse(page, tmp_path / "profile", f"--screenshot={shot}")
    assert "CONSOLE" not in said.stderr
    SCREENS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shot, SCREENS / "report.png")
    found = measured(page, tmp_path)
    pixels = imread(shot)
    assert pixels.shape[:2] == (HIGH, WIDE)
    for name in FIRST:
        box = found[name]
        assert isinstance(box, list), f"{name} is not on the page"
        left, top, right, bottom = (round(x) for x in box)
        assert 0 <= left < right <= WIDE, name
        assert 0 <= top < bottom <= HIGH, f"{name} ends at {bottom} px, the first screen at {HIGH}"
        assert pixels[top:bottom, left:right, :3].std() > 0.05, f"{name} is blank"
