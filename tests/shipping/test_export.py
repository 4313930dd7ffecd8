"""From a real run to a bundle, and what is made of it, against the run itself."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from numpy.typing import NDArray

import corpus
import tellapart
from held import with_outlier
from tellapart.bundles import predictor
from tellapart.bundles.bundle import BundleRecord, open_bundle, write_record
from tellapart.bundles.parity import EXACT, Proof, Tolerance, parity
from tellapart.bundles.predictor import DecodedImage, explain_bundle, open_classifier
from tellapart.bundles.runtimes import RUNTIMES, Outputs, answers, check_reference_images, open_runtime, usable
from tellapart.bundles.tables import predict_files
from tellapart.data.decode import decode_square
from tellapart.data.listing import image_files
from tellapart.data.metadata import without_metadata
from tellapart.errors import BundleError, InputError, RunError
from tellapart.evaluation.calibration import at_temperature
from tellapart.evaluation.unknown import noise_pictures
from tellapart.explain.maps import grad_cam, grad_cam_values
from tellapart.models.layers import LayerReader
from tellapart.report.bundle import evaluate_bundle
from tellapart.settings import load_recipe, save_recipe
from tellapart.shipping import artefacts as artefacts_module
from tellapart.shipping import export as export_module
from tellapart.shipping import formats, proofs, reduced
from tellapart.shipping.quantize import equalised
from tellapart.training.network import plain_network
from tellapart.unknown import UnknownDetector, load_detector

pytestmark = pytest.mark.integration


@pytest.mark.by_hand
def test_the_limit_of_pixels_goes_from_the_recipe_into_the_bundle_and_holds(place: Path, tmp_path: Path):
    run = shutil.copytree(place / "run", tmp_path / "run")
    recipe = load_recipe(run / "recipe.toml")
    data = recipe.data.model_copy(update={"max_pixels": 80_000})
    save_recipe(recipe.model_copy(update={"data": data}), run / "recipe.toml")
    bundle = tellapart.export(run, tmp_path / "bundle", cache=place / "cache")
    assert bundle.record.max_pixels == 80_000
    classifier = open_classifier(tmp_path / "bundle", runtime="onnxruntime")
    small, large = (corpus.png(np.zeros((200, width, 3), np.uint8)) for width in (400, 401))
    found = classifier.predict([small, large])
    assert [each.error for each in found] == [
        "", "declares 401 x 200 pixels; at most 80,000 in all are decoded (data.max_pixels)",
    ]  # fmt: skip
    old = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    del old["max_pixels"]
    assert BundleRecord.model_validate_json(json.dumps(old)).max_pixels == 100_000_000, "bundles from before"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "share"), [("int8-weights", 0.4), pytest.param("float16", 0.6, marks=pytest.mark.by_hand)]
)
def test_weights_in_fewer_bits_make_a_smaller_bundle_like_any_other(
    place: Path, tmp_path: Path, precision: str, share: float
):
    whole = open_bundle(place / "bundle")
    options = {"precision": precision, "margin": 0.5, "cache": place / "cache"}
    bundle = tellapart.export(place / "run", tmp_path / "bundle", formats=["litert"], **options)
    onnx, litert = bundle.record.artefacts
    assert (onnx.precision, litert.precision) == (precision, precision)
    assert onnx.bytes < share * next(part for part in whole.record.artefacts if part.format == "onnx").bytes
    assert {name for part in bundle.record.artefacts for name in part.proofs} == {
        "openvino-bf16", "openvino-f32", "onnxruntime", "litert",
    }  # fmt: skip
    files = image_files([place / "photos"])[:40]
    expected = tellapart.load(place / "run").predict(files)
    for runtime in ("onnxruntime", "openvino-f32", "litert"):
        found = open_classifier(bundle.folder, runtime=runtime).predict(files)
        assert sum(a.label == b.label for a, b in zip(found, expected, strict=True)) >= 38, runtime
    assert bundle.record.explains == "grad-cam"
    with pytest.raises(InputError, match="Leave the format openvino out"):
        tellapart.export(place / "run", tmp_path / "no", formats=["openvino"], **options)
    with pytest.raises(InputError, match="more for the precision int8"):
        tellapart.export(place / "run", tmp_path / "no", int8_epochs=1, **options)


@pytest.mark.slow
def test_a_convolution_that_int8_ruins_stays_in_float32(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def with_one_far_channel(model: keras.Model) -> keras.Model:
        copy = equalised(model)
        with_outlier(copy, "conv2", "batchnorm2", 3000)
        return copy

    def of_own_answers(expected: NDArray, found: NDArray, _labels: NDArray, tolerance: Tolerance) -> Proof:
        return parity(expected, found, expected.argmax(axis=1), tolerance)

    monkeypatch.setattr(reduced, "equalised", with_one_far_channel)
    # By the labels a network of six epochs may lose nothing: on some processors it has learned too little.
    for module in (proofs, reduced):
        monkeypatch.setattr(module, "parity", of_own_answers)
    said: list[str] = []
    bundle = tellapart.export(
        place / "run", tmp_path / "bundle", precision="int8", margin=0.5, cache=place / "cache", announce=said.append
    )
    (artefact,) = bundle.record.artefacts
    assert any("Convolutions that suffer are looked for" in line for line in said), said
    assert [name.split("_")[0] for name in artefact.float_layers] == ["conv2"]
    assert any(proof.passed for proof in artefact.proofs.values())
    assert f"int8 but for {artefact.float_layers[0]}" in (tmp_path / "bundle" / "card.md").read_text()


def test_table_run_and_bundle_give_one_probability_and_it_is_calibrated(place: Path):
    table = pd.read_csv(place / "run" / "predictions.csv")
    table = table[table["split"] == "test"]
    classifier = tellapart.load(place / "bundle")
    expected = table[[f"p:{name}" for name in classifier.classes]].to_numpy(np.float64)
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert metrics["temperature"] == classifier.bundle.record.temperature != pytest.approx(1, abs=0.005)
    files = [place / "photos" / path for path in table["path"]]
    run = tellapart.load(place / "run")
    for found, row in zip(run.predict(files, top_k=len(run.classes)), expected, strict=True):
        assert [dict(found.top)[label] for label in run.classes] == pytest.approx(row, abs=1e-5)
    trained = plain_network(load_recipe(place / "run" / "recipe.toml"), 10, place / "run" / "checkpoints" / "best.npz")
    pictures = np.stack([decode_square(path.read_bytes(), 48) for path in files])
    warm = at_temperature(trained.predict_on_batch(pictures), metrics["temperature"])
    np.testing.assert_allclose(warm, expected, atol=1e-5)
    for name in usable(classifier.bundle):
        found = open_classifier(place / "bundle", runtime=name).predict(files, top_k=len(classifier.classes))
        rows = np.array([[dict(p.top)[label] for label in classifier.classes] for p in found])
        tolerance = 1e-4 if RUNTIMES[name].tolerance == EXACT else 0.05
        assert np.abs(rows - expected).max() < tolerance, name
        if name != "keras":  # Keras' own file has one output
            for ours, theirs in zip(found, run.predict(files), strict=True):
                assert ours.embedding.shape == (256,)
                largest = np.abs(theirs.embedding).max()
                np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=tolerance * largest)
    assert {"onnxruntime", "openvino-f32", "openvino-ir", "tensorflow", "keras"} <= set(usable(classifier.bundle))


def test_a_bundle_is_measured_on_labelled_photos_as_its_run_was(place: Path, tmp_path: Path):
    """Of the run's own test photos it must say what the run says; into the bundle nothing is written."""
    table = pd.read_csv(place / "run" / "predictions.csv")
    test = table[table["split"] == "test"]
    for path in test["path"]:
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(place / "photos" / path, tmp_path / "photos" / path)
    before = sorted(path for path in (place / "bundle").rglob("*"))
    found = evaluate_bundle(place / "bundle", tmp_path / "photos", out=tmp_path / "out", cache=place / "cache")
    expected = json.loads((place / "run" / "metrics.json").read_text())["test"]
    assert found["test"]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.03)
    assert found["test"]["num_images"] == len(test)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == len(test)
    assert sorted(path for path in (place / "bundle").rglob("*")) == before


