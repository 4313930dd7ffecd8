"""The plain values that cross module borders. Knows nothing about how they are made or shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# For type checkers alone: servers import this module, and are installed without pandas.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

# Code relies on this order: `fit_unknown` unpacks it, and reports and exports take the last split that has photos.
SPLITS = ("train", "validation", "test")
"""The three splits, in the order in which they are reported."""

# It may raise: after Ctrl-C the command line raises KeyboardInterrupt from here, since raised anywhere else it crashed
# trainings (docs/experiments.md). So a caller must have nothing half done that cannot be resumed.
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is)."""


Announce = Callable[[str], None]
"""Called with one line that says what is about to happen."""

# It may raise too: that is how a race and a search stop a training that cannot win.
Watch = Callable[[dict[str, Any]], None]
"""Called with each epoch's row of the history, and ``progress``: the share of the schedule that is done, 0 to 1."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def unwatched(row: dict[str, Any]) -> None:
    """Let an epoch pass."""


@dataclass(frozen=True)
class Observer:
    """Whom a run tells what it does. It decides nothing, but what it raises ends the run, which can be resumed.

    Attributes:
        progress: called often with (what, done, total).
        announce: called with single lines that say what comes next.
        watch: called with each epoch's row of the history, after everything of the epoch is on disk.
    """

    progress: Progress = no_progress
    announce: Announce = logging.getLogger("tellapart").info
    watch: Watch = unwatched


@dataclass(frozen=True)
class Manifest:
    """What a scan found: one row per file that claims to be a photo.

    Attributes:
        root: the folder that the paths in `frame` are relative to.
        frame: columns ``path`` (relative, with "/"), ``label``, ``split`` ("" where the source gives none),
            ``group`` ("" where it gives none), ``bytes``, ``sha256``, ``extension`` (lower case, no dot),
            ``format`` (of the content: "jpeg", "png", …), ``width`` and ``height`` (pixels, as shown),
            ``mode`` (Pillow's: "RGB", "L", "CMYK", "RGBA", "I;16", …), ``orientation`` (EXIF, 1 to 8),
            ``frames`` (images in the file), ``bits`` (per channel, 8 or 16), ``transparent`` (some pixel can
            be), ``fingerprint`` (64-bit perceptual hash, uint64),
            ``grey`` (True where a colour file holds no colour) and ``error`` ("" for a readable photo).
        thumbnails: (num_files, 32, 32) uint8 grey pictures, zeros where unreadable.
        problems: folders and files that could not be looked at, with the reason.
    """

    root: Path
    frame: pd.DataFrame
    thumbnails: Any
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> list[str]:
        """The labels in sorted order: the order of the model's outputs."""
        return sorted(self.frame["label"].unique().tolist())

    @property
    def readable(self) -> pd.DataFrame:
        """The rows of `frame` whose photo can be decoded."""
        return self.frame[self.frame["error"] == ""]


@dataclass(frozen=True)
class Finding:
    """One thing that is the matter with the data.

    Attributes:
        kind: a fixed name such as "exact_duplicates"; docs/check.md lists them all.
        severity: "falsifies" (numbers from this data would not be true), "warning" or "note".
        message: what was found, what follows from it, and how to fix it.
        count: how many photos are concerned.
        examples: up to ten of their paths.
        figures: the measured numbers behind the message.
    """

    kind: str
    severity: str
    message: str
    count: int
    examples: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """The result of `tellapart.check`: all findings, worst first, and the table behind them.

    Attributes:
        findings: worst first.
        num_photos: files looked at.
        num_readable: files that can be decoded.
        classes: photos per class, readable ones.
    """

    findings: tuple[Finding, ...]
    num_photos: int
    num_readable: int
    classes: dict[str, int]

    @property
    def trustworthy(self) -> bool:
        """False when a finding would falsify the result."""
        return all(finding.severity != "falsifies" for finding in self.findings)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        path: the file, as it was named by the caller.
        label: the most probable class, or None when the image could not be read.
        probability: its probability, 0 to 1.
        top: up to k (label, probability) pairs, most probable first.
        error: why there is no label; "" when there is one.
        abstains: whether the model would rather not answer; only a bundle says so.
        unknown: whether it is none of the known classes: less like the photos that the model learned from than nearly
            all photos of its classes are. The label is then the class that it resembles most. False where the
            model cannot tell (no validation photos, or an older run or bundle).
        quality_warnings: measures of quality in which the photo is worse than those that the accuracy was measured on;
            only a bundle says so.
        prediction_set: classes of which one is the right one, as often as the bundle promises, most probable first;
            only a bundle says so.
        embedding: (num_features,) float32, what the network's last layer sees of the image; None where there is no
            label, or the model was exported without. It takes no part in comparisons.
        similarity: to the photos that the model learned from, a cosine, -1 to 1; what `unknown` is decided by, None
            where the model cannot tell. It takes no part in comparisons.
    """

    # The order counts: `bundles.predictor.to_prediction` passes the first nine by place. New fields go to the end.
    path: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str = ""
    abstains: bool = False
    quality_warnings: tuple[str, ...] = ()
    prediction_set: tuple[str, ...] = ()
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    unknown: bool = False
    similarity: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, both ends included."""

    low: float
    high: float


def plain(value: Any) -> Any:
    """Return a value with everything in it that JSON can hold.

    Dataclasses become dictionaries, intervals [low, high], numbers of NumPy Python's, and what is not finite None.
    """
    # Before dataclasses in general, for an interval is one.
    if isinstance(value, Interval):
        return [plain(value.low), plain(value.high)]
    # `is_dataclass` is true of classes too.
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    # A number of NumPy, which this module does not import.
    if hasattr(value, "dtype") and hasattr(value, "item"):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
