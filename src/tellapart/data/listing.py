"""Finds image files by their names. Knows nothing about tables of photos: a server has no pandas."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tellapart.errors import InputError

# An ending that is spelled otherwise than its format belongs into `oddities._FORMAT_OF` too, or every such file is
# reported as misnamed.
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff", "mpo"})


def looks_like_image(name: str) -> bool:
    """Return whether a file claims to be an image by its name."""
    return Path(name).suffix[1:].lower() in IMAGE_EXTENSIONS


def image_files(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files that are named, those in named folders and below included.

    Raises:
        InputError: a name leads to nothing, or a folder holds no image.
    """
    paths: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            inside = list(_images_below(name))
            if not inside:
                raise InputError(f"{name} holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))}).")
            paths += inside
        # A broken link exists for nobody; it is passed on, and reading it says what is wrong.
        elif name.exists() or name.is_symlink():
            paths.append(name)
        else:
            raise InputError(f"{name} does not exist. Expected an image or a folder of images.")
    return paths


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):  # does not follow links: loops end
        # In place: os.walk goes on in this order, so a folder is listed alike on every machine.
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files) if Path(name).suffix[1:].lower() in IMAGE_EXTENSIONS)


def listed_files(path: Path) -> list[Path]:
    """Read a text file that names an image in each line, relative to the file's folder.

    Raises:
        InputError: it cannot be read, or names nothing.
    """
    try:
        # Bytes, not text: a file's name need not be UTF-8.
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    paths = [path.parent / os.fsdecode(line) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{path} names no image. Expected a path in each line.")
    return paths