def test_the_checksums_are_those_of_sha256sum_and_nothing_is_pickled(place: Path):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=place / "bundle", check=True)
    suffixes = {
        path.suffix for path in (place / "bundle").rglob("*") if path.is_file() and "saved_model" not in str(path)
    }
    assert not suffixes & {".py", ".pkl", ".pickle", ".joblib", ".so"}
    with np.load(place / "bundle" / "reference.npz", allow_pickle=False) as reference:
        assert reference["embeddings"].shape == (len(reference["labels"]), 256)
        assert reference["embeddings"].dtype == np.float16


def test_the_record_and_the_card_say_what_was_measured(place: Path):
    bundle = open_bundle(place / "bundle")
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert bundle.record.metrics["test"]["accuracy"] == metrics["test"]["accuracy"]
    card = (place / "bundle" / "card.md").read_text()
    assert f"{metrics['test']['accuracy']:.3f}" in card
    assert "onnxruntime: equal to Keras; 100.00% of" in card
    assert len(bundle.record.reference_images) == 8
    assert bundle.record.threshold is not None


def test_a_bundle_decides_what_is_unknown_as_its_run_does_and_an_older_one_does_not(place: Path, tmp_path: Path):
    assert (place / "bundle" / "unknown.npz").read_bytes() == (place / "run" / "unknown.npz").read_bytes()
    assert "is called unknown where" in (place / "bundle" / "card.md").read_text()
    files = image_files([place / "photos"])[::3]
    pictures = [*files, *noise_pictures(8, 96)]
    expected = tellapart.load(place / "run").predict(pictures)
    assert any(photo.unknown for photo in expected)
    threshold = load_detector(place / "run" / "unknown.npz").threshold
    # The threshold is the similarity of one of the photos, which the last bit decides on.
    clear = [abs(photo.similarity - threshold) > 1e-5 for photo in expected]
    assert sum(clear) >= len(pictures) - 2
    for runtime in usable(open_bundle(place / "bundle")):
        found = open_classifier(place / "bundle", runtime=runtime).predict(pictures)
        pairs = zip(found, expected, clear, strict=True)
        wrong = sum(is_clear and ours.unknown != theirs.unknown for ours, theirs, is_clear in pairs)
        if runtime == "keras":
            assert not any(each.unknown or each.similarity is not None for each in found), "it gives no embeddings"
        else:
            assert wrong <= (2 if RUNTIMES[runtime].tolerance != EXACT else 0), runtime
    table = predict_files(tellapart.load(place / "bundle"), files, tmp_path / "out.csv")
    with open(table.path, newline="") as stream:
        marked = [row["unknown"] == "true" for row in csv.DictReader(stream)]
    assert sum(marked) == table.num_unknown
    older, run = tmp_path / "older", tmp_path / "run"
    shutil.copytree(place / "bundle", older)
    (older / "unknown.npz").unlink()
    write_record(older, open_bundle(place / "bundle").record)
    shutil.copytree(place / "run", run)
    (run / "unknown.npz").unlink()
    for folder in (older, run):
        found = tellapart.load(folder).predict(pictures)
        assert not any(each.unknown or each.similarity is not None for each in found)
    UnknownDetector(np.eye(3, dtype=np.float16), np.arange(3), 0.9, 0.05, 30).save(run / "unknown.npz")
    with pytest.raises(RunError, match=r"is of 3 features, .* has 256: one of the files is another run's"):
        tellapart.load(run)


