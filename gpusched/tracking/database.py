"""Opens an MLflow store: one process prepares the database, every refusal says what, where and how to mend it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpusched.core.errors import StoreBusy, StoreError, refuse
from gpusched.tracking.postgres import is_postgres, prepare

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

R = TypeVar("R")

SQLITE = "sqlite:///"
MAGIC = b"SQLite format 3\x00"
PATIENCE_S = 120.0
"""How long a store that is locked or full is asked again before what was to be written is given up."""
PAUSE_S = 5.0
PATIENCE = 10
"""The turn to create a database is waited for so many times longer: a loaded machine may need long for it."""
ANSWER_S = 10.0
"""How long a tracking server may take to say that it is alive."""


def connect(uri: str, wait_s: float, create: bool, artifacts: str = "") -> MlflowClient:
    """Return a client of the store at `uri`; a missing SQLite one is created or, without `create`, refused.

    Waits up to `wait_s` for another process that holds the database. Raises InputError for an address
    of another kind and StoreError where the store cannot be written.
    """
    if uri.startswith(("http://", "https://")):
        _answers(uri)
        return _client(uri)
    if is_postgres(uri):
        quiet()
        prepare(uri, artifacts)
        return _client(uri)
    path = sqlite_path(uri)
    if not create and not path.exists():
        raise StoreError(
            f"There is no tracking database {path}. Run trials first, or name the place of another one."
        )
    _folder(path)
    quiet()
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  # takes seconds: not while others wait

    with told(str(path)):
        if _is_empty(path):
            with _turn(path.parent / ".init.lock", PATIENCE * wait_s):
                if _is_empty(path):
                    _create(path)
        _probe(path, wait_s)
        client = _client(SQLITE + str(path))
        client.search_experiments(max_results=1)  # the schema is checked here
    return client


def sqlite_path(uri: str) -> Path:
    """Return the absolute path of the database file that a SQLite address names."""
    name = uri.removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or not name or name.startswith(":") or "?" in name:
        raise refuse(
            "tracking.uri",
            uri,
            "must be sqlite:///FOLDER/FILE.db, the http(s):// address of an MLflow server, or postgresql://USER@HOST/DB",
            "The default is sqlite:///mlruns/mlflow.db.",
        )
    path = Path(name).absolute()
    if re.search(r"%[0-9A-Fa-f]{2}|[?]", str(path)):
        raise refuse(
            "tracking.uri",
            str(path),
            "must have neither ? nor %XX in its path, which an address reads as something else",
        )
    return path


def quiet() -> None:
    """Switch MLflow's telemetry and its messages about database migrations off; call it before importing mlflow."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that hangs would hold a call for a quarter of an hour.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what MLflow, SQLite and the file system raise inside the block into a StoreError about `where`."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError) as error:
        raise explain(error, where) from error


def patiently(where: str, patience_s: float, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Call the store at `where`; one that is locked or full, again and again for a while: what a run has done costs more."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            with told(where):
                return call(*args, **kwargs)
        except StoreBusy as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise
            log.warning("%s Trying for %.0f s more.", error, left_s)
            time.sleep(min(PAUSE_S, left_s))


def explain(error: Exception, where: str) -> StoreError:
    """Return the StoreError that names the cause of a failed access to `where` and its cure."""
    text = str(error).lower()
    if "database is locked" in text:
        return StoreBusy(
            f"The tracking database {where} is locked: another process holds it. "
            "Wait for that process or end it (`fuser -v FILE` names it), then try again."
        )
    if "readonly" in text or isinstance(error, PermissionError) or "unable to open database" in text:
        return _read_only(where)
    if "not a database" in text or "malformed" in text:
        return _no_database(where)
    if "out-of-date database schema" in text or "no such table" in text or "can't locate revision" in text:
        return StoreError(
            f"The tracking database {where} was written by another MLflow version, or its creation was broken off. "
            f"Run `mlflow db upgrade {SQLITE}{where}`, or move the file away to begin a new one."
        )
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "disk is full" in text:
        return StoreBusy(
            f"No space is left on the disk of the tracking store {where}. Free some, then try again."
        )
    return StoreError(
        f"The tracking store {where} refused: {str(error).splitlines()[0] if str(error) else error!r}"
    )


def _read_only(where: str) -> StoreError:
    return StoreError(
        f"The tracking store {where} is read-only: it cannot be written by this user. "
        "Give write permission to the folder and the files in it, or set tracking.uri to another place."
    )


def _no_database(where: str) -> StoreError:
    return StoreError(
        f"The tracking database {where} is damaged or is not an SQLite file. "
        "Move it away to begin a new one, or set tracking.uri to another place."
    )


def _client(uri: str) -> MlflowClient:
    quiet()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _answers(uri: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=ANSWER_S) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise StoreError(
            f"No MLflow server answers at {uri}: {reason}. Start one "
            "(`mlflow server --backend-store-uri sqlite:///mlruns/mlflow.db`) or set tracking.uri."
        ) from error


def _folder(path: Path) -> None:
    """Make the database's folder, its parent given, and prove by writing that it can be written."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise StoreError(
            f"{folder} is a file, but the tracking store needs a folder there. Move it or set tracking.uri."
        )
    if not folder.exists() and not folder.parent.is_dir():
        raise StoreError(
            f"The folder {folder.parent} of the tracking store is missing. Create it or set tracking.uri."
        )
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        for one in (folder, folder / "artifacts"):
            # Permission bits do not tell what a mount or an administrator's process may do; a write does.
            with tempfile.TemporaryFile(dir=one):
                pass
    except OSError as error:
        raise explain(error, str(folder)) if error.errno != 30 else _read_only(str(folder)) from error
    if path.is_dir():
        raise StoreError(
            f"{path} is a folder, but the tracking database is a file. Set tracking.uri to a file."
        )


@contextmanager
def _turn(lock: Path, wait_s: float) -> Iterator[None]:
    """Hold the file lock: MLflow breaks a database that two processes create at once."""
    until_s = time.monotonic() + wait_s
    with open(lock, "a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise StoreError(
                        f"The tracking store {lock.parent} is locked: another process has been opening it "
                        f"for {wait_s:g} s. Wait for that process or end it, then try again."
                    ) from None
                time.sleep(0.02)
        yield


def _is_empty(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _probe(path: Path, wait_s: float) -> None:
    """Refuse a file that is no database, cannot be written, or stays locked for `wait_s`."""
    with open(path, "rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise _no_database(str(path))
    with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as database:
        # SQLite begins even an immediate transaction on a read-only file without complaint: only a write tells.
        (number,) = database.execute("pragma user_version").fetchone()
        database.execute("begin immediate")
        database.execute(f"pragma user_version = {number}")
        database.execute("rollback")


def _create(path: Path) -> None:
    """Create the tables beside the final place and rename, so that a broken-off start leaves no broken database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(path.name + ".new")
    for old in path.parent.glob(new.name + "*"):
        old.unlink()
    store = SqlAlchemyStore(SQLITE + str(new), str(path.parent / "artifacts"))  # type: ignore[no-untyped-call]
    store.engine.dispose()
    with closing(sqlite3.connect(new)) as database:
        # Write-ahead logging lets readers (the MLflow UI, analyze.py) in while runs write.
        database.execute("pragma journal_mode=wal")
    os.replace(new, path)
