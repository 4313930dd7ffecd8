"""Splits: shares up to chance, no unit torn apart, no photo moved by what is added."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawing import photo, save, save_photo
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.scan import scan
from tellapart.data.split import split
from tellapart.errors import InputError
from tellapart.records import SPLITS, Manifest

SHARES = (0.7, 0.2, 0.1)


def manifest_of(labels: list[str], *, first: int = 0, errors: dict[int, str] | None = None) -> Manifest:
    """A row per label with a random content; `first` numbers the contents."""
    digests = [hashlib.sha256(str(first + n).encode()).hexdigest() for n in range(len(labels))]
    frame = pd.DataFrame({"label": labels, "sha256": digests, "split": "", "error": ""}, dtype=object)
    for row, error in (errors or {}).items():
        frame.loc[row, ["error", "sha256"]] = [error, ""]
    return Manifest(Path("photos"), frame, None)


def joined(*manifests: Manifest) -> Manifest:
    return Manifest(Path("photos"), pd.concat([m.frame for m in manifests], ignore_index=True), None)


def alone(manifest: Manifest) -> np.ndarray:
    return np.arange(len(manifest.frame))


def straddling(sides: pd.Series, number: np.ndarray) -> int:
    return int((sides[sides != ""].groupby(number[sides != ""]).nunique() > 1).sum())


def test_shares_hold_overall_and_in_each_class_up_to_chance():
    manifest = manifest_of(["a"] * 1200 + ["b"] * 500 + ["c"] * 300)
    sides = split(manifest, alone(manifest), shares=SHARES)
    for rows in (slice(None), *(manifest.frame["label"] == label for label in "abc")):
        part = sides[rows]
        for side, share in zip(SPLITS, SHARES, strict=True):
            spread = np.sqrt(len(part) * share * (1 - share))
            assert abs((part == side).sum() - share * len(part)) < 3.3 * spread, "99.9 % of chance"


def test_another_seed_is_another_split_and_shares_are_obeyed():
    manifest = manifest_of(["a"] * 2000)
    sides = split(manifest, alone(manifest), seed=0)
    other = split(manifest, alone(manifest), seed=1)
    assert (sides == other).mean() == pytest.approx(0.7**2 + 0.2**2 + 0.1**2, abs=0.04), "independent"
    two = split(manifest, alone(manifest), shares=(0.5, 0.5, 0.0))
    assert set(two) == {"train", "validation"}


def test_adding_photos_moves_no_old_photo():
    old = manifest_of(["a"] * 1200 + ["b"] * 800)
    new = manifest_of(["a"] * 100 + ["b"] * 200 + ["c"] * 100, first=10_000)
    before = split(old, alone(old))
    both = joined(old, new)
    order = np.random.default_rng(0).permutation(len(both.frame))
    shuffled = Manifest(both.root, both.frame.iloc[order].reset_index(drop=True), None)
    after = split(shuffled, alone(shuffled))
    side_of = dict(zip(shuffled.frame["sha256"], after, strict=True))
    assert [side_of[digest] for digest in old.frame["sha256"]] == before.tolist()


def test_a_new_near_duplicate_with_a_smaller_digest_moves_nobody_when_the_earlier_split_is_known():
    old = manifest_of(["a"] * 300)
    new = manifest_of(["a"] * 300, first=10_000)
    before = split(old, alone(old))
    number = np.concatenate([alone(old), alone(old)])  # each new photo looks like one old photo
    without = split(joined(old, new), number)
    assert (without[:300].to_numpy() != before.to_numpy()).sum() > 20, "this is why memory is needed"
    earlier = dict(zip(old.frame["sha256"], before, strict=True))
    after = split(joined(old, new), number, earlier=earlier)
    assert after[:300].tolist() == after[300:].tolist() == before.tolist()


def test_a_unit_whose_photos_were_on_several_sides_goes_to_the_one_that_was_tested_on():
    manifest = manifest_of(["a"] * 40)
    digests = manifest.frame["sha256"].tolist()
    number = np.array([0, 0, 0, 1, 1, *range(2, 37)])
    earlier = {digests[0]: "train", digests[1]: "test", digests[3]: "train", digests[4]: "validation"}
    sides = split(manifest, number, earlier=earlier)
    assert sides[:5].tolist() == ["test", "test", "test", "validation", "validation"]


@pytest.mark.parametrize("count", [3, 4, 7])
def test_small_classes_get_every_side(count):
    labels = [f"class {n // count}" for n in range(count * 60)]
    manifest = manifest_of(labels)
    sides = split(manifest, alone(manifest))
    assert (sides.groupby(labels).nunique() == 3).all()
    earlier = dict(zip(manifest.frame["sha256"], sides, strict=True))
    grown = joined(manifest, manifest_of(labels, first=10_000))
    kept = split(grown, alone(grown), earlier=earlier)
    assert kept[: len(labels)].tolist() == sides.tolist()


def test_classes_of_one_or_two_photos_are_split_like_others():
    manifest = manifest_of(["one", "two", "two", *["many"] * 30])
    assert set(split(manifest, alone(manifest))) == set(SPLITS)


def test_a_given_split_is_kept_as_it_is():
    manifest = manifest_of(["a", "a", "b", "b"], errors={1: "is empty"})
    manifest.frame["split"] = ["train", "train", "test", "train"]
    assert split(manifest, np.zeros(4, np.int64)).tolist() == ["train", "", "test", "train"]
    manifest.frame["split"] = ["test", "train", "test", "validation"]
    with pytest.raises(InputError, match="given split has no train photos"):
        split(manifest, alone(manifest))


def test_no_readable_photo_is_an_error():
    with pytest.raises(InputError, match=r"None of the 2 files in photos can be read"):
        split(manifest_of(["a", "b"], errors={0: "is empty", 1: "is empty"}), np.arange(2))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8), st.booleans()), min_size=2, max_size=60),
    st.integers(0, 2**31),
)
def test_units_never_straddle(rows, seed):
    labels, number = [row[0] for row in rows], np.array([row[1] for row in rows])
    errors = {n: "is empty" for n, row in enumerate(rows) if row[2] and n}
    manifest = manifest_of(labels, errors=errors)
    sides = split(manifest, number, seed=seed)
    assert straddling(sides, number) == 0
    assert ((sides == "") == (manifest.frame["error"] != "")).all()
    digests = manifest.frame["sha256"]
    some = {digest: SPLITS[(n + seed) % 3] for n, digest in enumerate(digests) if n % 2 and digest}
    assert straddling(split(manifest, number, seed=seed, earlier=some), number) == 0


def test_copies_and_groups_never_straddle_whatever_their_class_and_folder(tmp_path):
    lines = ["path,label,group"]
    for index in range(40):
        picture = photo(index, (64, 64))
        save(tmp_path / f"one/{index}.png", picture)
        save(tmp_path / f"two/{index}.jpg", picture, quality=60)
        save(tmp_path / f"two/mirrored{index}.jpg", np.ascontiguousarray(picture[:, ::-1]))
        (tmp_path / f"one/exact{index}.png").write_bytes((tmp_path / f"one/{index}.png").read_bytes())
        save_photo(tmp_path / f"one/other{index}.jpg", 1000 + index)
        group = f"visit {index // 2}"  # joins the copies of two photos, and two others
        lines += [
            f"one/{index}.png,a,{group}",
            f"two/{index}.jpg,b,",
            f"two/mirrored{index}.jpg,c,",
            f"one/exact{index}.png,a,",
            f"one/other{index}.jpg,c,{group}",
        ]
    (tmp_path / "table.csv").write_text("\n".join(lines), "utf-8")
    manifest = scan(tmp_path / "table.csv")
    number = units(manifest, near_duplicates(manifest))
    planted = manifest.frame["path"].str.extract(r"(\d+)\.", expand=False).astype(int) // 2
    assert len(np.unique(number)) == 20
    for seed in range(10):
        sides = split(manifest, number, seed=seed)
        assert straddling(sides, planted.to_numpy()) == 0
        assert set(sides) == set(SPLITS)
