"""Opens an MLflow store in PostgreSQL, for many machines: one process makes the tables, passwords stay out of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpusched.core.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

SCHEMES = ("postgresql://", "postgresql+psycopg://")
TURN = 0x67707573
"""Number of the advisory lock under which the tables are made ("gpus")."""
CONNECT_S = 10
TURN_S = 300
"""How long a process waits for its turn; the tables are made in a minute, even on a slow disk."""


def is_postgres(uri: str) -> bool:
    """Tell whether an address names a PostgreSQL database."""
    return uri.startswith(SCHEMES)


def masked(uri: str) -> str:
    """Return the address without its password."""
    return re.sub(r"(://[^/:@]*):[^@/]*@", r"\1:***@", uri)


def prepare(uri: str, artifacts: str) -> None:
    """Make MLflow's tables where there are none, one process at a time.

    Raises StoreError where the driver is missing, nobody answers, or the user may not write.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with _told(uri):
        engine = _engine(uri)
        try:
            # MLflow breaks a database that two processes make at once; the lock falls with its connection.
            with engine.connect() as turn:
                turn.exec_driver_sql(f"set lock_timeout = '{TURN_S}s'")
                turn.exec_driver_sql(f"select pg_advisory_lock({TURN})")
                SqlAlchemyStore(uri, artifacts).engine.dispose()  # type: ignore[no-untyped-call]
        finally:
            engine.dispose()


def _engine(uri: str) -> Engine:
    from sqlalchemy import create_engine

    return create_engine(uri, connect_args={"connect_timeout": CONNECT_S})


@contextmanager
def _told(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    where = masked(uri)
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreError(
            f"tracking.uri = {where}: needs the driver {error.name}. Run pip install 'gpusched[postgres]'."
        ) from error
    except (MlflowException, SQLAlchemyError) as error:
        first = masked(str(error).strip().splitlines()[0])
        if "lock timeout" in first:
            raise StoreError(
                f"The tracking database {where}: another process has been making its tables for more than {TURN_S} s. "
                "End that process, then try again."
            ) from error
        raise StoreError(
            f"The tracking database {where} cannot be used: {first} "
            "Start it, or mend user, password or database in tracking.uri."
        ) from error
