"""The database that holds a study: what its errors mean. Knows nothing about trials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tellapart.databases import reason_of, without_password
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
        shown, reason = without_password(url), reason_of(error)
        if lost:
            raise RunError(
                f"Storage {shown} was lost: {reason}. Finished trials are kept in it: run the same command again."
            ) from error
        raise InputError(
            f"Storage {shown} cannot be reached: {reason}. Expected the URL of a database that can be written, as in "
            "sqlite:///study.db or postgresql+psycopg2://user@host/name; leave --storage away to use a file in the "
            "search's own folder."
        ) from error
