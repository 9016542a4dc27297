"""The second process that draws: same results, no second run of the caller's script, and no harm when it breaks."""

import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpusched.report.aside import aside

TASKS = {"sum": (operator.add, (1, 2)), "pid": (os.getpid, ())}


def test_results_come_from_another_process() -> None:
    with aside(TASKS, wanted=True) as results:
        found = results()
    assert found["sum"] == 3
    assert found["pid"] != os.getpid()


def test_a_small_study_is_drawn_here() -> None:
    with aside(TASKS, wanted=False) as results:
        assert results() == {"sum": 3, "pid": os.getpid()}


def test_a_broken_helper_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with aside({**TASKS, "long": (len, ("x" * 1_000_000,))}, wanted=True) as results:
        assert results() == {"sum": 3, "pid": os.getpid(), "long": 1_000_000}


def test_an_error_in_a_task_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError), aside({"bad": (operator.truediv, (1, 0))}, wanted=True) as results:
        results()


def test_the_helper_ends_with_what_it_was_started_for() -> None:
    started: list[subprocess.Popen[bytes]] = []
    true = subprocess.Popen.__init__

    def remembered(self: subprocess.Popen[bytes], *args: object, **kwargs: object) -> None:
        started.append(self)
        true(self, *args, **kwargs)  # type: ignore[arg-type, call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", remembered)
        with (
            pytest.raises(KeyboardInterrupt),
            aside({"long": (__import__("time").sleep, (60,))}, wanted=True),
        ):
            raise KeyboardInterrupt
    assert [helper.poll() is not None for helper in started] == [True]


def test_the_callers_script_is_not_run_again(tmp_path: Path) -> None:
    """A script without the usual guard of its main part runs once."""
    script = tmp_path / "script.py"
    script.write_text("from gpusched.report.aside import aside\nprint('begin')\n"
                      "with aside({'x': (abs, (-1,))}, True) as results:\n    print(results())\n")  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": root})  # fmt: skip
    assert done.stdout == "begin\n{'x': 1}\n"
    assert done.stderr == ""
