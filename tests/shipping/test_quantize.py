"""int8 files say nearly what the float32 network says, and hold int8 where it counts."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table
from onnx import numpy_helper
from tensorflow.lite.python import schema_py_generated as schema

from held import Held, with_outlier
from tellapart.bundles.bundle import Artefact
from tellapart.bundles.runtimes import RUNTIMES
from tellapart.errors import InputError
from tellapart.models.build import build
from tellapart.models.embedding import feature_model
from tellapart.records import no_progress
from tellapart.settings import Backbone, ConvNet
from tellapart.shipping.formats import convert_to_onnx, save_saved_model
from tellapart.shipping.litert_metadata import with_metadata
from tellapart.shipping.proofs import prove
from tellapart.shipping.quantize import (
    OnnxQuantizer,
    clipped,
    equalised,
    litert_int8,
    scales_without_overflow,
    weights_to_float16,
    weights_to_int8,
    without_last_normalisation,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]
IMAGE_PX = 32


def metadata_of(model: bytes) -> dict[str, list[dict[str, Any]]]:
    """Read the metadata of a LiteRT file by the places that ``metadata_schema.fbs`` gives its fields."""
    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    (entry,) = (known for known in parsed.metadata if known.name == b"TFLITE_METADATA")
    data = bytes(bytearray(parsed.buffers[entry.buffer].data))
    assert data[4:8] == b"M001"

    def field(table: Table, slot: int) -> int:
        return table.Offset(4 + 2 * slot)

    def tables(table: Table, slot: int) -> list[Table]:
        if not (at := field(table, slot)):
            return []
        start = table.Vector(at)
        return [Table(data, table.Indirect(start + 4 * number)) for number in range(table.VectorLen(at))]

    def text(table: Table, slot: int) -> str:
        return table.String(table.Pos + field(table, slot)).decode()

    (graph,) = tables(Table(data, int.from_bytes(data[:4], "little")), 3)
    return {
        side: [
            {"name": text(tensor, 0), "files": [text(file, 0) for file in tables(tensor, 6)]}
            for tensor in tables(graph, slot)
        ]
        for side, slot in (("inputs", 2), ("outputs", 3))
    }


def network(settings: ConvNet | Backbone) -> keras.Model:
    """Build a network whose normalisations differ from channel to channel, as after a training."""
    keras.utils.set_random_seed(0)
    model = build(settings, 5, IMAGE_PX)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([
                gamma * random.choice([-1, 1], gamma.shape) * random.uniform(0.1, 3, gamma.shape),
                beta + random.normal(0, 0.2, beta.shape),
                mean + 0.1,
                variance * random.uniform(0.01, 2, gamma.shape),
            ])  # fmt: skip
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    random = np.random.default_rng(1)
    # Smooth ones, of any brightness: noise would make all of them alike.
    small = random.integers(0, 256, (64, 4, 4, 3)).astype(np.float32)
    return keras.ops.convert_to_numpy(keras.ops.image.resize(small, (IMAGE_PX, IMAGE_PX))).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[keras.Model, Path]]:
    folder = tmp_path_factory.mktemp("float")
    models = {"convnet": equalised(network(ConvNet())), "mobilenet_v2": network(Backbone(name="mobilenet_v2"))}
    for name, model in models.items():
        save_saved_model(model, folder / name)
    convert_to_onnx({folder / name: folder / f"{name}.onnx" for name in models})
    return {name: (model, folder / f"{name}.onnx") for name, model in models.items()}


def test_an_equalised_network_says_the_same_and_its_normalisations_only_turn_signs(pictures: np.ndarray):
    model = network(ConvNet())
    equal = equalised(model)
    np.testing.assert_allclose(equal.predict_on_batch(pictures), model.predict_on_batch(pictures), atol=2e-6)
    for layer in equal.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, _, mean, variance = layer.get_weights()
            assert set(np.unique(gamma)) == {-1.0, 1.0}
            assert not mean.any()
            np.testing.assert_allclose(variance + layer.epsilon, 1)
    assert [layer.name for layer in equal.layers] == [layer.name for layer in model.layers]


def test_the_last_normalisation_goes_into_the_dense_layer_and_nothing_else_changes(pictures: np.ndarray):
    model = network(ConvNet())
    without, offsets = without_last_normalisation(model)
    assert offsets is not None
    assert not isinstance(without.get_layer("batchnorm3"), keras.layers.BatchNormalization)
    found, expected = (feature_model(each).predict_on_batch(pictures) for each in (without, model))
    for part, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, whole, atol=2e-5)
    backbone = network(Backbone(name="mobilenet_v2"))
    assert without_last_normalisation(backbone) == (backbone, None), "it has none there"


def test_clipping_cuts_few_values(pictures: np.ndarray):
    equal = equalised(network(ConvNet()))
    cut = clipped(equal, pictures)
    np.testing.assert_allclose(cut.predict_on_batch(pictures), equal.predict_on_batch(pictures), atol=0.02)
    outputs = [
        keras.Model(model.inputs, model.get_layer("batchnorm1").output).predict_on_batch(pictures)
        for model in (equal, cut)
    ]
    changed = np.abs(outputs[0] - outputs[1]) > 1e-4
    assert 0 < changed.mean() < 1e-4


@pytest.mark.parametrize("name", ["convnet", "mobilenet_v2"])
def test_onnx_in_int8_is_near_a_quarter_as_large_and_runs(
    name: str,
    files: dict[str, tuple[keras.Model, Path]],
    pictures: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    model, source = files[name]
    target = tmp_path / "int8.onnx"
    with OnnxQuantizer(source, pictures) as quantizer:
        quantizer.write(target)
    assert not caplog.records  # its advice is for whoever calls it, which is us
    graph = onnx.load(target)
    kinds = [node.op_type for node in graph.graph.node]
    kernels = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    large = [kernel for kernel in kernels if kernel.size > 1000]
    assert {kernel.dtype for kernel in large if kernel.ndim > 1} == {np.dtype(np.int8)}
    # MobileNet's ReLU6: as Max and Min it would ruin int8. Its limits go into the ranges of the activations.
    assert not {"Max", "Min", "Clip"} & set(kinds)
    assert kinds.count("Conv") == {"convnet": 3, "mobilenet_v2": 52}[name]
    assert target.stat().st_size < 0.35 * source.stat().st_size
    expected = model.predict_on_batch(pictures)
    for runtime in ("onnxruntime-int8", "openvino-int8"):
        outputs = RUNTIMES[runtime].opens(target, 1)(pictures)
        assert outputs.embeddings is not None
        assert np.abs(outputs.probabilities - expected).mean() < 0.02, runtime
        np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, atol=1e-5)
        # One picture at a time or many, it is the same model.
        alone = np.concatenate([RUNTIMES[runtime].opens(target, 1)(pictures[:2])[0]])
        np.testing.assert_allclose(alone, outputs.probabilities[:2], atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (16, 16, 1, 1), (4, 32, 3, 3), (4, 5, 1, 1), (4, 1, 1, 1)])
def test_two_neighbouring_products_of_bytes_fit_in_sixteen_bits(shape: tuple[int, ...]):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[0] = 0  # of a channel that was silenced
    scales = scales_without_overflow(kernel)
    bytes_ = np.rint(kernel / scales[:, None, None, None])
    assert np.abs(bytes_).max() <= 127
    rows = np.moveaxis(bytes_, 1, -1).reshape(len(kernel), -1)
    # With the largest activations that unsigned bytes have, in the pairs that `vpmaddubsw` adds up.
    for first in (0, 1) if shape[1] % 2 else (0,):
        pairs = rows[:, first : first + (rows.shape[1] - first) // 2 * 2].reshape(len(rows), -1, 2)
        highest = 255 * np.maximum(pairs, 0).sum(axis=2)
        assert highest.max(initial=0) <= np.iinfo(np.int16).max
        assert (-255 * np.minimum(pairs, 0).sum(axis=2)).max(initial=0) <= np.iinfo(np.int16).max
    # No coarser than seven bits, which is the usual mend.
    largest = np.abs(kernel).max(axis=(1, 2, 3))
    assert (scales[1:] <= 2.01 * largest[1:] / 127).all()


@pytest.mark.by_hand  # tests/shipping/test_export.py has a whole export of such a network
def test_a_convolution_with_one_channel_far_from_the_others_is_found_and_can_stay_in_float32(
    pictures: np.ndarray, tmp_path: Path
):
    model = network(ConvNet())
    expected = model.predict_on_batch(pictures)
    with_outlier(model, "conv2", "batchnorm2", 500)
    np.testing.assert_allclose(model.predict_on_batch(pictures), expected, atol=1e-4)
    save_saved_model(model, tmp_path / "model")
    convert_to_onnx({tmp_path / "model": tmp_path / "model.onnx"})
    differences = {}
    with OnnxQuantizer(tmp_path / "model.onnx", pictures) as quantizer:
        damages = quantizer.damages()
        worst = next(iter(damages))
        assert set(damages) == set(quantizer.layers)
        assert damages[worst] > 5 * sorted(damages.values())[-2], "the others suffer little"
        for name, in_float in (("whole", ()), ("partly", (worst,))):
            quantizer.write(tmp_path / f"{name}.onnx", in_float)
            found = RUNTIMES["onnxruntime-int8"].opens(tmp_path / f"{name}.onnx", 1)(pictures).probabilities
            differences[name] = np.abs(found - expected).mean()
    assert differences["partly"] < differences["whole"] / 5
    # What stays in float32 is still stored in a byte for each weight.
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "partly")]
    assert sizes[1] < 1.02 * sizes[0]


def test_a_runtime_that_ends_its_process_is_named_and_the_others_go_on(
    files: dict[str, tuple[keras.Model, Path]], pictures: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, source = files["convnet"]
    with OnnxQuantizer(source, pictures) as quantizer:
        quantizer.write(tmp_path / "int8.onnx")
    # In place of OpenVINO, in other processes alone: what dies as a kernel with a fault does.
    (tmp_path / "openvino.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    expected, said = model.predict_on_batch(pictures), []
    artefact = Artefact(id="onnx", format="onnx", precision="int8", path="int8.onnx", bytes=1, proofs={})
    proved = prove(
        artefact, tmp_path / "int8.onnx", expected, Held(pictures), expected.argmax(axis=1), no_progress, said.append,
        margin=0.5,
    )  # fmt: skip
    assert {name: proof.passed for name, proof in proved.proofs.items()} == {
        "openvino-int8": False, "onnxruntime-int8": True,
    }  # fmt: skip
    assert "SIGSEGV" in proved.proofs["openvino-int8"].reason
    assert [line.split(":")[0] for line in said] == ["openvino-int8", "onnxruntime-int8"]


@pytest.mark.parametrize(
    ("reduce", "share", "largest"), [(weights_to_int8, 0.35, 0.02), (weights_to_float16, 0.55, 1e-3)]
)
def test_kernels_alone_in_fewer_bits_give_nearly_the_same(
    files: dict[str, tuple[keras.Model, Path]], tmp_path: Path, pictures, reduce, share: float, largest: float
):
    model, source = files["convnet"]
    target = tmp_path / "small.onnx"
    reduce(source, target)
    assert target.stat().st_size < share * source.stat().st_size
    for runtime in ("onnxruntime", "openvino-f32"):
        found = RUNTIMES[runtime].opens(target, 1)(pictures).probabilities
        np.testing.assert_allclose(found, model.predict_on_batch(pictures), atol=largest)


def test_litert_takes_bytes_and_gives_float32(
    files: dict[str, tuple[keras.Model, Path]], pictures: np.ndarray, tmp_path: Path
):
    model, _ = files["convnet"]
    path = tmp_path / "model.tflite"
    path.write_bytes(litert_int8(model, pictures, IMAGE_PX))
    outputs = RUNTIMES["litert-int8"].opens(path, 1)(pictures)
    assert np.abs(outputs.probabilities - model.predict_on_batch(pictures)).mean() < 0.03
    assert outputs.embeddings.shape == (64, 256)
    assert path.stat().st_size < 160_000

    # What phones look for in the file changes nothing of what it says.
    plain = path.read_bytes()
    path.write_bytes(with_metadata(plain, ["a", "b\nc", "d", "e", "f"], IMAGE_PX))
    assert path.read_bytes() == with_metadata(plain, ["a", "b\nc", "d", "e", "f"], IMAGE_PX)
    described = RUNTIMES["litert-int8"].opens(path, 1)(pictures)
    np.testing.assert_array_equal(described.probabilities, outputs.probabilities)
    np.testing.assert_array_equal(described.embeddings, outputs.embeddings)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == ["a", "b c", "d", "e", "f"], "a line for each class"
    graph = metadata_of(path.read_bytes())
    assert [table["name"] for table in graph["inputs"]] == ["image"]
    # By place, as readers match them with the graph's outputs.
    details = Interpreter(model_path=str(path)).get_output_details()
    sizes = {"probabilities": 5, "embedding": 256}
    assert [sizes[table["name"]] for table in graph["outputs"]] == [detail["shape"][-1] for detail in details]
    assert [table["files"] for table in graph["outputs"]] == [
        ["labels.txt"] if table["name"] == "probabilities" else [] for table in graph["outputs"]
    ]


def test_what_cannot_be_quantized_is_a_clear_error(
    files: dict[str, tuple[keras.Model, Path]], pictures: np.ndarray, tmp_path: Path
):
    _, source = files["convnet"]
    with pytest.raises(InputError, match="photos to learn the range"):
        OnnxQuantizer(source, pictures[:0])
    tensor = onnx.helper.make_tensor_value_info
    image = tensor("image", onnx.TensorProto.FLOAT, ["n", 4])
    node = onnx.helper.make_node("Relu", ["image"], ["probabilities"])
    graph = onnx.helper.make_graph([node], "g", [image], [tensor("probabilities", onnx.TensorProto.FLOAT, ["n", 4])])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "flat.onnx",
    )
    with pytest.raises(InputError, match="no convolutions"):
        OnnxQuantizer(tmp_path / "flat.onnx", pictures)
