"""Versions: found by name and number, taken over by new ones, refused when damaged."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving.process import changed
from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.runtimes import Outputs
from tellapart.errors import BundleError
from tellapart.serving.model_version import PredictorPool
from tellapart.serving.models import Models, UnknownModelError
from tellapart.serving.options import BatchOptions, ServerOptions
from tellapart.serving.telemetry import Telemetry

pytestmark = pytest.mark.integration


@pytest.fixture
def serve() -> Callable[..., tuple[Models, Telemetry]]:
    def opened(*bundles: Path, models: Path | None = None) -> tuple[Models, Telemetry]:
        telemetry = Telemetry()
        batches = BatchOptions(threads=1, max_batch_size=1)
        options = ServerOptions(bundles, models=models, runtime="onnxruntime", batches=batches)
        return Models(options, telemetry), telemetry

    return opened


def put(bundle: Path, at: Path) -> None:
    """Replace a folder as export does: the old one away, the new one there."""
    if at.exists():
        at.rename(at.with_name(".old"))
        shutil.rmtree(at.with_name(".old"))
    shutil.copytree(bundle, at)


def refused(telemetry: Telemetry) -> float:
    return telemetry.registry.get_sample_value("tellapart_refused_bundles_total") or 0.0


def test_versions_are_found_by_name_digits_and_number(bundle: Path, tmp_path: Path, serve):
    first = changed(bundle, tmp_path / "a", name="cats")
    second = changed(bundle, tmp_path / "b", name="cats", threshold=0.9)
    third = changed(bundle, tmp_path / "c", name="dogs")
    models, _ = serve(first, second, third)
    assert models.find().version == open_bundle(second).version, "the first model, its newest version"
    assert models.find("cats", "1").version == models.find("cats", open_bundle(first).version).version
    assert models.find("dogs").name == "dogs"
    assert [(each.name, each.number) for each in models.all()] == [("cats", 1), ("cats", 2), ("dogs", 1)]
    with pytest.raises(UnknownModelError, match=r"no model 'cow' here. Expected one of: cats, dogs"):
        models.find("cow")
    with pytest.raises(UnknownModelError, match=rf"Expected one of: {models.find('cats', '1').version} \(number 1\)"):
        models.find("cats", "3")


def test_a_new_export_takes_over_when_it_is_whole(bundle: Path, tmp_path: Path, serve):
    place, fresh = tmp_path / "served", changed(bundle, tmp_path / "fresh", threshold=0.9)
    shutil.copytree(bundle, place)
    models, telemetry = serve(place)
    old = models.find()
    models.poll()
    assert models.find() is old
    put(fresh, place)
    (place / "model.onnx").unlink()
    models.poll()
    assert models.find() is old, "it may still be being copied"
    shutil.copy(fresh / "model.onnx", place)
    models.poll()
    models.poll()
    assert models.find().version == open_bundle(fresh).version
    assert (models.find().number, len(models.all())) == (2, 1)
    assert telemetry.registry.get_sample_value("tellapart_swaps_total", {"model": old.name}) == 1
    assert refused(telemetry) == 0


@pytest.mark.parametrize("damage", ["truncated", "record", "missing", "reference_images", "garbage"])
def test_a_damaged_bundle_is_refused_once_and_the_old_one_goes_on(
    bundle: Path, tmp_path: Path, serve, caplog: pytest.LogCaptureFixture, damage: str
):
    place, fresh = tmp_path / "served", tmp_path / "fresh"
    shutil.copytree(bundle, place)
    models, telemetry = serve(place)
    old = models.find()
    record = open_bundle(bundle).record
    wrong = {name: row[::-1] for name, row in record.reference_images.items()}
    changed(bundle, fresh, **({"reference_images": wrong} if damage == "reference_images" else {"threshold": 0.8}))
    model = fresh / "model.onnx"
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:1000])
    elif damage == "garbage":  # right checksums, and no network
        model.write_bytes(b"no network")
        from tellapart.bundles.bundle import write_record

        write_record(fresh, record)
    elif damage == "record":
        (fresh / "bundle.json").write_text("{}")
    elif damage == "missing":
        model.unlink()
    put(fresh, place)
    for _ in range(4):
        models.poll()
    assert models.find() is old
    assert refused(telemetry) == 1
    assert f"was refused, {old.version} goes on" in caplog.text
    shutil.rmtree(place)
    for _ in range(5):
        models.poll()
    assert models.find() is old, "a bundle that is loaded needs no file"


def test_a_folder_of_bundles_is_followed(bundle: Path, tmp_path: Path, serve):
    changed(bundle, tmp_path / "all" / "one", name="one")
    (tmp_path / "all" / "notes").mkdir()
    models, _ = serve(models=tmp_path / "all")
    assert [each.name for each in models.all()] == ["one"]
    changed(bundle, tmp_path / "all" / "two", name="two")
    models.poll()
    models.poll()
    assert [each.name for each in models.all()] == ["one", "two"]
    shutil.rmtree(tmp_path / "all" / "one")
    models.poll()
    assert [each.name for each in models.all()] == ["one", "two"], "it may be being replaced"
    models.poll()
    models.poll()
    assert [each.name for each in models.all()] == ["two"]
    shutil.rmtree(tmp_path / "all" / "two")
    for _ in range(4):
        models.poll()
    assert models.find().name == "two", "the last one stays"


def test_nothing_to_serve_is_one_clear_error(bundle: Path, tmp_path: Path, serve):
    with pytest.raises(BundleError, match=r"No bundle was named\. Expected a folder made by tellapart export"):
        serve()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="empty holds no bundle"):
        serve(models=tmp_path / "empty")
    with pytest.raises(BundleError, match="has no SHA256SUMS"):
        serve(tmp_path / "empty")
    with pytest.raises(BundleError, match="is not a folder"):
        serve(models=tmp_path / "none")


def test_what_works_in_the_background_has_a_network_of_its_own_that_its_thread_has_opened():
    """The threads of a runtime get the priority of the thread that opens it."""
    opened = []

    def open_one() -> Callable[..., Outputs]:
        opened.append(threading.get_native_id())
        memory = np.zeros((1, 2), np.float32)

        def predict(batch: np.ndarray) -> Outputs:
            memory[:] = batch.mean(), 1.0
            return Outputs(memory, None)  # the same memory each time, as runtimes have it

        return predict

    def never(batch: np.ndarray) -> Outputs:
        raise AssertionError("others' network")

    pool = PredictorPool((never, never), never, 4, open_one)
    with ThreadPoolExecutor(1) as background:
        rows = [background.submit(pool.in_background, np.full((2, 2, 3), level, np.uint8)).result() for level in (3, 7)]
        (thread,) = {background.submit(threading.get_native_id).result()}
    assert [row.tolist() for row in rows] == [[3.0, 1.0], [7.0, 1.0]], "copies: the memory is used again"
    assert opened == [thread], "once"
