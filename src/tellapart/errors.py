"""The errors a user can cause and mend. Knows nothing about how they are shown.

Every message says what came, what was expected and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TellapartError(Exception):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 2


class InputError(TellapartError, ValueError):
    """The photos, the table or an argument cannot be used as given."""


class UnavailableError(InputError):
    """A database or a server does not answer now, and may do so later."""


class RecipeError(InputError):
    """A recipe has a key or a value that does not exist or does not fit."""


class DecodeError(InputError):
    """One image cannot be decoded. It costs that image and nothing else."""


class RunError(TellapartError):
    """A run folder is missing, incomplete or of another version."""


class BundleError(TellapartError):
    """A bundle is missing, damaged or of another version, or an artefact failed the parity gate."""


class TrainingStoppedError(TellapartError):
    """Training cannot go on, for example because the loss is no longer finite."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name most like `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
