"""Queries evaluated by Prometheus itself (promtool) on made-up series."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian package prometheus)")

STEP_S, END_S = 5, 120
"""A sample is taken every STEP_S; queries are evaluated at END_S."""


def evaluate(
    query: str, expected: list[dict[str, object]], folder: Path, given: list[dict[str, str]]
) -> None:
    """Let Prometheus evaluate a query over the given series; fails unless it answers as expected."""
    asked = {"expr": query, "eval_time": f"{END_S}s", "exp_samples": expected}
    test = {"interval": f"{STEP_S}s", "input_series": given, "promql_expr_test": [asked]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": f"{STEP_S}s", "tests": [test]}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
