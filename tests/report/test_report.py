"""A report of a real run on drawn pictures: what it says, and that a person can click through it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

import tellapart
from tellapart.data.decode import decode_square
from tellapart.errors import InputError
from tellapart.explain.maps import METHODS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUICK = [
    "data.image_px=32", "train.epochs=16", "train.batch_size=16", "train.learning_rate=4e-3", "train.precision=float32",
    "train.warmup_epochs=1", "train.recalibrate_photos=256", "model.dropout=0.1",
    "model.l2=0.0", "augment.rotation=0.02",
]  # fmt: skip
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "google-chrome")) if path), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a run with twelve wrong labels among them, and its report."""
    here = tmp_path_factory.mktemp("report")
    photos = tellapart.draw(here / "photos", num_images=600)
    classes = sorted(path.name for path in photos.iterdir() if path.is_dir())
    for number, path in enumerate(sorted((photos / classes[0]).iterdir())[:12]):
        path.rename(photos / classes[1 + number % 3] / f"moved-{path.name}")
    tellapart.train(photos, changes=QUICK, out=here / "run", cache=here / "cache")
    tellapart.evaluate(here / "run", cache=here / "cache")
    return here


@pytest.fixture(scope="module")
def values(place: Path) -> dict:
    return json.loads((place / "run" / "report" / "evaluation.json").read_text())


def test_the_page_needs_no_network_and_is_small(place: Path):
    page = (place / "run" / "report" / "report.html").read_text()
    assert len(page) < 6e6
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:|//|/)""", without_names)
    assert "nan" not in re.sub(r"base64,[^\"']*", "", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)).lower()
    assert page.count("<svg") > 20
    assert len(re.findall(r"<svg[^>]*><title>[^<]{10,}", page)) == page.count("<svg"), "each figure has a text"
    assert all('alt="' in image for image in re.findall(r"<img [^>]*>", page))


