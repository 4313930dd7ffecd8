"""Makes the helpers beside this file importable and finds the real photos that some tests read."""

from __future__ import annotations

import fcntl
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


QUICK = [
    "data.image_px=48", "train.epochs=14", "train.batch_size=16", "train.learning_rate=4e-3", "train.precision=float32",
    "train.warmup_epochs=1", "train.recalibrate_photos=256", "model.dropout=0.1",
    "model.l2=0.0", "augment.rotation=0.02",
]  # fmt: skip


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos`, their `run` and its `bundle` in all formats. Do not change them: copy them.

    TEST_PLACE names one that an earlier call made: it takes half a minute.
    """
    if ready := os.environ.get("TEST_PLACE"):
        return Path(ready)
    import tellapart
    from tellapart.bundles.runtimes import RUNTIMES
    from tellapart.shipping.formats import FORMATS

    if os.environ.get("PYTEST_XDIST_WORKER"):  # one of the processes makes it, for all
        here = tmp_path_factory.getbasetemp().parent / "place"
        here.mkdir(exist_ok=True)
    else:
        here = tmp_path_factory.mktemp("place")
    with open(here / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (here / "bundle").exists():
            photos = tellapart.draw(here / "photos", num_images=400)
            tellapart.train(photos, changes=QUICK, out=here / "run", cache=here / "cache")
            wanted = [name for name in FORMATS if name != "litert" or RUNTIMES["litert"].installed]
            tellapart.export(here / "run", here / "bundle", name="shapes", formats=wanted, cache=here / "cache")
    return here
