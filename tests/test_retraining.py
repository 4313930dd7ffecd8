"""Retraining: begun for a reason, done once whatever is killed, and what comes out is judged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

pytest.importorskip("mlflow")

import tellapart
from tellapart.errors import InputError, UnavailableError
from tellapart.locks import locked
from tellapart.monitoring.ab_test import TEST_NOTE, ABTest
from tellapart.monitoring.retraining_history import RetrainingHistory
from tellapart.promotion import GateLimits
from tellapart.records import Observer
from tellapart.registry import Registry
from tellapart.request_store import Feedback, RequestStore, ShadowPrediction, StoredPrediction
from tellapart.retraining import RetrainingOptions, retrain, why
from tellapart.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LENIENT = GateLimits(accuracy_points=60, class_points=100, negative_flips=100, loss_nats=10, slowdown=50)
"""Forty drawn photos and a network of seconds: what is tested here is not how good it becomes."""


@pytest.fixture
def registry(empty_registry: Path, tmp_path: Path, place: Path) -> Registry:
    """A registry whose champion was trained on drawn shapes."""
    file = tmp_path / "models.db"
    file.write_bytes(empty_registry.read_bytes())
    registry = Registry(file)
    registry.promote(registry.add(place / "bundle", run=place / "run"), "the first")
    return registry


@pytest.fixture
def store(tmp_path: Path):
    opened = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, str]]:
    """New photos of the same classes, as a server keeps them."""
    folder = tellapart.draw(tmp_path_factory.mktemp("new") / "photos", num_images=60, seed=9)
    return [
        (cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes(), path.parent.name)
        for path in sorted(folder.glob("*/*"))
    ]


def fill(store: RequestStore, photos: list[tuple[bytes, str]], **changes: object) -> None:
    """Store photos that were classified as their class, and that somebody said this of."""
    values = {"model": "shapes", "version": "v", "probability": 0.9}
    store.add([
        StoredPrediction(f"r{number}.0", 1000.0 + number, label=label, photo=photo, **(values | changes))
        for number, (photo, label) in enumerate(photos)
    ])  # fmt: skip
    store.add_feedback([Feedback(f"r{number}.0", "right") for number in range(len(photos))])


def test_a_model_is_retrained_on_what_people_said_tried_in_shadow_and_promoted(registry, store, drawn, tmp_path):
    # A photo that came twice, one with two labels, one that nobody could label, and a class that is hardly known
    label = drawn[0][1]
    other = next(name for _, name in drawn if name != label)
    fill(store, [*drawn, drawn[0], drawn[1]])
    extra = [
        (Feedback("r61.0", "wrong", other), None), (Feedback("x.0", "unusable"), drawn[2][0]),
        (Feedback("y.0", "wrong", "owl"), cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()),
    ]  # fmt: skip
    store.add(
        [StoredPrediction(said.prediction_id, 2000.0, "shapes", "v", label, photo=data) for said, data in extra if data]
    )
    store.add_feedback([said for said, _ in extra])
    options = RetrainingOptions(labels=40, limits=LENIENT, most_labels=1000)
    assert why(registry, store, "shapes", options) == (True, "60 new labelled photos")

    said: list[str] = []
    work = tmp_path / "work"
    outcome = retrain(registry, store, "shapes", work, options=options, observer=Observer(announce=said.append))
    assert (outcome.state, outcome.reason) == ("waiting", f"test {outcome.retraining.id}: no label counts yet"), said
    folder = work / outcome.retraining.id
    table = pd.read_csv(folder / "photos.csv")
    assert len(table) == 59
    gathered = outcome.retraining.step("gather").reason
    assert gathered.startswith("59 labelled photos that shapes 1 does not know")
    assert "1 left out: of new classes with fewer than 10 photos" in gathered
    # Old photos keep their side, new ones are on all sides
    run = RunFolder(folder / "run")
    assert run.metrics()["extension"]["num_new"] == 59
    assert set(run.readable()[run.readable()["path"].str.contains(str(folder))]["split"]) >= {"train", "test"}
    new = registry.version("shapes", "challenger")
    assert new.number == 2
    test = ABTest.from_json(registry.note("shapes", TEST_NOTE))
    assert (test.id, test.mode, test.champion) == (outcome.retraining.id, "shadow", registry.champion("shapes").digest)

    # Nobody has labelled anything: the next call begins no other one
    again = retrain(registry, store, "shapes", work, options=options)
    assert (again.state, again.retraining.id) == ("waiting", outcome.retraining.id)
    # In shadow the new version is right where the old one is wrong
    store.add([
        StoredPrediction(f"s{number}.0", 3000.0 + number, "shapes", test.champion, other, test=test.id)
        for number in range(60)
    ])  # fmt: skip
    store.add_shadows([ShadowPrediction(f"s{number}.0", test.id, 3000.0, label) for number in range(60)])
    store.add_feedback([Feedback(f"s{number}.0", "wrong", label) for number in range(60)])
    ended = retrain(registry, store, "shapes", work, options=options)
    assert ended.state == "promoted", ended
    assert registry.champion("shapes") == registry.version("shapes", "2")
    assert registry.note("shapes", TEST_NOTE) is None
    (one,) = RetrainingHistory(store).all_of("shapes")
    assert [step.name for step in one.steps] == [
        "trigger", "gather", "train", "export", "register", "judge", "trial", "end",
    ]  # fmt: skip
    assert one.outcome == "promoted"

    # What it has learned is new no more
    is_needed, reason = why(registry, store, "shapes", options)
    assert not is_needed
    assert "new labelled photos of 40" in reason
    assert retrain(registry, store, "shapes", work, options=options).state == "not needed"


KILLED = """
import sys
from pathlib import Path
from tellapart.promotion import GateLimits
from tellapart.records import Observer
from tellapart.registry import Registry
from tellapart.request_store import RequestStore
from tellapart.retraining import RetrainingOptions, retrain

