"""Says what is the matter with a data set before anything is trained on it.

Knows nothing about models, and changes no file. docs/check.md describes every finding.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import default_cache
from tellapart.data.duplicates import Tally, near_duplicates, tally
from tellapart.data.oddities import grey, unreadable, unusual, wrong_extension
from tellapart.data.scan import scan
from tellapart.data.shortcuts import metadata_shortcuts
from tellapart.records import Finding, Health, Manifest, Progress, no_progress

SEVERITIES = ("falsifies", "warning", "note")
"""Worst first."""
MIN_PHOTOS = 10
IMBALANCE_WARNING, IMBALANCE_NOTE = 10, 3
CONFLICT_SHARE = 0.01
DUPLICATE_SHARE = 0.01

Pairs = NDArray[np.int64]
Check = Callable[[Manifest, Pairs], Iterable[Finding]]


def check(
    photos: str | os.PathLike[str],
    *,
    max_pixels: int = 100_000_000,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> Health:
    """Look for what would make numbers from these photos untrue. Nothing is changed.

    Args:
        photos: a folder per class, train/val/test folders of those, or a CSV or Parquet table.
        max_pixels: images that declare more are not decoded.
        cache: the folder for caches: photos that were seen before, and have not changed, are not read; None: the user's
            cache folder.
        progress: called with (what, done, total).

    Returns:
        All findings, worst first. ``trustworthy`` is False when one of them "falsifies".

    Raises:
        InputError: `photos` holds nothing that could be a data set.

    Example:
        >>> health = tellapart.check("photos")  # doctest: +SKIP
        >>> [finding.kind for finding in health.findings]  # doctest: +SKIP
        ['conflicting_labels', 'unreadable']
    """
    cache_folder = Path(cache) if cache is not None else default_cache()
    return examine(scan(photos, max_pixels=max_pixels, cache=cache_folder, progress=progress), progress=progress)


def examine(
    manifest: Manifest,
    pairs: Pairs | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Health:
    """Look for everything in a data set that would spoil a classifier or falsify its numbers.

    Use it before training, and again whenever photos are added. Nothing is trained, no file is changed.

    Args:
        manifest: from `tellapart.data.scan.scan`.
        pairs: from `tellapart.data.duplicates.near_duplicates`; found here when None.
        seed: of the cross-validation that looks for metadata shortcuts.
        progress: called with ("checking", done, total).

    Returns:
        All findings, worst first. ``trustworthy`` is False when one of them "falsifies".

    Example:
        >>> health = examine(scan("photos"))  # doctest: +SKIP
        >>> [finding.kind for finding in health.findings]  # doctest: +SKIP
        ['conflicting_labels', 'unreadable']
    """
    if pairs is None:
        pairs = near_duplicates(manifest)
    # The shortcut check needs the seed of its folds, so it is bound here and not listed in CHECKS.
    checks: tuple[Check, ...] = (*CHECKS, partial(metadata_shortcuts, seed=seed))
    findings: list[Finding] = []
    for done, find in enumerate(checks):
        progress("checking", done, len(checks))
        findings += find(manifest, pairs)
    progress("checking", len(checks), len(checks))
    # Stable: within a severity findings stay in the order of the checks.
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Health(tuple(findings), len(manifest.frame), len(manifest.readable), _class_counts(manifest))


def health_table(health: Health) -> pd.DataFrame:
    """Return the findings as a table: severity, kind, count, message and examples, one row each."""
    rows = [
        (finding.severity, finding.kind, finding.count, finding.message, ", ".join(finding.examples))
        for finding in health.findings
    ]
    # Paths may hold names that are not UTF-8, which pandas' own type for text refuses.
    table = pd.DataFrame(rows, columns=["severity", "kind", "count", "message", "examples"], dtype=object)
    return table.astype({"count": int})


def to_json(health: Health) -> dict[str, Any]:
    """Return the health as values that JSON knows, ``trustworthy`` included."""
    findings = [dataclasses.asdict(finding) | {"examples": list(finding.examples)} for finding in health.findings]
    return {
        "trustworthy": health.trustworthy,
        "num_photos": health.num_photos,
        "num_readable": health.num_readable,
        "classes": dict(health.classes),
        "findings": findings,
    }


def leakage(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Look-alikes and groups that lie on two sides of a split that the source gives."""
    frame = manifest.frame[manifest.frame["split"] != ""]
    if frame.empty:
        return
    # Only a split that the source gives can be leaky: one that is drawn here keeps pairs and groups together.
    splits = manifest.frame["split"].to_numpy(object)
    torn, counts = pairs[splits[pairs[:, 0]] != splits[pairs[:, 1]]], tally(manifest, pairs, splits)
    num_pairs = counts.exact_pairs + counts.near_pairs
    grouped = frame[(frame["group"] != "") & (frame["error"] == "")]
    spread = grouped[grouped.groupby("group")["split"].transform("nunique") > 1]
    alike = manifest.frame["path"][counts.exact | counts.near]
    concerned = sorted({*alike, *spread["path"]})
    if concerned:
        yield Finding(
            "leakage",
            "falsifies",
            f"The given split is leaky: {_least(counts)}{num_pairs:,} pairs of photos that look the same, and "
            f"{spread['group'].nunique():,} groups, lie on two sides of it. What is measured on such photos "
            "is memory, and the numbers come out too high. Move each such pair or group to one side, or "
            "delete the copies; or give no split, and tellapart draws one that keeps them together.",
            len(concerned),
            (*_pair_paths(manifest, torn), *spread["path"])[:10],
            {
                "pairs": num_pairs,
                "groups": int(spread["group"].nunique()),
                "photos": _by_split(frame, concerned),
            },
        )


