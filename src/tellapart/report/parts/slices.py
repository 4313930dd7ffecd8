"""Parts of the photos in which the network is worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from tellapart.evaluation.slices import Slice, slices
from tellapart.evaluation.wording import percent
from tellapart.report.part import Advice, Examination, Part


def _compute(e: Examination) -> list[Slice]:
    """Return the slices, worst first. Needs the part "quality" before it, which has measured the photos."""
    properties = _properties(e.subject.frame.iloc[e.at], e.found["quality"].qualities)
    return slices(e.predicted == e.true, properties, e.groups)


_PROPERTIES = ("format", "mode", "orientation", "grey", "transparent", "frames", "bits", "extension", "group")


def _properties(frame: pd.DataFrame, qualities: pd.DataFrame) -> pd.DataFrame:
    """Return the columns to slice by: classes, folders, size, format, quality, and what else the manifest has."""
    # Not pandas' own string methods, which refuse names that are not UTF-8.
    folders = pd.Series([path.rpartition("/")[0] for path in frame["path"]], frame.index, dtype=object)
    columns = {
        "class": frame["label"],
        "folder": folders,
        "width": frame["width"],
        "height": frame["height"],
        "aspect": frame["width"] / frame["height"],
        "bytes per pixel": frame["bytes"] / (frame["width"] * frame["height"]),
        **{name: frame[name] for name in _PROPERTIES if name in frame},
    }
    if (folders == frame["label"]).all():
        del columns["folder"]  # the same slices twice would only cost statistical power
    table = pd.DataFrame({name: values.reset_index(drop=True) for name, values in columns.items()})
    # Width and height are there already: nearly the same slices again would cost power too.
    measured = qualities.drop(columns="short_side_px").add_prefix("quality: ")
    return pd.concat([table, measured.reset_index(drop=True)], axis=1)


def _to_json(value: list[Slice]) -> dict[str, Any]:
    return {"slices": [asdict(part) for part in value]}


def _advice(e: Examination, value: list[Slice]) -> Sequence[Advice]:
    del e
    if not value or not value[0].is_worse:
        return ()
    worst = value[0]
    return (
        Advice(
            4,
            f"Add photos where {worst.column} is {worst.value}: {percent(worst.accuracy)} there, "
            f"{percent(worst.accuracy_elsewhere)} elsewhere.",
        ),
    )


SLICES = Part("slices", "Weak slices", "Slices", _compute, "part-slices.html", to_json=_to_json, advice=_advice)
