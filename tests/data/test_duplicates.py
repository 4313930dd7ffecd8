"""Near duplicates against a comparison of all with all, and the units that follow from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drawing import photo, save, save_photo
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.scan import fingerprint, scan
from tellapart.records import Manifest


def named(manifest: Manifest, pairs: NDArray[np.int64]) -> set[tuple[str, str]]:
    paths = manifest.frame["path"]
    return {(paths[left], paths[right]) for left, right in pairs}


def plant(folder: Path) -> Path:
    """Write two classes of 15 different photos, and copies of five of them."""
    for index in range(15):
        save_photo(folder / f"a/{index:02d}.jpg", index, (64, 64))
        save_photo(folder / f"b/{index:02d}.jpg", 100 + index, (64, 64))
    (folder / "b/exact.jpg").write_bytes((folder / "a/00.jpg").read_bytes())
    save(folder / "a/encoded.jpg", photo(1, (64, 64)), quality=45)
    save(folder / "b/mirrored.png", np.ascontiguousarray(photo(2, (64, 64))[:, ::-1]))
    save(folder / "b/smaller.jpg", cv2.resize(photo(103, (64, 64)), (40, 40), interpolation=cv2.INTER_AREA))
    save(folder / "a/darker.jpg", (photo(4, (64, 64)) * 0.8).astype(np.uint8))
    return folder


PLANTED = {
    ("a/00.jpg", "b/exact.jpg"),
    ("a/01.jpg", "a/encoded.jpg"),
    ("a/02.jpg", "b/mirrored.png"),
    ("b/03.jpg", "b/smaller.jpg"),
    ("a/04.jpg", "a/darker.jpg"),
}


def test_planted_copies_are_found_and_nothing_else(tmp_path):
    plant(tmp_path)
    for name in ("broken1.jpg", "broken2.jpg"):
        (tmp_path / "a" / name).write_bytes(b"\xff\xd8 twice the same, but no picture")
    manifest = scan(tmp_path)
    pairs = near_duplicates(manifest)
    assert {tuple(sorted(pair)) for pair in named(manifest, pairs)} == PLANTED
    assert (pairs[:, 0] < pairs[:, 1]).all()
    number = units(manifest, pairs)
    assert len(np.unique(number)) == len(manifest.frame) - len(PLANTED)


def test_mirrored_copies_are_found_as_surely_as_others(tmp_path):
    for index in range(150):
        save(tmp_path / f"a/{index:03d}.png", photo(index))
        save(tmp_path / f"b/{index:03d}.jpg", np.ascontiguousarray(photo(index)[:, ::-1]), quality=60)
    manifest = scan(tmp_path)
    expected = {(f"a/{index:03d}.png", f"b/{index:03d}.jpg") for index in range(150)}
    assert named(manifest, near_duplicates(manifest)) == expected


def test_pairs_equal_those_of_a_comparison_of_all_with_all():
    """1,400 thumbnails, more than one block; copies with noise, near and far, mirrored or not."""
    rng = np.random.default_rng(0)
    thumbnails = np.stack([cv2.resize(photo(seed)[..., 0], (32, 32)) for seed in range(1_000)])
    noise = rng.normal(0, 1, (400, 32, 32)) * np.linspace(0, 40, 400)[:, None, None]
    copies = np.clip(thumbnails[rng.permutation(1_000)[:400]] + noise, 0, 255).astype(np.uint8)
    copies[::2] = copies[::2, :, ::-1]
    thumbnails = np.concatenate([thumbnails, copies])[rng.permutation(1_400)]
    prints = np.array([fingerprint(thumbnail) for thumbnail in thumbnails], np.uint64)
    frame = pd.DataFrame({"error": "", "fingerprint": prints, "sha256": [f"{n:064x}" for n in range(1_400)]})

    expected = set()
    mirror = np.ascontiguousarray(thumbnails[:, :, ::-1])
    for other in (thumbnails, mirror):
        other_prints = np.array([fingerprint(thumbnail) for thumbnail in other], np.uint64)
        bits, other_bits = (np.unpackbits(p.view(np.uint8)).reshape(-1, 64).astype(int) for p in (prints, other_prints))
        apart = bits @ (1 - other_bits.T) + (1 - bits) @ other_bits.T
        both = np.corrcoef(thumbnails.reshape(1_400, -1), other.reshape(1_400, -1))[:1_400, 1_400:]
        left, right = np.nonzero((apart <= 8) & (both >= 0.97))
        expected |= {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True) if a < b}
    found = near_duplicates(Manifest(Path(), frame, thumbnails))
    assert set(map(tuple, found.tolist())) == expected
    assert 150 < len(expected) < 350, "the noise makes some copies too different"


def test_units_join_chains_and_groups_but_not_photos_without_a_group():
    frame = pd.DataFrame({"group": ["", "visit", "", "visit", "", "", "other", ""]})
    pairs = np.array([[0, 1], [4, 5]])
    number = units(Manifest(Path(), frame, None), pairs).tolist()
    assert number[0] == number[1] == number[3], "0 looks like 1, which shares a group with 3"
    assert number[4] == number[5]
    assert len(set(number)) == 5


def test_no_photos_no_pairs():
    frame = pd.DataFrame({"error": ["is empty"], "fingerprint": np.zeros(1, np.uint64), "sha256": [""]})
    assert near_duplicates(Manifest(Path(), frame, np.zeros((1, 32, 32), np.uint8))).shape == (0, 2)
