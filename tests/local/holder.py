"""A program that takes a local cluster, says what it started, and then does what its argument says."""

from __future__ import annotations

import json
import sys
import time

import psutil
from local_setup import cluster

made = cluster("trial.start_replicas=2")
try:
    made.take()
    assert made.processes
    family = [psutil.Process(made.processes.keeper.pid), *psutil.Process().children(recursive=True)]
    told = {
        "keeper": made.processes.keeper.pid,
        "prefix": made.prefix,
        "folder": str(made.processes.folder),
        "processes": {process.pid: process.name() for process in family},
    }
    print(json.dumps(told), flush=True)
    if sys.argv[1] == "raise":
        raise RuntimeError("as asked")
    if sys.argv[1] == "wait":
        time.sleep(60)
finally:
    made.give_back()