def test_a_bundle_is_used_without_keras_or_tensorflow(place: Path):
    photo = next((place / "photos").rglob("*.jpg"))
    program = (
        "import sys, tellapart; c = tellapart.load(sys.argv[1]); print(c.predict([sys.argv[2]])[0].label);"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, place / "bundle", photo], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in tellapart.load(place / "bundle").classes


def test_heat_maps_without_tensorflow_are_grad_cam(place: Path):
    classifier = tellapart.load(place / "run")
    photos = image_files([place / "photos"])[:6]
    pictures = np.stack([decode_square(path.read_bytes(), 48) for path in photos])
    targets = np.arange(6) % len(classifier.classes)
    expected = grad_cam(classifier.model, pictures, targets)
    found = explain_bundle(open_bundle(place / "bundle"))(pictures, targets)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_heat_maps_of_a_nested_network_are_grad_cam(tmp_path: Path):
    keras.utils.set_random_seed(1)
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(inner_input, keras.layers.Conv2D(6, 3, activation="relu", strides=2)(inner_input))
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(inner(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)))
    x = keras.layers.Dense(5, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    formats.save_explanation(model, tmp_path / "explanation")
    formats.convert_to_onnx({tmp_path / "explanation": tmp_path / "explain.onnx"})
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "explain.onnx")
    (heat,) = session.run(["heat"], {"image": pictures, "target": np.arange(3)})
    np.testing.assert_allclose(heat, grad_cam_values(LayerReader(model).read(pictures, np.arange(3))), atol=1e-5)


