"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, how it is (ok, warn or fail), what was found, and the cure where one is needed."""

    name: str
    status: str
    detail: str
    cure: str = ""
