"""The page that needs no server, in Chromium: how soon it answers, how fast, and does it say what the server says?

    python benchmarks/web_page.py BUNDLE ../shared/data/photos9 --num 200

The bundle has a proved LiteRT model. The page is served from loopback without any packing on the way. Three rounds,
each with an empty browser: seconds from opening the page to the answer to the first photo, bytes that were sent by
then; milliseconds of each further photo (decoding, shrinking, the network), one at a time, at a phone's viewport and
with the network cut off. Its labels are held against the very model in LiteRT here, and against the fastest runtime of
the bundle, by which a server answers. The ratio is against one thread of that LiteRT model here, decoding included.
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


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, says nothing, and counts what it sends."""

    sent = 0

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

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
    context.close()
    return {"first_answer_seconds": seconds, "bytes_sent": sent, "threads": int(threads), "answers": found}


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
        rounds = [round_of(browser, url, chosen[0], names) for _ in range(ROUNDS)]
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
        "num_photos": len(chosen), "agrees_with_the_model_here": share(labels, same_model),
        "server_runtime": runtime, "agrees_with_the_server": share(labels, served),
    }  # fmt: skip
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('web-page', values)}")


if __name__ == "__main__":
    main()
