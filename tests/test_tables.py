"""Tables that a spreadsheet opens run nothing, and come back as they were."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from tellapart.tables import csv_text, from_cell, read_csv, to_cell

NASTY = ['=HYPERLINK("http://x","y")', "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@x", "＝1"]
PLAIN = ["cat", "'tis", "", "a=b", " -1", "NA", "é", "'", "caf\udce9"]


@pytest.mark.parametrize("text", NASTY)
def test_a_cell_that_would_be_run_is_text_and_comes_back(text):
    assert to_cell(text) == f"'{text}"
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_cells_stay_as_they_are(text):
    assert to_cell(text) == text
    assert from_cell(text) == text


def test_a_table_comes_back(tmp_path):
    texts = [*NASTY, *PLAIN]
    frame = pd.DataFrame({"label": pd.Series(texts, dtype=object), "p:=x": [-0.5] * len(texts), "@name": "x"})
    path = tmp_path / "table.csv"
    path.write_bytes(csv_text(frame).encode("utf-8", "surrogateescape"))
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline="")))
    assert rows[0] == ["label", "p:=x", "'@name"]
    assert all(row[0][:1] not in "=+-@\t\r" or row[0] == "" for row in rows[1:])
    assert rows[1][1] == "-0.5", "numbers are numbers"
    found = read_csv(path, ("label", "@name"))
    assert found["label"].tolist() == texts
    assert found["p:=x"].tolist() == [-0.5] * len(texts)
    assert list(found) == list(frame)
