"""Fails where a ratio of the last `make bench` is more than 20 % worse than the one accepted in benchmarks/accepted.json.

    python benchmarks/check.py            compare outputs/bench/*.json with what was accepted
    python benchmarks/check.py --accept   accept what was measured

Only ratios between programs of one run are compared: they carry over to other machines, seconds do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent / "outputs/bench"
ACCEPTED = Path(__file__).with_name("accepted.json")
WORSE = 0.20
RATIOS = {
    "engine.json": [
        "service/summary/engine_per_c",
        "M~M/summary/engine_per_c",
        "M~M/summary/engine_per_simpy",
    ],
    "scale.json": ["per_user", "per_pod", "two_cores"],
    "training.json": ["fps_per_bare", "fps_per_sb3"],
}
"""Where the ratios stand, all of them better when higher; ~ stands for the / in a model's name."""


def main() -> int:
    """Compare or accept; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accept", action="store_true")
    args = parser.parse_args()
    found = measured(BENCH)
    if not found:
        print(f"{BENCH}: nothing measured yet. Run: make bench", file=sys.stderr)
        return 2
    if args.accept:
        ACCEPTED.write_text(json.dumps(found, indent=1) + "\n")
        print(f"accepted: {', '.join(found)}")
        return 0
    accepted = json.loads(ACCEPTED.read_text())
    lines, worse = compare(found, accepted)
    print("\n".join(lines))
    return 1 if worse else 0


def measured(folder: Path) -> dict[str, float]:
    """Return every ratio that stands in the folder, by file and place."""
    found = {}
    for name, places in RATIOS.items():
        if not (folder / name).exists():
            continue
        report = json.loads((folder / name).read_text())
        for place in places:
            if (value := _at(report, place)) is not None:
                found[f"{name}: {place}"] = value
    return found


def compare(found: dict[str, float], accepted: dict[str, float]) -> tuple[list[str], int]:
    """Return a line for each accepted ratio, and how many are worse; one that was not measured is not passed over."""
    lines, worse = [], 0
    for key, wanted in accepted.items():
        value = found.get(key)
        if value is None:
            lines.append(f"not measured  {key} (accepted {wanted:.3f})")
            continue
        bad = value < (1 - WORSE) * wanted
        worse += bad
        lines.append(f"{'WORSE' if bad else 'ok':12}  {key}: {value:.3f} (accepted {wanted:.3f})")
    return lines, worse


def _at(report: Any, place: str) -> float | None:
    for part in place.split("/"):
        name = {"M~M": "M/M/3"}.get(part, part)
        if not isinstance(report, dict) or name not in report:
            return None
        report = report[name]
    return float(report)


if __name__ == "__main__":
    sys.exit(main())