def test_a_runtime_that_gives_other_probabilities_here_is_noticed(place: Path):
    bundle = open_bundle(place / "bundle")
    right = open_runtime(bundle, "onnxruntime")
    assert check_reference_images(bundle, right, "onnxruntime") == ""
    wrong = check_reference_images(
        bundle, lambda images: Outputs(right(images).probabilities[:, ::-1], None), "onnxruntime"
    )
    assert "agrees with Keras in" in wrong


@pytest.mark.slow
def test_a_damaged_model_makes_no_bundle_and_leaves_the_old_one(place: Path, monkeypatch: pytest.MonkeyPatch):
    """The gate refuses; the bundle that stood there before is not touched."""
    before = open_bundle(place / "bundle").version
    plain = formats.convert_to_onnx

    def swapped(files: dict[Path, Path]) -> None:
        import onnx

        plain(files)
        path = next(iter(files.values()))
        model = onnx.load(path)
        for weight in model.graph.initializer:
            if list(weight.dims) == [256, 10]:
                values = onnx.numpy_helper.to_array(weight)[:, ::-1]
                weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(artefacts_module, "convert_to_onnx", swapped)
    with pytest.raises(BundleError, match="The onnx model does not say what the Keras model says"):
        tellapart.export(place / "run", place / "bundle", cache=place / "cache")
    assert open_bundle(place / "bundle").version == before
    assert not list(place.glob(".bundle*"))


@pytest.mark.by_hand
def test_the_gate_catches_what_keras_own_export_does_to_efficientnet(tmp_path: Path):
    """By way of a SavedModel it is right."""
    inputs = keras.Input((64, 64, 3), dtype="uint8")
    keras.utils.set_random_seed(0)
    backbone = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    x = backbone(keras.layers.Rescaling(1.0)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x))
    pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    expected = model.predict_on_batch(pictures)
    formats.save_saved_model(model, tmp_path / "saved")
    formats.convert_to_onnx({tmp_path / "saved": tmp_path / "ours.onnx"})
    ours = RUNTIMES["onnxruntime"].opens(tmp_path / "ours.onnx", 2)
    assert parity(expected, ours(pictures).probabilities, None, EXACT).passed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras' own patches to NumPy
        model.export(tmp_path / "theirs.onnx", format="onnx", verbose=False)
    try:
        theirs = np.concatenate(list(answers(RUNTIMES["onnxruntime"], tmp_path / "theirs.onnx", [pictures])))
    except BundleError as error:
        assert "does not run in onnxruntime" in str(error)  # noqa: PT017
    else:
        assert not parity(expected, theirs, None, EXACT).passed


@pytest.mark.slow
def test_an_explanation_that_differs_from_keras_makes_no_bundle(place: Path, monkeypatch: pytest.MonkeyPatch):
    plain = formats.save_explanation

    def of_another_network(model: keras.Model, folder: Path) -> None:
        other = keras.models.clone_model(model)
        other.set_weights([weight[::-1] for weight in model.get_weights()])
        plain(other, folder)

    monkeypatch.setattr(artefacts_module, "save_explanation", of_another_network)
    with pytest.raises(BundleError, match="The explanation graph differs from Keras"):
        tellapart.export(place / "run", place / "other", cache=place / "cache")
    assert not (place / "other").exists()


