"""What a result was measured on. Shared by the benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tellapart.training import environment

RESULTS = Path(__file__).parents[1] / "results"


PEERS = ("torch", "litserve", "bentoml", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "nncf", "onnx",
         "ai-edge-quantizer", "ai-edge-litert")  # fmt: skip
"""What tellapart is measured against or on, beside the packages that every run names."""


def machine() -> dict[str, Any]:
    """Return processor, features, cores, GPUs, versions of all that may have taken part, commit and date."""
    versions = {}
    for name in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": environment.processor(),
        "cpu_count": os.cpu_count(),
        "cpu_features": environment.cpu_features(),
        "memory_mb": environment.memory_mb(),
        "gpus": environment.gpus(),
        "packages": environment.packages() | versions,
        "commit": environment.commit() or os.environ.get("BENCHMARK_COMMIT", ""),  # of a copy without its repository
    }


def write_result(name: str, values: dict[str, Any]) -> Path:
    """Write results/NAME.json and return its path; figures of a tree with changes say so, and cannot be kept."""
    if environment.commit().endswith("+"):
        print(f"warning: the tree has uncommitted changes: {name}.json is of no commit. Measure in a clean worktree.")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=2) + "\n")
    return path
