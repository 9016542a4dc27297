"""What every run is labelled with: where it comes from and what it depended on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gpusched.job.setup import Setup, digest
from gpusched.tracking.provenance import provenance
from gpusched.tracking.run import Run
from gpusched.tracking.store import Store


def open_store(uri: str, artifacts: str | None = None) -> Store:
    """Open the store, once per process and folder: the first opening imports MLflow, which takes seconds."""
    return _opened(uri, artifacts, Path.cwd())


@cache
def _opened(uri: str, artifacts: str | None, folder: Path) -> Store:
    return Store(uri, artifacts=artifacts)


@cache
def _provenance() -> dict[str, str]:
    return provenance()


def run_tags(setup: Setup) -> dict[str, str]:
    """Return the tags of a run: its labels, its hashes, its commit, and the constants nobody has measured."""
    assumed = [name for name, constant in setup.service.constants().items() if constant.status == "assumed"]
    own = {"seed": str(setup.seed), "config_hash": setup.config_hash, "assumed": ",".join(assumed)}
    own["service_hash"] = digest(setup.config["service"])
    hypotheses = setup.config["hypotheses"]
    own["hypotheses"] = json.dumps(hypotheses, sort_keys=True)
    own["hypotheses_hash"] = digest(hypotheses)
    if setup.policy.trained:
        own["fingerprint"] = setup.fingerprint
    return {**setup.names, **own, **_provenance()}


def params(setup: Setup) -> dict[str, object]:
    """Return the configuration as flat parameters; the service's many constants are in config.json."""
    return flat(
        {
            key: value
            for key, value in setup.config.items()
            if key not in ("service", "tracking", "resume", "hypotheses")
        }
    )


def flat(tree: Mapping[str, Any], key: str = "") -> dict[str, object]:
    """Return the leaves of nested mappings by their full key."""
    leaves: dict[str, object] = {}
    for name, value in tree.items():
        here = f"{key}.{name}" if key else name
        leaves |= flat(value, here) if isinstance(value, Mapping) and value else {here: value}
    return leaves


def artifacts(run: Run, setup: Setup) -> None:
    """Store the whole configuration with a run, service constants and their sources included."""
    # The store's own address may hold a password, and says nothing of the trial.
    run.json("config.json", {key: value for key, value in setup.config.items() if key != "tracking"})
