"""The simulator's error in the report: the newest comparison of the very profile, or that there is none. Made-up numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import MadeUp
from memory import Memory

from gpusched.report.analysis import Choice, analyse
from gpusched.report.build import build
from gpusched.report.dataset import load
from gpusched.report.fidelity import MEASURES, Fidelity, fidelity, fidelity_table, read

HASH = "feedbeef00000001"
GOAL = {"p50_s": 0.05, "p95_s": 0.05, "p99_s": 0.10}
OPINION = "every number here is the simulator’s opinion"


def told(*cases: tuple[str, float, float, float]) -> dict[str, Any]:
    """Return a result as job=fidelity writes it, from (name, level, error, half the interval's width) of each case."""
    rows = [
        {"case": name, "measure": measure, "real": 0.1, "sim": 0.1 * (1 + error), "error": error, "low": error - half, "high": error + half}
        for name, _, error, half in cases for measure in MEASURES
    ]  # fmt: skip
    notes = [
        {"name": name, "level": level, "users": 20, "host_busy_cores": 1.5} for name, level, _, _ in cases
    ]
    return {"came_from": {}, "goal": GOAL, "cores": 2, "cases": notes, "rows": rows}


GOOD = told(
    ("30%, made up", 0.3, 0.01, 0.02), ("70%, made up", 0.7, -0.04, 0.03), ("95%, made up", 0.95, 0.08, 0.02)
)


def compared(memory: Memory, folder: Path, text: str, **tags: str) -> str:
    """Store a comparison and return its run."""
    own = {
        "service": "made-up",
        "service_hash": HASH,
        "cluster": "local",
        "machine": "a machine",
        "git_commit": "0123456789abcdef",
    }
    with memory.start("fidelity", study="other", name="f", params={}, tags=own | tags) as run:
        path = folder / f"{run.id}.json"
        path.write_text(text)
        memory.files[run.id, "fidelity.json"] = path
    return run.id


def found(memory: Memory, **tags: str) -> Fidelity:
    """Return what is known for a study whose runs carry these tags."""
    made = MadeUp(
        policies=("hpa",), loads=("low",), seeds=2, series=False, tags={"service_hash": HASH} | tags
    )
    made.write(memory)
    return fidelity(load(memory, "study", allow_synthetic=True), memory)


def test_the_goal_is_counted_case_by_case(memory: Memory, tmp_path: Path) -> None:
    run = compared(memory, tmp_path, json.dumps(GOOD))
    known = found(memory)
    assert "cluster=local, profile made-up" in known.sentence
    assert "goal met in 2 of 3 cases" in known.sentence
    assert "in 1 the whole 95 % interval" in known.sentence
    assert "5 % at p50, 5 % at p95, 10 % at p99" in known.sentence
    rows = fidelity_table(known.evidence).rows
    assert [row[-1].text for row in rows] == ["met", "met †", "missed"]
    assert [row[-1].kind for row in rows] == ["better", "better", "worse"]
    late = rows[2][2:5]
    assert [cell.kind for cell in late] == ["worse", "worse", ""], "8 % is within 10 % at p99"
    assert late[0].text == "100 / 108, +8.0 % [6, 10]"
    assert late[0].values["error"] == pytest.approx(0.08)
    assert all(cell.runs == (run,) for row in rows for cell in row[1:])


def test_there_is_no_goal_beyond_saturation(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(told(("120%", 1.2, 0.5, 0.1), ("50%", 0.5, 0.0, 0.01))))
    known = found(memory)
    assert "goal met in 1 of 1 cases" in known.sentence
    assert [row[-1].text for row in fidelity_table(known.evidence).rows] == ["beyond saturation", "met"]


def test_never_compared(memory: Memory) -> None:
    known = found(memory)
    assert (
        known.sentence
        == f"The profile made-up was never compared with a real cluster (job=fidelity): {OPINION}."
    )
    assert (known.evidence, known.caveats) == ([], [])


@pytest.mark.parametrize(
    ("other", "kind"),
    [({"service": "gpu"}, "other profiles"), ({"service": "made-up[client_s.value=0]"}, "a profile of that name with other constants")],
)  # fmt: skip
def test_another_profile_is_no_evidence(
    memory: Memory, tmp_path: Path, other: dict[str, str], kind: str
) -> None:
    compared(memory, tmp_path, json.dumps(GOOD), service_hash="another", **other)
    known = found(memory)
    assert known.evidence == []
    assert OPINION in known.sentence
    assert f"Comparisons of {kind} are stored; they are no evidence for this one." in known.sentence


def test_runs_that_name_no_profile_match_nothing(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(GOOD), service_hash="")
    assert found(memory, service_hash="").evidence == []


def test_part_of_a_study_on_another_profile_is_told_apart(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(GOOD))
    MadeUp(policies=("ppo",), loads=("low",), seeds=2, series=False, trainings=False,
           tags={"service_hash": "another", "service": "thicker"}).write(memory)  # fmt: skip
    known = found(memory)
    assert len(known.evidence) == 1
    assert "2 of 4 runs are on a profile never compared with a real cluster" in known.sentence


def test_the_newest_one_counts(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(GOOD))
    newer = compared(memory, tmp_path, json.dumps(told(("30%", 0.3, 0.2, 0.01))), emulated="true")
    known = found(memory)
    assert [one.record.id for one in known.evidence] == [newer]
    assert "batches that slept instead of computing" in known.sentence
    assert "goal met in 0 of 1 cases" in known.sentence


def test_one_that_failed_or_still_runs_does_not_count(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(KeyError), memory.start(
        "fidelity", study="other", name="f", params={}, tags={"service_hash": HASH}
    ):  # fmt: skip
        raise KeyError
    assert found(memory).evidence == []


@pytest.mark.parametrize(
    "text",
    ["", json.dumps(GOOD)[:900], "[]", "{}", json.dumps(GOOD | {"cases": []}), json.dumps(GOOD | {"rows": GOOD["rows"][:5]}),
     json.dumps(GOOD | {"goal": {"p42_s": 0.1}}), json.dumps(GOOD | {"rows": [{"case": "x"}]}), json.dumps(GOOD | {"cores": "two"})],
)  # fmt: skip
def test_a_broken_result_is_one_message_and_an_older_one_is_taken(
    memory: Memory, tmp_path: Path, text: str
) -> None:
    with pytest.raises(ValueError):  # one of its kinds, whatever is wrong
        read(text)
    older = compared(memory, tmp_path, json.dumps(GOOD))
    broken = compared(memory, tmp_path, text)
    known = found(memory)
    (caveat,) = known.caveats
    assert f"of run {broken} is left out: its fidelity.json cannot be read" in caveat
    assert "Run job=fidelity again" in caveat and "\n" not in caveat
    assert [one.record.id for one in known.evidence] == [older]


def test_a_result_whose_file_is_gone_is_one_message(memory: Memory, tmp_path: Path) -> None:
    run = compared(memory, tmp_path, "")
    del memory.files[run, "fidelity.json"]
    known = found(memory)
    assert len(known.caveats) == 1
    assert OPINION in known.sentence


def test_a_commit_in_between_is_told(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(GOOD), git_commit="fedcba9876543210")
    (caveat,) = found(memory).caveats
    assert "at commit fedcba987654, and some of the runs at others" in caveat


def test_real_runs_need_no_simulator(memory: Memory, tmp_path: Path) -> None:
    compared(memory, tmp_path, json.dumps(GOOD))
    assert found(memory, cluster="local") == Fidelity()


def test_it_changes_no_other_table(memory: Memory, tmp_path: Path) -> None:
    MadeUp(loads=("low",), seeds=3, series=False, tags={"service_hash": HASH}).write(memory)
    before = analyse(memory, Choice(study="study", allow_synthetic=True))
    compared(memory, tmp_path, json.dumps(GOOD))
    after = analyse(memory, Choice(study="study", allow_synthetic=True))
    assert "fidelity" not in before.tables
    assert {**before.tables, "fidelity": after.tables["fidelity"]} == after.tables


@pytest.mark.slow
def test_the_page_shows_sentence_figure_and_table(memory: Memory, tmp_path: Path) -> None:
    MadeUp(loads=("low",), seeds=3, series=False, tags={"service_hash": HASH}).write(memory)
    run = compared(memory, tmp_path, json.dumps(GOOD))
    report = build(memory, out=tmp_path / "out", choice=Choice(study="study", allow_synthetic=True))
    page, text = ((report.folder / name).read_text() for name in ("index.html", "report.md"))
    for shown in (page, text):
        assert "goal met in 2 of 3 cases" in shown
    assert 'id="table-fidelity"' in page and 'id="fig-fidelity"' in page
    assert (report.folder / "figures" / "fidelity.pdf").stat().st_size > 1000
    assert {"fidelity.csv", "fidelity.tex"} <= {p.name for p in (report.folder / "tables").iterdir()}
    stored = json.loads((report.folder / "provenance.json").read_text())
    assert stored["runs"][run]["machine"] == "a machine"
    assert stored["figures"]["fidelity"] == [run]
