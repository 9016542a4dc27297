"""Work done in a second process meanwhile: tasks go in and results come out as pickles, through pipes.

multiprocessing would do it, but it runs the caller's own script once more in the new process, or forks a process
whose libraries have threads.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Task = tuple[Callable[..., Any], tuple[Any, ...]]


@contextmanager
def aside(tasks: Mapping[str, Task], wanted: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start the tasks in a second process, if wanted, and hand out how to get their results by name.

    Where there is no second process, or it breaks, the tasks are done here when the results are asked for.
    """
    if not wanted:
        yield lambda: done(tasks)
        return
    path = os.pathsep.join(place for place in sys.path if place)
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path}) as helper:  # fmt: skip
        try:
            assert helper.stdin is not None
            try:
                with helper.stdin:
                    pickle.dump(dict(tasks), helper.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            except BrokenPipeError:
                pass
            yield lambda: _results(helper, tasks)
        finally:
            helper.kill()  # ended already, unless what was done meanwhile failed


def done(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return the results of the tasks, by name."""
    return {name: task(*args) for name, (task, args) in tasks.items()}


def _results(helper: subprocess.Popen[bytes], tasks: Mapping[str, Task]) -> dict[str, Any]:
    assert helper.stdout is not None
    answer = helper.stdout.read()
    if helper.wait() != 0:
        return done(tasks)
    results: dict[str, Any] = pickle.loads(answer)
    return results


if __name__ == "__main__":
    own = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not stand among the results
    own.write(pickle.dumps(done(pickle.loads(sys.stdin.buffer.read()))))