def test_a_folder_with_a_file_of_somebody_else_is_not_replaced(place: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(place / "bundle", folder)
    (folder / "thesis.docx").write_text("years of work")
    with pytest.raises(BundleError, match=r"holds thesis\.docx, which is not the bundle's"):
        tellapart.export(place / "run", folder, cache=place / "cache")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "bundle.json").write_text("{}")  # of a JavaScript project, say
    with pytest.raises(BundleError, match="already exists and is not a bundle"):
        tellapart.export(place / "run", tmp_path / "project", cache=place / "cache")
    assert (tmp_path / "project" / "bundle.json").exists()
    assert (folder / "thesis.docx").exists()


def test_a_format_that_nothing_here_runs_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import dataclasses

    without = {
        name: dataclasses.replace(runtime, package="no_such_package") if runtime.format == "litert" else runtime
        for name, runtime in RUNTIMES.items()
    }
    monkeypatch.setattr(export_module, "RUNTIMES", without)
    with pytest.raises(InputError, match=r"Nothing here runs the format 'litert'.*pip install 'tellapart\[litert\]'"):
        tellapart.export(place / "run", tmp_path / "bundle", formats=["litert"], cache=place / "cache")
    assert not (tmp_path / "bundle").exists()


def test_the_photos_of_a_bundle_say_nothing_but_their_picture(place: Path):
    for file in (place / "bundle" / "reference_images").iterdir():
        assert without_metadata(file.read_bytes()) == file.read_bytes(), file


@pytest.mark.parametrize("bytes_allowed", [2**40, 0], ids=["a network for each thread", "one for all"])
def test_many_images_are_named_by_several_threads_as_each_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_allowed: int
):
    """In their order, with a damaged one among them, and whoever stops listening stops the work."""
    monkeypatch.setattr(predictor, "_MANY", 40)
    monkeypatch.setattr(predictor, "_MOST_BYTES", bytes_allowed)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no photo")
    images = [*image_files([place / "photos"])[:150], damaged, *image_files([place / "photos"])[150:180]]
    classifier = open_classifier(place / "bundle")
    found = list(classifier.stream(images))
    assert [each.path for each in found] == [str(path) for path in images]
    assert [number for number, each in enumerate(found) if each.label is None] == [150]
    for number in (0, 31, 32, 149, 151, 180):
        (alone,) = classifier.predict([images[number]])
        assert (alone.label, alone.unknown, alone.quality_warnings) == (
            found[number].label, found[number].unknown, found[number].quality_warnings,
        )  # fmt: skip
        assert alone.probability == pytest.approx(found[number].probability, abs=1e-3)
    assert (classifier._predictors is None) == (bytes_allowed == 0)
    decoded: list[object] = []
    monkeypatch.setattr(classifier, "decode", lambda image, _: [decoded.append(image), DecodedImage(None, ())][1])
    stream = classifier.stream(images)
    next(stream)
    stream.close()
    assert len(decoded) <= 4 * 32, "no more is begun than is waited for"