def conflicting_labels(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """The same or nearly the same picture under two labels."""
    labels = manifest.frame["label"].to_numpy(object)
    torn = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    if not len(torn):
        return
    counts = tally(manifest, pairs, labels)
    exact, num_pairs = counts.exact_pairs, counts.exact_pairs + counts.near_pairs
    count = int((counts.exact | counts.near).sum())
    share = count / len(manifest.readable)
    yield Finding(
        "conflicting_labels",
        "falsifies" if exact or share > CONFLICT_SHARE else "warning",
        f"{count:,} photos ({share:.2%}) show the same as a photo of another class: {_least(counts)}{num_pairs:,} "
        f"pairs, {exact:,} of them exact copies. One label of each pair is wrong, or the classes overlap; training "
        "on them teaches chance, and no accuracy measured on them is true. Look at each pair and keep the "
        "photo under the right label only.",
        count,
        _pair_paths(manifest, torn),
        {"pairs": num_pairs, "exact_pairs": exact, "share": share},
    )


def few_photos(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Too few classes, or classes too small to learn from or to measure."""
    counts = _class_counts(manifest)
    if len(counts) < 2:
        yield Finding(
            "few_photos",
            "falsifies",
            f"There is one class only: {', '.join(counts)}. With a single class every answer is right and "
            "nothing is measured. Put the photos into one folder per class, at least two.",
            sum(counts.values()),
            figures={"classes": counts},
        )
    for severity, low, high in (("falsifies", 0, 1), ("warning", 2, MIN_PHOTOS - 1)):
        small = {label: count for label, count in counts.items() if low <= count <= high}
        if small:
            listed = ", ".join(f"{label} ({count})" for label, count in small.items())
            follows = (
                "One photo or none cannot be both trained on and measured."
                if severity == "falsifies"
                else "What is measured on such a class has an interval too wide to say anything."
            )
            yield Finding(
                "few_photos",
                severity,
                f"{len(small)} classes have at most {high} readable photos: {listed}. {follows} "
                f"Add photos, at least {MIN_PHOTOS} and better 100 a class, or leave the class out.",
                sum(small.values()),
                figures={"classes": small},
            )


def left_out(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Folders and files that the scan could not or did not take as photos."""
    empty, others, rest = [], [], []
    for path, reason in manifest.problems:  # there may be a file beside each photo, so each is looked at once
        # These are the words of `scan`: a problem that is worded otherwise there ends among the rest.
        if "class folder without a photo" in reason:
            empty.append(path)
        elif "not an image by its name" in reason:
            others.append(path)
        else:
            rest.append((path, reason))
    if empty:
        yield Finding(
            "left_out",
            "warning",
            f"These class folders hold no photo: {', '.join(empty)}. They are not classes of the model. Put "
            "photos into them or remove them.",
            len(empty),
            tuple(empty[:10]),
        )
    if rest:
        listed = "; ".join(f"{path} {reason}" for path, reason in rest[:10]) + "; …" * (len(rest) > 10)
        yield Finding(
            "left_out",
            "warning",
            f"{len(rest):,} folders or files were left out: {listed}. No "
            "photo of theirs is used. Fix the permission, the link, the place or the table, and check "
            "again.",
            len(rest),
            tuple(path for path, _ in rest[:10]),
            {"reasons": pd.Series([reason for _, reason in rest]).value_counts().to_dict()},
        )
    if others:
        yield Finding(
            "left_out",
            "note",
            f"{len(others):,} files do not end like an image and were left out. If they are photos, rename "
            "them or convert them to JPEG or PNG; otherwise nothing is to be done.",
            len(others),
            tuple(others[:10]),
        )


def imbalance(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Classes of very different size."""
    counts = {label: count for label, count in _class_counts(manifest).items() if count}
    if len(counts) < 2:
        return
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[largest] / counts[smallest]
    if ratio > IMBALANCE_NOTE:
        yield Finding(
            "imbalance",
            "warning" if ratio > IMBALANCE_WARNING else "note",
            f"The largest class, {largest} ({counts[largest]:,} photos), has {ratio:.1f} times as many "
            f"photos as the smallest, {smallest} ({counts[smallest]:,}). Accuracy can be high while the "
            "small class is never found. Read balanced accuracy and the recall of each class, "
            "and add photos to the small ones.",
            counts[smallest],
            figures={"ratio": ratio, "largest": largest, "smallest": smallest},
        )


def duplicates(manifest: Manifest, pairs: Pairs) -> Iterator[Finding]:
    """Photos that are there twice, byte by byte or to the eye."""
    exact, counts = _same_bytes(manifest, pairs), tally(manifest, pairs)
    copied = "are byte-by-byte copies of another photo"
    alike = "look the same as another photo, re-encoded, resized or mirrored"
    for kind, listed_pairs, photos, num_pairs, least, description in (
        ("exact_duplicates", pairs[exact], counts.exact, counts.exact_pairs, "", copied),
        ("near_duplicates", pairs[~exact], counts.near, counts.near_pairs, _least(counts), alike),
    ):
        count = int(photos.sum())
        if count:
            share = count / len(manifest.readable)
            yield Finding(
                kind,
                "warning" if share > DUPLICATE_SHARE else "note",
                f"{count:,} photos ({share:.1%}) {description}, in {least}{num_pairs:,} pairs. tellapart keeps them in "
                "one split, so no test photo is known from training; but they count "
                "more than once. Delete all but one of each.",
                count,
                _pair_paths(manifest, listed_pairs),
                {"pairs": num_pairs, "share": share},
            )


CHECKS: tuple[Check, ...] = (
    leakage,
    conflicting_labels,
    few_photos,
    unreadable,
    left_out,
    imbalance,
    duplicates,
    grey,
    unusual,
    wrong_extension,
)
"""All checks but the metadata shortcut, in the order in which findings of one severity are shown."""


def _class_counts(manifest: Manifest) -> dict[str, int]:
    readable = manifest.readable["label"].value_counts()
    return {label: int(readable.get(label, 0)) for label in manifest.classes}


def _least(counts: Tally) -> str:
    return "" if counts.complete else "at least "


def _same_bytes(manifest: Manifest, pairs: Pairs) -> NDArray[np.bool_]:
    digests = manifest.frame["sha256"].to_numpy(object)
    return np.asarray(digests[pairs[:, 0]] == digests[pairs[:, 1]], bool)


def _pair_paths(manifest: Manifest, pairs: Pairs) -> tuple[str, ...]:
    """Return the paths of the first five pairs, the two of a pair side by side."""
    return tuple(manifest.frame["path"].iloc[pairs[:5].ravel()])


def _by_split(frame: pd.DataFrame, paths: list[str]) -> dict[str, int]:
    return {str(name): int(count) for name, count in frame["split"][frame["path"].isin(paths)].value_counts().items()}
