"""A run as a notebook shows it: metrics, curves and confusion as HTML. Knows nothing about reports."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import numpy as np

from tellapart.evaluation.metrics import confusion_matrix
from tellapart.evaluation.wording import percent
from tellapart.records import SPLITS
from tellapart.run_folder import RunFolder

_MEASURES = {"accuracy": "accuracy", "precision_macro": "precision", "recall_macro": "recall", "f1_macro": "F1"}
_MOST_CLASSES = 30
"""Above that a confusion matrix is not read any more."""


def run_as_html(run: RunFolder, metrics: dict[str, Any]) -> str:
    """Return a fragment of HTML.

    Args:
        run: its files; those that are gone are left out.
        metrics: the contents of ``metrics.json``.
    """
    parts = [f"<p><b>{escape(str(run.path))}</b></p>", _metrics_table(metrics)]
    curves = run.path / "curves.png"
    if curves.is_file():
        data = base64.b64encode(curves.read_bytes()).decode()
        parts.append(f'<img alt="Learning curves" style="max-width: 100%" src="data:image/png;base64,{data}">')
    if run.predictions_path.is_file() and run.has_photos:
        parts.append(_confusion(run))
    return "\n".join(parts)


def _metrics_table(metrics: dict[str, Any]) -> str:
    splits = [split for split in SPLITS if split in metrics]
    head = "".join(f"<th>{split} ({metrics[split]['num_images']:,})</th>" for split in splits)
    rows = []
    for name, title in _MEASURES.items():
        cells = []
        for split in splits:
            cell = percent(metrics[split][name])
            if ends := metrics[split].get("intervals"):  # none on training photos, which the network knows
                cell += f" <small>{percent(ends[name][0])} to {percent(ends[name][1])}</small>"
            cells.append(f"<td>{cell}</td>")
        rows.append(f"<tr><th>{title}</th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _confusion(run: RunFolder) -> str:
    """Return the confusion matrix of the last split that has photos: rows are true classes."""
    photos, classes, probabilities = run.predictions()
    if len(classes) > _MOST_CLASSES:
        return f"<p>{len(classes)} classes: tellapart evaluate shows which are confused.</p>"
    # The test photos where there are any: on training photos hardly a class is confused.
    split = next((split for split in reversed(SPLITS) if (photos["split"] == split).any()), SPLITS[0])
    inside = (photos["split"] == split).to_numpy()
    numbers = {name: number for number, name in enumerate(classes)}
    true = np.asarray(photos.loc[inside, "label"].map(numbers), np.int64)
    counts = confusion_matrix(true, probabilities[inside].argmax(axis=1), len(classes))
    # A class may be called anything, markup too: what comes from a folder's name is escaped.
    head = "".join(f"<th>{escape(name)}</th>" for name in classes)
    rows = []
    for name, row in zip(classes, counts, strict=True):
        shares = row / max(row.sum(), 1)
        cells = "".join(
            f'<td style="background: rgba(0, 114, 178, {share:.2f})">{count or ""}</td>'
            for count, share in zip(row.tolist(), shares.tolist(), strict=True)
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    caption = f"<caption>Rows: true classes of the {split} photos; columns: predictions</caption>"
    return f"<table>{caption}<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
