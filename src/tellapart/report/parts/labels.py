"""Photos whose label looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tellapart.report.part import Advice, Examination, Part
from tellapart.report.suspects import suspects

LISTED = 60
"""Of them, that the page shows."""
_WORTH_A_LOOK = 5


def _compute(e: Examination) -> pd.DataFrame:
    """Return how suspicious the label of each photo is, over all splits, as `suspects` gives it."""
    return suspects(e.subject, own_photos=e.own_photos, progress=e.progress)


def suspected(value: pd.DataFrame | None) -> pd.DataFrame:
    """Return the rows that the page shows, most suspicious first."""
    # The page stores pictures of exactly these rows: whoever shows suspected labels must ask here.
    return pd.DataFrame({"position": []}) if value is None else value[value["suspected"]].head(LISTED)


def _to_json(value: pd.DataFrame | None) -> dict[str, Any]:
    return {"suspected_labels": None if value is None else int(value["suspected"].sum())}


def _view(e: Examination, value: pd.DataFrame | None) -> dict[str, Any]:
    del e
    return {"suspects": suspected(value).to_dict("records")}


def _advice(e: Examination, value: pd.DataFrame | None) -> Sequence[Advice]:
    count = 0 if value is None else int(value["suspected"].sum())
    # What a network that knows no better than a guess holds against labels is not worth a person's time.
    if count < _WORTH_A_LOOK or not e.found["metrics"].beats_guessing:
        return ()
    return (Advice(3, f"Look through the {count:,} labels that look wrong, worst first."),)


LABELS = Part(
    "labels", "Suspected label errors", "Labels", _compute, "part-labels.html", absence="label errors",
    to_json=_to_json, view=_view, advice=_advice,
)  # fmt: skip
