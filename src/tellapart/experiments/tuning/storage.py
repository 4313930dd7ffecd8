"""The database that holds a study: how long to wait for it, and what its errors mean. Knows nothing about trials."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from tellapart.errors import InputError, RunError


@contextlib.contextmanager
def reachable(url: str, *, lost: bool = False) -> Iterator[None]:
    """Turn the errors of a storage into one that says what to do."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, ImportError) as error:
        # The driver was there when the study was opened, so this import is not about the storage.
        if isinstance(error, ImportError) and lost:
            raise
        shown, reason = without_password(url), without_password(_reason(error))
        if lost:
            raise RunError(
                f"Storage {shown} was lost: {reason}. Finished trials are kept in it: run the same command again."
            ) from error
        raise InputError(
            f"Storage {shown} cannot be reached: {reason}. Expected the URL of a database that can be written, as in "
            "sqlite:///study.db or postgresql+psycopg2://user@host/name; leave --storage away to use a file in the "
            "search's own folder."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what lies at the bottom of an error."""
    # Optuna wraps SQLAlchemy's error, which wraps the driver's: only the last one says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.strip().rstrip(".")


def without_password(url: str) -> str:
    """Return a storage's URL as it may be shown."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


def patience_of(url: str) -> dict[str, int]:
    """Return how long a driver waits: SQLite for another process' lock, the others for an answer."""
    if url.startswith("sqlite"):
        return {"timeout": 60}
    return {"connect_timeout": 10} if url.startswith(("postgresql", "mysql")) else {}


def write_without_waiting(engine: Any) -> None:
    """Let SQLite not wait for the disk at each commit: with a log, a killed process loses nothing all the same.

    A trial commits some 30 times, and a disk may take 10 ms for each.
    """
    from sqlalchemy import event

    def prepare(connection: Any, record: object) -> None:
        del record
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", prepare)
    engine.dispose()  # the connection that is open already
