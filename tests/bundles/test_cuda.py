"""ONNX Runtime on a GPU: chosen where it is, left where it is not. No GPU is here: a processor stands in for one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.predictor import choose
from tellapart.bundles.runtimes import RUNTIMES, Outputs, open_runtime, open_several, usable
from tellapart.errors import BundleError
from tellapart.serving import model_version

CUDA = "onnxruntime-cuda"


@pytest.fixture
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device's place to a processor, and slow the other runtimes down."""
    on_processor = RUNTIMES["onnxruntime"].opens
    stand_in = replace(
        RUNTIMES[CUDA], distribution="onnxruntime", opens=on_processor,
        opens_several=lambda path, callers: [on_processor(path, 1)] * callers,
    )  # fmt: skip
    monkeypatch.setitem(RUNTIMES, CUDA, stand_in)
    for name in [name for name in RUNTIMES if name != CUDA]:
        monkeypatch.setitem(RUNTIMES, name, replace(RUNTIMES[name], opens=slowed(RUNTIMES[name].opens)))


def slowed(opens):
    def opens_slowly(path: Path, threads: int):
        predict = opens(path, threads)
        return lambda images: [time.sleep(0.01), predict(images)][1]

    return opens_slowly


@pytest.mark.integration
def test_without_its_package_it_is_no_choice_and_says_what_it_needs(place: Path):
    if RUNTIMES[CUDA].installed:
        pytest.skip("onnxruntime-gpu is installed")
    bundle = open_bundle(place / "bundle")
    assert CUDA not in usable(bundle)
    with pytest.raises(BundleError, match="onnxruntime-cuda needs the package onnxruntime-gpu, which is not installed"):
        open_runtime(bundle, CUDA)


@pytest.mark.integration
def test_without_a_device_another_runtime_is_chosen_and_by_name_it_says_why(place: Path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, CUDA, replace(RUNTIMES[CUDA], distribution="onnxruntime"))
    bundle = open_bundle(place / "bundle")
    assert usable(bundle)[0] == CUDA, "what was proved of the file in onnxruntime counts"
    chosen, predict = choose(bundle, None)
    assert chosen != CUDA
    assert predict(np.zeros((1, *(bundle.record.image_px,) * 2, 3), np.uint8)).probabilities.shape == (1, 10)
    for call in (choose, open_runtime):
        with pytest.raises(BundleError, match="can't use CUDA here: it found no GPU, or no CUDA and cuDNN"):
            call(bundle, CUDA)


@pytest.mark.integration
@pytest.mark.usefixtures("_on_the_processor")
def test_a_bundle_that_was_made_without_one_is_served_by_the_device_if_its_images_agree(place: Path, monkeypatch):
    bundle = open_bundle(place / "bundle")
    assert CUDA not in bundle.record.artefacts[0].proofs
    assert choose(bundle, None)[0] == CUDA
    first, second = open_several(bundle, CUDA, 2)
    assert first is second, "the weights lie on the device once"

    right = RUNTIMES[CUDA].opens

    def wrong(path: Path, threads: int):
        predict = right(path, threads)
        return lambda images: Outputs(predict(images).probabilities[:, ::-1], None)

    monkeypatch.setitem(RUNTIMES, CUDA, replace(RUNTIMES[CUDA], opens=wrong))
    assert choose(bundle, None)[0] != CUDA
    with pytest.raises(BundleError, match="does not give the reference images' probabilities"):
        choose(bundle, CUDA)


@pytest.mark.parametrize(
    ("call_ms", "picture_ms", "most"),
    [(20, 0.1, 32), (0.0, 10.0, 1)],
    ids=["a call costs more than pictures", "only pictures cost"],
)
def test_a_device_is_given_as_large_batches_as_are_faster(call_ms: float, picture_ms: float, most: int):
    def predict(images: np.ndarray) -> Outputs:
        time.sleep((call_ms + picture_ms * len(images)) / 1000)
        return Outputs(np.zeros((len(images), 3), np.float32), None)

    assert model_version._most_at_once(CUDA, predict, 24, 63) == most, "the largest power of two that may be asked for"
    assert model_version._most_at_once("onnxruntime", predict, 224, 64) == 5, "a processor's caches decide"
