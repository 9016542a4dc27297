"""kill -9 of a sweep or of its workers at any moment: resume=true makes the study whole, and nothing counts twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.torture import JOBS, torture


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_killed_again_and_again_becomes_whole(launcher: str, tmp_path: Path) -> None:
    story = torture(tmp_path, kills=3, seed=7, launcher=launcher)
    assert (story.finished, story.doubled, story.differing) == (JOBS, 0, 0), story
