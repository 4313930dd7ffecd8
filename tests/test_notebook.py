"""The tour runs from top to bottom, on pictures that it draws itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path: Path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell.get("outputs", []) == [] for cell in cells), "kept without outputs"
    script = tmp_path / "tour.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not an image" in done.stdout
    assert (tmp_path / "tour" / "run" / "report" / "report.html").exists()
    test = pd.read_csv(tmp_path / "tour" / "run" / "predictions.csv").query("split == 'test'")
    assert test["correct"].mean() > 0.3, "what is shown is a network that has learned something"
