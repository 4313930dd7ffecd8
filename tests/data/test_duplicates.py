"""Near duplicates against a comparison of all with all, and the units that follow from them."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drawing import photo, save, save_photo
from tellapart.data.duplicates import near_duplicates, tally, units
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


# Very many that look the same -----------------------------------------------------------------------------


def peak_mb(call) -> float:
    """Return the most memory that a call held at a time, in MB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def manifest_of(thumbnails: NDArray[np.uint8], digests: list[str], labels: list[str]) -> Manifest:
    prints = np.array([fingerprint(picture) for picture in thumbnails], np.uint64)
    frame = pd.DataFrame({
        "path": [f"{number}.jpg" for number in range(len(digests))], "error": "", "fingerprint": prints,
        "sha256": digests, "label": labels, "split": "", "group": "",
    })  # fmt: skip
    return Manifest(Path(), frame, thumbnails)


def test_a_thousand_copies_take_as_many_pairs_and_little_memory():
    """All pairs of one fingerprint took 6 GB; copies of three pictures, one of them under two labels."""
    kinds = np.arange(1_000) % 3
    thumbnails = np.stack([cv2.cvtColor(photo(kind, (32, 32)), cv2.COLOR_RGB2GRAY) for kind in range(3)])[kinds]
    labels = ["b" if number >= 990 and kinds[number] == 0 else "a" for number in range(1_000)]
    manifest = manifest_of(thumbnails, [f"digest {kind}" for kind in kinds], labels)
    found: list = []
    assert peak_mb(lambda: found.append(near_duplicates(manifest))) < 100
    assert len(found[0]) == 997
    assert len(np.unique(units(manifest, found[0]))) == 3
    counts, sizes = tally(manifest, found[0]), np.bincount(kinds)
    assert counts.exact_pairs == sum(size * (size - 1) // 2 for size in sizes)
    assert (counts.exact.sum(), counts.near_pairs, counts.near.sum(), counts.complete) == (1_000, 0, 0, True)
    torn = tally(manifest, found[0], np.array(labels, object))
    others = labels.count("b")
    assert torn.exact_pairs == others * (sizes[0] - others)
    assert torn.exact.sum() == sizes[0], "each copy of the first picture has one under the other label"


def test_photos_that_nearly_all_look_the_same_stay_in_bounds():
    """4,000 pictures of one scene, each with noise of its own: eight million pairs, all of one unit."""
    rng, scene = np.random.default_rng(0), cv2.cvtColor(photo(5, (32, 32)), cv2.COLOR_RGB2GRAY).astype(int)
    thumbnails = np.clip(scene + rng.integers(-1, 2, (4_000, 32, 32)), 0, 255).astype(np.uint8)
    thumbnails[::1_000] = rng.integers(0, 256, (4, 32, 32))  # four that look like nothing else
    manifest = manifest_of(thumbnails, [f"digest {number}" for number in range(4_000)], ["a"] * 4_000)
    found: list = []
    assert peak_mb(lambda: found.append(near_duplicates(manifest))) < 300
    pairs = found[0]
    assert len(pairs) < 600_000
    assert len(np.unique(units(manifest, pairs))) == 5
    counts = tally(manifest, pairs)
    assert counts.near.sum() == 3_996
    assert not counts.complete


def test_counting_copies_of_near_duplicates_is_counting_all_pairs():
    """Look-alikes of 40 pictures, each there several times, under three labels; against all pairs, one by one."""
    rng = np.random.default_rng(1)
    picture, label = rng.integers(0, 40, 300), rng.integers(0, 3, 300)
    look = picture // 4 * 4 + np.minimum(picture % 4, 2)  # of four pictures, the last two are the same
    digests = np.array([f"digest {number}" for number in picture], object)
    frame = pd.DataFrame({"sha256": digests, "error": ""})
    first = {number: np.flatnonzero(picture == number)[0] for number in np.unique(picture)}
    near = [(first[a], first[b]) for a in first for b in first if a < b and look[first[a]] == look[first[b]]]
    chains = [pair for number in first for pair in pairwise(np.flatnonzero(picture == number))]
    pairs = np.sort(np.array(near + chains), axis=1)
    for kinds in (None, label):
        apart = [(i, j) for i in range(300) for j in range(i) if kinds is None or kinds[i] != kinds[j]]
        exact = [(i, j) for i, j in apart if picture[i] == picture[j]]
        others = [(i, j) for i, j in apart if picture[i] != picture[j] and look[i] == look[j]]
        counts = tally(Manifest(Path(), frame, None), pairs, kinds)
        assert (counts.exact_pairs, counts.near_pairs) == (len(exact), len(others))
        assert set(np.flatnonzero(counts.exact)) == {i for pair in exact for i in pair}
        assert set(np.flatnonzero(counts.near)) == {i for pair in others for i in pair}
