"""The tour runs from top to bottom, on pictures that it draws itself."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"


def _script() -> str:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_what_the_tour_imports_of_tellapart_exists():
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(_script()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tellapart")
        for alias in node.names
    ]
    assert imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.by_hand
def test_the_tour_runs_from_top_to_bottom(tmp_path: Path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell.get("outputs", []) == [] for cell in cells), "kept without outputs"
    script = tmp_path / "tour.py"
    # A shorter race than a reader has: what is tried is whether the cells fit together.
    assert "time_budget=90" in _script()
    script.write_text(_script().replace("time_budget=90", "time_budget=45"))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg", "TELLAPART_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not an image" in done.stdout
    assert (tmp_path / "tour" / "run" / "report" / "report.html").exists()
    test = pd.read_csv(tmp_path / "tour" / "run" / "predictions.csv").query("split == 'test'")
    assert test["correct"].mean() > 0.3, "what is shown is a network that has learned something"
