"""The whole loop, with real servers and real requests: `make story`.

    python benchmarks/story.py [PHOTOS] [--weights FILE] [--out FOLDER]

A model is trained on a part of the photos and served from a registry; the rest of them arrive as requests. Then the
camera changes: its photos are darker, noisier and cropped. Drift is raised, a reviewer labels what the server asks
about, the model is trained again, tried in shadow and promoted. At last a challenger for which two folders were swapped
gets a share of the users, past the gates, which would refuse it, and is sent back. Without PHOTOS they are drawn. What
the reviewer says comes from the labels of the photos; nobody else knows them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

import tellapart
from machine import write_result
from tellapart.bundles.bundle import open_bundle
from tellapart.data.cache import default_cache
from tellapart.data.decode import decode_within
from tellapart.data.scan import find_photos
from tellapart.databases import url_of
from tellapart.errors import DecodeError
from tellapart.monitoring.ab_test import TEST_NOTE, ABTest, evaluate_test, outcomes_of
from tellapart.monitoring.watching import RECENT, look
from tellapart.promotion import GateLimits, begin_test, end_test
from tellapart.records import Observer
from tellapart.registry import Registry
from tellapart.request_store import RequestStore
from tellapart.retraining import RetrainingOptions, retrain

NAME = "story"
_REQUESTS_PER_SECOND = 8.0
_WINDOW = 120
"""Answers over which the accuracy of the picture is a mean."""
_CALM_SECONDS = 40.0
_LABELS = 300
_PATIENCE = 240.0


@dataclass
class Traffic:
    """Sends photos one after the other from a thread, and remembers what came of them.

    Attributes:
        photos: world → JPEGs with their labels.
        world: that photos come from now.
        rows: (seconds, whether it was right, milliseconds, version) of each answer.
        failed: what went wrong, of each request that was not answered.
        labels: id of a prediction → true class: what a reviewer would say.
        tells: whether users say of each answer whether it is right.
    """

    url: str
    key: str
    photos: dict[str, list[tuple[bytes, str]]]
    world: str = "usual"
    rows: list[tuple[float, bool, float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    tells: bool = False
    began: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until it is stopped."""
        rng, self.began = np.random.default_rng(0), time.monotonic()
        while not self._stop.wait(rng.exponential(1 / _REQUESTS_PER_SECOND)):
            pool = self.photos[self.world]
            photo, label = pool[rng.integers(len(pool))]
            try:
                start = time.perf_counter()
                answer = self.ask("/predict?top_k=1", photo, {"X-User-ID": f"user {rng.integers(100_000)}"})
                milliseconds = 1000 * (time.perf_counter() - start)
                said = answer["predictions"][0]["label"]
                self.labels[f"{answer['request_id']}.0"] = label
                self.rows.append((self.now(), said == label, milliseconds, answer["version"]))
                if self.tells:
                    verdict = {"request_id": answer["request_id"], "verdict": "right" if said == label else "wrong"}
                    self.ask("/feedback", json.dumps(verdict | ({} if said == label else {"label": label})).encode())
            except (OSError, ValueError) as error:
                self.failed.append(f"{self.now():.1f} s: {error}")

    def now(self) -> float:
        """Return the seconds since the first request."""
        return time.monotonic() - self.began

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """Ask the server."""
        request = urllib.request.Request(self.url + path, body, {"X-API-Key": self.key, **(headers or {})})
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def review(self, count: int) -> int:
        """Label photos in the order in which the server asks about them; return how many there were."""
        questions = self.ask(f"/operations/review?count={min(count, 100)}")["questions"]
        said = []
        for question in questions:
            label = self.labels.get(question["id"])
            if label is not None:
                is_right = label == question["label"]
                said.append({"id": question["id"], "verdict": "right" if is_right else "wrong",
                             "label": None if is_right else label})  # fmt: skip
        if said:
            self.ask("/operations/review", json.dumps(said).encode())
        return len(said)

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()


def changed_camera(photo: bytes, number: int) -> bytes:
    """Return a photo as another camera would have taken it: darker, noisier, with a narrower view."""
    rng = np.random.default_rng(number)
    picture = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    height, width = picture.shape[:2]
    top, left = round(0.14 * height), round(0.14 * width)
    picture = picture[top : height - top, left : width - left].astype(np.float32)
    # Hard enough that a fifth of photos9 is named wrongly; harder, and a head on frozen features cannot learn it back.
    picture = 0.5 * picture + rng.normal(0, 15, picture.shape)
    return cv2.imencode(".jpg", np.clip(picture, 0, 255).astype(np.uint8))[1].tobytes()


def pools(root: Path, files: pd.DataFrame, count: int) -> dict[str, list[tuple[bytes, str]]]:
    """Return the photos of both worlds."""
    usual, changed = [], []
    for number, row in enumerate(files.sample(min(count, len(files)), random_state=0).itertuples()):
        try:
            picture = decode_within((root / row.path).read_bytes(), 400)
        except DecodeError:
            continue
        photo = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
        usual.append((photo, str(row.label)))
        changed.append((changed_camera(photo, number), str(row.label)))
    return {"usual": usual, "another camera": changed}


