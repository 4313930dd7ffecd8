"""Which epoch's weights a run keeps. Knows nothing about networks or files.

Training, the picture of the learning curves and ``metrics.json`` all ask here, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def best_epoch(history: Sequence[Mapping[Any, Any]]) -> int:
    """Return the epoch whose weights are kept.

    It is the first of those with the lowest validation loss. Only validated epochs compete: the training loss is
    measured on augmented pictures, with other weights, and is no substitute for a validation that was not made.

    Args:
        history: the rows of ``history.csv``, in their order; ``val_loss`` is missing or NaN where nothing was
            validated.

    Returns:
        ``epoch`` of that row; of the last row where no epoch has a finite validation loss.

    Raises:
        ValueError: `history` is empty.

    Example:
        >>> best_epoch([{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2, "val_loss": 0.9}])
        2
    """
    if not history:
        raise ValueError("Expected at least one epoch; the history is empty.")
    validated = [row for row in history if was_validated(row)]
    return int(min(validated, key=lambda row: row["val_loss"])["epoch"] if validated else history[-1]["epoch"])


@dataclass(frozen=True)
class Decision:
    """What follows from an epoch.

    Attributes:
        keep: its weights are the best so far.
        stop: validation has not improved for too long.
    """

    keep: bool
    stop: bool


def decide(history: Sequence[Mapping[Any, Any]], patience: int) -> Decision:
    """Decide what follows from the last epoch of a history.

    Args:
        history: the rows so far, at least one.
        patience: epochs without a lower validation loss before training stops. Without validation nothing says that
            training no longer helps, and nothing stops.
    """
    last, best = int(history[-1]["epoch"]), best_epoch(history)
    return Decision(
        keep=was_validated(history[-1]) and best == last,
        stop=any(map(was_validated, history)) and last - best >= patience,
    )


def was_validated(row: Mapping[Any, Any]) -> bool:
    """Return whether an epoch has a validation loss that can be compared."""
    return math.isfinite(row.get("val_loss", math.nan))
