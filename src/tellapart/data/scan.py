"""Finds the photos of a data set and looks at each once: the manifest.

Knows nothing about splits, training or what is wrong with the data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.decode import decode, resize
from tellapart.data.image_file import decoding_threads, read_file, read_header
from tellapart.data.listing import IMAGE_EXTENSIONS, looks_like_image
from tellapart.data.scan_cache import ScanCache, Seen
from tellapart.errors import DecodeError, InputError, nearest
from tellapart.files import sha256
from tellapart.randomness import generator
from tellapart.records import Manifest, Progress, no_progress

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
THUMBNAIL_PX = 32
_TASK = 16
"""Photos that a thread reads in one go: handing over single ones costs more than reading them."""


def scan(
    photos: str | os.PathLike[str],
    *,
    max_pixels: int = 100_000_000,
    share: float = 1.0,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Find all photos of a data set, read each once and describe it.

    Args:
        photos: a folder with a folder per class; a folder with train, val and test folders of those;
            or a CSV or Parquet table with the columns path, label and, where wanted, split and group.
        max_pixels: images that declare more are refused.
        share: of the photos that are looked at, above 0 to 1: a random part of each class, and of each given split.
        seed: of the part.
        cache: the folder for caches: files that were seen before, and have not changed, are not read; None: all are.
        progress: called with ("reading photos", done, total).

    Returns:
        A row per file. A file that cannot be read has a reason in ``error`` and costs nothing else.

    Raises:
        InputError: the folder or table does not exist, holds no photos or lacks a column.
    """
    root, files, problems = find_photos(Path(photos))
    files = part_of(files, share, seed)
    paths = [root / path for path in files["path"]]
    scan_cache = None if cache is None else ScanCache(cache, max_pixels, THUMBNAIL_PX)
    # Asked before anything is read: `keep` compares with the times that files had here.
    seen = scan_cache.known(paths) if scan_cache is not None else {}
    new = [position for position in range(len(paths)) if position not in seen]
    read = _read([paths[position] for position in new], max_pixels, progress)
    if scan_cache is not None:
        scan_cache.keep([paths[position] for position in new], read)
    seen |= dict(zip(new, read, strict=True))
    rows = [seen[position][0] for position in range(len(paths))]
    thumbnails = np.zeros((len(files), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    for position, (_, thumbnail) in seen.items():
        thumbnails[position] = thumbnail
    frame = pd.concat([files.reset_index(drop=True), pd.DataFrame(rows)], axis=1)
    # All 64 bits are used; left alone, pandas picks the type by the largest value.
    frame["fingerprint"] = frame["fingerprint"].astype(np.uint64)
    return Manifest(root, frame, thumbnails, tuple(problems))


def _read(paths: Sequence[Path], max_pixels: int, progress: Progress) -> list[Seen]:
    """Read files, in their order."""
    # In order whatever the threads do: `map` yields results as tasks were handed over.
    tasks, results = [paths[start : start + _TASK] for start in range(0, len(paths), _TASK)], list[Seen]()
    with ThreadPoolExecutor(decoding_threads(paths)) as pool:
        try:
            for part in pool.map(lambda task: [inspect(path, max_pixels) for path in task], tasks):
                results += part
                progress("reading photos", len(results), len(paths))
        # Ctrl-C as well: what is waiting is dropped, and what is being read ends by itself.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def find_photos(photos: Path) -> tuple[Path, pd.DataFrame, list[tuple[str, str]]]:
    """Return (root, frame of path, label, split and group, problems); no file is opened but a table.

    Raises:
        InputError: nothing there that could be a data set.
    """
    if photos.is_dir():
        root = photos.resolve()
        problems: list[tuple[str, str]] = []
        rows = list(_walk(root, problems))
        frame = pd.DataFrame(rows, columns=["path", "label", "split", "group"], dtype=object)
    elif photos.is_file():
        root, frame, problems = _read_table(photos)
    else:
        raise InputError(
            f"{photos} does not exist. Expected a folder of photos, a folder per class, or a CSV or Parquet table."
        )
    if frame.empty:
        raise InputError(
            f"{photos} holds no photos. Expected a folder per class with images in it: "
            f"{photos}/cat/1.jpg, {photos}/dog/1.jpg, … ({', '.join(sorted(IMAGE_EXTENSIONS))})."
        )
    # Random draws name photos by their place (parts of them, the order of batches), so that the same photos must stand
    # in the same order on every machine.
    return root, frame.sort_values("path", ignore_index=True), problems


_FEWEST_OF_A_CLASS = 10


def part_of(files: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return a random share of each class and given split, but at least ten photos of each, in the order of `files`."""
    if share >= 1:
        return files
    rank = pd.Series(generator(seed, "part of the photos").permutation(len(files)), files.index)
    groups = rank.groupby([files["label"], files["split"]])
    # Of a rare class a share would leave too few to train on and to measure.
    wanted = np.maximum(np.ceil(share * groups.transform("size")), _FEWEST_OF_A_CLASS)
    chosen: pd.DataFrame = files[groups.rank() <= wanted].reset_index(drop=True)
    return chosen


def inspect(path: Path, max_pixels: int = 100_000_000) -> Seen:
    """Read one file and return its manifest row and its (32, 32) uint8 grey thumbnail."""
    # `ScanCache` keeps what is found here and does not look again: raise its `_VERSION` with every change of it.
    row: dict[str, Any] = {
        "bytes": 0, "sha256": "", "extension": path.suffix[1:].lower(), "format": "", "width": 0, "height": 0,
        "mode": "", "orientation": 1, "frames": 0, "bits": 8, "transparent": False, "grey": False,
        "fingerprint": 0, "error": "",
    }  # fmt: skip
    blank = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    try:
        data = read_file(path)
        # Noted before decoding: a damaged file still has a length and a digest in the manifest.
        row |= {"bytes": len(data), "sha256": sha256(data)}
        header = read_header(data, max_pixels)
        row |= {name: getattr(header, name) for name in
                ("format", "width", "height", "mode", "orientation", "frames", "bits", "transparent")}  # fmt: skip
        # Decoded once: this finds damage that no header shows, and makes the thumbnail.
        picture = resize(decode(data, max_pixels=max_pixels, at_least_px=THUMBNAIL_PX), THUMBNAIL_PX)
    except DecodeError as error:
        row["error"] = str(error)
        return row, blank
    thumbnail = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    # Largest less smallest channel. JPEG gives pictures without colour a few levels of it.
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    row |= {"grey": bool(spread.max() <= 8), "fingerprint": fingerprint(thumbnail)}
    return row, thumbnail


def fingerprint(thumbnail: NDArray[np.uint8]) -> int:
    """Return the 64-bit perceptual hash of a (32, 32) uint8 grey picture.

    The signs of the 8 × 8 lowest frequencies of the cosine transform about their median: pictures
    that look alike differ in few bits (Zauner 2010, "Implementation and benchmarking of perceptual
    image hash functions", section 3.2).
    """
    # The median leaves out the first value, the mean brightness: it is far from all others.
    low = cv2.dct(thumbnail.astype(np.float32))[:8, :8].ravel()
    median = np.sort(low[1:])[31]  # of 63 values
    return int.from_bytes(np.packbits(low > median).tobytes(), "big")


def _walk(root: Path, problems: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, str]]:
    try:
        tops = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{root} cannot be listed: {error.strerror}.") from error
    folders = [name for name in tops if (root / name).is_dir()]
    split_of = {name: SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS}
    # A class may be called "test": folders are splits only if all of them are, and one is for training.
    is_split = "train" in split_of.values() and len(split_of) == len(folders) and len(split_of) > 1
    problems += [
        (name, "is not inside a class folder") for name in tops if looks_like_image(name) and (root / name).is_file()
    ]
    for name in tops:
        if (root / name).is_symlink() and not (root / name).exists():
            problems.append((name, "is a link that leads nowhere"))
    for name in folders:
        if is_split:
            entries = _listed(root / name, problems, root)
            labels = [entry for entry in entries if (root / name / entry).is_dir()]
            problems += [
                (f"{name}/{entry}", "is not inside a class folder")
                for entry in entries if looks_like_image(entry) and (root / name / entry).is_file()
            ]  # fmt: skip
            for label in labels:
                yield from _class_files(root, root / name / label, label, split_of[name], problems)
        else:
            yield from _class_files(root, root / name, name, "", problems)


def _listed(folder: Path, problems: list[tuple[str, str]], root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        problems.append((str(folder.relative_to(root)), f"cannot be listed: {error.strerror}"))
        return []


def _class_files(
    root: Path, folder: Path, label: str, split: str, problems: list[tuple[str, str]]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the image files below a class folder; folders are entered once, so link loops end.

    Raises:
        InputError: its name is not UTF-8. A class is named in JSON, in answers over HTTP and inside model files, none
            of which can hold such a name; paths of photos are only ever names of files, and may be anything.
    """
    if not _is_utf8(label):
        raise InputError(
            f"{_shown(folder)} is a class folder whose name is not UTF-8. Rename it: the class is called so in every "
            "table, page and answer."
        )
    # By device and inode, not by path: a link to a folder above would have ever longer paths.
    seen: set[tuple[int, int]] = set()
    waiting, num_images = [folder], 0
    while waiting:
        current = waiting.pop()
        try:
            status = current.stat()
        except OSError as error:
            problems.append((str(current.relative_to(root)), f"cannot be entered: {error.strerror}"))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in _listed(current, problems, root):
            path = current / name
            if path.is_dir():
                waiting.append(path)
            elif looks_like_image(name):
                num_images += 1
                yield path.relative_to(root).as_posix(), label, split, ""
            else:
                # `health.left_out` tells the kinds of problems apart by their words.
                problems.append((path.relative_to(root).as_posix(), "is not an image by its name and was left out"))
    if not num_images:
        problems.append((folder.relative_to(root).as_posix(), "is a class folder without a photo"))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8 come from the file system as surrogates (PEP 383)
        return False
    return True


def _shown(path: Path) -> str:
    """Return a path with the bytes that are not UTF-8 written out, so that a message can be printed anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read_table(table: Path) -> tuple[Path, pd.DataFrame, list[tuple[str, str]]]:
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(table)
        # Everything as text: a class may be called "1", "007" or "NA".
        elif table.suffix.lower() in (".csv", ".tsv"):
            frame = pd.read_csv(
                table, dtype=str, keep_default_na=False, sep="\t" if table.suffix.lower() == ".tsv" else ","
            )
        else:
            raise InputError(f"{table} is neither a folder nor a table. Expected a folder, .csv or .parquet.")
    except ImportError as error:
        raise InputError(f"{table} is Parquet, which needs pyarrow: pip install 'tellapart[parquet]'.") from error
    except InputError:
        raise
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{table} cannot be read as a table: {error}") from error
    for column in ("path", "label"):
        if column not in frame.columns:
            hint = nearest(column, map(str, frame.columns))
            raise InputError(
                f"{table} has no column {column!r}; it has {', '.join(map(str, frame.columns))}.{hint} "
                "Expected path, label and, where wanted, split and group."
            )
    frame = frame.assign(**{name: "" for name in ("split", "group") if name not in frame.columns})
    frame = frame[["path", "label", "split", "group"]].astype(object)  # a Parquet column may refuse to hold ""
    frame = frame.where(frame.notna(), "").astype(str)
    problems = [
        (path, "is listed more than once; the first row was kept") for path in frame["path"][frame["path"].duplicated()]
    ]
    # The first row of a path counts; the others have been noted as problems.
    frame = frame.drop_duplicates("path").copy()
    if (frame["label"] == "").any():
        rows = int((frame["label"] == "").sum())
        raise InputError(f"{table} has {rows} rows without a label. Give each photo a label or take the rows out.")
    lowered = frame["split"].str.strip().str.lower()
    unknown = sorted(set(lowered) - set(SPLIT_FOLDERS) - {""})
    if unknown:
        raise InputError(f"{table} names the split {unknown[0]!r}. Expected train, validation or test.")
    if (lowered == "").any() and (lowered != "").any():
        raise InputError(f"{table} gives a split to some photos and not to others. Give it to all or to none.")
    frame["split"] = lowered.map(lambda name: SPLIT_FOLDERS.get(name, ""))
    return table.resolve().parent, frame, problems
