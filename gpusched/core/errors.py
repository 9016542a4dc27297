"""Errors a user can cause and cure.

GpuschedError      anything gpusched refuses; shown as one message, exit code 2
├── InputError     a configuration value or an input file is wrong
├── GateError      a gate refuses a result that would be meaningless
├── ClusterError   a real cluster refused, failed or cannot be reached
└── StoreError     the tracking store cannot be read or written
    └── StoreBusy  it is locked or full, which may pass
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GpuschedError(Exception):
    """Something the user can mend; the message says what, where, what is allowed and the cure."""


class InputError(GpuschedError):
    """A configuration value or an input file is wrong."""


class GateError(GpuschedError):
    """A gate refuses to go on because the result would be meaningless."""


class ClusterError(GpuschedError):
    """A real cluster, or a part it needs, refused, failed or cannot be reached."""


class StoreError(GpuschedError):
    """The tracking store is missing, locked, read-only or damaged."""


class StoreBusy(StoreError):
    """The tracking store is locked by another process, or its disk is full: worth trying again."""


def refuse(key: str, value: object, allowed: str, cure: str = "") -> InputError:
    """Return (not raise) the error for one bad value: `key = value: allowed. cure`."""
    return InputError(f"{key} = {value!r}: {allowed}." + (f" {cure}" if cure else ""))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean 'x'?' for the closest known word, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
