"""Training on an accelerator under JAX, checked on JAX's processor device in an environment without TensorFlow."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
JAX_PYTHON, CHECKS = ROOT / ".venv-jax" / "bin" / "python", ROOT / "tests" / "on_jax" / "checks.py"
NAMES = re.findall(r"^def ([a-z]\w+)\(\) -> None", CHECKS.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    """Return what each check found: one interpreter runs them all."""
    if not JAX_PYTHON.exists():
        pytest.skip("no environment with JAX and without TensorFlow: `make .venv-jax/installed` makes it")
    folder = tmp_path_factory.mktemp("on-jax")
    result = subprocess.run(
        [JAX_PYTHON, CHECKS, folder],
        # Less of LLVM's optimization: compiling is most of the time.
        env={
            **os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "HOME": str(folder),
            "XLA_FLAGS": "--xla_backend_optimization_level=1",
        },
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checks: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return checks


@pytest.mark.parametrize("name", [name for name in NAMES if name != "main"])
def test_check(found, name):
    assert not found[name], found[name]
