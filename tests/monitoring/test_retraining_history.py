"""One retraining of a model at a time, whoever begins it; each step once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tellapart.monitoring.retraining_history import RetrainingHistory
from tellapart.request_store import RequestStore


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.integration, pytest.mark.slow])])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'requests.db'}"
    return request.getfixturevalue("postgresql")(tmp_path.name)


def test_of_many_that_begin_at_once_one_does(url):
    begun: list[object] = []

    def begin(number: int) -> None:
        store = RequestStore(url)
        barrier.wait()
        begun.append(RetrainingHistory(store).begin("pets", f"place {number}", f"reason {number}"))
        store.close()

    RequestStore(url).close()
    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 6
    (one,) = [retraining for retraining in begun if retraining is not None]
    store = RequestStore(url)
    history = RetrainingHistory(store)
    assert history.open_of("pets") == one
    assert one.step("trigger").reason == f"reason {one.place[-1]}"
    assert history.begin("cars", "elsewhere", "another model") is not None
    store.close()


def test_steps_are_noted_once_and_the_first_end_counts(url):
    store = RequestStore(url)
    history = RetrainingHistory(store)
    first = history.begin("pets", "here", "drift")
    history.note(first, "gather", "40 photos", {"photos": 40})
    history.note(first, "gather", "41 photos", {"photos": 41})
    assert history.open_of("pets").step("gather").values == {"photos": 40}
    history.end(first, "promoted", "better")
    history.end(first, "rejected", "worse")
    assert history.open_of("pets") is None
    second = history.begin("pets", "here", "age")
    found = history.all_of("pets")
    assert [(one.id, one.outcome) for one in found] == [(second.id, None), (first.id, "promoted")]
    assert [(step.name, step.reason) for step in found[1].steps] == [
        ("trigger", "drift"), ("gather", "40 photos"), ("end", "better"),
    ]  # fmt: skip
    assert found[1].ended >= found[1].began
    assert history.all_of("cars") == []
    store.close()