def test_the_numbers_are_those_of_the_run(place: Path, values: dict):
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    for side in ("train", "validation", "test"):
        assert values["metrics"][side]["accuracy"] == pytest.approx(metrics[side]["accuracy"], abs=1e-9)
        assert values["metrics"][side]["loss"] == pytest.approx(metrics[side]["loss"], rel=1e-4)
    assert values["baseline"]["accuracy"] < values["metrics"]["test"]["accuracy"]
    assert values["robustness"]["mean_corruption_error"] > 1 - values["robustness"]["clean_accuracy"]
    assert len(values["robustness"]["runs"]) == 75
    assert set(values["methods"]) == {"grad-cam", "hires-cam", "layer-cam", "integrated-gradients", "occlusion"}
    assert values["missing"] == {}
    assert values["temperature"] == metrics["temperature"] != pytest.approx(1, abs=0.01)
    assert values["calibration_scaled"]["log_loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-3)
    assert values["calibration"]["log_loss"] != pytest.approx(metrics["test"]["loss"], rel=1e-3)


def test_unknown_photos_are_told_and_known_ones_refused_as_the_run_says(place: Path, values: dict):
    metrics, found = json.loads((place / "run" / "metrics.json").read_text()), values["unknown"]
    assert found["refused"]["share"] == metrics["unknown"]["refused_test"]["share"]
    assert found["refused"]["interval"] == pytest.approx(metrics["unknown"]["refused_test"]["interval"])
    assert found["promised"] == 0.05
    assert len(found["left_out"]) == 10
    areas = [told["auroc"] for told in found["left_out"].values()]
    assert found["left_out_mean"]["auroc"] == pytest.approx(np.mean(areas))
    assert set(found["far"]) == {"noise"}, "drawn shapes are what it knows"
    assert found["far"]["noise"]["auroc"] > 0.5
    assert found["exact"] is False
    page = (place / "run" / "report" / "report.html").read_text()
    section = page[page.index('id="unknown"') : page.index('id="quality"')]
    assert "a class that it has never seen is told less well" in section
    assert section.count("<svg") == 1


def test_wrong_labels_are_suspected(place: Path, values: dict):
    page = (place / "run" / "report" / "report.html").read_text()
    section = page[page.index('id="labels"') : page.index('id="calibration"')]
    assert section.count("moved-") >= 4
    assert values["suspected_labels"] >= 6
    table = pd.read_csv(place / "run" / "report" / "labels.csv")
    assert len(table) == 600
    assert table["suspected"].sum() == values["suspected_labels"]
    assert table["path"].head(60).str.contains("moved-").sum() >= 5, "chance would find one of the twelve in a tenth"
    moved = table[table["path"].str.contains("moved-") & table["suspected"]]
    assert len(moved) >= 2
    assert (moved["suggested"] != moved["label"]).all()


def test_the_confusion_matrix_counts_the_predictions(place: Path):
    page = (place / "run" / "report" / "report.html").read_text()
    table = pd.read_csv(place / "run" / "predictions.csv")
    test = table[table["split"] == "test"]
    names = sorted(table["true_label"].unique())
    expected = confusion_matrix(test["true_label"], test["predicted_label"], labels=names)
    found = np.zeros_like(expected)
    for true, said, count in re.findall(r'data-true="(\d+)" data-said="(\d+)" data-count="(\d+)"', page):
        found[int(true), int(said)] = int(count)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.by_hand
def test_a_report_on_thousands_of_photos_stays_small_and_shows_all_mistakes(place: Path):
    photos = tellapart.draw(place / "thousands", num_images=2_600, seed=5)
    report = tellapart.evaluate(place / "run", photos, cache=place / "cache")
    assert report.values["metrics"]["test"]["num_images"] == 2_600
    assert report.page.stat().st_size < 25e6
    wrong = round(2_600 * (1 - report.values["metrics"]["test"]["accuracy"]))
    assert wrong > 0
    assert report.page.read_text().count("data:image/") > min(wrong, 100)


def test_an_unknown_class_is_refused(place: Path):
    other = place / "stranger"
    (other / "nonsense").mkdir(parents=True)
    source = next((place / "photos").rglob("*.jpg"))
    shutil.copy(source, other / "nonsense" / source.name)
    with pytest.raises(InputError, match="has the class 'nonsense', which the model does not know"):
        tellapart.evaluate(place / "run", other, cache=place / "cache")


def changed_run(place: Path, name: str, model: keras.Model) -> Path:
    """The run with another network in it."""
    run = place / name
    run.mkdir()
    for file in ("environment.json", "recipe.toml", "history.csv", "metrics.json"):
        shutil.copy(place / "run" / file, run / file)
    model.save(run / "model.keras")
    return run


def few_photos(place: Path, name: str, num_classes: int, each: int = 8) -> Path:
    """A few photos of some of the classes, and one that cannot be read."""
    folder = place / name
    classes = sorted(path for path in (place / "photos").iterdir() if path.is_dir())
    for label in classes[:num_classes]:
        (folder / label.name).mkdir(parents=True)
        for path in sorted(label.iterdir())[-each:]:
            shutil.copy(path, folder / label.name / path.name)
    (folder / classes[0].name / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    return folder


def test_other_photos_with_missing_classes_a_bad_file_and_a_class_that_is_never_named(place: Path):
    """Each is said where it belongs, and the rest of the report stands."""
    model = tellapart.load(place / "run").model
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias - 1000 * (np.arange(len(bias)) == 0)])  # the first is never named
    run = changed_run(place, "never", model)
    found = {"severity": "falsifies", "kind": "leakage", "message": "Of the run's photos.", "examples": []}
    (run / "health.json").write_text(json.dumps({"findings": [found]}))
    # Three classes are missing.
    report = tellapart.evaluate(run, few_photos(place, "some", 7, each=3), cache=place / "cache")
    classes, test = sorted(tellapart.load(run).classes), report.values["metrics"]["test"]
    assert report.page == run / "report-some" / "report.html"
    assert test["num_images"] == 21
    assert test["per_class"][classes[0]] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_images": 3}
    assert test["per_class"][classes[-1]]["num_images"] == 0
    assert set(report.values["missing"]) == {"baseline", "prediction sets", "unknown"}
    page = report.page.read_text()
    assert "1 photos cannot be read" in page
    assert "Of the run's photos." not in page, "what was found there says nothing of others"


