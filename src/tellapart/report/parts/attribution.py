"""What the network looks at: heat maps, feature maps, channels, and whether the maps can be believed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.explain.overlay import overlay
from tellapart.report.attribution import SUREST, Attributions, look
from tellapart.report.part import Examination, Part
from tellapart.report.photos import encoded

_LAYERS = 9
_FEATURE_MAPS = 8


def _compute(e: Examination) -> Attributions:
    # All pictures of the split are in memory at once: 150 kB each at 224 px.
    return look(e.subject, e.subject.pictures.batch(e.at), e.at, e.progress)


def _to_json(value: Attributions | None) -> dict[str, Any]:
    methods = value.methods if value else {}
    return {
        "methods": {name: {**asdict(method), "score": method.score} for name, method in methods.items()},
        "sanity": asdict(value.sanity) if value else None,
    }


def _view(e: Examination, value: Attributions | None) -> dict[str, Any]:
    if value is None:
        return {"looks": {}, "sanity": []}
    return {
        "looks": _class_pictures(e, value),
        "sanity": list(zip(value.sanity.layers, value.sanity.correlation, strict=True)),
    }


def _class_pictures(e: Examination, attributions: Attributions) -> dict[str, Any]:
    """Return the pictures of what the network sees: class maps, feature maps, and the channels of each class."""
    subject, at, predicted, sure = e.subject, e.at, e.predicted, e.probabilities.max(axis=1)
    classes = []
    for number, name in enumerate(subject.classes):
        right = np.flatnonzero((predicted == number) & (e.true == number))
        if not len(right):
            continue
        # The choice that `report.attribution` made maps for, by the same sort: `strict` below fails where the two drift
        # apart.
        surest = right[np.argsort(-sure[right], kind="stable")[:SUREST]]
        # `of` returns maps in rising order of slots, so the slots must be sorted to match.
        maps = zip(np.sort(surest).tolist(), attributions.of(surest), strict=True)
        shown = [encoded(overlay(subject.pictures.read(int(at[slot])), heat), 80) for slot, heat in maps]
        mean = attributions.of(right).mean(axis=0)
        patches = attributions.patches[number]
        strongest = np.argsort(-attributions.channels.importance[:, number], kind="stable")[:3]
        channels = [
            {
                "channel": int(channel),
                "importance": float(attributions.channels.importance[channel, number]),
                "photos": [
                    encoded(subject.pictures.read(int(attributions.channel_photos[index])), 75)
                    for index in attributions.channels.strongest[channel][:4]
                ],
            }
            for channel in strongest
        ]
        classes.append({
            "name": name,
            "shown": shown,
            "mean": encoded(_on_grey(mean), 80),
            "patches": encoded(_on_grey(np.kron(patches, np.ones((12, 12), np.float32))), 80),
            "most": float(patches.max()),
            "channels": channels,
        })  # fmt: skip
    return {
        "classes": classes,
        "layer": attributions.channels.layer,
        "layers": _feature_maps(e),
        "num_maps": len(attributions.slots),
    }


def _feature_maps(e: Examination) -> list[dict[str, Any]]:
    """Return for each layer with feature maps the strongest of them, for the surest photo of the main side."""
    from tellapart.models.layers import feature_maps

    subject = e.subject
    surest = int(e.at[int(e.probabilities.max(axis=1).argmax())])
    rows = []
    for name, outputs in feature_maps(subject.model, subject.pictures.read(surest)[None], at_most=_LAYERS).items():
        # Values that are not finite count as 0. The strongest maps are those that vary most over the picture.
        maps = np.nan_to_num(outputs[0], nan=0.0, posinf=0.0, neginf=0.0).clip(-1e9, 1e9)
        best = np.argsort(-maps.std(axis=(0, 1)), kind="stable")[:_FEATURE_MAPS]
        rows.append({
            "name": name,
            "shape": " × ".join(map(str, maps.shape)),
            "maps": [encoded(_grey(maps[..., channel]), 80) for channel in best],
        })  # fmt: skip
    return rows


def _on_grey(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a map, scaled to its largest value, without a picture below it."""
    scaled = np.asarray(np.maximum(heat, 0) / max(float(heat.max()), 1e-9), np.float32)
    return overlay(np.full((*heat.shape, 3), 128, np.uint8), scaled)


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    import cv2

    low, high = float(values.min()), float(values.max())
    scaled = (255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1])


ATTRIBUTION = Part(
    "attribution", "Attribution: what it looks at", "Attribution", _compute, "part-attribution.html",
    absence="heat maps", to_json=_to_json, view=_view,
)  # fmt: skip
