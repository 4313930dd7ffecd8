"""What a result was measured on. Shared by the benchmarks."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tellapart.training import environment

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> dict[str, Any]:
    """Return processor, features, cores, versions, commit and date."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": environment.processor(),
        "cpu_count": os.cpu_count(),
        "cpu_features": environment.cpu_features(),
        "memory_mb": environment.memory_mb(),
        "packages": environment.packages(),
        "commit": environment.commit(),
    }


def write_result(name: str, values: dict[str, Any]) -> Path:
    """Write results/NAME.json and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=2) + "\n")
    return path
