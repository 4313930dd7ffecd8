"""How long a report takes, how large it is, and how fast a browser opens it: `tellapart evaluate RUN [PHOTOS]`.

    python benchmarks/report_time.py runs/small runs/large --photos ../shared/data/photos9

Each run is examined on its own photos, the first one also on all --photos, which it takes for unknown ones. Opening is
timed in Chromium, headless, from the file to the end of the page's own scripts; the median of five.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tellapart
from machine import write_result


def open_seconds(page: Path) -> list[float]:
    """Return how long Chromium takes to open a page, each time anew."""
    from playwright.sync_api import sync_playwright

    chromium = next(path for path in map(shutil.which, ("chromium", "google-chrome")) if path)
    seconds = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            tab.goto(page.resolve().as_uri(), wait_until="load")
            tab.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
            seconds.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return seconds


def report(run: Path, photos: Path | None) -> dict[str, Any]:
    """Make a report and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        made = tellapart.evaluate(run, photos, out=folder)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        opened = open_seconds(made.page)
        main = made.values["metrics"]["test"]
        return {
            "image_px": tellapart.load(run).image_px,
            "num_photos": main["num_images"],
            "wall_seconds": wall,
            "processor_seconds": processor,
            "seconds": made.values["seconds"],
            "page_mb": made.page.stat().st_size / 1e6,
            "open_seconds": statistics.median(opened),
            "open_seconds_each": opened,
        }


def main() -> None:
    """Measure all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    wanted = [(run, None) for run in arguments.runs]
    wanted += [(arguments.runs[0], arguments.photos)] if arguments.photos else []
    reports = []
    for run, photos in wanted:
        reports.append(report(run, photos))
        print(json.dumps(reports[-1]), flush=True)
    print("Written to", write_result("report", {"reports": reports}))


if __name__ == "__main__":
    main()
