"""A run in a notebook: what it shows, and that names are text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from tellapart.evaluation.measure import measure_sides
from tellapart.evaluation.notebook import run_as_html
from tellapart.evaluation.predict import prediction_table
from tellapart.files import write_text
from tellapart.run_folder import RunFolder
from tellapart.tables import csv_text


def test_a_run_shows_its_metrics_curves_and_confusion(tmp_path: Path):
    run, classes = RunFolder(tmp_path), ["<b>cat</b>", "dog"]
    true = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    predicted = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    probabilities = np.where(np.eye(2, dtype=bool)[predicted], 0.9, 0.1).astype(np.float32)
    frame = pd.DataFrame({
        "path": [f"{number}.jpg" for number in range(8)], "label": [classes[number] for number in true],
        "split": ["test"] * 8, "sha256": ["0"] * 8, "error": [""] * 8, "extension": ["jpg"] * 8,
        "format": ["jpeg"] * 8, "mode": ["RGB"] * 8, "group": [""] * 8,
    })  # fmt: skip
    run.write_manifest(frame)
    write_text(run.predictions_path, csv_text(prediction_table(frame, probabilities, classes)))
    (tmp_path / "curves.png").write_bytes(b"png")
    html = run_as_html(run, measure_sides(frame, probabilities, classes))
    assert "75.0 %" in html
    assert "data:image/png;base64,cG5n" in html
    assert "<b>cat</b>" not in html
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    cells = re.findall(r"<td style=[^>]*>(\d*)</td>", html)
    assert cells == ["2", "1", "1", "4"]
