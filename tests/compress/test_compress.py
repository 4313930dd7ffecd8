"""A run becomes smaller and faster bundles that are proved, chosen on validation and looked at once on test photos."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serving.process import running
from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.predictor import explain_bundle, open_classifier
from tellapart.bundles.runtimes import RUNTIMES, artefact_for
from tellapart.compress import compress as compress_module
from tellapart.compress.compress import RESULT, Compression, compress
from tellapart.errors import InputError, RunError
from tellapart.monitoring.ab_test import SHADOW, TEST_NOTE, ABTest
from tellapart.registry import Registry
from tellapart.report.bundle import evaluate_bundle
from tellapart.request_store import RequestStore
from tellapart.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _timed_once() -> Iterator[None]:
    """Which runtime is the fastest is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress_module, "_ROUNDS", 1)
        yield


@dataclass
class Compressed:
    """A compression that was killed on its way, and when its narrow network had been measured by then."""

    result: Compression
    measured: int


@pytest.fixture(scope="module")
def compressed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    out = tmp_path_factory.mktemp("compressed") / "small"
    command = [
        sys.executable, "-m", "tellapart", "compress", str(place / "run"), "--out", str(out), "--budget", "40pp",
        "--shares", "60%", "--epochs", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # With such a budget the narrow network is good enough as it was cut (tests/compress/test_choice.py has the rest).
    metrics = out / "runs" / "60-percent-untrained" / "metrics.json"
    while not metrics.is_file():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    measured = metrics.stat().st_mtime_ns
    return Compressed(compress(place / "run", out, budget=0.4, shares=[0.6], epochs=2, cache=place / "cache"), measured)


def test_a_killed_compression_goes_on_and_its_bundles_are_like_any_other(place: Path, compressed: Compressed):
    result, out = compressed.result, compressed.result.folder
    assert (out / "runs" / "60-percent-untrained" / "metrics.json").stat().st_mtime_ns == compressed.measured, (
        "nothing is done twice"
    )
    # More where rounding lost too much in a runtime, which depends on what was learned.
    assert {(candidate.share, candidate.precision) for candidate in result.candidates} >= {
        (share, precision) for share in (1.0, 0.6) for precision in ("float32", "int8")
    }
    assert all(candidate.p50_ms > 0 and candidate.bytes > 0 for candidate in result.candidates if not candidate.error)
    for candidate in result.candidates:
        if candidate.precision != "float32" and candidate.bundle:
            artefact = artefact_for(open_bundle(out / candidate.bundle), RUNTIMES[candidate.runtime])
            assert artefact is not None
            # The proof of int8 is of the validation photos too.
            assert candidate.accuracy == artefact.proofs[candidate.runtime].accuracy, "each runtime's own accuracy"
    # Not any runtime: bfloat16 may name other classes, and is refused then.
    whole = next(candidate for candidate in result.candidates if candidate.runtime == "onnxruntime")
    assert (whole.name, whole.error) == ("whole-float32", "")
    assert whole.loss == 0
    assert whole.agreement == 1
    assert result.smallest is not None
    assert result.fastest is not None
    smallest = result.candidates[result.smallest]
    assert smallest.share == 0.6
    assert smallest.bytes < whole.bytes / 4
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / RESULT).read_text())["smallest"] == result.smallest

    # What was chosen answers, explains and knows unknown photos, by its own measurements.
    bundle = open_bundle(out / smallest.bundle)
    run = RunFolder(place / "run")
    frame = run.readable()
    test = frame[frame["split"] == "test"]
    paths = [run.root / path for path in test["path"]]
    # By runtime: rounded to int8, a network this small names other classes in one than in another.
    answers, accuracies = {}, {}
    for candidate in result.candidates:
        if candidate.bundle == smallest.bundle and not candidate.error:
            answers[candidate.runtime] = open_classifier(bundle.folder, runtime=candidate.runtime).predict(paths)
            right = [p.label == label for p, label in zip(answers[candidate.runtime], test["label"], strict=True)]
            accuracies[candidate.runtime] = np.mean(right)
    predictions, confirmation = answers[smallest.runtime], result.confirmations[result.smallest]
    assert accuracies[smallest.runtime] == pytest.approx(confirmation.accuracy, abs=1.5 / len(test))
    recorded = bundle.record.metrics["test"]["accuracy"]
    assert any(accuracy == pytest.approx(recorded, abs=1.5 / len(test)) for accuracy in accuracies.values())
    assert confirmation.low <= confirmation.loss <= confirmation.high
    assert bundle.detector is not None
    assert predictions[0].similarity is not None
    shape = (2, bundle.record.image_px, bundle.record.image_px, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert explain_bundle(bundle)(pictures, np.array([0, 1])).shape[0] == 2
    assert "as accurate as Keras within the margin" in (bundle.folder / "card.md").read_text()


def test_a_small_bundle_is_registered_served_tried_and_measured_like_any_other(
    place: Path, compressed: Compressed, empty_registry: Path, tmp_path: Path
):
    shutil.copy(empty_registry, tmp_path / "models.db")
    registry, result = Registry(tmp_path / "models.db"), compressed.result
    assert result.smallest is not None
    small = result.folder / result.candidates[result.smallest].bundle
    folders = [result.folder / "bundles" / "whole-float32", small]
    runs = [place / "run", result.folder / "runs" / "60-percent-untrained"]
    whole, other = (registry.add(bundle, name="shapes", run=run) for bundle, run in zip(folders, runs, strict=True))
    registry.promote(whole, "")
    test = ABTest("shadow00", whole.digest, other.digest, SHADOW, 1.0, "salt", 0.0)
    registry.write_note("shapes", TEST_NOTE, test.to_json())
    photo = next((place / "photos").rglob("*.jpg")).read_bytes()
    url = f"sqlite:///{tmp_path / 'requests.db'}"
    options = ["--registry", "shapes", "--registry-url", tmp_path / "models.db", "--store", tmp_path / "requests.db"]
    with running(tmp_path / "server", *options) as server:
        status, said = server.json("/predict", photo)
        assert (status, said["version"]) == (200, whole.digest)
        store, until = RequestStore(url), time.monotonic() + 20
        # The champion's answer is stored first; the challenger sees the photo when nothing else is to be done.
        pairs: list = []
        while not any(shadow for _, shadow, _ in pairs) and time.monotonic() < until:
            time.sleep(0.1)
            pairs = list(store.in_test("shadow00"))
        store.close()
        ((_, shadow, _),) = pairs
        assert shadow is not None, "the small one saw the photo too"
        registry.write_note("shapes", TEST_NOTE, None)
        registry.promote(other, "smaller")
        while (said := server.json("/predict", photo)[1])["version"] != other.digest and time.monotonic() < until + 20:
            time.sleep(0.1)
        assert said["predictions"][0]["label"] == open_classifier(small).predict([photo])[0].label
        assert server.stop() == 0
    measured = evaluate_bundle(small, place / "photos", out=tmp_path / "measured", cache=place / "cache")
    assert measured["test"]["num_images"] == 400


@pytest.mark.by_hand
def test_a_budget_that_nothing_meets_trains_what_was_cut_and_says_so(place: Path, tmp_path: Path):
    options = {"budget": 1e-6, "shares": [0.6, 0.4], "epochs": 1}
    result = compress(place / "run", tmp_path / "none", **options, cache=place / "cache")
    runs = tmp_path / "none" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["60-percent", "60-percent-untrained"], "and ends there"
    trained, untrained = (RunFolder(path).recipe() for path in sorted(runs.iterdir()))
    assert (trained.train.epochs, trained.distill.teacher) == (1, str(place / "run"))
    assert (untrained.train.epochs, untrained.distill.teacher) == (0, "")
    assert trained.model.channels == untrained.model.channels
    assert result.smallest is None
    assert result.fastest is None
    assert result.confirmations == {}
    assert any("may be less accurate" in candidate.error for candidate in result.candidates)


def test_what_cannot_be_compressed_is_a_clear_error(place: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"budget is 5\. Expected"):
        compress(place / "run", tmp_path / "out", budget=5)
    with pytest.raises(InputError, match="shares are"):
        compress(place / "run", tmp_path / "out", shares=[0.5, 1.5])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="not empty"):
        compress(place / "run", tmp_path / "full")
    with pytest.raises(RunError, match="not a finished run"):
        compress(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
