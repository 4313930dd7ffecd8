"""Pretrained weights on the shelf of a machine without a network."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.models.backbones import at_hand, backbone_network, inside_of, load_pretrained
from tellapart.models.weights import add, get, listed
from tellapart.settings import Backbone

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of its own, and no network."""
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(keras.utils, "get_file", None)
    return tmp_path


def test_a_file_that_was_brought_is_what_imagenet_means(place: Path):
    keras.utils.set_random_seed(0)
    source = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(None, None, 3))
    source.save_weights(place / "brought.weights.h5")
    assert all(weights.path is None for weights in listed())
    assert (
        add(place / "brought.weights.h5", "mobilenet_v3_small") == place / "cache/weights/mobilenet_v3_small.weights.h5"
    )
    assert get("mobilenet_v3_small") == at_hand("mobilenet_v3_small")
    (place / "cache/weights/mobilenet_v3_small.h5").write_bytes(b"of an earlier call")
    assert add(place / "brought.weights.h5", "mobilenet_v3_small") == at_hand("mobilenet_v3_small")
    assert not (place / "cache/weights/mobilenet_v3_small.h5").exists(), "or it might be found another time"
    assert [weights.name for weights in listed() if weights.path] == ["mobilenet_v3_small"]
    settings = Backbone(name="mobilenet_v3_small", weights="imagenet")
    model = backbone_network(settings, 3, 32, seed=5)
    load_pretrained(model, settings)
    for ours, theirs in zip(inside_of(model).get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_keras_has_downloaded_is_at_hand(place: Path):
    file = place / "keras" / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert at_hand("resnet50") == file


def test_other_weights_and_unknown_networks_are_refused_and_nothing_is_kept(place: Path):
    (place / "wrong.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match="does not hold the weights of mobilenet_v2"):
        add(place / "wrong.weights.h5", "mobilenet_v2")
    with pytest.raises(InputError, match=r"There is no network 'mobilenet'\. Did you mean"):
        add(place / "wrong.weights.h5", "mobilenet")
    assert at_hand("mobilenet_v2") is None
