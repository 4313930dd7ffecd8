"""After how many photos drift is found: each corruption begins, and nothing else changes.

    python benchmarks/drift.py RUN BUNDLE

Test photos of the run go through its bundle as they are and with each of 15 corruptions at 5 severities. A stream is
300 clean photos, drawn with replacement, and then corrupted ones; 20 streams each, with one false alarm in 10,000
photos on average at the most. Beside it streams in which nothing changes, and the seconds that 10,000 photos take.
Nothing was chosen on these photos.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from machine import write_result
from tellapart.bundles.predictor import open_classifier
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.decode import decode_square, resize
from tellapart.evaluation.robustness import CORRUPTED_PX
from tellapart.monitoring.drift import find_drift, signals_of
from tellapart.randomness import generator
from tellapart.run_folder import RunFolder

APART, BEFORE, AFTER, STREAMS = 10_000, 300, 2_000, 20


def main() -> None:
    """Corrupt, predict, and look for drift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    run, classifier = RunFolder(arguments.run), open_classifier(arguments.bundle)
    detector, reference = classifier.detector, classifier.bundle.reference_similarities()
    assert detector is not None
    tested = run.readable().query("split == 'test'")
    tested = tested.sample(min(arguments.photos, len(tested)), random_state=0)
    pool, image_px = ThreadPoolExecutor(2), classifier.bundle.record.image_px
    pictures = list(pool.map(lambda path: decode_square((run.root / path).read_bytes(), CORRUPTED_PX), tested["path"]))
    true = np.array([classifier.bundle.record.classes.index(label) for label in tested["label"]])

    def seen(kind: tuple[str, int] | None) -> tuple[np.ndarray, float]:
        """Return similarities, (num_photos,), and the accuracy."""

        def prepared(number: int) -> np.ndarray:
            picture = pictures[number]
            if kind is not None:
                picture = corrupt(picture, *kind, generator(0, "drift", *kind, number))
            return resize(picture, image_px)

        squares = np.stack(list(pool.map(prepared, range(len(pictures)))))
        outputs = classifier.outputs(squares)
        similarity = np.asarray(detector.similarity(outputs.embeddings), np.float64)
        return similarity, float((outputs.probabilities.argmax(axis=1) == true).mean())

    clean, accuracy = seen(None)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            corrupted, fallen = seen((name, severity))
            waits = []
            for _ in range(STREAMS):
                stream = np.concatenate([rng.choice(clean, BEFORE), rng.choice(corrupted, AFTER)])
                drift = find_drift(signals_of(detector, reference, stream), photos_between_false_alarms=APART)
                waits.append(next((alarm - BEFORE for alarm in drift.alarms if alarm > BEFORE), AFTER + 1))
            rows.append({
                "corruption": name, "severity": severity, "accuracy": fallen, "photos": float(np.median(waits)),
                "found_in_500": sum(wait <= 500 for wait in waits) / STREAMS,
            })  # fmt: skip
            print(rows[-1], flush=True)
    quiet = []
    for _ in range(STREAMS):
        began, stream = time.process_time(), rng.choice(clean, 10_000)
        drift = find_drift(signals_of(detector, reference, stream), photos_between_false_alarms=APART)
        quiet.append({"alarms": len(drift.alarms), "processor_seconds": time.process_time() - began})
    of_three = [row for row in rows if row["severity"] == 3]
    hurt = [row for row in rows if row["accuracy"] <= accuracy - 0.05]
    result = {
        "photos": len(clean), "accuracy": accuracy, "photos_between_false_alarms": APART, "runs": rows,
        "severity_3_found_in_500": sum(row["photos"] <= 500 for row in of_three), "severity_3": len(of_three),
        "hurt_by_5_points": len(hurt), "hurt_found_in_500": sum(row["photos"] <= 500 for row in hurt),
        "without_change": {
            "streams": STREAMS, "photos_each": 10_000, "alarms": sum(entry["alarms"] for entry in quiet),
            "median_processor_seconds": statistics.median(entry["processor_seconds"] for entry in quiet),
        },
    }  # fmt: skip
    print({key: value for key, value in result.items() if key != "runs"})
    print("Written to", write_result("drift", result))


if __name__ == "__main__":
    main()
