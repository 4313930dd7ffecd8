"""Pretrained networks: what goes in, which weights, what learns. Weights are made here, not downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from drawing import photo
from tellapart.errors import InputError, RecipeError
from tellapart.models.backbones import BACKBONES, backbone_network, features_of, freeze, inside_of, load_pretrained
from tellapart.models.build import build, build_for_training, copy_weights
from tellapart.settings import Backbone, Recipe, acts, load_recipe

SIDE = 64
QUICKLY_BUILT = {"mobilenet_v2", "mobilenet_v3_small", "convnext_tiny"}
PREPROCESSING = {
    "mobilenet_v2": keras.applications.mobilenet_v2.preprocess_input,
    "mobilenet_v3_small": keras.applications.mobilenet_v3.preprocess_input,
    "mobilenet_v3_large": keras.applications.mobilenet_v3.preprocess_input,
    "resnet50": keras.applications.resnet50.preprocess_input,
    "densenet121": keras.applications.densenet.preprocess_input,
    "efficientnet_v2_b0": keras.applications.efficientnet_v2.preprocess_input,
    "convnext_tiny": keras.applications.convnext.preprocess_input,
}


def pictures() -> np.ndarray:
    return np.stack([photo(seed, (SIDE, SIDE)) for seed in range(3)])


def made(name: str, folder: Path, **options) -> tuple[keras.Model, Path]:
    """Return one of Keras' networks with weights of its own, and a file of them."""
    keras.utils.set_random_seed(1)
    network = getattr(keras.applications, BACKBONES[name].make)(
        include_top=False, weights=None, input_shape=(SIDE, SIDE, 3), **options
    )
    rng = np.random.default_rng(2)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.abs(value) + rng.uniform(0.1, 0.3, value.shape) for value in layer.get_weights()])
    network.save_weights(folder / f"{name}.weights.h5")
    return network, folder / f"{name}.weights.h5"


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "mobilenet_v3_small",
        pytest.param("efficientnet_v2_b0", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.by_hand),
    ],
)
def test_features_are_those_of_keras_with_its_own_preprocessing(name: str, tmp_path: Path):
    reference, file = made(name, tmp_path)
    settings = Backbone(name=name, weights=str(file))
    model = backbone_network(settings, 4, None)
    load_pretrained(model, settings)
    expected = reference(PREPROCESSING[name](pictures().astype(np.float32)), training=False).numpy().mean(axis=(1, 2))
    found = features_of(model)(pictures(), training=False).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    assert model(pictures()).shape == (3, 4)


@pytest.mark.by_hand
@pytest.mark.parametrize("name", ["convnext_tiny", "densenet121", "mobilenet_v3_large"])
def test_so_are_those_of_the_larger_ones(name: str, tmp_path: Path):
    test_features_are_those_of_keras_with_its_own_preprocessing(name, tmp_path)


