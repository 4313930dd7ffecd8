from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from tellapart.data.drawn import CLASSES, draw, encoded_picture
from tellapart.errors import InputError


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "pictures", num_images=1000)


@pytest.fixture(scope="module")
def pictures(drawn: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return pictures, targets and width, height, aspect, bytes, bytes per pixel, PNG or not."""
    images, targets, metadata = [], [], []
    for target, label in enumerate(CLASSES):
        for path in sorted((drawn / label).iterdir()):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            height, width = image.shape[:2]
            length = path.stat().st_size
            metadata.append((width, height, width / height, length, length / (width * height), path.suffix == ".png"))
            images.append(image)
            targets.append(target)
    return images, np.array(targets), np.array(metadata, float)


def test_one_seed_always_draws_the_same_files(tmp_path: Path) -> None:
    first = contents(draw(tmp_path / "first", num_images=23, seed=5))
    assert first == contents(draw(tmp_path / "second", num_images=23, seed=5))
    assert all(encoded_picture(5, *_job(name)) == (Path(name).suffix, data) for name, data in first.items())


def _job(name: str) -> tuple[str, int]:
    label, number = Path(name).stem.split("_")
    return label, int(number)


def test_another_seed_class_or_number_draws_another_picture(tmp_path: Path) -> None:
    first = contents(draw(tmp_path / "first", num_images=20, seed=0))
    second = contents(draw(tmp_path / "second", num_images=20, seed=1))
    assert len(set(first.values()) | set(second.values())) == 40


def test_images_are_spread_evenly_and_all_are_three_channel_colour(pictures, drawn: Path) -> None:
    images, targets, _ = pictures
    assert sorted(path.name for path in drawn.iterdir() if path.is_dir()) == list(CLASSES)
    assert np.bincount(targets).tolist() == [100] * 10
    assert all(image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 for image in images)
    assert all(np.ptp(image.astype(int), axis=2).max() > 8 for image in images)


def test_a_rest_goes_to_the_first_classes(tmp_path: Path) -> None:
    names = contents(draw(tmp_path, num_images=13))
    assert sum(name.startswith(("bolt/", "cross/", "drop/")) for name in names) == 6
    assert len(names) == 13


def test_sizes_and_formats_are_mixed(pictures) -> None:
    metadata = pictures[2]
    assert len({tuple(row) for row in metadata[::3, :2]}) >= 100
    assert metadata[:, :2].min() >= 48
    assert metadata[:, :2].max() <= 320
    assert 0.05 < metadata[:, 5].mean() < 0.2


def test_size_and_format_do_not_tell_the_class(pictures) -> None:
    _, targets, metadata = pictures
    tree = DecisionTreeClassifier(max_depth=6, random_state=0)
    right = cross_val_predict(tree, metadata[:, [0, 1, 2, 5]], targets, cv=5) == targets
    # Chance is 0.1 with a standard error of 0.0095; four of them keep a true null from failing.
    assert right.mean() < 0.14


def test_file_length_tells_the_class_only_weakly(pictures) -> None:
    _, targets, metadata = pictures
    tree = DecisionTreeClassifier(max_depth=6, random_state=0)
    right = cross_val_predict(tree, metadata, targets, cv=5) == targets
    assert right.mean() < 0.18


@pytest.mark.parametrize("side_px", [16, 32])
def test_a_linear_model_of_the_pixels_stays_below_half(pictures, side_px: int) -> None:
    images, targets, _ = pictures
    small = [cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA) for image in images]
    pixels = np.array(small).reshape(len(small), -1) / 255 - 0.5
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[:800], order[800:]
    model = SGDClassifier(loss="log_loss", alpha=1e-3, max_iter=30, tol=None, random_state=0)
    model.fit(pixels[train], targets[train])
    assert model.score(pixels[train], targets[train]) > 0.3, "the fit itself failed: nothing is shown"
    assert model.score(pixels[test], targets[test]) < 0.5


def test_a_call_that_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    folder = draw(tmp_path, num_images=20)
    whole = contents(folder)
    kept = folder / "star" / "star_00002.jpg"
    kept = kept if kept.exists() else kept.with_suffix(".png")
    before = kept.stat().st_mtime_ns
    for name in ("ring", "moon"):
        for path in (folder / name).iterdir():
            path.unlink()
    (folder / "ring" / ".ring_00001.jpg.abc.part").write_bytes(b"half")

    assert contents(draw(folder, num_images=20)) == whole
    assert kept.stat().st_mtime_ns == before


def test_more_images_may_be_asked_for_later(tmp_path: Path) -> None:
    few = contents(draw(tmp_path, num_images=10))
    many = contents(draw(tmp_path, num_images=30))
    assert len(many) == 30
    assert few.items() <= many.items()


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="is not empty and was not drawn by tellapart"):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_strange_file_among_the_drawn_ones_is_refused(tmp_path: Path) -> None:
    draw(tmp_path, num_images=10)
    (tmp_path / "star" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds star/mine\.jpg, which is not to be drawn"):
        draw(tmp_path, num_images=10)


def test_pictures_of_another_seed_are_not_mixed_in(tmp_path: Path) -> None:
    draw(tmp_path, num_images=10, seed=1)
    with pytest.raises(InputError, match="not of seed 2"):
        draw(tmp_path, num_images=10, seed=2)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        draw(tmp_path / "file")


def test_fewer_images_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"num_images is 9\. Expected at least 10"):
        draw(tmp_path, num_images=9)


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    draw(tmp_path, num_images=70, progress=lambda *call: calls.append(call))
    assert calls == [("drawing pictures", 64, 70), ("drawing pictures", 70, 70)]
