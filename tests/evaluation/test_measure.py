"""What metrics.json says of each split."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tellapart.cli.show import metrics_table
from tellapart.evaluation.measure import measure_sides
from tellapart.shipping.card import _metrics_table


def photos(count: int = 90) -> tuple[pd.DataFrame, np.ndarray]:
    true, splits = np.arange(count) % 3, np.array(["train", "validation", "test"], object)[np.arange(count) // 3 % 3]
    said = (true + (np.arange(count) % 10 == 0)) % 3
    frame = pd.DataFrame(
        {"label": np.array(list("abc"), object)[true], "split": splits, "unit": np.arange(count) // 18}
    )
    return frame, (0.1 + 0.7 * np.eye(3)[said]).astype(np.float32)


def test_training_photos_have_no_intervals_anywhere():
    frame, probabilities = photos()
    found = measure_sides(frame, probabilities, list("abc"))
    assert "intervals" not in found["train"]
    assert set(found["validation"]["intervals"]) == set(found["test"]["intervals"]) >= {"accuracy", "loss"}
    assert found["train"]["accuracy"] == pytest.approx(0.9)
    shown = Console(width=200, file=io.StringIO())
    shown.print(metrics_table(found))
    (row,) = (line for line in shown.file.getvalue().splitlines() if line.strip().startswith("accuracy"))
    assert row.count("–") == 2
    (line,) = (line for line in _metrics_table(found) if line.startswith("| accuracy"))
    assert line.split("|")[2].strip() == "0.900"
    assert line.count(" to ") == 2


def test_photos_that_a_network_was_not_trained_on_have_them_whatever_their_folder_is_called():
    found = measure_sides(*photos(), list("abc"), trained_on=False)
    assert "intervals" in found["train"]


def test_groups_come_from_the_table_and_old_tables_have_none():
    frame, probabilities = photos()
    grouped = measure_sides(frame, probabilities, list("abc"))["test"]
    single = measure_sides(frame.drop(columns="unit"), probabilities, list("abc"))["test"]
    assert (grouped["num_groups"], single["num_groups"]) == (5, 30)
    wide, narrow = (np.subtract(*found["intervals"]["accuracy"][::-1]) for found in (grouped, single))
    assert wide > narrow
    assert grouped["accuracy"] == single["accuracy"]
