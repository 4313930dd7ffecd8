"""Rows of prediction tables whose names a spreadsheet would run."""

from __future__ import annotations

import csv

from tellapart.bundles.tables import CsvLines
from tellapart.records import Prediction


def test_a_table_of_predictions_runs_nothing_and_a_resumed_one_knows_its_photos():
    lines = CsvLines(2)
    row = lines.row(Prediction("=cmd|x.jpg", "+cat", 0.75, (("+cat", 0.75), ("@dog", 0.25)), prediction_set=("+cat",)))
    cells = next(csv.reader([row]))
    assert (cells[0], cells[1], cells[7]) == ("'=cmd|x.jpg", "'+cat", "'@dog")
    assert (cells[2], cells[8]) == ("0.750000", "0.250000")
    assert lines.facts(row.rstrip("\n"))[0] == "=cmd|x.jpg"
