"""A small study that was really run, stored as JSON: three policies, three loads, five seeds, with their trainings.

`runs.json` holds what MLflow held of `python run.py experiment=headline` and of the same study with
`policy=hpa policy.target=50`: tags and parameters that all runs share stand first, each run's own follow. Names
stand for the run IDs.
"""

import json
from pathlib import Path

from memory import Memory

from gpusched.tracking.store import Found

PLACE = Path(__file__).with_name("golden")
STUDY = "headline"


def golden_store() -> Memory:
    """Return the stored study; it has no tick and request logs."""
    stored = json.loads((PLACE / "runs.json").read_text())
    store = Memory()
    for run in stored["runs"]:
        shared = stored[run["kind"]]
        store.runs[run["id"]] = Found(
            id=run["id"], name=run["name"], status=run["status"], started_s=run["started_s"],
            tags=shared["tags"] | run["tags"], params=shared["params"] | run["params"], metrics=run["metrics"],
        )  # fmt: skip
    for key, (steps, values) in stored["points"].items():
        run_id, metric = key.split(" ")
        store.points[run_id, metric] = list(zip(steps, values, strict=True))
    return store
