"""Finds what is odd about single files of a data set: unreadable, tiny, grey, of an unusual kind.

Knows nothing about pairs of photos or splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.proportions import wilson
from tellapart.records import Finding, Manifest

MIN_SIDE_PX = 32
GREY_DIFFERENCE = 0.1
"""Classes whose shares of grey photos differ by more, beyond chance, can be told apart by that."""
_FORMAT_OF = dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "mpo"), "jpeg") | {"tif": "tiff"}

Pairs = NDArray[np.int64]


def unreadable(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Files that cannot be decoded: truncated, empty, no image at all, too large."""
    broken = manifest.frame[manifest.frame["error"] != ""]
    reasons = broken["error"].map(_reason).value_counts().to_dict()
    yield from _some(
        "unreadable", "warning", broken,
        f"{len(broken):,} of {len(manifest.frame):,} files cannot be read: "
        f"{', '.join(f'{reason} ({count:,})' for reason, count in reasons.items())}. They take no part in "
        "training or measuring. Get them again from their source, or delete them.",
        {"reasons": reasons},
    )  # fmt: skip


def wrong_extension(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Files whose content is of another format than their name says."""
    frame = manifest.readable
    expected = frame["extension"].map(lambda extension: _FORMAT_OF.get(extension, extension))
    wrong = frame[(expected != frame["format"]) & (expected != "")]
    kinds = (wrong["extension"] + " is " + wrong["format"]).value_counts().to_dict()
    yield from _some(
        "wrong_extension", "note", wrong,
        f"{len(wrong):,} files are of another format than their name says "
        f"({', '.join(f'.{kind}: {count:,}' for kind, count in kinds.items())}). They are read by content, "
        "so nothing is lost here; other programs may fail. Rename them.",
        {"kinds": kinds},
    )  # fmt: skip


def grey(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Pictures without colour, and whether that tells the class."""
    frame = manifest.readable
    colourless = frame[frame["grey"].astype(bool)]
    if colourless.empty:
        return
    counts = {str(label): len(rows) for label, rows in frame.groupby("label")}
    grey_counts = dict.fromkeys(counts, 0) | {str(label): len(rows) for label, rows in colourless.groupby("label")}
    shares = {label: grey_counts[label] / count for label, count in counts.items()}
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    # Intervals that do not overlap: with few photos a difference of shares is mostly chance.
    apart = wilson(grey_counts[most], counts[most]).low > wilson(grey_counts[least], counts[least]).high
    differs = bool(apart and shares[most] - shares[least] > GREY_DIFFERENCE)
    follows = (
        f"That is {shares[most]:.0%} of {most} and {shares[least]:.0%} of {least}, so missing colour tells "
        "the class. Add colour photos of the one and grey ones of the other, or make all grey."
        if differs
        else "They are used as they are. Make sure that photos to be told apart later may be grey too."
    )
    yield from _some(
        "grey", "warning" if differs else "note", colourless,
        f"{len(colourless):,} of {len(frame):,} photos hold no colour. {follows}", {"shares": shares},
    )  # fmt: skip


def unusual(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Photos that are read, but not quite as their maker may expect."""
    frame = manifest.readable
    concerned = {
        "tiny": frame[["width", "height"]].min(axis=1) < MIN_SIDE_PX,
        "cmyk": frame["mode"] == "CMYK",
        "alpha": frame["transparent"].astype(bool),
        "sixteen_bit": frame["bits"] > 8,
        "exif_rotated": frame["orientation"] > 1,
        "animated": frame["frames"] > 1,
    }
    for kind, rows in concerned.items():
        severity = "warning" if kind == "tiny" else "note"
        yield from _some(kind, severity, frame[rows], f"{rows.sum():,} {_UNUSUAL[kind]}")


_UNUSUAL = {
    "tiny": f"photos have a side shorter than {MIN_SIDE_PX} pixels. Enlarged, they are a blur, and little "
    "can be learned from them. Replace thumbnails by the originals.",
    "cmyk": "photos are in print colours (CMYK). They are converted without a colour profile, so their "
    "colours are a little off. Export them as RGB.",
    "alpha": "photos may have transparent parts. These are laid on white, which tells the class when one "
    "class was cut out and another was not. Lay them on a real background.",
    "sixteen_bit": "photos have 16 bits per channel. The upper 8 are used; a picture that lives in the lower "
    "ones turns black. Convert such photos to 8 bits with the right brightness.",
    "exif_rotated": "photos are stored turned, with a mark (EXIF orientation) that says so. They are turned "
    "upright here and in prediction; a program that ignores the mark sees them lying. Nothing is to be done, "
    "unless other programs read them: then store them upright.",
    "animated": "files hold several pictures, such as an animation. The first is used. Save the wanted ones "
    "as files of their own.",
}


def _some(
    kind: str, severity: str, rows: pd.DataFrame, message: str, figures: dict[str, Any] | None = None
) -> Iterator[Finding]:
    """Yield a finding about `rows`, or nothing when there are none."""
    if len(rows):
        yield Finding(kind, severity, message, len(rows), tuple(rows["path"][:10]), figures or {})


def _reason(error: str) -> str:
    """Return the error without what differs from file to file."""
    # These are the words of `image_file` and `decode`: in a new message what differs from file to file must be cut off
    # here, or each such file is a reason of its own.
    if re.match(r"is [\d,]+ bytes", error):
        return "is too large"
    if error.startswith("declares"):
        return "declares too many pixels"
    return re.split(r" \(no|: begins| \(begins| \(the checksum", error)[0]
