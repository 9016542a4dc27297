"""The benchmark's store of made-up runs: what it copies is whole, and no report takes it."""

import importlib.util
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from made_up import MadeUp

from gpusched.core.errors import InputError
from gpusched.report.dataset import load
from gpusched.tracking.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_report", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_copies_are_whole_and_marked(benchmark: ModuleType, tmp_path: Path) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    store = Store(f"sqlite:///{database}")
    real = {"synthetic": "false"}
    MadeUp(name="benchmark", loads=("low",), seeds=1, trainings=False, tags=real).write(store)
    before = {r.tags["policy"]: r for r in store.find(kind="trial")}
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        benchmark.copy(connection, database.parent / "artifacts", 6)
        benchmark.mark(connection)
    found = store.find(kind="trial")
    assert len(found) == len({r.id for r in found}) == 6
    assert sorted((r.tags["policy"], r.tags["seed"]) for r in found) == [
        (p, s) for p in ("hpa", "ppo") for s in "012"
    ]
    for run in found:
        original = before[run.tags["policy"]]
        assert run.params.keys() == original.params.keys()
        assert run.metrics.keys() == original.metrics.keys()
        assert run.params["seed"] == run.tags["seed"]
        ratio = run.metrics["kpi/latency_p95_s"] / original.metrics["kpi/latency_p95_s"]
        assert ratio == 1.0 if run.id == original.id else 0.0 < abs(np.log(ratio)) < 0.2
        assert (
            store.download(run.id, "ticks.csv").read_bytes()
            == store.download(original.id, "ticks.csv").read_bytes()
        )
    with pytest.raises(InputError, match=r"6 of its 6 runs hold made-up numbers"):
        load(store, "benchmark")
    assert len(load(store, "benchmark", allow_synthetic=True).trials) == 6
