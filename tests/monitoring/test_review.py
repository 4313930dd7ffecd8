"""Which photos come first, and labels that go to Label Studio and come back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellapart.cli.main import app
from tellapart.errors import InputError
from tellapart.monitoring.review import answer, from_label_studio, next_questions, to_label_studio
from tellapart.request_store import RequestStore, ShadowPrediction, StoredPrediction
from written_bundle import write_bundle

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def store(tmp_path: Path):
    opened = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")
    yield opened
    opened.close()


def stored(id_: str, angle: float = 0.0, **changes: object) -> StoredPrediction:
    values = {"at": 1.0, "model": "pets", "version": "v", "label": "cat", "probability": 0.9, "photo": b"jpeg"}
    embedding = np.array([np.cos(angle), np.sin(angle)], np.float16)
    return StoredPrediction(id_, embedding=embedding, **(values | changes))


def order(store: RequestStore, **options: object) -> list[tuple[str, str]]:
    return [(question.photo.id, question.why) for question in next_questions(store, "pets", **options)]


def test_disagreements_come_first_then_unknown_then_unsure_photos_and_no_burst(store):
    store.add([
        stored("sure", 0.0), stored("less", 1.0, probability=0.6),
        stored("unsure", 2.0, abstains=True, probability=0.4), stored("unsurer", 3.0, abstains=True, probability=0.2),
        stored("burst", 3.01, abstains=True, probability=0.3),
        stored("strange", 4.0, is_unknown=True, similarity=0.3), stored("stranger", 5.0, is_unknown=True, similarity=0),
        stored("agreed", 0.5), stored("torn", 0.7, probability=0.99), stored("other test", 1.5),
        stored("no photo", 6.0, photo=None), stored("said", 6.1), stored("of others", 6.2, model="cars"),
    ])  # fmt: skip
    store.add_shadows([
        ShadowPrediction("agreed", "t1", 2.0, "cat"), ShadowPrediction("torn", "t1", 2.0, "dog"),
        ShadowPrediction("other test", "t0", 2.0, "dog"),
    ])  # fmt: skip
    answer(store, [{"id": "said", "verdict": "unusable"}], CLASSES)
    found = order(store, test="t1")
    assert found[:5] == [
        ("torn", "disagreement"), ("stranger", "unknown"), ("strange", "unknown"), ("unsurer", "not sure"),
        ("unsure", "not sure"),
    ]  # fmt: skip
    assert {id_ for id_, why in found[5:] if why == "other"} == {"less", "sure", "agreed", "other test"}
    assert order(store, test="t1", count=2) == found[:2]
    assert [why for _, why in order(store)][:1] == ["unknown"], "without a test nobody disagrees"
    assert store.num_labelled("pets") == 1


def test_disagreements_come_in_an_order_that_has_nothing_to_do_with_them(store):
    """A part of them must be as good as drawn from all: or what is labelled first would decide the test."""
    store.add([stored(f"p{number:03d}", probability=number / 200) for number in range(200)])
    store.add_shadows([ShadowPrediction(f"p{number:03d}", "t", 2.0, "dog") for number in range(200)])
    numbers = [int(id_[1:]) for id_, _ in order(store, test="t", count=100)]
    assert len(numbers) == 100, "also those that look alike"
    assert abs(np.mean(numbers) - 99.5) < 3 * 58 / np.sqrt(2 * 100)
    assert abs(np.corrcoef(numbers, range(100))[0, 1]) < 0.3


def test_verdicts_are_stored_taken_back_and_all_or_none(store):
    store.add([stored("a"), stored("b", 1.0), stored("c", 2.0)])
    said = [
        {"id": "a", "verdict": "wrong", "label": "dog"}, {"id": "b", "verdict": "right", "label": "owl"},
        {"id": "c", "verdict": "unusable"},
    ]  # fmt: skip
    assert answer(store, said, CLASSES) == 3
    found = {row.id: (feedback.verdict, feedback.label) for row, feedback in store.predictions("pets")}
    assert found == {"a": ("wrong", "dog"), "b": ("right", None), "c": ("unusable", None)}
    answer(store, [{"id": "a", "verdict": "withdrawn"}], CLASSES)
    assert order(store) == [("a", "other")]
    for wrong, hint in (
        ({"id": "a", "verdict": "maybe"}, "Expected one of: right, wrong"),
        ({"id": "a", "verdict": "wrong", "label": "cow"}, "has the label 'cow'. Expected one of: cat, dog, owl"),
        ({"id": 3, "verdict": "right"}, "has the id 3"),
    ):
        with pytest.raises(InputError, match=hint):
            answer(store, [{"id": "a", "verdict": "right"}, wrong], CLASSES)
    assert order(store) == [("a", "other")], "nothing of a list that has an error"


def test_tasks_go_to_label_studio_and_its_export_comes_back(store, tmp_path):
    store.add([stored("a"), stored("b", 1.0, label="dog"), stored("c", 2.0)])
    bundle = write_bundle(tmp_path / "bundle")
    words = ["review", str(bundle), "--store", str(tmp_path / "requests.db")]
    written = CliRunner().invoke(app, [*words, "--export", str(tmp_path / "tasks.json")])
    assert written.exit_code == 0, written.exception
    assert '<Choice value="owl"/>' in written.output
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks == to_label_studio(next_questions(store, "pets"), store)
    assert {task["data"]["tellapart_id"]: task["predictions"][0]["result"][0]["value"] for task in tasks} == {
        "a": {"choices": ["cat"]}, "b": {"choices": ["dog"]}, "c": {"choices": ["cat"]},
    }  # fmt: skip
    assert tasks[0]["data"]["image"] == "data:image/jpeg;base64,anBlZw=="

    def annotated(*labels: str | None) -> list[dict]:
        results = [[] if label is None else [{"type": "choices", "value": {"choices": [label]}}] for label in labels]
        return [{"result": result, "was_cancelled": not result} for result in results]

    chosen = {"a": annotated("owl", "cat"), "b": annotated("owl"), "c": annotated(None)}
    for task in tasks:
        task["annotations"] = chosen[task["data"]["tellapart_id"]]
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    read = CliRunner().invoke(app, [*words, "--import", str(tmp_path / "done.json")])
    assert read.output == "2 verdicts of 3 tasks stored.\n", read.exception
    assert {row.id: said and (said.verdict, said.label) for row, said in store.predictions("pets")} == {
        "a": ("right", None), "b": ("wrong", "owl"), "c": None,
    }  # fmt: skip
    with pytest.raises(InputError, match="is of 'x', which is not in this store"):
        list(from_label_studio([{"data": {"tellapart_id": "x"}}], {}))
    (tmp_path / "done.json").write_text("{")
    assert "cannot be read" in str(CliRunner().invoke(app, [*words, "--import", str(tmp_path / "done.json")]).exception)
