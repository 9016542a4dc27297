"""Progress bars for people at a terminal; nothing at all otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@cache
def _bars() -> Progress:
    """The one display all bars share; a terminal has room for one."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


@contextmanager
def bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar while the block runs and give the function that says how far it is."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    bars = _bars()
    first = not bars.tasks
    if first:
        bars.start()
    task = bars.add_task(what, total=total)
    try:
        yield lambda done: bars.update(task, completed=done)
    finally:
        bars.remove_task(task)
        if first:
            bars.stop()
