"""Follow one object by list and watch, as long as it takes and no longer than allowed."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator

from gpusched.cluster.microk8s.client import FIRST_WAIT_S, MOST_WAIT_S, Api, Deadline
from gpusched.cluster.microk8s.failures import ApiFailure, Unreachable
from gpusched.cluster.microk8s.kinds import Dict, Kind, dig

log = logging.getLogger(__name__)

WATCH_S = 10.0
"""The server ends a watch after this long, so that a hung connection is noticed and others get their turn."""


class Expired(Exception):
    """The resource version is too old (410): list again."""


def follow(
    api: Api, kind: Kind, namespace: str, name: str, deadline: Deadline, between: Callable[[], None]
) -> Iterator[Dict | None]:
    """Yield the object now and at every change until the deadline; None while it does not exist.

    Resumes from the last version seen, bookmarks included; lists again on 410. A connection that brought no event
    makes the least time between two longer. `between` is called before every connection.
    """
    version, wait_s = "", FIRST_WAIT_S
    while deadline.left_s > 0:
        between()
        soonest, after_s, heard = Deadline(wait_s * random.uniform(0.5, 1.0)), 0.0, False
        try:
            if not version:
                version, found = _now(api, kind, namespace, name, deadline)
                yield found
            for seen, event_version in _events(api, kind, namespace, name, version, deadline):
                version, heard = event_version, True
                if seen is not BOOKMARK:
                    yield seen
        except Expired:
            version = ""
        except Unreachable as lost:
            log.debug("watch of %s %s broken: %s", kind, name, lost)
            after_s = lost.after_s
        wait_s = FIRST_WAIT_S if heard else min(2 * wait_s, MOST_WAIT_S)
        time.sleep(max(0.0, min(max(after_s, soonest.left_s), deadline.left_s)))


BOOKMARK: Dict = {}
"""Stands for "nothing changed, but the version moved on"."""


def _now(api: Api, kind: Kind, namespace: str, name: str, deadline: Deadline) -> tuple[str, Dict | None]:
    """Return the collection's version and the object."""
    query = {"fieldSelector": f"metadata.name={name}"}
    found = api.call("list", kind, namespace, query=query, deadline=deadline)
    items = found.get("items") or []
    return str(dig(found, "metadata", "resourceVersion")), items[0] if items else None


def _events(
    api: Api, kind: Kind, namespace: str, name: str, version: str, deadline: Deadline
) -> Iterator[tuple[Dict | None, str]]:
    """Yield (object or None or BOOKMARK, version) of one watch connection; Expired on 410."""
    seconds = max(1, round(min(WATCH_S, deadline.left_s)))
    query = {
        "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
        "timeoutSeconds": str(seconds), "fieldSelector": f"metadata.name={name}",
    }  # fmt: skip
    try:
        for event in api.stream(
            kind, namespace, query, deadline, quiet_s=seconds + api.access.call_timeout_s
        ):
            thing: Dict = event.get("object") or {}
            if event.get("type") == "ERROR":
                _error(thing)
            at = str(dig(thing, "metadata", "resourceVersion") or version)
            kinds = {"BOOKMARK": BOOKMARK, "DELETED": None}
            yield kinds.get(str(event.get("type")), thing), at
    except ApiFailure as refused:
        if refused.status in (401, 410):  # listing again also reads expired credentials anew
            raise Expired from None
        raise


def _error(status: Dict) -> None:
    """Raise what an ERROR event means."""
    if status.get("code") == 410 or status.get("reason") in ("Expired", "Gone"):
        raise Expired
    raise Unreachable(f"the watch ended with an error: {status.get('message')}")
