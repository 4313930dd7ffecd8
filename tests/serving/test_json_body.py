"""What a JSON body can cost: no more than was counted before it was parsed, whatever is in it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tellapart.serving import tensorflow_serving
from tellapart.serving.errors import ApiError
from tellapart.serving.inference_tensors import read_request
from tellapart.serving.json_body import parse_json, parsing_bytes, utf8
from tellapart.serving.tensors import images_of, picture


def peak_of(work: Callable[[], Any]) -> tuple[int, str]:
    """Return the most memory that was taken at a time, and the refusal."""
    refusal = ""
    tracemalloc.start()
    try:
        work()
    except ApiError as error:
        refusal = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak, refusal


LONG, EMPTY = "x" * 30_000, [""] * 10_000


@pytest.mark.parametrize(
    "value", [[LONG, *EMPTY], [[[LONG, *EMPTY]]], [*[0] * 10_000, LONG], [[[1, 2, LONG], *[[1, 2, 3]] * 10_000]]]
)
def test_a_long_text_among_many_elements_makes_no_wide_array(value: list):
    """As an array of texts each element is as wide as the longest: 1.2 GB here."""
    peak, refusal = peak_of(lambda: images_of([value], "instances"))
    assert "instances[0] is" in refusal
    assert peak < 2_000_000
    tensor = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": value}
    peak, refusal = peak_of(lambda: read_request({"inputs": [tensor]}, memoryview(b"")))
    assert "expected 3 whole numbers" in refusal
    assert peak < 2_000_000


@pytest.mark.parametrize("where", ["shape", "datatype", "name", "binary_data_size"])
def test_a_message_about_a_huge_value_is_short_and_cheap(where: str):
    huge = [[number] for number in range(100_000)]
    tensor: dict[str, Any] = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
    outputs: list[dict[str, Any]] = [{"name": "label"}]
    if where == "name":
        outputs[0]["name"] = huge
    elif where == "binary_data_size":
        tensor["parameters"] = {where: huge}
    else:
        tensor[where] = huge
    peak, refusal = peak_of(lambda: read_request({"inputs": [tensor], "outputs": outputs}, memoryview(b"")))
    assert 0 < len(refusal) < 200
    assert peak < 100_000


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8).tolist()
BODIES = {
    "pictures": json.dumps({"instances": PICTURES}),
    "fractions": json.dumps({"instances": (np.array(PICTURES) / 2).tolist()}),
    "halves": '{"instances":[[[' + ",".join(["[0.5,0.5,0.5]"] * 20_000) + "]]]}",
    "base64": json.dumps({"instances": [{"b64": "QUJD" * 100_000}]}),
    "escaped": json.dumps({"instances": [{"b64": "QUJD" * 100_000}]}).replace("QUJD", "QU\\/D"),
    "empty lists": '{"instances":[' + ",".join(["[]"] * 100_000) + "]}",
    "lists of one": '{"instances":[[' + ",".join(["[0]"] * 100_000) + "]]}",
    "lists of five": '{"instances":[[' + ",".join(["[0,0,0,0,0]"] * 30_000) + "]]}",
    "numbers": '{"instances":[[' + ",".join(["1000"] * 100_000) + "]]}",
    "floats": '{"instances":[[[[' + ",".join(["1e9"] * 100_000) + "]]]]}",
    "empty objects": '{"instances":[' + ",".join(["{}"] * 100_000) + "]}",
    "objects of one": '{"instances":[' + ",".join(['{"":0}'] * 60_000) + "]}",
    "many keys": "{" + ",".join(f'"{number}":0' for number in range(60_000)) + "}",
    "texts": '{"instances":[' + ",".join(['"a"'] * 100_000) + "]}",
    "long numbers": '{"instances":[[' + ",".join(["9" * 4000] * 100) + "]]}",
    "one wide letter": '{"instances":["' + "a" * 400_000 + '🐈"]}',
    "a wide letter first": '{"instances":["🐈' + "a" * 400_000 + '"]}',
    "a wide escape": '{"instances":["' + "a" * 400_000 + '\\ud83d\\ude00"]}',
    "wide texts": '{"instances":[' + ",".join(['"🐈"'] * 60_000) + "]}",
    "nested deeply": "[" * 400_000,
    "nested and closed": "[" * 900 + "]" * 900 + "," * 10,
    "not closed": '{"instances":["' + "a" * 400_000,
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.slow
def test_parsing_takes_no_more_memory_than_was_counted(name: str):
    body = BODIES[name].encode()

    def work() -> None:
        tensorflow_serving.read_request(parse_json(utf8(body)), memoryview(b""))

    peak_of(work)
    peak, _ = peak_of(work)
    assert peak <= len(body) + parsing_bytes(body, 2**40) + 20_000


def test_what_clients_send_is_not_counted_for_much_more_than_it_takes():
    """The bound must let through what is harmless: base64 at its own size, a picture of numbers at thirty times it."""
    assert parsing_bytes(BODIES["base64"].encode(), 2**40) < 1.01 * len(BODIES["base64"])
    assert parsing_bytes(BODIES["pictures"].encode(), 2**40) < 30 * len(BODIES["pictures"])


def test_counting_ends_when_it_is_too_much():
    assert 1_000_000 < parsing_bytes(b"[" * 50_000_000, 60_000_000) < 130_000_000


def test_pictures_of_lists_are_what_numpy_makes_of_them():
    rng = np.random.default_rng(1)
    for _ in range(20):
        shape = (*rng.integers(1, 12, 2), 3)
        values = rng.integers(0, 256, shape) if rng.random() < 0.5 else 255 * rng.random(shape)
        expected = np.rint(values).astype(np.uint8)
        np.testing.assert_array_equal(picture(values.tolist(), "it"), expected)
        tensor = {"name": "image", "shape": [1, *map(int, shape)], "datatype": "UINT8"}
        for data in (expected.tolist(), expected.ravel().tolist(), [expected.tolist()]):
            (image,) = read_request({"inputs": [tensor | {"data": data}]}, memoryview(b"")).images
            np.testing.assert_array_equal(image.data, expected)


def test_errors_of_the_parser_do_not_keep_the_body():
    with pytest.raises(ApiError, match="not valid JSON") as caught:
        parse_json("{" + "a" * 1000)
    assert caught.value.__context__ is None
    with pytest.raises(ApiError, match="not UTF-8 at byte 3") as caught:
        utf8(b"abc\xff")
    assert caught.value.__context__ is None
    assert parse_json(utf8(b"\xef\xbb\xbf[1]")) == [1]
