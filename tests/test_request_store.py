"""A store of requests on real databases: what goes in comes out, and nothing that goes wrong reaches a request."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tellapart.errors import InputError
from tellapart.request_store import METADATA, Feedback, RequestStore, StoredPrediction
from tellapart.store_writer import StoreWriter


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'requests.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.integration, pytest.mark.slow])])
def store(tmp_path: Path, request: pytest.FixtureRequest):
    place = url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgresql")(tmp_path.name)
    opened = RequestStore(place)
    yield opened
    opened.close()


def prediction(number: int, **changes: object) -> StoredPrediction:
    values = {"id": f"r{number:05d}.0", "at": 1000.0 + number, "model": "shapes", "version": "abc", "label": "star"}
    return StoredPrediction(**(values | changes))


def test_what_is_stored_is_read_back(store: RequestStore, tmp_path: Path):
    rng = np.random.default_rng(0)
    whole = prediction(
        1, probability=0.75, probabilities=rng.random(10).astype(np.float16), embedding=rng.normal(size=256),
        is_unknown=True, abstains=True, similarity=0.5, quality={"sharpness": 3.5}, milliseconds=4.5,
        photo=b"\xff\xd8",
    )  # fmt: skip
    unreadable = prediction(2, label=None)
    store.add([whole, unreadable])
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("requests.db*")} <= {0o600}, "for nobody else"
    (found, said), (other, _) = store.predictions("shapes")
    assert said is None
    for name in ("id", "at", "model", "version", "label", "probability", "is_unknown", "abstains", "similarity",
                 "quality", "milliseconds", "photo"):  # fmt: skip
        assert getattr(found, name) == getattr(whole, name), name
    np.testing.assert_array_equal(found.probabilities, whole.probabilities)
    np.testing.assert_allclose(found.embedding, whole.embedding, rtol=1e-3, atol=1e-6)
    assert (other.label, other.embedding, dict(other.quality)) == (None, None, {})
    store.add([whole, prediction(3)])
    assert len(list(store.predictions("shapes"))) == 3, "what is there stays, and the rest is stored"
    assert list(store.predictions("other")) == []
    assert [row.id for row, _ in store.predictions("shapes", since=1002, until=1003)] == ["r00002.0"]


def test_feedback_may_come_first_and_twice_and_the_latest_counts(store: RequestStore):
    store.add_feedback([Feedback("r00001.0", "wrong", "moon", 50.0)])
    store.add([prediction(1), prediction(2)])
    store.add_feedback([Feedback("r00001.0", "wrong", "sun", 60.0), Feedback("r00001.0", "right", at=40.0)])
    store.add_feedback([Feedback("r00001.0", "right", at=55.0)])  # arrives late
    ((found, said),) = store.predictions("shapes", only_labelled=True)
    assert (found.id, said) == ("r00001.0", Feedback("r00001.0", "wrong", "sun", 60.0))
    thousands = [Feedback(f"r{number:05d}.0", "right", at=100.0) for number in range(5000)]
    store.add_feedback(thousands)
    store.add_feedback(thousands)
    assert [said.verdict for _, said in store.predictions("shapes")] == ["right", "right"]
    store.add_feedback([])


def test_what_is_to_be_forgotten_is_gone_with_all_that_was_said_of_it(store: RequestStore):
    store.add([prediction(number, photo=b"photo") for number in range(1200)])
    store.add_feedback([Feedback(f"r{number:05d}.0", "right") for number in range(1200)])
    assert store.delete([f"r{number:05d}.0" for number in range(1100)] + ["nobody"]) == 1100
    assert store.expire(2150.0) == 50
    with store.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM feedback")).scalar() == 50


def test_the_migrations_make_what_the_code_expects(store: RequestStore):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_schema_that_was_cut_short_is_no_half_of_one(tmp_path: Path):
    """A kill, or a full disk, in the middle of a step: the next start must not find tables that it wants to make."""

    def fail(connection, cursor, statement: str, *_: object) -> None:
        if "predictions_by_test" in statement:
            raise KeyboardInterrupt

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            RequestStore(url(tmp_path))
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", fail)
    store = RequestStore(url(tmp_path))
    store.add([prediction(1)])
    assert len(list(store.predictions(prediction(1).model))) == 1
    store.close()


def test_a_store_of_a_newer_version_and_one_that_cannot_be_opened_are_refused(store: RequestStore, tmp_path: Path):
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match="has the schema 9999; this version knows 0003"):
        RequestStore(str(store.engine.url))
    with pytest.raises(InputError, match=r"cannot be opened: unable to open database file"):
        RequestStore(f"sqlite:///{tmp_path}/nowhere/requests.db")
    with pytest.raises(InputError, match=r"postgresql\+pg8000://me:\*\*\*@nowhere/x cannot be opened"):
        RequestStore("postgresql+pg8000://me:secret@nowhere/x")


def test_processes_that_start_at_once_make_one_schema_and_share_it(tmp_path: Path):
    program = (
        "import sys; from tellapart.request_store import RequestStore, StoredPrediction\n"
        "store = RequestStore(sys.argv[1])\n"
        "for number in range(20):\n"
        "    store.add([StoredPrediction(f'{sys.argv[2]}.{number}', float(number), 'shapes', 'abc')])\n"
    )
    command = [sys.executable, "-c", program, url(tmp_path)]
    processes = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "abc"]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    store = RequestStore(url(tmp_path))
    assert len(list(store.predictions("shapes"))) == 60
    store.close()


def wait_until(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tellapart.request_store._LOCK_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_fails_no_prediction_and_what_is_lost_is_counted(tmp_path: Path):
    prepared: list[str] = []

    def prepare(row: StoredPrediction) -> StoredPrediction:
        prepared.append(row.id)
        return replace(row, label="prepared")

    store, counts = RequestStore(url(tmp_path)), Counter()
    writer = StoreWriter(
        store, max_waiting=50, every_seconds=0.02, prepare=prepare,
        count=lambda outcome, number: counts.update({outcome: number}),
    )  # fmt: skip
    other = sqlite3.connect(tmp_path / "requests.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    writer.start()
    for number in range(80):
        writer.put(prediction(number))
    wait_until(lambda: writer.failure)
    assert "locked" in writer.failure
    assert (writer.num_waiting, writer.num_lost, writer.num_stored) == (50, 30, 0)
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: writer.num_stored == 50)
    wait_until(lambda: not writer.failure)
    writer.put(prediction(100))
    writer.close()
    assert (writer.num_waiting, writer.num_lost, writer.num_stored) == (0, 30, 51)
    assert counts == {"lost": 30, "stored": 51}
    assert [row.label for row, _ in store.predictions("shapes")] == ["prepared"] * 51
    assert len(prepared) == len(set(prepared)) == 51, "once, though the batch was tried several times"
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_ends_while_its_database_is_locked_counts_what_it_loses(tmp_path: Path):
    store = RequestStore(url(tmp_path))
    writer = StoreWriter(store, every_seconds=0.02)
    other = sqlite3.connect(tmp_path / "requests.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    writer.start()
    writer.put(prediction(1))
    writer.close()
    assert (writer.num_lost, writer.num_stored) == (1, 0)
    other.close()
    store.close()


def test_a_row_that_the_database_refuses_costs_the_others_nothing(tmp_path: Path):
    store = RequestStore(url(tmp_path))
    writer = StoreWriter(store, every_seconds=0.02)
    for number in range(10):
        writer.put(prediction(number, version=None if number == 4 else "abc"))  # it must not be null
    writer.start()
    wait_until(lambda: writer.num_stored == 9)
    writer.close()
    assert (writer.num_lost, writer.num_waiting, writer.failure) == (1, 0, "")
    assert [row.id for row, _ in store.predictions("shapes")] == [f"r{n:05d}.0" for n in range(10) if n != 4]
    store.close()


def test_many_threads_put_and_all_is_stored(tmp_path: Path):
    store = RequestStore(url(tmp_path))
    writer = StoreWriter(store, every_seconds=0.01)
    writer.start()
    threads = [
        threading.Thread(target=lambda t=t: [writer.put(prediction(1000 * t + n)) for n in range(500)])
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert (writer.num_stored, writer.num_lost) == (2000, 0)
    assert len({row.id for row, _ in store.predictions("shapes")}) == 2000
    store.close()
