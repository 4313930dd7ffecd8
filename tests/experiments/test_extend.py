"""New photos and new classes join a run, and what that did to the old ones is counted by photo."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tellapart
from drawing import make_classes
from tellapart.errors import InputError, RunError
from tellapart.experiments.extend import extended_photos, extended_request
from tellapart.run import begin
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import load_recipe

QUICK = ["data.image_px=32", "train.epochs=2", "train.batch_size=16", "train.precision=float32"]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    photos = make_classes(folder / "photos", {"a": 40, "b": 40})
    return tellapart.train(photos, changes=QUICK, out=folder / "run", cache=folder / "cache").path


def test_a_new_class_joins_and_old_photos_keep_their_split(earlier: Path, tmp_path: Path):
    new = make_classes(tmp_path / "new", {"c": 40, "b": 5}, seed=7_000_000)
    run = tellapart.train(new, extend=earlier, out=tmp_path / "run", cache=tmp_path / "cache")
    before, after = RunFolder(earlier), RunFolder(run.path)
    assert after.record().classes == ["a", "b", "c"]
    old, both = before.splits(), after.splits()
    assert {digest: both[digest] for digest in old} == old
    assert len(both) == len(old) + 45
    assert after.record().parents == (before.record().run_id,)

    found = run.metrics["extension"]
    assert found["new_classes"] == ["c"]
    assert (found["num_new"], found["num_photos"]) == (45, 125)
    test = [digest for digest, side in old.items() if side == "test"]
    assert found["num_test"] == len(test)
    for share, folder in ((found["before"], before), (found["after"], after)):
        photos, classes, probabilities = folder.predictions()
        named = np.asarray(classes, object)[probabilities.argmax(axis=1)]
        right = pd.Series(named == photos["label"].to_numpy(object), photos["sha256"])
        assert share == pytest.approx(right[test].mean())
    assert found["interval"][0] <= found["after"] - found["before"] <= found["interval"][1]


def test_a_run_that_learned_from_a_teacher_is_extended_without_it(tmp_path: Path):
    """The teacher has said nothing of the new photos: training would refuse them."""
    make_classes(tmp_path / "photos", {"a": 3, "b": 3})
    recipe = load_recipe(changes=["distill.teacher=runs/teacher", "train.epochs=7"])
    for race, expected in ((None, ("", 7)), ([], None)):
        request = RunRequest(photos=str(tmp_path / "photos"), race=race)
        run = begin(recipe, request, tmp_path / ("alone" if race is None else "race"))
        run.metrics_path.write_text("{}")
        again, asked = extended_request(tmp_path / "table.csv", run, None)
        assert (None if again is None else (again.distill.teacher, again.train.epochs)) == expected
        assert asked.extends == str(run.path)


def test_photos_that_are_gone_or_a_run_that_is_not_finished_are_refused(earlier: Path, tmp_path: Path):
    new = make_classes(tmp_path / "new", {"c": 12})
    moved = shutil.copytree(earlier, tmp_path / "moved")
    RunFolder(moved).update_record(root=str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="80 of the 80 photos"):
        extended_photos(new, RunFolder(moved), tmp_path / "out")
    (moved / "metrics.json").unlink()
    with pytest.raises(RunError, match="not a finished run"):
        extended_photos(new, RunFolder(moved), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_split_of_another_run_beside_it_is_refused(earlier: Path, tmp_path: Path):
    with pytest.raises(InputError, match="keeps its own split and weights"):
        tellapart.train(tmp_path / "new", extend=earlier, split_from=earlier, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_the_new_photos_have_a_split_the_old_ones_get_theirs(earlier: Path, tmp_path: Path):
    for side in ("train", "val"):
        make_classes(tmp_path / "new" / side, {"c": 12}, seed=8_000_000 + len(side))
    table, folder = extended_photos(tmp_path / "new", RunFolder(earlier), tmp_path / "out")
    assert not folder.exists()
    rows = pd.read_csv(table)
    assert rows["split"].notna().all()
    assert (rows["split"] != "").all()
    assert (rows["label"] == "c").sum() == 24
