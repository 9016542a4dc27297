"""Traces: files read as they are meant, a ring without a seam, and a reason for every file refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.core.errors import InputError
from gpusched.load.trace import Trace, read_times


def trace(path: Path, **more: Any) -> Trace:
    return Trace(
        Trace.Config(**{"path": str(path), "column": "0", "scale": 1.0, "random_start": False, **more})
    )


def arrivals(load: Trace, duration_s: float, seed: int = 0) -> np.ndarray:
    plan = load.plan(duration_s, np.random.default_rng(seed))
    assert plan.is_open
    assert plan.arrivals_s_N is not None
    return plan.arrivals_s_N


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


@pytest.mark.parametrize(
    "text",
    [
        "100.5\n101\n103.25\n",
        "t\n100.5\n101\n103.25\n",
        "\ufefft,size\n100.5,3\n\n101,4\n103.25,5\n",
        "1.005e2\n101\n103.25",
        "TIMESTAMP,Tokens\n2023-11-16 18:15:46.0000000,374\n2023-11-16 18:15:46.5000000,1\n2023-11-16 18:15:48.7500000,2\n",
        "2023-11-16T23:59:59Z\n2023-11-16T23:59:59.500Z\n2023-11-17T00:00:01.750Z\n",
        "2023-11-16T23:59:59+00:00\n2023-11-17T00:59:59.500+01:00\n2023-11-17T00:00:01.750Z\n",
    ],
)
def test_seconds_and_timestamps_with_and_without_a_header(file: Path, text: str) -> None:
    file.write_text(text)
    assert list(read_times(file, "0")) == pytest.approx([0.0, 0.5, 2.75])


def test_a_column_by_name_or_index(file: Path) -> None:
    file.write_text("id,at\n9,0\n8,1.5\n")
    assert list(read_times(file, "at")) == [0.0, 1.5]
    assert list(read_times(file, "1")) == [0.0, 1.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("time\n", "no two different times"),
        ("5\n", "no two different times"),
        ("5\n5\n", "no two different times"),
        ("0\n2\n1\n", "line 3 is earlier"),
        ("0\nsoon\n", "line 2 holds 'soon'"),
        ("hello\nworld\n", "line 2 holds 'world'"),
        ("0\nnan\n", "line 2 holds 'nan'"),
        ("0\n2023-11-16 18:15:46\n", "line 2 holds '2023"),
        ("2023-11-16 18:15:46\n2023-11-16T18:15:46Z\n", "line 2"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_line(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read_times(file, "0")


def test_a_file_that_is_missing_or_not_text(file: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_times(file, "0")
    with pytest.raises(InputError, match="cannot be read"):
        read_times(file.parent, "0")
    file.write_bytes(bytes(range(255)))
    with pytest.raises(InputError, match=r"no CSV text file|no time|one of the file's columns"):
        read_times(file, "0")


def test_an_unknown_column_is_refused_with_the_likely_one(file: Path) -> None:
    file.write_text("id,timestamp\n9,0\n")
    with pytest.raises(InputError, match=r"id, timestamp; or 0..1.*Did you mean 'timestamp'"):
        read_times(file, "timestmp")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_the_scale_is_a_factor(file: Path, scale: float) -> None:
    with pytest.raises(InputError, match="scale = "):
        trace(file, scale=scale)


def test_a_long_trial_repeats_the_ring_and_a_short_one_crops_it(file: Path) -> None:
    file.write_text("10\n12\n16\n")  # gaps 2, 4; closed by their mean, 3
    assert list(arrivals(trace(file), 20.0)) == [0, 2, 6, 9, 11, 15, 18]
    assert list(arrivals(trace(file), 3.0)) == [0, 2]
    assert list(arrivals(trace(file, scale=2.0), 5.0)) == [0, 1, 3, 4.5]


def test_a_scale_that_would_fill_the_memory_is_refused(file: Path) -> None:
    file.write_text("0\n1\n")
    with pytest.raises(InputError, match=r"scale = .*arrivals"):
        arrivals(trace(file, scale=1e9), 1000.0)


@settings(max_examples=50, deadline=None)
@given(
    gaps_s=st.lists(st.floats(0.01, 5), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    duration_s=st.floats(1, 200),
    scale=st.floats(0.2, 5),
)
def test_a_drawn_start_keeps_order_and_rate(
    tmp_path_factory: pytest.TempPathFactory, gaps_s: list[float], seed: int, duration_s: float, scale: float
) -> None:
    file = tmp_path_factory.mktemp("trace") / "t.csv"
    file.write_text("\n".join(repr(float(t)) for t in np.cumsum([0.0, *gaps_s])))
    found_s = arrivals(trace(file, random_start=True, scale=scale), duration_s, seed)
    assert np.all(np.diff(found_s) >= 0)
    assert np.all((found_s >= 0) & (found_s < duration_s))
    expected = duration_s * scale / np.mean(gaps_s)
    assert abs(len(found_s) - expected) <= len(gaps_s) + 2  # at most a partial round too many or too few
