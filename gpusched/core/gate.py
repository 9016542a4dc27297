"""Verdicts of gates as runs carry them: a tag "gate/<name>" that says "ok" or "failed: <why>"."""

from __future__ import annotations

from collections.abc import Mapping

GATE, OK, FAILED = "gate/", "ok", "failed"

MARKING = ("calibration", "convergence", "degenerate", "provenance", "telemetry")
"""Gates whose failure qualifies a result and does not spoil it: such a run counts, and is marked."""


def verdict(ok: bool, detail: str) -> str:
    """Return what the tag of a gate says."""
    return OK if ok else f"{FAILED}: {detail}"


def failed(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return name and reason of every gate that failed, by name."""
    return [
        (key.removeprefix(GATE), value.removeprefix(f"{FAILED}: "))
        for key, value in sorted(tags.items())
        if key.startswith(GATE) and value.startswith(FAILED)
    ]


def marks(gate: str) -> bool:
    """Return whether a failure of this gate only marks the run."""
    return gate.startswith(MARKING)


def spoilt(tags: Mapping[str, str]) -> bool:
    """Return whether a gate's failure keeps the run from counting."""
    return any(not marks(gate) for gate, _ in failed(tags))
