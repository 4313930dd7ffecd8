"""Whether the surroundings give the class away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tellapart.report.attribution import SOME, how_many, spread
from tellapart.report.part import Advice, Examination, Part
from tellapart.report.shortcuts import Shortcuts, shortcuts


def _compute(e: Examination) -> Shortcuts | None:
    """Hide centres and surroundings. Needs the part "attribution" before it; without heat maps there is nothing."""
    attributions = e.found["attribution"]
    if attributions is None:
        return None
    # The same sample as in `attribution.look`, so every picture has a map and `of` returns one for each.
    sample = spread(e.true, how_many(SOME, e.subject.pictures.image_px))
    pictures = e.subject.pictures.batch(e.at[sample])
    return shortcuts(e.subject.predict, pictures, e.true[sample], attributions.of(sample), e.groups_at(e.at[sample]))


def _to_json(value: Shortcuts | None) -> dict[str, Any]:
    return {"shortcuts": {**asdict(value), "alarm": value.alarm} if value else None}


def _advice(e: Examination, value: Shortcuts | None) -> Sequence[Advice]:
    del e
    if value is None or not value.alarm:
        return ()
    return (
        Advice(
            2,
            "Take photos of each class in the same surroundings: the surroundings alone give much of the answer away.",
        ),
    )


SHORTCUTS = Part(
    "shortcuts", "Does it look at the object?", "Shortcuts", _compute, "part-shortcuts.html", to_json=_to_json,
    advice=_advice,
)  # fmt: skip