@pytest.mark.by_hand
def test_probabilities_that_are_not_numbers_are_counted_and_the_rest_stands(place: Path):
    model = tellapart.load(place / "run").model
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    run = changed_run(place, "lost", model)
    report = tellapart.evaluate(run, few_photos(place, "few", 10, each=2), cache=place / "cache")
    assert report.values["num_not_finite"] == 20
    page = report.page.read_text()
    assert "The model gave no finite probabilities for 20 photos." in page
    assert report.values["metrics"]["test"]["accuracy"] == pytest.approx(0.1)  # all even: the first class


@pytest.mark.by_hand
def test_a_network_nested_in_another_gets_the_same_report(place: Path):
    """As transfer learning has it: the convolutions are a model of their own."""
    model = tellapart.load(place / "run").model
    names = [layer.name for layer in model.layers]
    first, pooling = names.index("conv1"), names.index("average")

    def copied(layers: list, x: keras.KerasTensor) -> keras.KerasTensor:
        for layer in layers:
            copy = type(layer).from_config(layer.get_config())
            x = copy(x)
            copy.set_weights(layer.get_weights())
        return x

    inner_input = keras.Input((48, 48, 3))
    inner = keras.Model(inner_input, copied(model.layers[first:pooling], inner_input), name="backbone")
    inputs = keras.Input((48, 48, 3), dtype="uint8")
    outputs = copied(model.layers[pooling:], inner(copied(model.layers[1:first], inputs)))
    run = changed_run(place, "nested", keras.Model(inputs, outputs))
    photos = few_photos(place, "both", 10, each=3)
    values = tellapart.evaluate(run, photos, cache=place / "cache").values
    files = sorted(path for path in photos.rglob("*") if path.is_file() and path.name != "broken.jpg")
    plain = tellapart.load(place / "run").predict(files)
    right = np.mean([found.label == path.parent.name for found, path in zip(plain, files, strict=True)])
    assert values["metrics"]["test"]["accuracy"] == pytest.approx(right)
    assert set(values["missing"]) == {"baseline", "prediction sets", "unknown"}
    pictures = np.stack([decode_square(path.read_bytes(), 48) for path in files[:4]])
    models = tellapart.load(place / "run").model, tellapart.load(run).model
    for name, method in METHODS.items():
        ours, theirs = (method(model, pictures, np.arange(4)) for model in models)
        np.testing.assert_allclose(ours, theirs, atol=0.01, err_msg=name)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 360])
def test_a_person_can_click_from_a_cell_to_a_photo_to_its_heat_map(place: Path, width: int):
    sync_api = pytest.importorskip("playwright.sync_api")
    errors: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else errors.append(request.url),
        )
        page.goto((place / "run" / "report" / "report.html").as_uri())
        cell = page.locator(".confusion button.wrong:not(.none)").first
        count = int(cell.get_attribute("data-count") or 0)
        cell.click()
        assert page.locator("#cell .card").count() == count
        page.locator("#cell .card").first.click()
        dialog = page.locator("dialog#photo")
        assert dialog.is_visible()
        page.wait_for_function("document.querySelector('dialog canvas')?.width > 100")
        colours = page.evaluate(
            "(() => {const c = document.querySelector('dialog canvas'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; let n = 0;"
            "for (let i = 0; i < d.length; i += 4) if (Math.abs(d[i] - d[i + 2]) > 25) n++; return n;})()"
        )
        assert colours > 100, "the heat map is coloured"
        assert dialog.locator(".near img").count() == 3
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        browser.close()
    assert errors == []
