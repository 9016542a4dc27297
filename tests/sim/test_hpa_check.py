"""The checker of case files: what passes, fails and is skipped, and which files it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpusched.sim import hpa_cases
from gpusched.sim.hpa_check import differences, main

EXAMPLES = Path(__file__).parents[2] / ".." / "shared" / "hpa_examples.json"

CASE = {
    "id": "made-up/one",
    "kind": "convert_legacy",
    "now_s": 0.0,
    "controller": {
        "tolerance": 0.1,
        "cpu_initialization_period_s": 300,
        "initial_readiness_delay_s": 30,
        "downscale_stabilization_s": 300,
        "scale_up_limit_factor": 2.0,
        "scale_up_limit_min": 4.0,
        "feature_gates": {},
    },
    "input": {"current_replicas": 3, "desired": 9, "min_replicas": 1, "max_replicas": 20},
    "expected": {"replicas": 6, "reason": "ScaleUpLimit"},
}


def write(path: Path, **changes: Any) -> str:
    """A file with one case, changed."""
    path.write_text(json.dumps({"schema": "hpa-vectors/1", "cases": [{**CASE, **changes}]}))
    return str(path)


def test_checker_passes_fails_and_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(tmp_path / "a.json")]) == 0
    assert "1 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    assert main([write(tmp_path / "b.json", expected={"replicas": 7, "reason": "ScaleUpLimit"})]) == 1
    assert "FAILED made-up/one: replicas: expected 7, came 6" in capsys.readouterr().out
    assert main([write(tmp_path / "c.json", kind="tea_leaves")]) == 0
    assert "0 passed, 0 failed, 1 skipped" in capsys.readouterr().out
    assert main([write(tmp_path / "d.json", expected={"mood": "good"})]) == 0
    assert "0 passed, 0 failed, 1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ('{"schema": "hpa-vectors/2", "cases": []}', "hpa-vectors/1"),
        ('{"schema": "hpa-vectors/1", "cases": []}', "at least one case"),
        ('{"schema": "hpa-vectors/1", "cases": [{"id": "x"}]}', "cases[0]"),
        (json.dumps({"schema": "hpa-vectors/1", "cases": [{**CASE, "input": {}}]}), "made-up/one"),
    ],
)
def test_checker_refuses_bad_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "cases.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert "Traceback" not in error


def test_examples_from_the_unit_tests_of_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    if not EXAMPLES.exists():
        pytest.skip("the case file hpa_examples.json is not beside this checkout")
    assert main([str(EXAMPLES)]) == 0
    assert "328 passed, 0 failed, 0 skipped" in capsys.readouterr().out


def test_what_the_api_would_refuse_is_read_as_upstream_reads_it() -> None:
    assert (
        hpa_cases.metric_row({"type": "Resource", "resource": "cpu", "target_type": "Value", "target_m": 5})[
            2
        ]
        == (hpa_cases.TARGETS[None])
    )
    assert hpa_cases.rules({"policies": []}).policies == []  # type: ignore[union-attr]
    assert hpa_cases.external_sum([-(2**63), -1], average=False) == 2**63 - 1
    pod = {"containers": [{"name": "a", "requests_m": {}}], "pod_requests_m": {"nvidia.com/gpu": 1000}}
    with pytest.raises(hpa_cases.MetricError):
        hpa_cases.pod_request(pod, "cpu", "", gate=True)


def test_a_missing_pod_level_request_is_a_missing_request(tmp_path: Path) -> None:
    given = {"error": "missing pod-level request for cpu in Pod p0"}
    assert differences(given, {"error_class": "missing_request"}) == []
    assert differences(given, {"error_class": "no_pods"}) != []