def say(line):
    print(line, flush=True)

options = RetrainingOptions(labels=40, limits=GateLimits(slowdown=0.0))
outcome = retrain(
    Registry(sys.argv[1]), RequestStore(sys.argv[2]), "shapes", sys.argv[3], options=options,
    observer=Observer(lambda what, done, total: None, say),
)
print("outcome:", outcome.state, flush=True)
"""


@pytest.mark.parametrize(
    "steps",
    [
        ("train",),
        pytest.param(("gather", "train", "export", "register", "judge"), marks=pytest.mark.by_hand),
    ],
    ids=["one of them", "each"],
)
def test_killed_in_its_steps_it_goes_on_and_nothing_is_done_twice(registry, store, drawn, tmp_path, steps):
    """Killed a moment after each step began; what comes out takes longer than no time at all, and is rejected."""
    fill(store, drawn)
    words = [sys.executable, "-c", KILLED, tmp_path / "models.db", f"sqlite:///{tmp_path / 'requests.db'}",
             tmp_path / "work"]  # fmt: skip
    rng, ended = np.random.default_rng(0), []
    for step in steps:
        most = {"gather": 0.2, "train": 4.0, "export": 3.0}.get(step, 0.5)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout:
                if line.startswith(f"shapes: {step} …"):
                    time.sleep(rng.random() * most)
                    os.kill(process.pid, signal.SIGKILL)
                    break
                ended.append(line.strip())
        going = RetrainingHistory(store).open_of("shapes")
        assert going is not None, ended
        assert step not in [done.name for done in going.steps[:-1]], "only what was noted before is done"
    last = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert last.stdout.splitlines()[-1] == "outcome: rejected", last.stdout + last.stderr
    (one,) = RetrainingHistory(store).all_of("shapes")
    assert [step.name for step in one.steps] == ["trigger", "gather", "train", "export", "register", "judge", "end"]
    versions = registry.versions("shapes")
    assert [version.number for version in versions] == [2, 1]
    assert [version.aliases for version in versions] == [(), ("champion",)], "it stays"
    assert "failed: " in one.step("end").reason
    assert "latency" in one.step("end").reason
    # The same photos are no reason again, or it would be trained each hour.
    again = why(registry, store, "shapes", RetrainingOptions(labels=40))
    assert again == (False, "0 new labelled photos of 40, and no drift")
    store.add_feedback([Feedback(f"r{number}.0", "right") for number in range(45)])
    assert why(registry, store, "shapes", RetrainingOptions(labels=40))[0], "said again, and later"
    assert RunFolder(tmp_path / "work" / one.id / "run").metrics()["extension"]["num_new"] == len(drawn)


def test_a_step_that_cannot_be_done_ends_it_and_says_why(registry, store, drawn, tmp_path, monkeypatch):
    fill(store, drawn[:30])
    gone = RunFolder(tmp_path / "gone")
    shutil.copytree(registry.fetch_run(registry.champion("shapes"), tmp_path / "fetched"), gone.path)
    gone.update_record(root=str(tmp_path / "nowhere"))
    monkeypatch.setattr("tellapart.retraining._run_of", lambda *_: gone.path)
    outcome = retrain(registry, store, "shapes", tmp_path / "work", if_needed=False)
    assert (outcome.state, "photos of" in outcome.reason, "are gone" in outcome.reason) == ("failed", True, True)
    (one,) = RetrainingHistory(store).all_of("shapes")
    assert one.outcome == "failed"
    assert RetrainingHistory(store).open_of("shapes") is None


def test_labels_that_were_learned_from_in_vain_are_no_reason_again(registry, store, drawn, tmp_path):
    """But they are where the learning failed long ago, and not where its version was promoted and taken back."""
    fill(store, drawn[:40])
    history, options = RetrainingHistory(store), RetrainingOptions(labels=30, on_drift=False)
    assert why(registry, store, "shapes", options)[0]
    for outcome, is_reason in (("rejected", False), ("failed", False), ("promoted", False)):
        going = history.begin("shapes", "here", "asked for")
        history.note(going, "register", "version 7", {"version": 7})
        history.end(going, outcome, "")
        assert why(registry, store, "shapes", options)[0] is is_reason, outcome
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE retrainings SET began = began - 90000, outcome = 'failed'"))
    assert why(registry, store, "shapes", options)[0], "a day later it is tried again"


def test_it_is_not_begun_without_a_reason_labels_or_a_champion(registry, store, drawn, tmp_path):
    fill(store, drawn[:10])
    old = RetrainingOptions(labels=40, max_days=1e-9)
    is_needed, reason = why(registry, store, "shapes", old)
    assert not is_needed
    assert reason == "shapes 1 is 0 days old; but only 10 new labelled photos of 40: label some with tellapart review"
    assert why(registry, store, "shapes", RetrainingOptions(labels=20))[1] == (
        "10 new labelled photos of 20, and no drift"
    )
    with pytest.raises(InputError, match="has no such model"):
        retrain(registry, store, "cars", tmp_path / "work")
    assert RetrainingHistory(store).all_of() == []
    # Two at once: the second one is refused, and the lock of one that was killed is no more
    with locked(tmp_path / "work" / "shapes.lock"), pytest.raises(InputError, match="Another process retrains shapes"):
        retrain(registry, store, "shapes", tmp_path / "work")
    RetrainingHistory(store).begin("shapes", "elsewhere:/work", "drift")
    with pytest.raises(InputError, match="is being retrained in elsewhere:/work"):
        retrain(registry, store, "shapes", tmp_path / "work")
    # Given up; no photo is left to learn from, so the new one ends at once
    store.delete([f"r{number}.0" for number in range(10)])
    assert retrain(registry, store, "shapes", tmp_path / "work", anew=True).state == "failed"
    new, old = RetrainingHistory(store).all_of("shapes")
    assert (old.outcome, old.place) == ("failed", "elsewhere:/work")
    assert new.place.endswith(str(tmp_path / "work"))


@pytest.mark.by_hand
def test_a_database_that_dies_is_waited_for_and_nothing_is_done_twice(postgresql, registry, drawn, tmp_path):
    """PostgreSQL is killed while the network is trained, and starts again when it has been missed."""
    store, said, starts = RequestStore(postgresql("dies")), [], []

    def announce(line: str) -> None:
        said.append(line)
        if line.startswith("Run folder: "):
            postgresql.kill()
        elif line.endswith("Again in 1 s."):  # the end of the training has found nobody
            starts.append(threading.Thread(target=postgresql.start))
            starts[0].start()

    try:
        fill(store, drawn)
        options = RetrainingOptions(labels=40, trial="none", limits=LENIENT)
        outcome = retrain(
            registry, store, "shapes", tmp_path / "work", options=options, observer=Observer(announce=announce)
        )
        assert outcome.state == "promoted"
        assert starts, "it was waited for"
        (going,) = RetrainingHistory(store).all_of("shapes")
        names = [step.name for step in going.steps]
        assert len(names) == len(set(names))
        assert len(registry.versions("shapes")) == 2
        assert sum(1 for _ in store.predictions("shapes")) == len(drawn)
    finally:
        for start in starts:  # other tests use the same server
            start.join()
        store.close()


def test_a_database_that_does_not_answer_is_waited_for_and_then_said(registry, store, drawn, tmp_path, monkeypatch):
    fill(store, drawn[:10])
    calls, said = [], []
    asked = Registry.champion

    def away(self, name):
        calls.append(name)
        if len(calls) < 3:
            raise UnavailableError("The registry does not answer.")
        return asked(self, name)

    monkeypatch.setattr(Registry, "champion", away)
    monkeypatch.setattr("tellapart.retraining.time.sleep", lambda seconds: None)
    observer = Observer(announce=said.append)
    assert retrain(registry, store, "shapes", tmp_path / "work", observer=observer).state == "not needed"
    assert next(line for line in said if "does not answer" in line).endswith("Again in 1 s.")
    calls.clear()
    with pytest.raises(UnavailableError):
        retrain(registry, store, "shapes", tmp_path / "work", options=RetrainingOptions(patience=0.0))
