"""A server that keeps what it answers, against the store that it writes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.process import ServerProcess
from tellapart.bundles.predictor import open_classifier
from tellapart.errors import InputError
from tellapart.request_store import RequestStore
from tellapart.serving.app import make_app
from tellapart.serving.options import ServerOptions, StoreOptions

pytestmark = pytest.mark.integration


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


def form(*files: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


def kept(file: Path, count: int) -> list:
    """Return what a store holds, as soon as it has so many rows."""
    store, until = RequestStore(f"sqlite:///{file}"), time.monotonic() + 20
    while len(rows := list(store.predictions("shapes"))) < count and time.monotonic() < until:
        time.sleep(0.05)
    store.close()
    return rows


def test_what_is_answered_is_kept_with_embedding_quality_photo_and_feedback(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path], tmp_path: Path
):
    file = tmp_path / "requests.db"
    server = start(bundle, "--store", file, "--keep-photos", "--retention-days", "30")
    large = cv2.imencode(".png", cv2.resize(cv2.imread(str(photos[1])), (1200, 900)))[1].tobytes()
    status, answer = server.json("/predict", form(photos[0].read_bytes(), b"no image", large), headers=MULTIPART)
    assert status == 200
    verdict = {
        "request_id": answer["request_id"],
        "image": 2,
        "verdict": "wrong",
        "label": answer["predictions"][0]["label"],
    }
    assert server.call("/feedback", json.dumps(verdict).encode())[0] == 204
    assert server.call("/feedback", json.dumps(verdict | {"image": -1}).encode())[0] == 400
    # Thousands at once, twice; one that is wrong costs all of them, and is named.
    many = [{"request_id": f"r{number}", "verdict": "right"} for number in range(5000)]
    assert server.call("/feedback", json.dumps([*many, verdict]).encode())[0] == 204
    assert server.call("/feedback", json.dumps([*many, verdict]).encode())[0] == 204
    status, refused = server.json("/feedback", json.dumps([*many, verdict | {"verdict": "maybe"}]).encode())
    assert (status, refused["error"]["message"][:30]) == (400, "Verdict 5000, counted from 0: ")
    assert server.call("/feedback", json.dumps([verdict] * 10_001).encode())[0] == 400

    rows = kept(file, 3)
    assert [row.id for row, _ in rows] == [f"{answer['request_id']}.{number}" for number in range(3)]
    assert [said and (said.verdict, said.label) for _, said in rows] == [None, None, ("wrong", verdict["label"])]
    classifier = open_classifier(bundle, runtime=server.json("/models")[1]["models"][0]["runtime"])
    expected = classifier.predict([photos[0].read_bytes(), large])
    for (row, _), prediction, shown in zip(
        (rows[0], rows[2]), expected, (answer["predictions"][0], answer["predictions"][2]), strict=True
    ):
        assert (row.label, row.version) == (prediction.label, classifier.bundle.version)
        assert row.probability == pytest.approx(shown["probability"], abs=1e-6)
        assert row.probabilities.shape == (10,)
        assert prediction.embedding is not None
        np.testing.assert_allclose(row.embedding, prediction.embedding, atol=0.02 * np.abs(prediction.embedding).max())
        assert {"sharpness", "brightness", "short_side_px"} <= set(row.quality)
        assert (row.is_unknown, row.similarity) == (shown["unknown"], pytest.approx(shown["similarity"], abs=1e-6))
        assert row.milliseconds > 0
        assert abs(row.at - time.time()) < 60
    picture = cv2.imdecode(np.frombuffer(rows[2][0].photo, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (384, 512), "the longer side is cut to what a person needs"
    unreadable = rows[1][0]
    assert (unreadable.label, unreadable.embedding, unreadable.photo) == (None, None, None)
    metrics = server.call("/metrics")[1].decode()
    assert 'tellapart_stored_predictions_total{outcome="stored"} 3.0' in metrics


@pytest.mark.slow
def test_a_locked_database_fails_no_prediction_and_a_verdict_says_come_back(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path], tmp_path: Path
):
    file = tmp_path / "requests.db"
    server = start(bundle, "--store", file)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    answers = [server.json("/predict", photos[0].read_bytes()) for _ in range(20)]
    assert {status for status, _ in answers} == {200}
    verdict = {"request_id": answers[0][1]["request_id"], "verdict": "right"}
    status, _, headers = server.call("/feedback", json.dumps(verdict).encode())
    assert (status, headers["retry-after"]) == (503, "60")
    other.execute("ROLLBACK")
    other.close()
    rows = kept(file, 20)
    assert {row.id for row, _ in rows} == {f"{answer['request_id']}.0" for _, answer in answers}
    assert all(row.photo is None for row, _ in rows), "photos are kept by choice only"
    assert server.stop() == 0


def test_a_store_that_cannot_be_opened_is_found_out_before_models_are_loaded(bundle: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"The request store sqlite:///.* cannot be opened"):
        make_app(ServerOptions((bundle,), store=StoreOptions(f"sqlite:///{tmp_path}/nowhere/requests.db"), log=False))
