"""The server's own endpoints, asked of a real process."""

from __future__ import annotations

import io
import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import tellapart
from corpus import make_corpus
from serving.process import ServerProcess, running
from tellapart.bundles.predictor import explain_bundle, open_classifier
from tellapart.data.decode import decode, decode_square
from tellapart.evaluation.unknown import noise_pictures
from tellapart.explain.overlay import overlay

pytestmark = pytest.mark.integration
BOUNDARY = "cut-here"


def form(files: list[tuple[str, bytes]], field: str = "file") -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a form with these files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> tellapart.BundleClassifier:
    return open_classifier(bundle, runtime="onnxruntime")


@pytest.fixture(scope="module")
def exact(bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server with the runtime of `classifier`."""
    with running(tmp_path_factory.mktemp("exact"), bundle, "--runtime", "onnxruntime") as found:
        yield found


def test_answers_are_those_of_the_library(
    exact: ServerProcess, classifier: tellapart.BundleClassifier, photos: list[Path]
):
    chosen = photos[::40][:20]
    body, headers = form([(path.name, path.read_bytes()) for path in chosen])
    status, found = exact.json("/predict?top_k=4", body, headers=headers)
    assert status == 200
    assert (found["model"], found["version"]) == (classifier.bundle.record.name, classifier.bundle.version)
    assert set(found["seconds"]) == {"queue", "decode", "network", "total"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    expected = classifier.predict(chosen, top_k=4)
    for path, ours, theirs in zip(chosen, found["predictions"], expected, strict=True):
        assert ours["name"] == path.name
        assert ours["label"] == theirs.label
        assert [each["label"] for each in ours["top"]] == [label for label, _ in theirs.top]
        np.testing.assert_allclose(
            [each["probability"] for each in ours["top"]], [share for _, share in theirs.top], atol=1e-5
        )
        assert (ours["abstains"], tuple(ours["quality_warnings"]), ours["error"]) == (
            theirs.abstains,
            theirs.quality_warnings,
            None,
        )
        assert ours["abstains"] == (len(ours["prediction_set"]) != 1)


def counted_unknown(server: ServerProcess) -> float:
    found = re.search(r"^tellapart_unknown_images_total{.*} (\S+)$", server.call("/metrics")[1].decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_run_bundle_and_server_call_the_same_pictures_unknown(
    exact: ServerProcess, classifier: tellapart.BundleClassifier, place: Path, photos: list[Path], tmp_path: Path
):
    """And what is far away is among them: some of the noise or of one colour; a network of six epochs knows little."""
    files = photos[::25][:12]
    # Which of them is far depends on the processor, whose last digits six epochs amplify.
    colours = [np.full((96, 96, 3), colour, np.uint8) for colour in itertools.product((0, 255), repeat=3)]
    for number, pixels in enumerate([*noise_pictures(8, 96), *colours]):
        files.append(tmp_path / f"far{number}.png")
        assert cv2.imwrite(str(files[-1]), pixels)
    by_run, by_bundle = tellapart.load(place / "run").predict(files), classifier.predict(files)
    body, headers = form([(path.name, path.read_bytes()) for path in files])
    before = counted_unknown(exact)
    by_server = exact.json("/predict", body, headers=headers)[1]["predictions"]
    unknown = [found.unknown for found in by_run]
    assert [found.unknown for found in by_bundle] == [found["unknown"] for found in by_server] == unknown
    similarity = [found.similarity for found in by_run]
    np.testing.assert_allclose([found.similarity for found in by_bundle], similarity, atol=1e-4)
    np.testing.assert_allclose([found["similarity"] for found in by_server], similarity, atol=1e-4)
    assert sum(unknown[:12]) <= 4, "few of the known photos"
    assert any(unknown[12:]), "what is far away"
    _, card = exact.json(f"/models/{classifier.bundle.record.name}")
    detector = tellapart.load(place / "run").detector
    assert detector is not None
    assert card["unknown"] == {"threshold": detector.threshold, "refused": detector.refused}
    assert counted_unknown(exact) - before == sum(unknown)


def test_a_raw_body_and_a_request_id(server: ServerProcess, photos: list[Path]):
    status, body, headers = server.call("/predict?quality=false", photos[0].read_bytes(), {"X-Request-ID": "abc-1.2"})
    found = json.loads(body)
    assert status == 200
    assert found["predictions"][0]["name"] is None
    assert found["request_id"] == headers["x-request-id"] == "abc-1.2"
    _, _, headers = server.call("/stats", headers={"X-Request-ID": 'a"b\\'})
    assert len(headers["x-request-id"]) == 16
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_file_that_cannot_be_read_costs_the_others_nothing(server: ServerProcess, photos: list[Path]):
    data = photos[0].read_bytes()
    body, headers = form(
        [("good.jpg", data), ("bad.jpg", data[: len(data) // 2]), ("żółw.jpg", photos[1].read_bytes())]
    )
    status, found = server.json("/predict", body, headers=headers)
    first, second, third = found["predictions"]
    assert status == 200
    assert (first["error"], third["error"], third["name"]) == (None, None, "żółw.jpg")
    assert second["label"] is None
    assert "truncated" in second["error"]
    status, found = server.json("/predict", b"no image at all")
    assert status == 422
    assert "is not an image" in found["predictions"][0]["error"]


def test_photos_unlike_those_that_were_measured_are_said_to_be(server: ServerProcess):
    black = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    _, found = server.json("/predict", black)
    assert {"brightness", "contrast", "short_side_px"} <= set(found["predictions"][0]["quality_warnings"])
    _, found = server.json("/predict?quality=false", black)
    assert found["predictions"][0]["quality_warnings"] == []


def test_damaged_and_odd_files_never_break_the_server(server: ServerProcess, tmp_path: Path):
    """Every file of the corpus, alone and all together, to both endpoints."""
    described = make_corpus(tmp_path / "corpus")
    files = {name: tmp_path / "corpus" / name for name in described}
    files = {name: path for name, path in files.items() if path.is_file() and path.stat().st_size}
    for name, path in files.items():
        kind, data = described[name].split(":")[0], path.read_bytes()
        wanted = {"reads": {200}, "fails": {422}, "either": {200, 422}}[kind]
        assert server.json("/predict", data)[0] in wanted, name
        assert server.call("/explain", data)[0] in wanted, name
    chosen = list(files.items())[:64]
    body, headers = form([(f"{number}", path.read_bytes()) for number, (_, path) in enumerate(chosen)])
    status, found = server.json("/predict", body, headers=headers)
    assert status == 200
    for (name, _), each in zip(chosen, found["predictions"], strict=True):
        assert described[name].startswith("either") or (each["error"] is None) == described[name].startswith("reads"), (
            name
        )


def test_bit_flips_never_break_the_server(server: ServerProcess, photos: list[Path]):
    random = np.random.default_rng(3)
    originals = [path.read_bytes() for path in photos[:4]]
    for number in range(150):
        data = bytearray(originals[number % 4])
        for at in random.integers(0, len(data), random.integers(1, 6)):
            data[at] ^= 1 << random.integers(0, 8)
        assert server.call("/predict", bytes(data))[0] in (200, 422)


def test_an_overlay_is_that_of_the_library(exact: ServerProcess, bundle: Path, classifier, photos: list[Path]):
    data = photos[2].read_bytes()
    record, label = classifier.bundle.record, classifier.classes[3]
    square = decode_square(data, record.image_px)[None]
    heat = explain_bundle(classifier.bundle)(square, np.array([3]))[0]
    status, body, headers = exact.call(f"/explain?label={label}", data)
    assert (status, headers["content-type"]) == (200, "image/png")
    expected = overlay(decode(data), heat)
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(body))).astype(int), expected.astype(int), atol=1)
    status, found = exact.json(f"/explain?label={label}&format=json", data)
    assert (status, found["label"], found["method"]) == (200, label, "grad-cam")
    np.testing.assert_allclose(found["heat"], heat, atol=6e-4)
    assert found["probability"] == pytest.approx(classifier.probabilities(square)[0, 3], abs=1e-5)
    _, found = exact.json("/explain?format=json", data)
    assert found["label"] == classifier.predict([data])[0].label


def test_a_large_overlay_is_shrunk(server: ServerProcess):
    picture = np.random.default_rng(0).integers(0, 256, (600, 3000, 3), np.uint8)
    status, body, _ = server.call("/explain", cv2.imencode(".jpg", picture)[1].tobytes())
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == (1024, 205)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/predict?top_k=0", 400, "top_k is '0'. Expected a whole number from 1 on"),
        ("/predict?topk=3", 400, "The parameter 'topk' is not known. Expected any of: top_k"),
        ("/predict?quality=maybe", 400, "quality is 'maybe'"),
        ("/predict?model=cats", 404, "There is no model 'cats' here. Expected one of: "),
        ("/predict?version=7", 404, "There is no version '7' of this model here"),
        ("/explain?label=unicorn", 400, "There is no class 'unicorn'. Expected one of: bolt"),
        ("/explain?format=gif", 400, "format is 'gif'"),
        ("/nowhere/at/all", 404, "Not Found. GET /docs lists"),
        ("/metrics", 405, "Method Not Allowed"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_form(
    server: ServerProcess, photos: list[Path], path: str, status: int, message: str
):
    code, body, headers = server.call(path, photos[0].read_bytes())
    assert code == status
    error = json.loads(body)["error"]
    assert message in error["message"]
    assert error["request_id"] == headers["x-request-id"]
    assert set(error) == {"code", "message", "request_id"}


def test_models_and_their_card(server: ServerProcess, bundle: Path):
    status, listed = server.json("/models")
    assert status == 200
    (model,) = listed["models"]
    status, card = server.json(f"/models/{model['name']}?version=1")
    assert status == 200
    assert card["card"] == (bundle / "card.md").read_text()
    assert card["version"] == model["version"]
    assert len(card["classes"]) == 10
    assert card["metrics"]["test"]["accuracy"] > 0
    assert {"runtime", "quality_range", "threshold", "coverage", "image_px"} <= set(card)


def test_feedback_is_validated_and_kept(server: ServerProcess):
    good = {"request_id": "abc", "verdict": "wrong", "label": "moon"}
    status, body, _ = server.call("/feedback", json.dumps(good).encode())
    assert (status, body) == (204, b"")
    lines = (server.log.parent / "feedback.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]).items() >= good.items()
    for change, message in (
        ({"verdict": "perhaps"}, "verdict is 'perhaps'"),
        ({"label": "unicorn"}, "There is no class 'unicorn'"),
        ({"request_id": "a\nb"}, "Expected request_id"),
        ({"extra": 1}, "no other keys"),
        ({"version": "\n"}, "version is"),
    ):
        status, found = server.json("/feedback", json.dumps(good | change).encode())
        assert status == 400
        assert message in found["error"]["message"]
    assert server.json("/feedback", json.dumps(good | {"model": "cats"}).encode())[0] == 404
    assert len((server.log.parent / "feedback.jsonl").read_text().splitlines()) == len(lines)


def test_numbers_are_counted_and_requests_logged(server: ServerProcess, photos: list[Path]):
    for _ in range(3):
        server.call("/predict", photos[0].read_bytes(), {"X-Request-ID": "counted"})
    _, stats = server.json("/stats")
    assert stats["requests_per_second"] >= 0.3
    assert 0 < stats["p50_ms"] <= stats["p99_ms"]
    assert (stats["in_flight"], stats["queue"]) == (1, 0)
    text = server.call("/metrics")[1].decode()
    assert 'status="200"' in text
    assert 'tellapart_seconds_bucket{le="0.1",model="' in text
    time.sleep(0.5)
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line.get("request_id") == "counted")
    assert (line["path"], line["status"], line["images"]) == ("/predict", 200, 1)


def test_under_concurrency_everybody_gets_their_own_answer_and_batches_form(
    exact: ServerProcess, classifier: tellapart.BundleClassifier, photos: list[Path]
):
    chosen = photos[::50][:32]
    expected = {path: found.top[0] for path, found in zip(chosen, classifier.predict(chosen), strict=True)}
    data = {path: path.read_bytes() for path in chosen}

    def ask(path: Path) -> tuple[Path, dict]:
        return path, exact.json("/predict?quality=false", data[path])[1]["predictions"][0]

    with ThreadPoolExecutor(16) as pool:
        for path, found in pool.map(ask, chosen * 8):
            assert found["label"] == expected[path][0]
            assert found["probability"] == pytest.approx(expected[path][1], abs=1e-5)
    text = exact.call("/metrics")[1].decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    values = {name.split("{")[0]: float(value) for name, value in lines}
    assert values["tellapart_images_total"] > values["tellapart_batch_size_count"]
