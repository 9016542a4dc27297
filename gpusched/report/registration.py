"""What was written down before the runs: read from the runs' own tags, checked against the file and against each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpusched.core.errors import InputError
from gpusched.core.hypotheses import Claim, Hypotheses
from gpusched.report.dataset import Study

TAG, HASH_TAG = "hypotheses", "hypotheses_hash"
NONE = "none"
EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")


@dataclass(kw_only=True, frozen=True)
class Registration:
    """The hypotheses that are judged, None where the runs carry none that can be read; and what to say of them."""

    hypotheses: Hypotheses | None = None
    hash: str = ""
    sentences: list[str] = field(default_factory=list)


def registration(study: Study, file: Path | None) -> Registration:
    """Return the hypotheses of the runs that count: of several versions the one the oldest of them carries.

    `file` is what the runs took them from; it is read only to say whether it was changed since.
    """
    versions = Counter(t.tags.get(HASH_TAG, NONE) for t in study.trials)
    if set(versions) <= {NONE}:
        return Registration(sentences=[
            "Nothing was written down before the runs: no run that counts carries hypotheses, so every test here is "
            "exploratory."
        ])  # fmt: skip
    carried = _oldest(study)
    chosen = carried[HASH_TAG]
    node, why = _node(carried)
    told = [*_versions(versions, chosen), *_earlier(study, versions), *_file(file, node, chosen)]
    if node is None:
        return Registration(hash=chosen, sentences=[
            f"The hypotheses that the runs carry cannot be read ({why}), so every test here is exploratory.", *told
        ])  # fmt: skip
    try:
        hypotheses = parsed(node)
    except InputError as error:
        return Registration(hash=chosen, sentences=[f"The runs’ hypotheses cannot be judged: {error}", *told])
    head = (
        f"{len(hypotheses.claims)} claims on {hypotheses.candidate} against {hypotheses.baseline} were written down "
        f"before the runs (hash {chosen}, carried by {versions[chosen]} of {len(study.trials)} runs)."
    )
    return Registration(
        hypotheses=hypotheses, hash=chosen, sentences=[head, *told, *_plan(study, hypotheses)]
    )


def parsed(node: Mapping[str, Any]) -> Hypotheses:
    """Return plain values as typed hypotheses. Raises InputError where they are none."""
    try:
        claims = [Claim(**claim) for claim in node.get("claims", [])]
        return Hypotheses(**{**node, "claims": claims})
    except TypeError as error:
        raise InputError(str(error)) from error


def digest(node: object) -> str:
    """Hash plain values as the runs' own tag does."""
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:16]


def changes(old: object, new: object, key: str = "") -> list[str]:
    """Return what differs between two trees of plain values, as "key: old → new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for k in keys for c in changes(old.get(k), new.get(k), f"{key}.{k}" if key else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            c for i, (a, b) in enumerate(zip(old, new, strict=True), 1) for c in changes(a, b, f"{key}[{i}]")
        ]
    return [] if old == new else [f"{key}: {_short(old)} → {_short(new)}"]


def _oldest(study: Study) -> Mapping[str, str]:
    """Return the tags of the oldest run that counts and carries hypotheses."""
    began = {r.id: r.started_s for r in study.finished}
    carrying = [t for t in study.trials if HASH_TAG in t.tags]
    return min(carrying, key=lambda t: (began.get(t.id, 0.0), t.id)).tags


def _node(tags: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    try:
        node = json.loads(tags.get(TAG, ""))
    except ValueError:
        return None, "no JSON"
    if not isinstance(node, dict):
        return None, "no mapping"
    if digest(node) != tags[HASH_TAG]:
        return None, "their text no longer has the hash the run was given"
    return node, ""


def _versions(versions: Mapping[str, int], chosen: str) -> list[str]:
    if len(versions) < 2:
        return []
    each = ", ".join(f"{name} ({n} runs)" for name, n in sorted(versions.items()))
    return [
        f"The runs that count carry different hypotheses: {each}. Those of the oldest run, {chosen}, are judged; "
        "what was changed later may have been changed because of results."
    ]


def _earlier(study: Study, versions: Mapping[str, int]) -> list[str]:
    """Say which hypotheses only runs carried that no longer count: they may have been seen before the change."""
    gone = Counter(r.tags.get(HASH_TAG, NONE) for r in study.finished if r.id not in study.ids)
    other = {name: n for name, n in gone.items() if name not in versions and name != NONE}
    if not other:
        return []
    each = ", ".join(f"{name} ({n} runs)" for name, n in sorted(other.items()))
    return [f"Runs that do not count here ended under other hypotheses: {each}."]


def _file(file: Path | None, node: dict[str, Any] | None, chosen: str) -> list[str]:
    if file is None:
        return []
    try:
        now = _read(file)
    except (OSError, ValueError) as error:
        return [
            f"{file} cannot be read, so nothing can be said about changes since the runs: {type(error).__name__}."
        ]
    if digest(now) == chosen or now == node:
        return [f"{file} is as it was when the runs began."]
    what = changes(node, now) if node is not None else []
    detail = f" ({_listed(what)})" if what else ""
    return [
        f"{file} says something else than the runs carry{detail}: it was changed since, or they were started with values of "
        "their own. What they carry is judged."
    ]


def _read(file: Path) -> Any:
    """Read the file's values as the runs' configuration does: 1e-2 is a number, a date is text (plain YAML 1.1 says otherwise)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))
    try:
        return yaml.load(file.read_text(), Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _plan(study: Study, h: Hypotheses) -> list[str]:
    """Compare the seeds that are there with those planned, and state the stop rule."""
    here = {(p, load): len(study.units(p, load)) for load in study.loads for p in (h.candidate, h.baseline)}
    fewer = [f"{p} under {load}: {n}" for (p, load), n in here.items() if n < h.seeds]
    more = [f"{p} under {load}: {n}" for (p, load), n in here.items() if n > h.seeds]
    told = [
        f"All {h.seeds} planned seeds are there."
        if not fewer and not more
        else f"{h.seeds} seeds were planned."
    ]
    if fewer:
        told.append(f"Fewer are there ({_listed(fewer)}): the study is not complete, and its power is lower.")
    if more:
        told.append(
            f"More are there ({_listed(more)}): seeds added after a look at the results raise the rate of false "
            "findings above what is stated."
        )
    rule = f"Stop rule: {h.stop}" if h.stop.strip() else "No stop rule was written down."
    return [" ".join(told), rule]


def _listed(items: Sequence[str], most: int = 6) -> str:
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
