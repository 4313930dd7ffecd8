"""Pictures shrunk strip by strip, against OpenCV on the whole."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tellapart.data.area import AreaShrinker

CASES = [
    ((301, 407), (32, 48), None),
    *(((width, height), (32, 64), None) for width, height in ((320, 256), (320, 257), (321, 256))),
    *((size, to, None) for size, to in (((300, 200), (300, 31)), ((300, 200), (31, 200)), ((64, 64), (1, 1)))),
    ((999, 77), (224, 77), None),
    ((64, 80), (32, 40), None),
    *((size, None, 0.5) for size in ((64, 80), (65, 80), (67, 81), (51, 90))),
    *((size, None, 64 / min(size)) for size in ((640, 480), (640, 512), (650, 512), (515, 640), (700, 333))),
]


@pytest.mark.parametrize(("size", "to", "factor"), CASES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_give_exactly_what_opencv_makes_of_the_whole(size, to, factor, channels):
    rng = np.random.default_rng(size[0])
    pictures = [rng.integers(0, 256, (size[1], size[0], 3), np.uint8) for _ in range(3)]
    pictures += [pictures[0] // 250 * 255, np.full_like(pictures[0], 77)]
    for whole in pictures:
        picture = whole if channels == 3 else np.ascontiguousarray(whole[..., 0])
        scale = {"fx": factor, "fy": factor} if factor else {}
        expected = cv2.resize(picture, to, interpolation=cv2.INTER_AREA, **scale)
        shrinker, at = AreaShrinker(size, expected.shape[1::-1], channels, factor), 0
        while at < size[1]:
            rows = int(rng.integers(1, 40))
            shrinker.add(np.ascontiguousarray(picture[at : at + rows]))
            at += rows
        np.testing.assert_array_equal(shrinker.result(), expected)
