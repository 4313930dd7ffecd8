"""What requests can make a server hold at a time: a budget of bytes, and one of pictures that are being decoded."""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from serving.process import ServerProcess
from tellapart.data.decode import DecodingCost
from tellapart.serving.app import make_app
from tellapart.serving.errors import ApiError
from tellapart.serving.limits import Body, BodyBudget
from tellapart.serving.model_version import DecodeBudget
from tellapart.serving.options import BatchOptions, Limits, ServerOptions

linux = pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was taken is read from /proc")


def most_mb(server: ServerProcess) -> float:
    """Return the most memory that a server ever took, in MB (10^6 bytes)."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


@linux
@pytest.mark.integration
def test_eight_large_json_bodies_at_once_stay_within_the_budget(start: Callable[..., ServerProcess], bundle: Path):
    server = start(bundle, "--max-body-mb", "32")
    path = "/v1/models/shapes:predict"
    numbers = ('{"instances":[[' + ",".join(["[0.5]"] * 1_200_000) + "]]}").encode()
    texts = json.dumps({"instances": [{"b64": "QUJD" * 2_000_000}]}).encode()
    for body, expected in ((numbers, {413, 503}), (texts, {422, 503})):
        before = most_mb(server)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda body: server.json(path, body), [body] * 8))
        assert most_mb(server) - before < 1.2 * Limits().max_held_bytes / 1e6
        assert {status for status, _ in found} <= expected
    assert server.json(path, texts)[0] == 422, "alone it is read"


@linux
@pytest.mark.integration
@pytest.mark.slow
def test_large_pictures_are_decoded_one_at_a_time_and_small_ones_pass_them(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]
):
    server = start(bundle, "--deadline-ms", "60000")
    transparent = np.zeros((6000, 6000, 4), np.uint8)
    transparent[..., 3] = 100
    large = cv2.imencode(".png", transparent)[1].tobytes()
    before = most_mb(server)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(server.json, "/predict", large) for _ in range(4)]
        waiting.append(pool.submit(server.json, "/explain?format=json", large))
        time.sleep(0.2)
        assert server.json("/predict", photos[0].read_bytes())[0] == 200
        assert not all(each.done() for each in waiting), "it did not wait for them"
        assert {each.result()[0] for each in waiting} <= {200, 503, 504}
        assert waiting[0].result()[0] == 200
    assert most_mb(server) - before < 1.2 * 4 * 36 + 30


def test_small_pictures_wait_until_they_fit():
    budget, running, most = DecodeBudget(100), 0, 0
    assert budget.is_large(None)
    assert [budget.is_large(DecodingCost(size, 0)) for size in (50, 51)] == [False, True]
    assert [budget.is_large(DecodingCost(1, pixels)) for pixels in (16_000_000, 16_000_001)] == [False, True]
    lock = threading.Lock()

    def decode(size: int) -> None:
        nonlocal running, most
        with budget.small(size):
            with lock:
                running += size
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [50, 30, 1, 45, 20] * 20))
    assert 50 < most <= 100
    assert budget.bytes == 0


def test_large_requests_leave_room_for_small_ones():
    held = BodyBudget(40_000_000)
    large = [Body(Limits(), held) for _ in range(2)]
    for body in large:
        body.add(15_000_000)
    with pytest.raises(ApiError) as caught:
        large[0].add(1)
    assert caught.value.status == 503
    small = Body(Limits(), held)
    small.add(1_000_000)
    with pytest.raises(ApiError, match="--max-held-mb allows more") as caught:
        Body(Limits(), held).add(30_000_001)
    assert caught.value.status == 413
    for body in (*large, small):
        body.end()
    assert held.bytes == 0


def test_a_body_whose_client_left_counts_until_the_parser_is_done_with_it():
    async def main() -> None:
        held, gate = BodyBudget(1_000_000), threading.Event()
        body = Body(Limits(), held)
        body.add(1000)
        with ThreadPoolExecutor(1) as pool:
            body.busy_until(pool.submit(gate.wait, 10))
            body.end()
            await asyncio.sleep(0.01)
            assert held.bytes == 1000
            gate.set()
        await asyncio.sleep(0.01)
        assert held.bytes == 0

    asyncio.run(main())


@pytest.mark.integration
def test_a_prediction_does_not_wait_for_a_heat_map(bundle: Path, photos: list[Path]):
    app = make_app(ServerOptions((bundle,), batches=BatchOptions(threads=1), log=False))
    explainer, gate, data = app.state.service.models.find().explainer, threading.Event(), photos[0].read_bytes()
    explain, entered = explainer.explain, threading.Event()

    def slowly(*arguments: np.ndarray) -> np.ndarray:
        entered.set()
        assert gate.wait(20)
        return explain(*arguments)

    explainer.explain = slowly

    def waiting() -> float | None:
        return app.state.service.telemetry.registry.get_sample_value("tellapart_queue_length")

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            heat_maps = [asyncio.ensure_future(client.post("/explain", content=data)) for _ in range(3)]
            try:
                assert await asyncio.to_thread(entered.wait, 10)
                for _ in range(5):
                    async with asyncio.timeout(5):
                        answer = await client.post("/predict", content=data)
                    assert answer.status_code == 200
                assert not any(each.done() for each in heat_maps)
                assert waiting() == 2, "one is worked on"
            finally:
                gate.set()
            assert [(await each).status_code for each in heat_maps] == [200, 200, 200]
            assert waiting() == 0, "though nobody asked for the metrics: of several processes only one is asked"

    asyncio.run(main())


@linux
@pytest.mark.integration
def test_after_the_warm_up_no_batch_size_and_no_damaged_file_takes_memory_for_good(bundle: Path):
    """A network on all processors once kept a megabyte for each batch size that came; it looked like a leak."""
    program = (
        "import sys; from pathlib import Path\n"
        "import numpy as np\n"
        "from tellapart.serving.app import make_app\n"
        "from tellapart.memory import keep_memory_flat\n"
        "from tellapart.serving.options import BatchOptions, ServerOptions\n"
        "from tellapart.serving.model_version import Image\n"
        "def own(): return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0]) / 1000\n"
        "keep_memory_flat()\n"
        "app = make_app(ServerOptions((Path(sys.argv[1]),), batches=BatchOptions(threads=2), log=False))\n"
        "served = app.state.service.models.find()\n"
        "squares = [np.zeros((served.bundle.record.image_px,) * 2 + (3,), np.uint8)] * 16\n"
        "before = own()\n"
        "for size in range(1, 17):\n"
        "    print(size, own() - before, served.runtime, file=sys.stderr)\n"
        "    for thread, alone in ((0, True), (0, False), (1, False)):\n"
        "        served.networks.outputs(squares[:size], thread, alone)\n"
        "assert served.prepare(Image(b'no image at all')).square is None\n"
        "print(own() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, bundle], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize("is_kept", [True, False])
def test_memory_that_was_freed_is_there_for_what_comes_next(is_kept: bool):
    code = f"""
        import resource
        import numpy as np
        from tellapart.memory import keep_freed_memory

        if {is_kept}:
            keep_freed_memory()
        faults = []
        for _ in range(2):
            begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.full(100_000_000, 7, np.uint8)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
        print(faults[1] < faults[0] / 10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(is_kept)
