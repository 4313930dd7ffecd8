"""Drift is found soon where it is, and seldom where it is not."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from tellapart.bundles.bundle import open_bundle, write_record
from tellapart.cli.main import app
from tellapart.monitoring.drift import Drift, Signal, find_drift, signals_of
from tellapart.request_store import RequestStore, StoredPrediction
from tellapart.unknown import UnknownDetector
from written_bundle import bundle_record, write_bundle

DETECTOR = UnknownDetector(np.eye(2, dtype=np.float16), np.array([0, 1]), 0.2, 0.05, 500)


def rank(values: np.ndarray, usual: float = 0.5) -> Signal:
    return Signal("rank", values, usual)


def found(signals: list[Signal], apart: float = 1000.0) -> Drift:
    return find_drift(signals, photos_between_false_alarms=apart)


def test_evidence_is_what_is_gathered_by_hand():
    """One signal, three photos: (gathered + 1) · (1 + bet · (value - usual)) for each bet, and their mean."""
    values, usual = np.array([1.0, 0.0, 1.0]), 0.25
    bets = np.geomspace(0.02, 0.8, 12) / usual
    gathered, expected = np.zeros(12), []
    for value in values:
        gathered = (gathered + 1) * (1 + bets * (value - usual))
        expected.append(gathered.mean() / 50)
    drift = found([Signal("a", values, usual)], 50)
    np.testing.assert_allclose(drift.evidence, expected)
    assert drift.means == {"a": (pytest.approx(2 / 3), 0.25)}
    assert (drift.alarms, drift.leading) == ((), "a")
    assert found([Signal("a", np.zeros(0), usual)]).alarms == ()


@pytest.mark.parametrize("draw", ["uniform", "coin", "constant"])
def test_false_alarms_are_as_rare_as_was_asked_for(draw: str):
    """Means at the limit: a hundred photos from one alarm to the next, over 300 of them or so."""
    rng = np.random.default_rng(0)
    values = {"uniform": rng.random(40_000), "coin": rng.integers(0, 2, 40_000), "constant": np.full(40_000, 0.5)}
    alarms = found([rank(values[draw].astype(np.float64))], 100).alarms
    gaps = np.diff([0, *alarms])
    # Evidence of exactly 100 is reached after 100 photos that never vary; else the last step goes beyond it.
    assert gaps.mean() >= 100 - 3 * gaps.std() / np.sqrt(len(gaps))
    assert gaps.mean() < 140, "not rarer than need be: drift would be found later"


def test_a_change_is_found_whenever_it_begins_and_again_after_an_alarm():
    rng = np.random.default_rng(1)
    for begins in (0, 300, 5000):
        usual, changed = rng.random(begins), 0.25 + 0.75 * rng.random(1500)
        alarms = [alarm for alarm in found([rank(np.concatenate([usual, changed]))], 10_000).alarms if alarm > begins]
        assert alarms[0] - begins < 250
        assert len(alarms) > 3, "it goes on"
    # Fewer than before is no drift: photos that are easier than those that the model was measured on.
    assert found([rank(0.5 * rng.random(3000))]).alarms == ()


def test_several_signals_share_the_evidence_and_the_one_that_changed_is_named():
    rng = np.random.default_rng(2)
    same, rises = rng.random(2000), (rng.random(2000) < 0.3).astype(float)
    drift = found([rank(same), Signal("unknown", rises, 0.05)])
    assert drift.leading == "unknown"
    assert drift.alarms[0] < 60
    assert drift.means["unknown"][0] == pytest.approx(rises[-500:].mean())
    ended = drift.alarms[-1]
    again = found([rank(same[:ended]), Signal("unknown", rises[:ended], 0.05)])
    assert (again.alarms[-1], again.leading) == (ended, "unknown"), "right after an alarm too"


def test_ranks_are_shares_of_more_similar_validation_photos_and_ties_count_half():
    signals = signals_of(DETECTOR, np.array([0.1, 0.5, 0.5, 0.9]), np.array([1.0, 0.5, 0.05, 0.7]))
    assert signals[0].values.tolist() == [0.0, 0.5, 1.0, 0.25]
    assert signals[1].values.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert signals[0].usual == 0.5 + 3 * np.sqrt(1 / 48)
    assert 0.25 < signals[1].usual < 0.75, "one of four was refused: the upper end of its interval"
    with pytest.raises(ValueError, match="no validation photos"):
        signals_of(DETECTOR, np.zeros(0), np.zeros(3))


def test_photos_like_those_of_validation_raise_no_alarm_though_these_are_few():
    """The reference is a sample: what is usual must allow for it, or every model would drift."""
    rng = np.random.default_rng(3)
    alarmed = 0
    for _ in range(20):
        reference, photos = rng.beta(8, 2, 200), rng.beta(8, 2, 3000)
        alarmed += bool(found(signals_of(DETECTOR, reference, photos), 10_000).alarms)
    assert alarmed <= 1
    darker = signals_of(DETECTOR, rng.beta(8, 2, 200), rng.beta(4, 2, 500))
    assert found(darker, 10_000).alarms, "found within 500 photos"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose validation photos lie at angles around a reference, drawn with the same spread."""
    folder = write_bundle(tmp_path / "bundle")
    DETECTOR.save(folder / "unknown.npz")
    angles = np.random.default_rng(4).normal(0, 0.3, 400)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    np.savez_compressed(folder / "reference.npz", embeddings=embeddings, labels=np.zeros(400, np.int64))
    write_record(folder, bundle_record())
    return folder


