"""The check of accepted ratios: 20 % worse fails, noise passes, and what was not measured is named."""

import json
from pathlib import Path

import pytest

from benchmarks import check


def test_a_ratio_more_than_a_fifth_below_what_was_accepted_is_worse() -> None:
    lines, worse = check.compare({"a": 0.79, "b": 0.81, "c": 2.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0})
    assert worse == 1
    assert [line.split()[0] for line in lines] == ["WORSE", "ok", "ok", "not"]
    assert "not measured  d" in lines[3]


def test_ratios_are_read_from_the_reports_of_make_bench(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(
        json.dumps(
            {"service": {"summary": {"engine_per_c": 1.0}}, "M/M/3": {"summary": {"engine_per_simpy": 70}}}
        )
    )
    assert check.measured(tmp_path) == {
        "engine.json: service/summary/engine_per_c": 1.0,
        "engine.json: M~M/summary/engine_per_simpy": 70.0,
    }


def test_without_a_measurement_there_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BENCH", tmp_path)
    monkeypatch.setattr("sys.argv", ["check.py"])
    assert check.main() == 2
    assert "nothing measured yet" in capsys.readouterr().err
