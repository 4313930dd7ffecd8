"""Comparisons of run folders that the test writes, with known flips; neither models nor photos are needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tellapart
from drawing import make_classes
from tellapart.errors import InputError, RunError
from tellapart.evaluation.metrics import classification_metrics
from tellapart.files import sha256
from written_run import CLASSES, COUNT, write_run, wrong_at


def test_known_flips_are_found_in_both_directions(tmp_path: Path):
    before = write_run(tmp_path / "before", wrong_at(*range(40)))
    after = write_run(tmp_path / "after", wrong_at(*range(36, 45)))
    found = tellapart.compare([before, after])
    (pair,) = found.pairs
    assert sorted(flip.path for flip in pair.only_second) == sorted(
        f"{CLASSES[n % 3]}/photo é {n}.jpg" for n in range(36)
    )
    assert {flip.path for flip in pair.only_first} == {f"{CLASSES[n % 3]}/photo é {n}.jpg" for n in range(40, 45)}
    flip = next(flip for flip in pair.only_first if flip.path.endswith(" 40.jpg"))
    assert (flip.label, flip.first_said, flip.second_said) == ("cat", "cat", "dog")
    assert pair.differences["accuracy"].value == pytest.approx(31 / COUNT)
    assert pair.p_value == pair.corrected_p_value < 1e-5
    assert re.fullmatch(r"after is better than before: \+5\.2 points \(\d\.\d to \d\.\d\), p < 0\.001\.", pair.verdict)
    turned = tellapart.compare([after, before]).pairs[0]
    assert re.match(r"after is better than before: \+5\.2 points \(\d", turned.verdict)
    true = np.arange(COUNT) % 3
    expected = classification_metrics(true, 0.1 + 0.7 * np.eye(3)[wrong_at(*range(40))], CLASSES)
    for name in ("accuracy", "f1_macro", "loss"):
        assert found.runs[0].measures[name].value == pytest.approx(expected[name])
    assert (found.num_photos, found.runs[0].left_out) == (COUNT, 0)
    assert found.runs[0].cost.seconds_training == 12.5


def test_equal_runs_cannot_be_told_apart(tmp_path: Path):
    runs = [write_run(tmp_path / name / "run", wrong_at(1, 2, count=30)) for name in "ab"]
    (pair,) = tellapart.compare(runs, out=tmp_path / "out").pairs
    assert (pair.only_first, pair.only_second, pair.p_value, pair.winner) == ((), (), 1, None)
    assert re.match(r"No detectable difference between a/run and b/run \(−\d.* to \+\d.* points\)", pair.verdict)
    assert "There are none." in (tmp_path / "out" / "compare.html").read_text()


def test_a_weakness_in_one_class_is_a_slice_and_all_looks_are_accounted_for(tmp_path: Path):
    dogs = [n for n in range(COUNT) if n % 3 == 2][:30]
    runs = [write_run(tmp_path / name, wrong_at(*places)) for name, places in (("a", ()), ("b", dogs), ("c", dogs))]
    found = tellapart.compare(runs, against="all")
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    slices = [part for pair in found.pairs for part in pair.slices]
    assert {part.value for part in slices if part.column == "class"} == set(CLASSES)
    (dog,) = (part for part in found.pairs[0].slices if part.value == "dog")
    assert dog.is_detectable
    assert (dog.num_images, dog.difference.value) == (200, pytest.approx(-0.15))
    assert dog.corrected_p_value == pytest.approx(len(slices) * dog.p_value)
    assert not any(part.is_detectable for part in found.pairs[0].slices if part.value in ("NA", "cat"))
    assert [pair.corrected_p_value / pair.p_value for pair in found.pairs[:2]] == pytest.approx([3, 3])
    sizes = [part for part in found.pairs[0].slices if part.column == "short side"]
    assert len(sizes) == 3
    assert sum(part.num_images for part in sizes) == COUNT
    assert len(tellapart.compare(runs).pairs) == 2, "each with the first"


def test_only_photos_that_are_new_to_every_run_count(tmp_path: Path):
    """Of 90: 0 to 29 one run was trained on, 30 to 39 the other lacks, and copies: 43 of 40, 45 of 0, 47 of 48."""
    sides = np.full(90, "test", object)
    sides[:30] = "train"
    sides[15:30] = "validation"
    digests = [f"photo {n}" for n in range(90)]
    others = [f"another {n}" if 30 <= n < 40 else digests[n] for n in range(90)]
    digests[43] = others[43] = digests[40]  # one content, with the same label
    digests[45] = digests[0]
    others[45] = "photo 0"
    digests[47] = others[47] = digests[48]  # one content, two labels
    a = write_run(tmp_path / "a", wrong_at(50, count=90), sides=sides, digests=digests)
    b = write_run(tmp_path / "b", wrong_at(51, count=90), digests=others)
    found = tellapart.compare([a, b])
    assert found.num_photos == 50 - 1 - 1 - 2
    assert found.relabelled == 1
    assert [run.left_out for run in found.runs] == [58 - 46, 87 - 46], "copies are one photo"
    assert [len(flips) for flips in (found.pairs[0].only_first, found.pairs[0].only_second)] == [1, 1]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / name, wrong_at(*places, count=60)) for name, places in (("a", (1, 2)), ("b", (3,)))]


def test_what_cannot_be_compared_says_why(runs: list[Path], tmp_path: Path):
    other = write_run(tmp_path / "other", wrong_at(count=60), classes=["NA", "cat", "fox"])
    with pytest.raises(InputError, match=r"a and other do not tell the same classes apart: only a has the class 'dog'"):
        tellapart.compare([runs[0], other])
    strange = write_run(tmp_path / "strange", wrong_at(count=60), digests=[f"strange {n}" for n in range(60)])
    with pytest.raises(
        InputError, match=r"no photo in common .* \(a has 60, strange has 60 test photos\).*--split-from"
    ):
        tellapart.compare([runs[0], strange])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty is not a finished run: it has no metrics.json.*tellapart train\.$"):
        tellapart.compare([runs[0], tmp_path / "empty"])
    (tmp_path / "empty" / "recipe.toml").touch()
    with pytest.raises(RunError, match="--resume"):
        tellapart.compare([runs[0], tmp_path / "empty"])
    with pytest.raises(InputError, match="two or more"):
        tellapart.compare(runs[:1])
    with pytest.raises(InputError, match=r"'last'\. Expected 'first' or 'all'"):
        tellapart.compare(runs, against="last")
    lines = (runs[1] / "predictions.csv").read_text().splitlines(keepends=True)
    (runs[1] / "predictions.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=r"does not match manifest\.csv"):
        tellapart.compare(runs)


def test_the_page_shows_photos_that_are_there_and_names_the_others(tmp_path: Path):
    photos = make_classes(tmp_path / "photos", {"cat": 3})
    files = sorted(photos.rglob("*.*"))[:3]
    digests = [f"photo {n}" for n in range(60)]
    root = tmp_path / "root"
    for place, file in zip((1, 4, 7), files, strict=True):  # the third one has another content than the runs saw
        digests[place] = sha256(file.read_bytes()) if place < 7 else "changed"
        (root / "cat").mkdir(parents=True, exist_ok=True)
        (root / f"cat/photo é {place}.jpg").write_bytes(file.read_bytes())
    (root / "dog").mkdir()
    (root / "dog" / "photo é 2.jpg").write_bytes(b"no picture")
    digests[2] = sha256(b"no picture")
    a = write_run(tmp_path / "a", wrong_at(1, 2, 4, 7, 9, count=60), digests=digests, root=root)
    b = write_run(tmp_path / "<b>&", wrong_at(count=60), digests=digests)
    out = tmp_path / "out"
    found = tellapart.compare([a, b], out=out)
    page = (out / "compare.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("no picture") == 3
    assert all(flip.path in page for flip in found.pairs[0].only_second)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//|/)|<script""", page)
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    values = json.loads((out / "compare.json").read_text())
    assert values == json.loads(json.dumps(found.to_dict()))
    assert values["pairs"][0]["verdict"] == found.pairs[0].verdict
    assert len(values["pairs"][0]["differences"]["accuracy"]["interval"]) == 2


def test_no_framework_is_loaded(runs: list[Path], tmp_path: Path):
    code = f"import sys, tellapart\ntellapart.compare({[str(run) for run in runs]!r}, out={str(tmp_path / 'out')!r})\n"
    code += "assert not {'keras', 'tensorflow', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_speed_opens_the_models_and_the_command_prints_all(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    import keras

    from tellapart.cli.main import main

    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    for run in runs:
        model.save(run / "model.keras")
    monkeypatch.setenv("COLUMNS", "200")
    words = ["compare", *map(str, runs), "--speed", "--against", "all", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["tellapart", *words])
    with pytest.raises(SystemExit) as end:
        main()
    out, _ = capfd.readouterr()
    assert not end.value.code
    assert "No detectable difference between a and b" in out
    cost = json.loads((tmp_path / "out" / "compare.json").read_text())["runs"][0]["cost"]
    assert cost["parameters"] == 16 * 16 * 3 * 3 + 3
    assert (cost["image_px"], sorted(cost["ms_per_image"])) == (16, ["1", "32"])
    assert 0 < cost["ms_per_image"]["32"] < cost["ms_per_image"]["1"]
