"""Rows of prediction tables whose names a spreadsheet would run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tellapart.bundles.tables import CsvLines, JsonLines, _resumed
from tellapart.errors import InputError
from tellapart.records import Prediction


def test_a_table_of_predictions_runs_nothing_and_a_resumed_one_knows_its_photos():
    lines = CsvLines(2)
    row = lines.row(Prediction("=cmd|x.jpg", "+cat", 0.75, (("+cat", 0.75), ("@dog", 0.25)), prediction_set=("+cat",)))
    cells = next(csv.reader([row]))
    assert (cells[0], cells[1], cells[8]) == ("'=cmd|x.jpg", "'+cat", "'@dog")
    assert (cells[2], cells[9]) == ("0.750000", "0.250000")
    assert lines.facts(row.rstrip("\n"))[0] == "=cmd|x.jpg"


@pytest.mark.parametrize("lines", [CsvLines(1), JsonLines()])
def test_what_a_row_says_of_a_photo_is_counted_again_after_a_kill(lines: CsvLines | JsonLines):
    top = (("cat", 1.0),)
    sure, unknown = Prediction("a.jpg", "cat", 1.0, top), Prediction("b.jpg", "cat", 1.0, top, unknown=True)
    doubtful = Prediction("c.jpg", "cat", 1.0, top, abstains=True, quality_warnings=("noise",))
    broken = Prediction("d.jpg", None, float("nan"), (), "is empty")
    rows = [lines.row(found) for found in (sure, unknown, doubtful, broken)]
    assert [lines.facts(row.rstrip("\n"))[1:] for row in rows] == [
        (False, False, False, False), (False, False, True, False), (False, True, False, True),
        (True, False, False, False),
    ]  # fmt: skip
    header = next(csv.reader([lines.header()])) if lines.header() else list(json.loads(rows[1]))
    cells = next(csv.reader([rows[1]])) if lines.header() else list(json.loads(rows[1]).values())
    assert cells[header.index("unknown")] in ("true", True)


@pytest.mark.parametrize("lines", [CsvLines(1), JsonLines()])
@pytest.mark.parametrize("name", ["a.jpg", r"photos\new.jpg", 'a\n"b".jpg', "a\r\\n.jpg", "=1\n.jpg"])
def test_a_resumed_table_knows_a_photo_by_any_name(lines: CsvLines | JsonLines, name: str, tmp_path: Path):
    part = tmp_path / "t.part"
    row = lines.row(Prediction(name, "a\ncat", 1.0, (("a\ncat", 1.0),)))
    assert row.count("\n") == 1, "whatever photos and classes are called"
    part.write_text(lines.header() + row, newline="")
    assert _resumed(part, lines, [Path(name), Path("b.jpg")])[1] == 1
    with pytest.raises(InputError, match="other images"):
        _resumed(part, lines, [Path(name + "x"), Path("b.jpg")])
