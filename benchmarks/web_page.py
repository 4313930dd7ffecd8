"""The page that needs no server, in Chromium: how soon it answers, how fast, and does it say what the server says?

    (cd /tmp && npm pack onnxruntime-web@1.30.0 && tar xzf onnxruntime-web-*.tgz)
    python benchmarks/web_page.py BUNDLE ../shared/data/photos9 --peer /tmp/package --peer-models BUNDLE/model.onnx

The bundle has a proved LiteRT model. The page is served from loopback without any packing on the way. Three rounds,
each with an empty browser: seconds from opening the page to the answer to the first photo, bytes that were sent by
then; milliseconds of each further photo (decoding, shrinking, the network), one at a time, at a phone's viewport and
with the network cut off. Its labels are held against the very model in LiteRT here, and against the fastest runtime of
the bundle, by which a server answers. The ratio is against one thread of that LiteRT model here, decoding included.

The peer is onnxruntime-web with ONNX files of the same network: in each round, on a page of its own with as many
threads, one picture of random pixels goes through the network alone, as it does through the page's own network.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from machine import write_result
from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.predictor import open_classifier
from tellapart.data.listing import image_files
from tellapart.randomness import generator
from tellapart.shipping.web import PACKAGES, export_web

ROUNDS = 3
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ASK = """async (names) => {
  const {ask} = await import('./ask.js'), found = [];
  for (const name of names) {
    const body = await (await fetch(`photos/${name}`)).blob();
    const {predictions: [{label, probability, unknown}], seconds} = await ask('predict?top_k=1', {body});
    found.push({label, probability, unknown, ms: 1000 * seconds.total});
  }
  return found;
}"""

# The network alone, with what goes in and comes out. Random pixels: no kernel takes less time for them.
LAPS = """async (times, run) => {
  const laps = [];
  for (let lap = 0; lap < times; lap++) {
    const began = performance.now();
    await run();
    laps.push(performance.now() - began);
  }
  return laps.slice(5);
}"""
OURS = (
    """async (times) => {
  const {ready} = await import('./ask.js'), {Tensor} = await import('@litertjs/core'), {network, about} = await ready;
  const px = about.image_px, pixels = Uint8Array.from({length: px * px * 3}, () => 256 * Math.random());
  return ("""
    + LAPS
    + """)(times, async () => {
    const image = new Tensor(pixels, [1, px, px, 3]), found = await network.run({image});
    for (const tensor of Object.values(found)) Float32Array.from(tensor.toTypedArray());
    for (const tensor of [image, ...Object.values(found)]) tensor.delete();
  });
}"""
)
PEER = (
    """async ([times, model, px, threads]) => {
  const ort = await import('/peer/ort.wasm.min.mjs');
  Object.assign(ort.env.wasm, {numThreads: threads, wasmPaths: '/peer/'});
  const settings = {executionProviders: ['wasm'], graphOptimizationLevel: 'all'};
  const session = await ort.InferenceSession.create(model, settings);
  const pixels = Uint8Array.from({length: px * px * 3}, () => 256 * Math.random());
  return ("""
    + LAPS
    + """)(times, async () => {
    const found = await session.run({[session.inputNames[0]]: new ort.Tensor('uint8', pixels, [1, px, px, 3])});
    for (const tensor of Object.values(found)) Float32Array.from(await tensor.getData());
  });
}"""
)
TIMES = 105


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, says nothing, and counts what it sends."""

    sent = 0

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def end_headers(self) -> None:
        """Let the peer's page have threads, as the service worker lets ours."""
        if self.path.startswith("/peer"):
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file and count its bytes, those of the page alone."""
        content = source.read()
        if "/photos/" not in self.path:
            Quiet.sent += len(content)
        outputfile.write(content)


def round_of(browser: Browser, url: str, first: Path, names: list[str]) -> dict[str, Any]:
    """Open the page in an empty browser, ask about one photo, cut the network off and ask about all."""
    Quiet.sent = 0
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.set_default_timeout(60_000)
    begin = time.perf_counter()
    page.goto(url)
    page.locator("#state-text", has_text="On this device").wait_for()
    page.set_input_files("#files", first)
    page.locator("#took", has_text="on this device").wait_for()
    seconds, sent = time.perf_counter() - begin, Quiet.sent
    page.evaluate(
        "(names) => Promise.all(names.map((name) => fetch(`photos/${name}`)))", names
    )  # the worker keeps them
    context.set_offline(True)
    page.reload()
    page.locator("#state-text", has_text="On this device").wait_for()
    found = page.evaluate(ASK, names)
    threads = page.locator("#numbers dd").first.inner_text()
    alone = float(np.median(page.evaluate(OURS, TIMES)))
    context.close()
    return {
        "first_answer_seconds": seconds, "bytes_sent": sent, "threads": int(threads), "answers": found,
        "network_ms": alone,
    }  # fmt: skip


def peer_round(browser: Browser, url: str, model: str, px: int, threads: int) -> float:
    """Return the median milliseconds of one picture through the peer's network, in an empty browser."""
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{url}/peer/page.html")
    assert page.evaluate("crossOriginIsolated"), "without it there are no threads"
    laps = page.evaluate(PEER, [TIMES, model, px, threads])
    context.close()
    return float(np.median(laps))


