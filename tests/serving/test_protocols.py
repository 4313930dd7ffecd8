"""TensorFlow Serving's and the Open Inference Protocol, the latter with Triton's own client."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from serving.process import ServerProcess, changed
from tellapart.bundles.predictor import BundleClassifier, open_classifier
from tellapart.data.decode import decode, decode_square

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def classifier(bundle: Path, server: ServerProcess) -> BundleClassifier:
    """The library, with the runtime that the server chose."""
    _, listed = server.json("/models")
    return open_classifier(bundle, runtime=listed["models"][0]["runtime"])


@pytest.fixture(scope="module")
def name(classifier: BundleClassifier) -> str:
    return classifier.bundle.record.name


@pytest.fixture(scope="module")
def files(photos: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in photos[::300]]


@pytest.fixture(scope="module")
def expected(classifier: BundleClassifier, files: list[bytes]) -> np.ndarray:
    return classifier.probabilities(np.stack([decode_square(data, classifier.image_px) for data in files]))


def post(server: ServerProcess, path: str, values: Any) -> tuple[int, Any]:
    return server.json(path, json.dumps(values).encode())


def close(found: Any, expected: np.ndarray) -> None:
    """PredictorPool of other batch sizes and threads differ in the last digits, bfloat16 by more."""
    np.testing.assert_allclose(np.asarray(found), expected, atol=0.02)


def test_tensorflow_serving_by_rows_and_by_columns(
    server: ServerProcess, classifier: BundleClassifier, name: str, files: list[bytes], expected: np.ndarray
):
    rows = [{"b64": base64.b64encode(data).decode()} for data in files]
    path, version = f"/v1/models/{name}", classifier.bundle.version
    status, found = post(server, f"{path}:predict", {"instances": rows})
    assert status == 200
    close(found["predictions"], expected)
    status, found = post(server, f"{path}/versions/1:predict", {"signature_name": "serving_default", "inputs": rows})
    close(found["outputs"], expected)
    squares = [decode_square(data, classifier.image_px).tolist() for data in files]
    for values in ({"instances": squares}, {"instances": [{"image": square} for square in squares]}):
        close(post(server, f"{path}:predict", values)[1]["predictions"], expected)
    status, found = post(server, f"{path}/versions/{version}:predict", {"inputs": {"image": squares}})
    close(found["outputs"], expected)


def test_tensorflow_serving_resizes_arrays_as_the_decoder_does(
    server: ServerProcess, classifier: BundleClassifier, name: str, files: list[bytes]
):
    picture = decode(files[0])
    assert picture.shape[0] != classifier.image_px
    status, found = post(server, f"/v1/models/{name}:predict", {"instances": [(0.999 * picture).tolist()]})
    assert status == 200
    theirs = dict(classifier.predict([picture], top_k=10)[0].top)
    close(found["predictions"][0], np.array([theirs[label] for label in classifier.classes]))


def test_tensorflow_serving_tells_status_and_metadata(server: ServerProcess, classifier: BundleClassifier, name: str):
    version = classifier.bundle.version
    good = {"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in (f"/v1/models/{name}", f"/v1/models/{name}/versions/1", f"/v1/models/{name}/versions/{version}"):
        assert server.json(path) == (200, {"model_version_status": [good]})
    _, found = server.json(f"/v1/models/{name}/metadata")
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["outputs"]["probabilities"]["dtype"] == "DT_FLOAT"
    assert server.json("/v1/models/cats")[0] == 404


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "Expected an object with no other keys"),
        ({}, "either 'instances' (rows) or 'inputs' (columns)"),
        ({"instances": []}, "Expected a list of images, at least one"),
        ({"instances": [{"b64": "***"}]}, "instances[0] is not base64"),
        ({"instances": [{"b64": "AAAA"}]}, "instances[0] is not an image"),
        ({"instances": [[[1, 2, 3]]]}, "instances[0] is int64 (1, 3). Expected uint8 RGB"),
        ({"instances": [[[[1, 2, 300]]]]}, "instances[0] has values from 1 to 300"),
        ({"instances": [[[[1, 2, 3]], [[1, 2]]]]}, "its rows differ in length"),
        ({"instances": [[[["a", "b", "c"]]]]}, "instances[0] is a list"),
        ({"inputs": {"image": [[]]}}, "inputs[0] is float64 (0,)"),
        ({"instances": [[[[True, False, True]]]]}, "instances[0] is bool (1, 1, 3)"),
        ({"signature_name": "classify", "instances": [1]}, "signature_name is 'classify'"),
        ({"instances": [[[[1e400, 0, 0]]]]}, "Infinity is not a number"),
        ({"instances": [10**400]}, "instances[0] is"),
        ({"instances": [0] * 1025}, "1,025 images; at most 1,024"),
    ],
)
def test_tensorflow_serving_says_what_is_wrong(server: ServerProcess, name: str, values: Any, message: str):
    status, found = post(server, f"/v1/models/{name}:predict", values)
    assert status in (400, 413, 422)
    assert message in found["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"instances": ' + b"[" * 900 + b"]" * 900 + b"}", b"\xff"]
)
def test_json_that_is_none_is_refused(server: ServerProcess, name: str, body: bytes):
    for path in (f"/v1/models/{name}:predict", f"/v2/models/{name}/infer", "/feedback"):
        assert server.json(path, body)[0] in (400, 413), path


def test_abstentions_are_counted_whatever_the_protocol(start, bundle: Path, tmp_path: Path, files: list[bytes]):
    server = start(changed(bundle, tmp_path / "unsure", name="unsure", threshold=0.0))
    rows = [base64.b64encode(data).decode() for data in files]
    assert server.json("/predict", files[0])[1]["predictions"][0]["abstains"]
    assert post(server, "/v1/models/unsure:predict", {"instances": [{"b64": each} for each in rows]})[0] == 200
    tensor = {"name": "image", "shape": [len(rows)], "datatype": "BYTES", "data": rows}
    assert post(server, "/v2/models/unsure/infer", {"inputs": [tensor]})[0] == 200
    metrics = server.call("/metrics")[1].decode()
    (count,) = re.findall(r"tellapart_abstentions_total\{.*\} (\S+)", metrics)
    assert float(count) == 1 + 2 * len(rows)


@pytest.fixture(scope="module")
def client(server: ServerProcess):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def test_tritons_client_finds_server_and_model(client, classifier: BundleClassifier, name: str):
    version = classifier.bundle.version
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    assert not client.is_model_ready("cats")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(name)
    side = classifier.image_px
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, side, side, 3]}]
    assert metadata["versions"] == [version]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_sends_arrays(
    client, classifier: BundleClassifier, name: str, files: list[bytes], expected: np.ndarray, binary: bool
):
    squares = np.stack([decode_square(data, classifier.image_px) for data in files])
    given = triton.InferInput("image", list(squares.shape), "UINT8")
    given.set_data_from_numpy(squares, binary_data=binary)
    wanted = [triton.InferRequestedOutput(each, binary_data=binary) for each in ("probabilities", "label")]
    found = client.infer(name, [given], outputs=wanted, request_id="r1")
    close(found.as_numpy("probabilities"), expected)
    labels = [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("label")]
    assert labels == [classifier.classes[number] for number in expected.argmax(axis=1)]
    assert found.get_response()["id"] == "r1"
    assert found.get_response()["model_version"] == classifier.bundle.version


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_sends_files(client, name: str, files: list[bytes], expected: np.ndarray, binary: bool):
    data = files if binary else [base64.b64encode(each) for each in files]
    given = triton.InferInput("image", [len(files)], "BYTES")
    given.set_data_from_numpy(np.array(data, np.object_), binary_data=binary)
    found = client.infer(name, [given], model_version="1")
    close(found.as_numpy("probabilities"), expected)


def test_tritons_client_understands_refusals(client, name: str):
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"no image"], np.object_))
    with pytest.raises(InferenceServerException, match=r"image\[0\] is not an image"):
        client.infer(name, [given])
    with pytest.raises(InferenceServerException, match="There is no model 'cats'"):
        client.infer("cats", [given])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "Expected one input, with the name 'image'"),
        ({"id": 5}, "id is not a string"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}]}, "datatype 'FP32'"),
        ({"inputs": [{"name": "image", "shape": [-1], "datatype": "BYTES", "data": []}]}, "has the shape [-1]"),
        ({"inputs": [{"name": "image", "shape": [2000], "datatype": "BYTES", "data": []}]}, "2,000 images"),
        ({"inputs": [{"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [1]}]}, "12 whole numbers"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["#"]}]}, "image[0] is not base64"),
        ({"outputs": [{"name": "logits"}]}, "There is no output 'logits'"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 3}}]}, "classification extension"),
    ],
)
def test_inference_requests_of_another_form_are_refused(server: ServerProcess, name: str, change: dict, message: str):
    good = {"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}
    assert post(server, f"/v2/models/{name}/infer", good)[0] == 200
    status, found = post(server, f"/v2/models/{name}/infer", good | change)
    assert status in (400, 413)
    assert message in found["error"]


@pytest.mark.parametrize(
    ("size", "tail"), [("5x", b""), ("100000", b""), ("-1", b""), (None, b"abcd"), ("right", b"ab")]
)
def test_binary_tensors_that_do_not_add_up_are_refused(server: ServerProcess, name: str, size: str | None, tail: bytes):
    tensor = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 3}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {} if size is None else {"Inference-Header-Content-Length": str(len(head)) if size == "right" else size}
    assert server.json(f"/v2/models/{name}/infer", head + tail, headers=headers)[0] == 400
