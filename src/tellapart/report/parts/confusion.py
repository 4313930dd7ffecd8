"""Which classes are confused, and the photos behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tellapart.evaluation.metrics import confusion_matrix
from tellapart.report.part import Examination, Part


def _compute(e: Examination) -> dict[str, Any]:
    """Return the confusion matrix: counts, shares of each row, and the sums of the rows."""
    counts = confusion_matrix(e.true, e.predicted, len(e.subject.classes))
    totals = counts.sum(axis=1)
    shares = np.divide(counts, totals[:, None], out=np.zeros(counts.shape), where=totals[:, None] > 0)
    return {"counts": counts.tolist(), "shares": shares.tolist(), "totals": totals.tolist()}


CONFUSION = Part("confusion", "Confusion matrix", "Confusion", _compute, "part-confusion.html")
MISTAKES = Part("mistakes", "Mistakes, most confident first", "Mistakes", lambda e: None, "part-mistakes.html")
"""The page's script fills it from the photos that it has anyway."""
