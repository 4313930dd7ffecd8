"""Lays a comparison out as one HTML file that needs nothing else. Knows nothing about how its numbers were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tellapart.data.image_file import read_file
from tellapart.errors import DecodeError
from tellapart.experiments.comparison import Comparison, Flip, Pair, SliceDifference
from tellapart.experiments.cost import BATCH_SIZES
from tellapart.files import sha256
from tellapart.records import Progress
from tellapart.report import html
from tellapart.report.photos import thumbnails

_SHOWN = 24
"""Photos in each direction of a pair that the page shows; compare.json names all."""
_LISTED = 20
"""Slices of a pair that the page lists."""
_THUMBNAIL_PX = 96


def write_page(path: Path, comparison: Comparison, whereabouts: dict[str, list[Path]], *, progress: Progress) -> Path:
    """Write ``compare.html``. A photo that is gone or has changed is named without its picture.

    Args:
        path: the file.
        comparison: all that is said.
        whereabouts: where each photo may lie, by SHA-256.
        progress: called with ("drawing the page", done, total).
    """
    progress("drawing the page", 0, 2)
    shown = [flip for pair in comparison.pairs for flips in _directions(pair) for flip in flips[:_SHOWN]]
    pictures = _pictures(shown, whereabouts)
    progress("drawing the page", 1, 2)
    values = {
        "comparison": comparison,
        "headline": _headline(comparison.pairs),
        # The page divides by it: two equal networks have intervals of no width.
        "reach": max(abs(end) for pair in comparison.pairs for end in _ends(pair)) or 0.01,
        "pictures": pictures,
        "slices": [_worth_listing(pair.slices) for pair in comparison.pairs],
        "shown_at_most": _SHOWN,
        "at_once": BATCH_SIZES,
    }
    html.write_page(path, "compare.html", values)
    progress("drawing the page", 2, 2)
    return path


def _headline(pairs: Sequence[Pair]) -> str:
    """Return the verdict of a single pair, or how many pairs differ."""
    if len(pairs) == 1:
        return pairs[0].verdict
    differing = sum(pair.winner is not None for pair in pairs)
    return f"{differing or 'None'} of {len(pairs)} comparisons show{'s' if differing == 1 else ''} a difference."


def _pictures(flips: Sequence[Flip], whereabouts: dict[str, list[Path]]) -> dict[str, str]:
    """Return a small JPEG in base64 for each photo that still lies where some run saw it, by SHA-256."""
    # By content: a photo that differs in several pairs is read and drawn once.
    files = {flip.sha256: path for flip in flips if (path := _unchanged_file(flip.sha256, whereabouts)) is not None}
    drawn = thumbnails(list(files.values()), _THUMBNAIL_PX)
    return {digest: data for digest, data in zip(files, drawn, strict=True) if data}


def _unchanged_file(digest: str, whereabouts: dict[str, list[Path]]) -> Path | None:
    """Return a file with the very content, since another photo may have taken its name."""
    for path in whereabouts.get(digest, ()):
        try:
            if sha256(read_file(path)) == digest:
                return path
        except (DecodeError, OSError):
            continue
    return None


def _worth_listing(slices: Sequence[SliceDifference]) -> list[SliceDifference]:
    """Return the slices that differ, then those with the smallest p-values."""
    return sorted(slices, key=lambda part: (part.corrected_p_value, part.p_value))[:_LISTED]


def _directions(pair: Pair) -> tuple[tuple[Flip, ...], tuple[Flip, ...]]:
    return pair.only_first, pair.only_second


def _ends(pair: Pair) -> tuple[float, float]:
    interval = pair.differences["accuracy"].interval
    return interval.low, interval.high