def test_efficientnet_gets_the_division_that_keras_adds_for_its_own_download():
    """keras.applications.efficientnet: the pictures are divided by the root of the deviation once more."""
    values = np.linspace(0, 255, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (values / 255 - mean) / std / np.sqrt(std) * std  # what (x / 255 - mean) / std must become, times std
    prepared = BACKBONES["efficientnet_b0"].prepare()(values)
    np.testing.assert_allclose(np.asarray(prepared) / 255 - mean, expected, rtol=1e-4, atol=1e-5)


def test_only_the_upper_part_learns_and_statistics_stay(tmp_path: Path):
    _, file = made("mobilenet_v2", tmp_path)
    settings = Backbone(name="mobilenet_v2", weights=str(file), dropout=0.0)
    model = backbone_network(settings, 3, SIDE)
    load_pretrained(model, settings)
    freeze(model, 0.2)
    inside = inside_of(model)
    before = {variable.path: np.asarray(variable) for variable in model.variables}
    model.compile(keras.optimizers.SGD(1.0), "categorical_crossentropy", jit_compile=False)  # compiling takes 20 s
    model.train_on_batch(pictures(), np.eye(3, dtype=np.float32))
    changed = {variable.path for variable in model.variables if not np.array_equal(before[variable.path], variable)}
    upper = {
        variable.path for layer in inside.layers[-round(0.2 * len(inside.layers)) :] for variable in layer.variables
    }
    head = {path for path in changed if path.startswith("probabilities")}
    assert len(head) == 2
    assert changed - head
    assert changed - head <= upper
    assert not any("moving" in path or "gamma" in path or "beta" in path for path in changed)
    freeze(model, 0.0)
    assert [variable.path.split("/")[0] for variable in model.trainable_variables] == ["probabilities"] * 2


def test_weights_that_cannot_be_had_are_clear_errors(tmp_path: Path):
    settings = Backbone(name="mobilenet_v2", weights=str(tmp_path / "none.h5"))
    model = backbone_network(settings, 2, SIDE)
    with pytest.raises(InputError, match=r"none\.h5 do not exist\. Expected a file of mobilenet_v2 without its top"):
        load_pretrained(model, settings)
    _, other = made("mobilenet_v3_small", tmp_path)
    with pytest.raises(InputError, match=r"does not hold the weights of mobilenet_v2 without its top"):
        load_pretrained(model, settings.model_copy(update={"weights": str(other)}))
    text = tmp_path / "text.weights.h5"
    text.write_text("no weights")
    with pytest.raises(InputError, match="does not hold the weights of mobilenet_v2"):
        load_pretrained(model, settings.model_copy(update={"weights": str(text)}))


@pytest.mark.integration
@pytest.mark.slow
def test_a_download_that_fails_says_which_file_to_bring(tmp_path: Path):
    """Keras' own download, through a proxy that nobody listens at, with an empty cache."""
    program = (
        "from tellapart.models.backbones import backbone_network, load_pretrained\n"
        "from tellapart.settings import Backbone\n"
        "settings = Backbone(name='mobilenet_v2', weights='imagenet')\n"
        "load_pretrained(backbone_network(settings, 2, 64), settings)"
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **nowhere, "no_proxy": "", "NO_PROXY": "", "KERAS_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tellapart.errors.InputError: The weights of mobilenet_v2 could not be downloaded"), last
    assert "Bring mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5 from a machine" in last


def test_the_convnet_has_no_pretrained_weights():
    with pytest.raises(RecipeError, match=r"no pretrained weights of convnet; .* name another network"):
        load_recipe(changes=["model.weights=imagenet"])


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [name if name in QUICKLY_BUILT else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_clean_photos_are_for_networks_with_batch_normalisation(name: str):
    model = backbone_network(Backbone(name=name), 2, None)
    has_any = any(isinstance(layer, keras.layers.BatchNormalization) for layer in inside_of(model).layers)
    assert has_any == acts(Recipe(model=Backbone(name=name)), "train.recalibrate_photos")


@pytest.mark.parametrize(
    ("name", "image_px"),
    [("mobilenet_v2", 44), ("mobilenet_v3_small", 44), ("efficientnet_b0", 44), ("mobilenet_v2", 64)],
)
def test_the_network_that_is_saved_is_the_one_that_was_trained_also_where_halves_are_odd(name: str, image_px: int):
    trained, saved = build_for_training(Backbone(name=name), 4, seed=1), build(Backbone(name=name), 4, image_px)
    rng = np.random.default_rng(0)
    values = [np.abs(w) + rng.uniform(0.1, 0.3, w.shape) if w.ndim == 1 else w for w in trained.get_weights()]
    trained.set_weights(values)
    copy_weights(trained, saved)
    shown = np.stack([photo(seed, (image_px, image_px)) for seed in range(3)])
    ours, theirs = (np.asarray(features_of(model)(shown, training=False)) for model in (trained, saved))
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def _draws(model: keras.Model) -> list[np.ndarray]:
    """Return all weights, and what drop-connect does to a picture in training."""
    return [*model.get_weights(), np.asarray(model(pictures(), training=True))]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
def test_a_seed_gives_the_same_weights_and_the_same_drop_connect(name: str):
    first, again, other = (_draws(backbone_network(Backbone(name=name), 4, None, seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [place for place, weight in enumerate(first) if weight.ndim == 4]
    assert kernels
    assert not any(np.array_equal(first[place], other[place]) for place in kernels)
