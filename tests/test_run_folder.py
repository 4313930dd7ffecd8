"""What a run folder writes into its tables and reads back, whatever files and classes are called."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drawing import make_classes
from tellapart.errors import InputError, RunError
from tellapart.evaluation.predict import prediction_table
from tellapart.run import begin, reopen
from tellapart.run_folder import SCHEMA_VERSION, RunFolder, RunRequest, new_folder
from tellapart.settings import Recipe, load_recipe
from tellapart.tables import csv_text

ODD = ["=cmd|calc", "+1", "@home", "-x", "NA", "a,b", 'say "hi"', "two\nlines", "<!--<script>", "$x_1$", "'=1"]


def test_odd_names_come_back_and_no_cell_is_a_formula(tmp_path: Path):
    paths = [f"{name}.jpg" for name in ODD] + [b"caf\xe9.jpg".decode("utf-8", "surrogateescape")]
    labels = pd.Series([*ODD, "plain"], dtype=object)
    frame = pd.DataFrame({"path": pd.Series(paths, dtype=object), "label": labels, "split": "test", "group": "",
                          "sha256": [f"{n:064d}" for n in range(len(paths))], "error": ""})  # fmt: skip
    RunFolder(tmp_path).write_manifest(frame)
    found = RunFolder(tmp_path).manifest()
    assert found["path"].tolist() == paths
    assert found["label"].tolist() == labels.tolist()
    classes = sorted(labels)
    probabilities = np.eye(len(classes), dtype=np.float32)[[classes.index(label) for label in labels]]
    text = csv_text(prediction_table(frame, probabilities, classes))
    (tmp_path / "predictions.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    photos, known, said = RunFolder(tmp_path).predictions()
    assert photos["path"].tolist() == paths
    assert known == classes
    np.testing.assert_allclose(said, probabilities, atol=1e-6)
    for file in ("manifest.csv", "predictions.csv"):
        with open(tmp_path / file, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert len(cells) > 60
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_a_record_gains_what_each_stage_knows_and_keeps_the_rest(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    assert not run.is_begun
    run.create(Recipe(), RunRequest(photos="/photos", time_budget=60), {"backend": "tensorflow", "accelerators": []})
    assert run.is_begun
    assert not run.has_photos
    record = run.record()
    assert (record.schema_version, record.seed, record.request.time_budget) == (SCHEMA_VERSION, 0, 60)
    assert len(record.run_id) == 32
    run.update_record(classes=["a", "b"], root="/photos")
    changed = run.record()
    assert (changed.run_id, changed.classes, run.root) == (record.run_id, ["a", "b"], Path("/photos"))
    written = json.loads(run.record_path.read_text())
    assert written["accelerators"] == []
    assert "segments" not in written, "what is not known yet is not written"
    assert run.recipe() == Recipe()
    assert run.metrics() == {}


def test_records_of_earlier_versions_open_and_of_later_ones_do_not(tmp_path: Path):
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({"order": {"photos": "/cats", "split_from": None}, "seed": 3, "classes": ["a", "b"]}))
    record = RunFolder(tmp_path).record()
    assert (record.request.photos, record.seed, record.run_id) == ("/cats", 3, "")
    assert RunFolder(tmp_path).update_record(root="/cats").request.photos == "/cats"
    file.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RunError, match="Install a later one"):
        RunFolder(tmp_path).record()
    file.write_text(json.dumps({"classes": 3}))
    with pytest.raises(RunError, match="cannot be read"):
        RunFolder(tmp_path).record()
    file.unlink()
    with pytest.raises(RunError, match=r"no environment\.json"):
        RunFolder(tmp_path).record()


def test_photos_are_taken_over_with_their_split_and_an_ensemble_is_not_trained(tmp_path: Path):
    frame = pd.DataFrame({"path": ["a.jpg"], "label": ["a"], "split": ["test"], "sha256": ["0" * 64], "error": [""]})
    old, new = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new")
    old.create(Recipe(), RunRequest(photos="/cats", ensemble={"x": 0.5, "y": 0.5}), {})
    old.update_record(root="/cats", classes=["a"], num_photos=1, data_sha256="d")
    with pytest.raises(RunError, match=r"no manifest\.csv"):
        new.copy_photos_from(old)
    old.write_manifest(frame)
    new.create(Recipe(), RunRequest(photos="/cats"), {}, parents=(old.record().run_id,))
    new.copy_photos_from(old)
    assert new.splits() == {"0" * 64: "test"}
    assert new.record().known("root", "classes", "num_photos", "data_sha256") == {
        "root": "/cats", "classes": ["a"], "num_photos": 1, "data_sha256": "d",
    }  # fmt: skip
    assert new.record().parents == (old.record().run_id,)
    new.refuse_ensemble()
    with pytest.raises(RunError, match="an ensemble of x, y"):
        old.refuse_ensemble()


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    names = []
    for _ in range(3):
        folder = new_folder(None, Path("pets"))
        assert folder.is_dir(), "or another process could take it"
        names.append(folder.as_posix())
    assert names == [f"runs/pets-20260101-000000{end}" for end in ("", "-2", "-3")]


def test_a_wrong_folder_of_photos_does_not_take_the_place_of_the_right_one(tmp_path: Path):
    make_classes(tmp_path / "photos", {"a": 3, "b": 3})
    run = begin(load_recipe(), RunRequest(photos=str(tmp_path / "photos")), tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):
        reopen(run.path, tmp_path / "fotos")
    assert run.record().request.photos == str(tmp_path / "photos")


def test_a_folder_that_cannot_be_resumed_is_not_said_to_be(tmp_path: Path):
    """Killed between its recipe and its record: `--resume` would refuse it."""
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(RunError) as error:
        new_folder(tmp_path, Path("pets"))
    assert "--resume" not in str(error.value)