def test_watching_a_store_tells_drift_of_the_version_that_answers(bundle: Path, tmp_path: Path):
    opened, rng = open_bundle(bundle), np.random.default_rng(5)
    reference = opened.reference_similarities()
    np.testing.assert_allclose(reference, DETECTOR.similarity(np.load(bundle / "reference.npz")["embeddings"]))
    store = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")

    def add(first: int, spread: float, version: str = opened.version) -> None:
        similarity = np.cos(rng.normal(0, spread, 800))
        store.add([
            StoredPrediction(f"{version}{number}.0", 1000.0 + number, "pets", version, "cat", similarity=float(value))
            for number, value in enumerate(similarity, start=first)
        ])  # fmt: skip

    def watch() -> tuple[int, str]:
        ended = CliRunner().invoke(app, ["watch", str(bundle), "--store", str(tmp_path / "requests.db")])
        return ended.exit_code, ended.output

    assert watch() == (0, f"No photos of pets {opened.version} are stored.\n")
    add(0, 0.3)
    add(0, 0.9, "another00000")
    store.add([StoredPrediction("unreadable.0", 999.0, "pets", opened.version)])
    code, said = watch()
    assert (code, said.splitlines()[-1]) == (0, "No drift."), said
    assert "800 photos" in said
    add(800, 0.5)
    code, said = watch()
    assert code == 1
    assert "less similar to the training photos, more often" in said
    assert store.similarities("pets", opened.version, since=1800.0)[0].tolist() == [1800.0 + at for at in range(800)]
    store.close()


class Hook(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent; refuses the first."""

    received: ClassVar[list[dict]] = []
    answers: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        """Answer as it was told."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(Hook.answers.pop(0))
        self.end_headers()
        Hook.received.append(json.loads(body))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_who_wants_to_know_is_told_when_drift_begins_and_when_it_ends(bundle: Path, tmp_path: Path, monkeypatch):
    opened, rng = open_bundle(bundle), np.random.default_rng(6)
    store = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")

    def add(first: int, spread: float) -> None:
        similarity = np.cos(rng.normal(0, spread, 800))
        store.add([
            StoredPrediction(f"{number}.0", 1000.0 + number, "pets", opened.version, "cat", similarity=float(value))
            for number, value in enumerate(similarity, start=first)
        ])  # fmt: skip

    # What happens between one look and the next: the last one ends the command.
    turns = [lambda: add(800, 0.8), lambda: None, lambda: None, lambda: add(1600, 0.2), lambda: None]

    def sleep(seconds: float) -> None:
        if not turns:
            raise KeyboardInterrupt
        turns.pop(0)()

    monkeypatch.setattr("tellapart.cli.watch.time.sleep", sleep)
    Hook.received, Hook.answers = [], [503, 200, 200]
    add(0, 0.3)
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [
            "watch", str(bundle), "--store", str(tmp_path / "requests.db"), "--every", "1s",
            "--webhook", f"http://127.0.0.1:{server.server_address[1]}/", "--metrics", str(tmp_path / "drift.prom"),
        ]  # fmt: skip
        CliRunner().invoke(app, words)
        server.shutdown()
    told = [(found["is_drifting"], found["num_photos"]) for found in Hook.received]
    assert told == [(True, 1600), (True, 1600), (False, 2400)], "again where it was not taken, and then no more"
    metrics = (tmp_path / "drift.prom").read_text()
    assert f'tellapart_drift{{model="pets",version="{opened.version}"}} 0\n' in metrics
    assert "tellapart_watched_photos" in metrics
    assert not store.recent_answers("pets", opened.version, most=5)[0].size
    store.close()


def test_a_bundle_that_has_nothing_to_compare_with_is_said(tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundle")
    assert open_bundle(bundle).reference_similarities().tolist() == []
    ended = CliRunner().invoke(app, ["watch", str(bundle), "--store", str(tmp_path / "requests.db")])
    assert "too few validation photos" in str(ended.exception)
