"""Ten seconds of benchmarks/attack.py: memory stays bounded, nothing crashes, honest clients are served."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from serving.process import ServerProcess


@pytest.fixture(scope="module")
def attack() -> ModuleType:
    spec = spec_from_file_location("attack", Path(__file__).parents[2] / "benchmarks" / "attack.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["attack"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was taken is read from /proc")
@pytest.mark.by_hand
def test_an_attack_fills_no_memory_and_shuts_nobody_out(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path], attack: ModuleType
):
    server = start(bundle, "--no-log")
    port = int(server.url.rpartition(":")[2])
    honest = [path.read_bytes() for path in photos[:50]]
    asyncio.run(attack.under_attack(port, [], honest, seconds=2, attackers=0))
    idle, _ = attack.resident_mb(server.process.pid)
    found = asyncio.run(attack.under_attack(port, attack.attacks("shapes"), honest, seconds=10))
    _, most = attack.resident_mb(server.process.pid)
    assert server.process.poll() is None
    assert server.json("/predict", honest[0])[0] == 200
    kinds = {kind for kind, *_ in attack.attacks("shapes", body=100_000, pixels=10_000)} | {"slow body", "garbage"}
    assert set(found.statuses) == kinds, "all of it was tried"
    assert not any(counts[500] for counts in (*found.statuses.values(), found.honest))
    assert found.honest[200] > 0.95 * found.honest.total()
    assert most < 1.5 * idle
