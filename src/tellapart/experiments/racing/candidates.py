"""How the candidates of a race do: what is known of each, who is given up, who is best. Knows no recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tellapart.errors import TellapartError
from tellapart.proportions import wilson
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.training.selection import was_validated

_CURVE = 0.75
"""An error falls at most as the share of the schedule that is done to this power: of nine runs on two sets, all from
scratch, the fastest fell with 0.62 (docs/experiments.md)."""


ENSEMBLE = "ensemble"


class GivenUpError(TellapartError):
    """A candidate can no longer win."""


@dataclass(frozen=True)
class Entry:
    """How one candidate did.

    Attributes:
        name: "head", "from scratch", "fine-tuned", `ENSEMBLE` or "student", which learned from it.
        network: as in ``model.name``.
        image_px: side of its pictures.
        seconds: that it took.
        epochs: that it trained.
        correct: validation photos that it names rightly; None: it was given up.
        accuracy: on validation; of the last look where it was given up.
        loss: on validation, calibrated; None: it was given up.
        f1: macro F1 on validation; None: it was given up.
        outcome: "won", "beaten", "given up" or "failed".
        why: in words, where it was given up or failed.
    """

    name: str
    network: str
    image_px: int
    seconds: float
    epochs: int
    correct: int | None
    accuracy: float | None
    loss: float | None
    f1: float | None = None
    outcome: str = "beaten"
    why: str = ""


def best_of(entries: Sequence[Entry], *, balanced: bool = True, pays: float = 0.0) -> Entry | None:
    """Return the best of those that were measured, on validation.

    Args:
        entries: of all candidates.
        balanced: whether photos named rightly decide, then the loss; else the macro F1 does.
        pays: what an ensemble must gain over the best single network to be kept, since it takes the time of both to
            answer: of accuracy, or of macro F1.
    """

    def order(entry: Entry) -> tuple[float, float]:
        # Among equals the lower loss, which is calibrated.
        return (-float(entry.correct or 0), entry.loss or 0.0) if balanced else (-(entry.f1 or 0.0), entry.loss or 0.0)

    finished = [entry for entry in entries if entry.correct is not None]
    single = min((entry for entry in finished if entry.name != ENSEMBLE), key=order, default=None)
    best = min(finished, key=order, default=None)
    if best is None or single is None or best is single:
        return best
    gain = (best.accuracy or 0.0) - (single.accuracy or 0.0) if balanced else (best.f1 or 0.0) - (single.f1 or 0.0)
    # A hair less than asked: both are shares of the same photos, and their difference has rounding errors.
    return best if gain > pays - 1e-9 else single


class Watch:
    """Watches a candidate's epochs, and gives it up once it cannot win any more."""

    def __init__(self, observer: Observer, target: float | None, num_validation: int) -> None:
        self._observer, self._target, self._count = observer, target, num_validation
        self.epochs = 0
        self.accuracy: float | None = None

    def __call__(self, row: dict[str, Any]) -> None:
        """Look at an epoch's row.

        Raises:
            GivenUpError: the candidate cannot reach the target any more.
        """
        # The run's own observer first: it sees the epoch at which a candidate is given up, too.
        self._observer.watch(row)
        self.epochs, schedule_share = int(row["epoch"]), row.get("progress")
        if not was_validated(row):
            return
        # Noted before it may be given up: the entry says how far it came.
        self.accuracy = float(row["val_accuracy"])
        if self._target is None or not schedule_share or not self._count:
            return
        # Optimistic twice: the lower end of the error's interval, falling faster than any was seen to
        # (docs/experiments.md).
        lowest_likely_error = wilson(round((1 - self.accuracy) * self._count), self._count).low
        if lowest_likely_error * schedule_share**_CURVE > self._target:
            raise GivenUpError(
                f"validation {self.accuracy:.3f} after {schedule_share:.0%} of its epochs: it cannot reach "
                f"{1 - self._target:.3f} any more"
            )


def measured(entry: Entry, run_folder: RunFolder) -> Entry:
    """Return an entry with what its finished run found on the validation photos."""
    metrics = run_folder.metrics().get("validation")
    if metrics is None:  # a table that gives its photos a split without any
        # 0, not None, which would say that it was given up.
        return replace(entry, correct=0, loss=0.0, f1=0.0)
    correct = round(metrics["accuracy"] * metrics["num_images"])
    return replace(entry, correct=correct, accuracy=metrics["accuracy"], loss=metrics["loss"], f1=metrics["f1_macro"])


def entry_line(entry: Entry) -> str:
    """Say in a line how a candidate did."""
    if entry.correct is None:
        return f"{entry.name}: {entry.outcome} after {entry.seconds:.0f} s: {entry.why}."
    return f"{entry.name}: validation {entry.accuracy:.3f}, {entry.seconds:.0f} s."
