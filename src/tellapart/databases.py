"""What SQLite and database servers have in common here: addresses without passwords, patience, reasons of errors.

Knows nothing about what is stored. Imports no driver.
"""

from __future__ import annotations

import os
import re
from typing import Any


def url_of(where: str | os.PathLike[str]) -> str:
    """Return the URL of a database: a file is SQLite's."""
    return str(where) if "://" in str(where) else f"sqlite:///{os.path.abspath(where)}"


def without_password(url: str) -> str:
    """Return a database's URL as it may be shown."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


def patience_of(url: str, *, lock_seconds: float = 60) -> dict[str, float]:
    """Return how long a driver waits: SQLite for another process' lock, the others for an answer."""
    if url.startswith("sqlite"):
        return {"timeout": lock_seconds}
    # pg8000 has no limit for connecting alone: this one is for every answer, so that a statement may take no longer.
    if "+pg8000:" in url:
        return {"timeout": 60}
    return {"connect_timeout": 10} if url.startswith(("postgresql", "mysql")) else {}


def write_without_waiting(engine: Any) -> None:
    """Let SQLite not wait for the disk at each commit: with a log, a killed process loses nothing all the same.

    A trial of a search commits some 30 times, a busy server twice a second, and a disk may take 10 ms for each.
    """
    from sqlalchemy import event

    def prepare(connection: Any, record: object) -> None:
        del record
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    # For each connection: the file remembers its log, but how it is synchronised belongs to a connection.
    event.listen(engine, "connect", prepare)
    engine.dispose()  # the connection that is open already


def reason_of(error: BaseException) -> str:
    """Return the first line of what lies at the bottom of an error, without a password."""
    # Optuna wraps SQLAlchemy's error, which wraps the driver's: only the last one says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return without_password(first.strip().rstrip("."))