@contextlib.contextmanager
def served(place: Path, key: str) -> Iterator[str]:
    """Serve the registry's champion, and yield the address."""
    command = [
        sys.executable, "-m", "tellapart", "serve", "--registry", NAME, "--registry-url", str(place / "models.db"),
        "--store", str(place / "requests.db"), "--keep-photos", "--api-key", key, "--port", "0", "--no-log",
    ]  # fmt: skip
    with open(place / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if "http" not in line:
                raise SystemExit(f"The server did not start: {(place / 'server.log').read_text()}")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(30)


def until(what: str, ask: Callable[[], bool], seconds: float = _PATIENCE) -> float:
    """Wait until something is so, and return how long that took."""
    began = time.monotonic()
    while not ask():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"{what}: not within {seconds:.0f} s.")
        time.sleep(0.5)
    return time.monotonic() - began


def main() -> None:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2 without its top")
    parser.add_argument("--out", type=Path, default=Path("runs/story"))
    arguments = parser.parse_args()
    began, place = time.monotonic(), arguments.out.resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    os.environ.setdefault("TELLAPART_CACHE", str(place / "cache"))
    photos = arguments.photos or tellapart.draw(place / "drawn", num_images=6_000)
    recipe = "fast"
    if arguments.weights:
        shelf = default_cache() / "weights"
        shelf.mkdir(parents=True, exist_ok=True)
        (shelf / "mobilenet_v2.weights.h5").unlink(missing_ok=True)
        (shelf / "mobilenet_v2.weights.h5").symlink_to(arguments.weights.resolve())
        recipe = "transfer"

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", flush=True)

    def told(line: str) -> None:
        print(f"           {line}", flush=True)

    observer = Observer(announce=told)
    root, files, _ = find_photos(photos)
    files = files.sample(frac=1, random_state=0)
    # Enough that the gates can tell: with 144 test photos the new version was refused as one that nobody can judge.
    learned, others = files[: min(len(files) // 2, 3_000)], files[len(files) // 2 :]

    def table(name: str, rows: pd.DataFrame) -> Path:
        paths = [str(root / path) for path in rows["path"]]
        pd.DataFrame({"path": paths, "label": rows["label"].to_numpy()}).to_csv(place / name, index=False)
        return place / name

    def made(name: str, rows: pd.DataFrame) -> tuple[Path, Path]:
        run = tellapart.train(table(f"{name}.csv", rows), recipe=recipe, time_budget=90, out=place / name,
                              observer=observer)  # fmt: skip
        bundle = tellapart.export(run.path, place / f"{name}-bundle", name=NAME)
        return run.path, bundle.folder

    # Version 1
    say("Version 1 is trained.")
    run, bundle = made("v1", learned)
    registry, store = Registry(place / "models.db"), RequestStore(url_of(place / "requests.db"))
    registry.promote(registry.add(bundle, run=run, name=NAME), "the first")
    first, second = sorted(learned["label"].unique())[:2]
    say(f"The bad challenger is made: the folders {first} and {second} were swapped.")
    swapped = learned.assign(label=learned["label"].replace({first: second, second: first}))
    bad_run, bad_bundle = made("bad", swapped)

    worlds, key = pools(root, others, 1_200), secrets.token_urlsafe(24)
    events: list[tuple[float, str]] = []
    with served(place, key) as url:
        traffic = Traffic(url, key, worlds)
        thread = threading.Thread(target=traffic.run)
        thread.start()

        def mark(what: str) -> None:
            events.append((traffic.now(), what))
            say(what)

        def seen() -> Any:
            champion = registry.champion(NAME)
            assert champion is not None
            return look(open_bundle(registry.fetch_bundle(champion, place / "champions")), store, name=NAME)

        try:
            say("It serves.")
            time.sleep(_CALM_SECONDS)
            now = seen()
            calm = {"photos": now.num_photos, "alarms": len(now.alarms)}

            # The world changes
            traffic.world = "another camera"
            before = len(traffic.rows)
            mark("another camera")
            until("drift", lambda: seen().is_drifting)
            mark("drift is raised")
            photos_to_drift = len(traffic.rows) - before

            # Labels come by review
            labels = 0

            def reviewed() -> bool:
                nonlocal labels
                labels += traffic.review(5)  # ten photos a second: a quick reviewer
                return labels >= _LABELS

            until("labels", reviewed)
            mark(f"{labels} photos are reviewed")
            until("as many photos as the estimate is of", lambda: len(traffic.rows) - before > RECENT)
            estimated, known = seen().accuracy, [row[1] for row in traffic.rows[-RECENT:]]

            # Trained again, tried in shadow, promoted
            # Some three hundred test photos cannot show much less; of drawn ones more are named wrongly.
            limits = GateLimits(accuracy_points=2.5 if arguments.weights else 5.0)
            options = RetrainingOptions(labels=200, time_budget=90, trial="shadow", share=1.0, limits=limits)

            def step() -> bool:
                nonlocal outcome
                outcome = retrain(registry, store, NAME, place / "retraining", options=options, observer=observer)
                if outcome.state == "waiting":
                    traffic.review(100)
                return outcome.state not in ("waiting", "not needed")

            outcome = retrain(registry, store, NAME, place / "retraining", options=options, observer=observer)
            say(f"Retraining: {outcome.state}: {outcome.reason}.")
            if outcome.state == "waiting":
                mark("version 2 in shadow")
                until("the trial in shadow", step)
            if outcome.state != "promoted":
                raise SystemExit(f"The new version was not promoted: {outcome.reason}.")
            mark("version 2 is promoted")
            promoted = registry.champion(NAME)
            assert promoted is not None
            taken_up = until("the promotion", lambda: traffic.rows[-1][3] == promoted.digest, 30)
            time.sleep(_CALM_SECONDS)

            # A bad challenger
            challenger = registry.add(bad_bundle, run=bad_run, name=NAME)
            test = begin_test(registry, challenger, "split", 0.3)
            traffic.tells = True
            mark("a bad challenger gets 30 %")

            def worse() -> bool:
                nonlocal standing
                standing = evaluate_test(test, outcomes_of(store.in_test(test.id), test))
                return standing.action != "continue"

            standing = evaluate_test(test, [])
            until("the split test", worse)
            assert ABTest.from_json(registry.note(NAME, TEST_NOTE)) == test
            end_test(registry, NAME, test, standing)
            mark("it is sent back")
            if standing.action != "roll back":
                raise SystemExit(f"The bad challenger was not sent back: {standing.reason}.")
            traffic.tells = False
            decided = events[-1][0]
            # Nobody gets it any more: not one of the answers of two seconds
            until(
                "the roll back",
                lambda: all(row[3] == promoted.digest for row in traffic.rows if row[0] > traffic.now() - 2),
                30,
            )
            last = max(row[0] for row in traffic.rows if row[3] == challenger.digest)
            time.sleep(_CALM_SECONDS / 2)
        finally:
            traffic.stop()
            thread.join()
    rows = pd.DataFrame(traffic.rows, columns=["at", "right", "ms", "version"])

    def accuracy(first: str | None, last: str | None) -> float:
        begins = 0.0 if first is None else next(at for at, what in events if what == first)
        ends = np.inf if last is None else next(at for at, what in events if what == last)
        return float(rows["right"][(rows["at"] > begins + 1) & (rows["at"] < ends)].mean())

    values = {
        "photos": "drawn" if arguments.photos is None else arguments.photos.name,
        "seconds": time.monotonic() - began,
        "requests": len(rows) + len(traffic.failed),
        "failed_requests": len(traffic.failed),
        "why_failed": traffic.failed[:5],
        "p50_ms": float(rows["ms"].median()),
        "p99_ms": float(rows["ms"].quantile(0.99)),
        "before": calm,
        "photos_to_drift": photos_to_drift,
        "without_labels": {
            "estimated": None if estimated is None else estimated.value,
            "interval": None if estimated is None else [estimated.interval.low, estimated.interval.high],
            "right": float(np.mean(known)),
            "photos": RECENT,
        },
        "reviewed": labels,
        "promotion": outcome.reason,
        "promotion_taken_up_seconds": taken_up,
        "roll_back": standing.reason,
        "roll_back_seconds": max(0.0, last - decided),
        "accuracy": {
            "usual": accuracy(None, "another camera"),
            "another camera": accuracy("another camera", "version 2 is promoted"),
            "version 2": accuracy("version 2 is promoted", "a bad challenger gets 30 %"),
            "beside the bad challenger": accuracy("a bad challenger gets 30 %", "it is sent back"),
            "after it": accuracy("it is sent back", None),
        },
        "events": [{"seconds": at, "what": what} for at, what in events],
    }
    draw(rows, events, place / "story.png")
    print(json.dumps(values, indent=2))
    print(f"Written to {place / 'story.png'} and {write_result('story', values)}")
    store.close()


def draw(rows: pd.DataFrame, events: list[tuple[float, str]], file: Path) -> None:
    """Draw accuracy and milliseconds over time, with what happened."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(11, 5.6), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    mean = rows["right"].rolling(_WINDOW, min_periods=30).mean()
    above.plot(rows["at"], 100 * mean, color="#0b6e5b", linewidth=2)
    above.set_ylabel(f"right answers, %\n(mean of {_WINDOW})")
    above.set_ylim(max(0, 100 * mean.min() - 15), 104)
    below.plot(rows["at"], rows["ms"].rolling(25, min_periods=5).median(), color="#585f5b", linewidth=1)
    below.set_ylabel("ms, median of 25")
    below.set_xlabel("seconds")
    below.set_ylim(bottom=0)
    low = above.get_ylim()[0]
    for number, (at, what) in enumerate(events):
        for axes in (above, below):
            axes.axvline(at, color="#c07a2c", linewidth=1, linestyle=":")
        above.text(at + 1, low + (104 - low) * (0.02 + 0.05 * (number % 4)), what, fontsize=9, color="#8a4f10")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