def native(bundle: Path, runtime: str | None, photos: list[Path]) -> tuple[str, list[str | None], float]:
    """Return the runtime, its labels, and the median milliseconds of a photo on one thread, decoding included."""
    classifier = open_classifier(bundle, runtime=runtime, threads=1)
    laps, labels = [], []
    for photo in photos:
        begin = time.perf_counter()
        labels.append(next(iter(classifier.stream([photo], top_k=1, with_quality=False))).label)
        laps.append(1000 * (time.perf_counter() - begin))
    return classifier.runtime, labels, float(np.median(laps[5:]))


def share(labels: list[str | None], others: list[str | None]) -> float:
    """Return the share of equal labels."""
    return float(np.mean([label == other for label, other in zip(labels, others, strict=True)]))


def main() -> None:
    """Measure the page and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--peer", type=Path, help="the unpacked npm package onnxruntime-web")
    parser.add_argument("--peer-models", type=Path, nargs="*", default=[], help="ONNX files of the same network")
    arguments = parser.parse_args()
    files = image_files([arguments.photos])
    chosen = [files[at] for at in sorted(generator(0, "web-page").permutation(len(files))[: arguments.num])]
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = export_web(arguments.bundle, Path(temporary) / "page")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        (folder / "photos").mkdir()
        names = [f"{number:04}{path.suffix}" for number, path in enumerate(chosen)]
        for name, path in zip(names, chosen, strict=True):
            shutil.copyfile(path, folder / "photos" / name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rounds, peers = [], {path.parent.name: [] for path in arguments.peer_models}
        if arguments.peer:
            shutil.copytree(arguments.peer / "dist", folder / "peer")
            (folder / "peer" / "page.html").write_text("<!doctype html><title>peer</title>")
        for path in arguments.peer_models:
            shutil.copyfile(path, folder / "peer" / f"{path.parent.name}.onnx")
        px = open_bundle(arguments.bundle).record.image_px
        for _ in range(ROUNDS):
            rounds.append(round_of(browser, url, chosen[0], names))
            for name, laps in peers.items():
                laps.append(peer_round(browser, url, f"/peer/{name}.onnx", px, rounds[-1]["threads"]))
        version = browser.version
        browser.close()
        server.shutdown()
    (_, same_model, native_ms), (runtime, served, _) = (
        native(arguments.bundle, name, chosen) for name in ("litert-int8", None)
    )
    labels = [answer["label"] for answer in rounds[0]["answers"]]
    p50 = [float(np.median([answer["ms"] for answer in part["answers"][5:]])) for part in rounds]
    values = {
        "browser": f"Chromium {version}", "litert_js": PACKAGES["@litertjs/core"][0], "folder_bytes": size,
        "bytes_sent_until_first_answer": [part["bytes_sent"] for part in rounds], "threads": rounds[0]["threads"],
        "first_answer_seconds": [part["first_answer_seconds"] for part in rounds], "p50_ms": p50,
        "p95_ms": [float(np.quantile([answer["ms"] for answer in part["answers"][5:]], 0.95)) for part in rounds],
        "litert_here_p50_ms": native_ms, "times_as_long_as_here": float(np.median(p50)) / native_ms,
        "network_ms": [part["network_ms"] for part in rounds],
        "onnxruntime_web": arguments.peer and json.loads((arguments.peer / "package.json").read_text())["version"],
        "onnxruntime_web_network_ms": peers, "num_photos": len(chosen),
        "agrees_with_the_model_here": share(labels, same_model),
        "server_runtime": runtime, "agrees_with_the_server": share(labels, served),
    }  # fmt: skip
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('web-page', values)}")


if __name__ == "__main__":
    main()
