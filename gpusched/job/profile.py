"""Service profiles as they are written: constants that say where they come from, and the file they stand in."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil

from gpusched.core.service import Constant, Service
from gpusched.job.fit import Estimate


def said(given: Estimate, unit: str, when: str, what: str) -> Constant:
    """Return a measured constant with its interval."""
    source = f"{what}; {when}, 95 % interval {given.low:.4g}..{given.high:.4g} {unit}, n = {given.n}"
    return Constant(value=given.value, unit=unit, status="measured", source=source)


def plain(value: float, unit: str, when: str, what: str) -> Constant:
    """Return a measured constant without an interval."""
    return Constant(value=value, unit=unit, status="measured", source=f"{what}; {when}")


def machine() -> str:
    """Return processor, cores, memory and kernel of this host in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def text(service: Service, above: Sequence[str]) -> str:
    """Return a profile as YAML, one constant per line, after `above` as comments."""
    lines = [
        *(f"# {line}" for line in above),
        "_target_: gpusched.core.service.Service",
        f"name: {service.name}",
        f"sharing: {service.sharing}",
        f"preferred_batches: {service.preferred_batches}",
    ]
    for f in fields(service):
        if "unit" in f.metadata:
            lines.append(f"{f.name}: {_line(getattr(service, f.name))}")
    return "\n".join(lines) + "\n"


def _line(constant: Constant) -> str:
    unit = '"1"' if constant.unit == "1" else constant.unit
    source = constant.source.replace('"', "'")
    return f'{{value: {number(constant.value)}, unit: {unit}, status: {constant.status}, source: "{source}"}}'


def number(value: float) -> str:
    """YAML reads 1e-05 as text: a number there has a point."""
    short = f"{value:.6g}"
    mantissa, e, exponent = short.partition("e")
    return short if not e or "." in mantissa else f"{mantissa}.0e{exponent}"


def renewed(service: Service, constants: Mapping[str, Constant], **more: str) -> Service:
    """Return the service with other constants."""
    other: dict[str, Any] = {**constants, **more}
    return replace(service, **other)


def write(service: Service, above: Sequence[str], folder: str) -> Path:
    """Write FOLDER/service/NAME.yaml, `above` as comments at its beginning, after printing it; return its path."""
    path = Path(folder) / "service" / f"{service.name}.yaml"
    whole = text(service, above)
    print(whole, end="")  # first: what was measured is not lost where it cannot be written
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}")
    new.write_text(whole)
    os.replace(new, path)
    return path
