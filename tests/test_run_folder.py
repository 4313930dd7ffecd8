"""What a run folder writes into its tables and reads back, whatever files and classes are called."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from tellapart.evaluation.predict import prediction_table
from tellapart.evaluation.predictions import read_predictions
from tellapart.run_folder import read_manifest, write_manifest
from tellapart.tables import csv_text

ODD = ["=cmd|calc", "+1", "@home", "-x", "NA", "a,b", 'say "hi"', "two\nlines", "<!--<script>", "$x_1$", "'=1"]


def test_odd_names_come_back_and_no_cell_is_a_formula(tmp_path: Path):
    paths = [f"{name}.jpg" for name in ODD] + [b"caf\xe9.jpg".decode("utf-8", "surrogateescape")]
    labels = pd.Series([*ODD, "plain"], dtype=object)
    frame = pd.DataFrame({"path": pd.Series(paths, dtype=object), "label": labels, "split": "test", "group": "",
                          "sha256": [f"{n:064d}" for n in range(len(paths))], "error": ""})  # fmt: skip
    write_manifest(tmp_path, frame)
    found = read_manifest(tmp_path)
    assert found["path"].tolist() == paths
    assert found["label"].tolist() == labels.tolist()
    classes = sorted(labels)
    probabilities = np.eye(len(classes), dtype=np.float32)[[classes.index(label) for label in labels]]
    text = csv_text(prediction_table(frame, probabilities, classes))
    (tmp_path / "predictions.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    photos, known, said = read_predictions(tmp_path)
    assert photos["path"].tolist() == paths
    assert known == classes
    np.testing.assert_allclose(said, probabilities, atol=1e-6)
    for file in ("manifest.csv", "predictions.csv"):
        with open(tmp_path / file, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert len(cells) > 60
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
