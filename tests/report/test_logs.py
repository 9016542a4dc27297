"""What figures read from the runs' logs: latencies counted on a grid, and tick logs on one axis of time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpusched.core.errors import StoreError
from gpusched.core.logs import RequestLog
from gpusched.report import series
from gpusched.report.dataset import Trial
from gpusched.report.latencies import BINS, EDGE_B, count, latencies, slower


class Folder:
    """Artifacts in a folder per run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def download(self, run_id: str, artifact: str) -> Path:
        path = self.place / run_id / artifact
        if not path.exists():
            raise StoreError(f"no {artifact} of {run_id}")
        return path

    def requests(self, run: str, rows: list[tuple[float, float, int]]) -> None:
        start_s_N, latency_s_N, status_N = zip(*rows, strict=True)
        (self.place / run).mkdir(exist_ok=True)
        np.savez_compressed(self.place / run / "requests.npz", start_s=np.array(start_s_N, dtype=np.float32),
                            latency_s=np.array(latency_s_N, dtype=np.float32), status=np.array(status_N, dtype=np.int8))  # fmt: skip

    def text(self, run: str, name: str, text: str) -> None:
        (self.place / run).mkdir(exist_ok=True)
        (self.place / run / name).write_text(text)


def trial(run: str, duration_s: str = "100.0") -> Trial:
    return Trial(id=run, policy="hpa", load="low", seed=0, episode=0, values={}, tags={}, params={"trial.duration_s": duration_s})  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.slow
@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(1e-4, 900.0)))
def test_the_share_up_to_an_edge_is_exact(latency_s_N: np.ndarray) -> None:
    share_B = 1.0 - slower(count(latency_s_N))
    exact_B = np.searchsorted(np.sort(latency_s_N), EDGE_B, side="right") / len(latency_s_N)
    # Values on an edge may fall to either side of it by rounding.
    clear_B = np.array([np.abs(latency_s_N / edge - 1.0).min() > 1e-9 for edge in EDGE_B])
    np.testing.assert_allclose(share_B[clear_B], exact_B[clear_B], atol=1e-12)


def test_a_known_distribution() -> None:
    """Exponential latencies of mean 0.1 s: a share exp(-t / 0.1) is slower than t, within 4 standard errors."""
    n = 200_000
    share_B = slower(count(np.random.default_rng(1).exponential(0.1, n)))
    exact_B = np.exp(-EDGE_B / 0.1)
    assert np.all(np.abs(share_B - exact_B) <= 4 * np.sqrt(exact_B * (1 - exact_B) / n) + 1e-9)


def test_what_lies_outside_the_grid_still_counts() -> None:
    counted = count(np.array([0.0, 1e-9, 1e-4, 5e3]))
    assert counted.sum() == 4
    assert counted[0] == 3
    assert counted[-1] == 1


def test_only_requests_answered_in_the_episode_count(folder: Folder) -> None:
    ok, failed, unfinished = RequestLog.OK, RequestLog.FAILED, RequestLog.UNFINISHED
    folder.requests("a", [(-5.0, 0.105, ok), (-0.05, 0.105, ok), (50.0, 0.105, ok), (50.0, 0.2, failed), (99.95, 0.105, ok),
                          (60.0, 0.2, unfinished)])  # fmt: skip
    folder.requests("b", [(1.0, 0.3, ok)] * 3)
    folder.text("torn", "requests.npz", "PK")
    folder.requests("idle", [(-5.0, 0.1, ok)])
    found, lost = latencies(folder, [trial(run) for run in ("a", "b", "torn", "gone", "idle")])  # type: ignore[arg-type]
    assert found.runs == ("a", "b")
    assert list(found.count_RB.sum(axis=1)) == [2, 3]  # one ended before the episode, one after it
    assert lost == ["torn", "gone"]  # a run without an answered request has a log
    edges_s = EDGE_B[found.shown]
    assert edges_s[0] < 0.105 < edges_s[1]
    assert edges_s[-2] < 0.3 <= edges_s[-1] * (1 + 1e-6)
    assert slower(found.pooled_B)[found.shown][0] == 1.0
    assert slower(found.pooled_B)[found.shown][-1] == 0.0


def test_nothing_counted() -> None:
    found, lost = latencies(Folder(Path("/nowhere")), [trial("a")])  # type: ignore[arg-type]
    assert found.count_RB.shape == (0, BINS)
    assert found.shown == slice(0, 0)
    assert lost == ["a"]


def test_tick_logs_meet_on_one_axis(folder: Folder) -> None:
    folder.text("a", "ticks.csv", "t_s,users,gpu_busy\n-5,1,0.1\n0,2,0.2\n5,3,nan\n10,4,0.4\n")
    folder.text("b", "ticks.csv", "t_s,gpu_busy,users\n5.0000001,0.7,30\n15,0.8,40\n")
    folder.text("c", "ticks.csv", "t_s,users\n5,1\n")  # a column is missing
    folder.text("d", "ticks.csv", "t_s,users,gpu_busy\n5,1\n")  # a torn line
    folder.text("e", "ticks.csv", "")
    found, lost = series.read(folder, [trial(run) for run in "abcdef"], ["users", "gpu_busy"])  # type: ignore[arg-type]
    assert found is not None
    assert found.runs == ("a", "b")
    assert lost == ["c", "d", "e", "f"]
    np.testing.assert_array_equal(found.t_s_T, [5, 10, 15])
    np.testing.assert_array_equal(found.columns["users"], [[3, 4, np.nan], [30, np.nan, 40]])
    np.testing.assert_array_equal(found.columns["gpu_busy"], [[np.nan, 0.4, np.nan], [0.7, np.nan, 0.8]])
    assert series.read(folder, [trial("f")], ["users"]) == (None, ["f"])  # type: ignore[arg-type]


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 30)),
              elements=st.one_of(st.just(np.nan), st.floats(-100, 100))), st.integers(1, 40))  # fmt: skip
def test_the_running_mean_is_that_of_pandas(values_RT: np.ndarray, window: int) -> None:
    expected = pd.DataFrame(values_RT.T).rolling(window, min_periods=1).mean().to_numpy().T
    np.testing.assert_allclose(series.running_mean(values_RT, window), expected, atol=1e-9)
