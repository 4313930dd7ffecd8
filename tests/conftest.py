"""Makes the helpers beside this file importable and finds the real photos that some tests read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests cache out of the user's cache folder, and what lies there out of the tests."""
    os.environ["TELLAPART_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a set of real photos by its name, or skip the test where it is absent."""

    def find(name: str) -> Path:
        folder = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"the real photos {name!r} are not on this machine: {folder} does not exist")
        return folder

    return find
