"""What an import must not load: seconds at every start, and a framework where none is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"keras", "tensorflow", "torch", "jax"}
HEAVY = FRAMEWORKS | {"pandas", "cv2", "sklearn", "scipy", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint('loaded', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


HELP = """
from tellapart.cli.main import main
sys.argv = ["tellapart", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


STARTS = {"package": "import tellapart", "settings": "import tellapart.settings", "help": HELP}


@pytest.mark.parametrize("code", STARTS.values(), ids=STARTS.keys())
def test_nothing_heavy_is_loaded_before_it_is_used(code):
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.integration
def test_looking_at_photos_and_measuring_loads_no_framework():
    data = ["augment", "cache", "corrupt", "decode", "drawn", "duplicates", "health", "oddities", "scan", "shortcuts"]
    data += ["split"]
    modules = [f"tellapart.data.{name}" for name in data]
    modules += ["tellapart.evaluation.intervals", "tellapart.evaluation.metrics"]
    assert loaded_by("\n".join(f"import {name}" for name in modules)) & FRAMEWORKS == set()


@pytest.mark.integration
def test_a_command_imports_keras_without_what_keras_can_do_without():
    code = "import gc, importlib.util\nfrom tellapart.cli.show import import_keras\nimport_keras()\n"
    code += "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
    code += "assert importlib.util.find_spec('sklearn') and importlib.util.find_spec('matplotlib')"
    assert loaded_by(code) & {"keras", "sklearn", "matplotlib"} == {"keras"}


def test_the_picture_of_the_floors_is_that_of_the_imports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    from make_floors_picture import PICTURE, drawing

    assert PICTURE.read_text("utf-8") == drawing(), "run make docs"
