"""Check the HPA model against case files: `python -m gpusched.sim.hpa_check FILE...`.

Every case (schema hpa-vectors/1) runs through the compiled functions the engine uses and is compared in all
fields it expects. Exit code 0: no failure, 1: some case failed, 2: a file cannot be used. A case of an
unknown kind, or one that expects an unknown field, is skipped and counted as such; a skip is never a pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpusched.core.errors import GpuschedError, InputError
from gpusched.sim.hpa_cases import CLASSES, Json, MetricError
from gpusched.sim.hpa_kinds import KINDS, failed

SCHEMA = "hpa-vectors/1"
OPTIONAL = {"error", "error_class", "cpu_utilization_pct", "utilization_pct"}
"""Fields the model gives in some cases only; expecting one it does not give is a failure, not a skip."""
MESSAGES = dict(CLASSES.values())


class UnknownField(Exception):
    """A case expects something this checker does not know."""


def plain(value: Any) -> Any:
    """A value as it is compared: a null field is an absent one."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


def unordered(key: str, value: Any) -> Any:
    """Fields that are sets: conditions (type, status, reason) and the names of pods."""
    if value is None:
        return None
    if key == "conditions":
        return {(c["type"], c["status"], c["reason"]) for c in value}
    return sorted(value) if key in ("unready", "missing", "ignored") else plain(value)


def same_message(expected: str, found: Json) -> bool:
    """Whether an expected message (or part of one) fits the class of the error found."""
    core: str = MESSAGES[found["error_class"]]
    return core in expected.replace("missing pod-level request", "missing request") or expected in core


def differences(expected: Json, found: Json) -> list[str]:
    """One line per expected field that came out differently; raises UnknownField."""
    lines = []
    if "error_class" in found and not {"error", "error_class"} & set(expected):
        return [f"expected {show(expected)}, came error {found['error_class']}"]
    for key, value in expected.items():
        if key == "steps":
            lines += step_differences(value, found[key])
        elif key not in found and key not in OPTIONAL and "error_class" not in found:
            raise UnknownField(key)
        elif key == "error" and "error_class" in found:
            if not same_message(value, found):
                lines.append(f"error: expected {value!r}, came {found['error_class']}")
        elif key == "cpu_utilization_pct" and value is None:
            continue
        elif unordered(key, value) != unordered(key, found.get(key)):
            lines.append(f"{key}: expected {show(value)}, came {show(found.get(key))}")
    return lines


def step_differences(expected: list[Json], found: list[Json]) -> list[str]:
    """Differences of a trace; the first step that goes wrong carries the rest with it."""
    for index, (value, step) in enumerate(zip(expected, found, strict=True)):
        lines = differences(value, step)
        if lines:
            return [f"step {index}: {line}" for line in lines]
    return []


def show(value: Any) -> str:
    """A value on one line."""
    return json.dumps(value, default=str)


def check(case: Json) -> list[str] | None:
    """Differences of one case; None = skipped because its kind is unknown. Raises UnknownField."""
    run = KINDS.get(case["kind"])
    if run is None:
        return None
    try:
        found = run(case)
    except MetricError as error:
        found = failed(error.code)
    for result in found if isinstance(found, list) else [found]:
        lines = differences(case["expected"], result)
        if lines:
            return lines
    return []


def load(path: Path) -> list[Json]:
    """The cases of a file; raises InputError saying what is wrong with it, where, and the cure."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a case file."
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Give a file of schema {SCHEMA!r}.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: schema = {schema!r}: must be {SCHEMA!r}. Give a file of that schema.")
    listed = content.get("cases")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: cases must be a list of at least one case. Give a complete file.")
    for index, case in enumerate(listed):
        keys = {"id", "kind", "controller", "now_s", "input", "expected"}
        missing = sorted(keys - set(case)) if isinstance(case, dict) else sorted(keys)
        if missing:
            raise InputError(f"{path}: cases[{index}] has no {', '.join(missing)}: every case needs them.")
    return listed


def check_file(path: Path) -> Counter[tuple[str, str]]:
    """Check one file, print what fails or is skipped, and return (kind, outcome) counts."""
    counts: Counter[tuple[str, str]] = Counter()
    for case in load(path):
        try:
            lines = check(case)
        except UnknownField as error:
            outcome, text = "skipped", f"expects the unknown field {error}"
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise InputError(
                f"{path}: case {case['id']!r} of kind {case['kind']!r} does not fit the schema "
                f"({type(error).__name__}: {error}). Compare it with the schema's description."
            ) from None
        else:
            if lines is None:
                outcome, text = "skipped", f"unknown kind {case['kind']!r}"
            else:
                outcome, text = "failed" if lines else "passed", "; ".join(lines)
        counts[case["kind"], outcome] += 1
        if outcome != "passed":
            print(f"{outcome.upper()} {case['id']}: {text}")
    return counts


def summary(counts: Counter[str]) -> str:
    """`N passed, M failed, K skipped`."""
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


def report(path: Path, counts: Counter[tuple[str, str]]) -> Counter[str]:
    """Print a file's counts by kind and in total, and return the total."""
    total: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    for (kind, outcome), number in counts.items():
        by_kind.setdefault(kind, Counter())[outcome] += number
        total[outcome] += number
    for kind in sorted(by_kind):
        print(f"{path}: {kind}: {summary(by_kind[kind])}")
    print(f"{path}: {summary(total)}")
    return total


def main(argv: Sequence[str] | None = None) -> int:
    """Check the files named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="hpa_check", description="Check the HPA model against case files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=f"case file of schema {SCHEMA}")
    paths: list[Path] = parser.parse_args(argv).files
    try:
        total = sum((report(path, check_file(path)) for path in paths), Counter[str]())
    except GpuschedError as error:
        print(f"hpa_check: {error}", file=sys.stderr)
        return 2
    if len(paths) > 1:
        print(f"all files: {summary(total)}")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