def test_rows_of_another_model_are_not_gone_on_with(place: Path, tmp_path: Path):
    photos = image_files([place / "photos"])[:5]
    run, bundle = tellapart.load(place / "run"), tellapart.load(place / "bundle")
    out = tmp_path / "out.jsonl"
    predict_files(run, photos, out)
    lines = out.read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl.part").write_text("".join(lines[:2]))
    (tmp_path / "out.jsonl.part.model").write_text(run.identity + "\n")
    with pytest.raises(InputError, match=f"begun with another model .*{run.identity}.*{bundle.identity}"):
        predict_files(bundle, photos, out)
    assert predict_files(run, photos, out).num_resumed == 2
    assert out.read_text().splitlines(keepends=True) == lines
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("model", ["run", "bundle"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_predictions_has_a_row_for_each_file(place: Path, tmp_path: Path, suffix: str, model: str):
    photos = image_files([place / "photos"])[:40]
    odd = tmp_path / "a\nline.jpg"
    shutil.copy(photos[0], odd)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[1].read_bytes()[:300])
    files = [*photos[:20], odd, broken, *photos[20:]]
    classifier = tellapart.load(place / model)
    written = predict_files(classifier, files, tmp_path / f"out.{suffix}")
    assert (written.num_images, written.num_unreadable, written.num_resumed) == (42, 1, 0)
    expected = classifier.predict(files)
    if suffix == "csv":
        with open(written.path, newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["label"] or None for row in rows] == [p.label for p in expected]
        assert rows[20]["path"] == str(odd).replace("\n", "\\n")
        assert "truncated" in rows[21]["error"]
    else:
        table = pd.read_json(written.path, lines=True) if suffix == "jsonl" else pd.read_parquet(written.path)
        assert table["path"].tolist() == [str(path) for path in files]
        assert [None if pd.isna(label) else label for label in table["label"]] == [p.label for p in expected]
        np.testing.assert_allclose(
            table["probability"].dropna().astype(float), [p.probability for p in expected if p.label], atol=1e-5
        )
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", pytest.param("parquet", marks=pytest.mark.by_hand)])
def test_a_killed_prediction_goes_on_and_no_row_is_lost_or_doubled(place: Path, tmp_path: Path, suffix: str):
    folder = tmp_path / "many"
    folder.mkdir()
    photos = image_files([place / "photos"])
    for number in range(4_000):
        os.link(photos[number % len(photos)], folder / f"{number:05d}{photos[number % len(photos)].suffix}")
    out = tmp_path / f"out.{suffix}"
    command = [sys.executable, "-m", "tellapart", "predict", place / "bundle", folder, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = Path(f"{out}.part")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b"\n") > 300):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert 300 < len(part.read_bytes().splitlines()) < 4_000
    with open(part, "ab") as stream:
        stream.write(b'{"path": "half a ro')  # as a kill between two blocks may leave it
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "from an earlier try" in done.stdout
    table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert table["path"].tolist() == [str(path) for path in image_files([folder])]
    assert table["label"].notna().all()


def test_rows_of_other_images_are_not_gone_on_with(place: Path, tmp_path: Path):
    photos = image_files([place / "photos"])
    classifier = tellapart.load(place / "bundle")
    (tmp_path / "out.jsonl.part").write_text(
        '{"path": "elsewhere.jpg", "label": "x", "abstains": false, "quality_warnings": []}\n'
    )
    with pytest.raises(InputError, match=r"was begun with other images: row 1 is elsewhere.jpg"):
        predict_files(classifier, photos[:3], tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"ends in '.xlsx'. Expected .csv, .jsonl, .parquet"):
        predict_files(classifier, photos[:3], tmp_path / "out.xlsx")


@pytest.mark.slow
def test_every_runtime_is_measured(place: Path):
    speeds = tellapart.benchmark(place / "bundle", seconds=0.3)
    assert {speed.runtime for speed in speeds} >= {"onnxruntime", "openvino-f32", "tensorflow"}
    for speed in speeds:
        if speed.runtime == "openvino-bf16" and speed.error.startswith("refused when the bundle was made"):
            continue  # so small a network may lose one of its few pictures to bfloat16
        assert speed.error == "", speed
        assert 0 < speed.p50_ms <= speed.p99_ms
        assert speed.images_per_second[1] > 0
        assert speed.agreement >= 0.995


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onxx"]}, "There is no format 'onxx'. Expected any of openvino"),
        ({"name": "../../etc"}, "The name is '../../etc'. Expected up to 100 letters"),
        ({"coverage": 1.5}, "The coverage is 1.5. Expected a share between 0 and 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(place: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        tellapart.export(place / "run", tmp_path / "bundle", cache=place / "cache", **options)


def test_a_folder_with_something_else_in_it_is_not_replaced(place: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="already exists and is not a bundle"):
        tellapart.export(place / "run", tmp_path, cache=place / "cache")
    assert (tmp_path / "thesis.txt").exists()
