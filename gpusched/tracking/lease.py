"""A lease in the tracking store: of many processes, on whatever hosts, one does a piece of work and the others wait.

A lease is a registered model whose name the database keeps unique, so taking one is atomic on SQLite, PostgreSQL
and behind a server alike. Its holder shows that it lives by counting up a tag; one whose count stands still for
`DEAD_S` is dead, and so is at once one of this machine whose process has gone. Who takes over takes the next name, so
two who find the same dead holder cannot both succeed. No clocks are compared between hosts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gpusched.core.errors import StoreError
from gpusched.core.process import Process
from gpusched.tracking.database import PATIENCE_S, patiently, told

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

BEAT_S = 5.0
"""How often a holder shows that it lives."""
DEAD_S = PATIENCE_S + 60.0
"""How long a holder's count may stand still; longer than anyone waits for a locked store, which keeps it from counting."""
POLL_S = 0.5


class Lease:
    """The sole right to do the work `name`, as a context manager; entering waits until it is free.

    While waiting, `done` is asked now and then: once it says that the work has been done by another, the wait ends
    and `held` is False.
    """

    def __init__(self, client: MlflowClient, where: str, name: str, done: Callable[[], bool]) -> None:
        self._client, self._where, self._prefix, self._done = client, where, f"lease.{name}.", done
        self._own = ""
        self._former: list[str] = []
        self._seen: dict[str, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    @property
    def held(self) -> bool:
        return bool(self._own)

    def __enter__(self) -> Self:
        while not self._done():
            # Who holds it is read anew at every try: a locked store may have kept a living holder from counting.
            if patiently(self._where, PATIENCE_S, self._take):
                self._begin()
                break
            time.sleep(POLL_S)
        return self

    def _begin(self) -> None:
        """Show that the holder lives; or give the lease back where another has done the work since this one last asked."""
        if self._done():
            self._drop(self._own)
            self._own = ""
            return
        self._beat = threading.Thread(target=self._live, daemon=True)
        self._beat.start()
        for name in self._former:
            self._give_back(name, PATIENCE_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._beat:
            return
        self._stop.set()
        self._beat.join()
        # An error's way out is not held up.
        self._give_back(self._own, PATIENCE_S if error is None else 0.0)

    def _give_back(self, name: str, patience_s: float) -> None:
        """Drop a lease; one that cannot be dropped lapses by itself, and is no reason to lose the work."""
        try:
            self._drop(name, patience_s)
        except StoreError as error:
            log.warning("the lease %s could not be given back, and lapses by itself: %s", name, error)

    def _take(self) -> bool:
        """Take the lease where nobody lives who holds it."""
        holders = self._holders()
        if holders and not self._dead(*holders[-1]):
            return False
        number = int(holders[-1][0].removeprefix(self._prefix)) + 1 if holders else 0
        if not self._create(f"{self._prefix}{number}"):
            return False
        self._former = [name for name, _ in holders]
        return True

    def _holders(self) -> list[tuple[str, dict[str, str]]]:
        """Return the leases of this name with their tags, the newest last."""
        with told(self._where):
            found = self._client.search_registered_models(f"name LIKE '{self._prefix}%'")
        leases = [(model.name, dict(model.tags)) for model in found]
        return sorted(leases, key=lambda lease: int(lease[0].removeprefix(self._prefix)))

    def _dead(self, name: str, tags: dict[str, str]) -> bool:
        if (holder := _holder(tags)) and holder.alive(Process.me()) is False:
            return True
        count, since_s = self._seen.get(name, ("", 0.0))
        if count != tags.get("count", "0"):
            self._seen[name] = (tags.get("count", "0"), time.monotonic())
            return False
        return time.monotonic() - since_s > DEAD_S

    def _create(self, name: str) -> bool:
        """Create the lease; False where another was quicker."""
        from mlflow.exceptions import MlflowException

        me = Process.me()
        tags = {"machine": me.machine, "pid": str(me.pid), "started_s": repr(me.started_s), "count": "0"}
        with told(self._where):
            try:
                self._client.create_registered_model(name, tags=tags)
            except MlflowException as error:
                # Refused by the unique name, MLflow looks for its owner, who may just have given it back.
                if error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                    return False
                raise
        self._own = name
        return True

    def _drop(self, name: str, patience_s: float = PATIENCE_S) -> None:
        from mlflow.exceptions import MlflowException

        def delete() -> None:
            try:
                self._client.delete_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

        patiently(self._where, patience_s, delete)

    def _live(self) -> None:
        count = 0
        while not self._stop.wait(BEAT_S):
            count += 1
            try:
                with told(self._where):
                    self._client.set_registered_model_tag(self._own, "count", str(count))
            except StoreError as error:  # the next beat may get through; the work must go on
                log.warning("the lease %s could not be renewed: %s", self._own, error)


def _holder(tags: dict[str, str]) -> Process | None:
    """Return the process that a lease names, None where it is told otherwise than here."""
    try:
        return Process(machine=tags["machine"], pid=int(tags["pid"]), started_s=float(tags["started_s"]))
    except (KeyError, ValueError):
        return None
