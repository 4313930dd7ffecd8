"""How near an estimate without labels comes to the accuracy, under 75 corruptions.

    python benchmarks/label_free.py RUN [RUN ...]

Test photos of each run go through its network as they are and with each of 15 corruptions at 5 severities; what is
estimated from the probabilities, and from those of the validation photos, is held against the labels. Which of the
methods is used was chosen on trash6 and antsbees: figures for them favour it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from machine import write_result
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.decode import decode_square, resize
from tellapart.evaluation.predict import load
from tellapart.evaluation.robustness import CORRUPTED_PX
from tellapart.models.forward import Forward
from tellapart.monitoring.label_free import METHODS, estimate_accuracy
from tellapart.randomness import generator
from tellapart.run_folder import RunFolder


def measured(folder: Path, most: int) -> dict[str, Any]:
    """Return the errors of all methods on a run."""
    run, classifier = RunFolder(folder), load(folder)
    photos, classes, probabilities = run.predictions()
    numbers = np.array([classes.index(label) for label in photos["label"]])
    at = (photos["split"] == "validation").to_numpy()
    known, true = probabilities[at].astype(np.float16).astype(np.float64), numbers[at]
    tested = photos[photos["split"] == "test"]
    tested = tested.sample(min(most, len(tested)), random_state=0)
    wanted = np.array([classes.index(label) for label in tested["label"]])
    pool, forward = ThreadPoolExecutor(2), Forward(classifier.model, is_converted=True)
    pictures = list(pool.map(lambda path: decode_square((run.root / path).read_bytes(), CORRUPTED_PX), tested["path"]))

    def asked(kind: tuple[str, int] | None) -> np.ndarray:
        def prepared(number: int) -> np.ndarray:
            picture = pictures[number]
            if kind is not None:
                picture = corrupt(picture, *kind, generator(0, "label-free", *kind, number))
            return resize(picture, classifier.image_px)

        squares = np.stack(list(pool.map(prepared, range(len(pictures)))))
        parts = [
            outputs[0] for outputs in forward([squares[start : start + 32] for start in range(0, len(squares), 32)])
        ]
        # As a store keeps them.
        return np.concatenate(parts).astype(np.float16).astype(np.float64)

    rows = []
    for name in (None, *CORRUPTIONS):
        for severity in range(1, 6) if name else (0,):
            came = asked(None if name is None else (name, severity))
            accuracy = float((came.argmax(axis=1) == wanted).mean())
            estimates = {method: estimate_accuracy(known, true, came, method=method) for method in METHODS}
            rows.append({
                "corruption": name or "none", "severity": severity, "accuracy": accuracy,
                **{method: estimate.value for method, estimate in estimates.items()},
                "inside": {method: estimate.interval.low <= accuracy <= estimate.interval.high
                           for method, estimate in estimates.items()},
            })  # fmt: skip
    damaged = [row for row in rows if row["severity"]]
    errors = {method: np.array([row[method] - row["accuracy"] for row in damaged]) for method in METHODS}
    return {
        "validation_photos": len(true), "test_photos": len(wanted), "clean_accuracy": rows[0]["accuracy"],
        "mean_absolute_error_points": {method: 100 * float(np.abs(error).mean()) for method, error in errors.items()},
        "bias_points": {method: 100 * float(error.mean()) for method, error in errors.items()},
        "inside_the_interval": {
            method: float(np.mean([row["inside"][method] for row in damaged])) for method in METHODS
        },
        "by_severity": {
            str(severity): {
                "accuracy": float(np.mean([row["accuracy"] for row in damaged if row["severity"] == severity])),
                **{method: 100 * float(np.mean([abs(row[method] - row["accuracy"]) for row in damaged
                                                if row["severity"] == severity])) for method in METHODS},
            }
            for severity in range(1, 6)
        },
        "runs": rows,
    }  # fmt: skip


def main() -> None:
    """Measure each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--photos", type=int, default=300)
    arguments = parser.parse_args()
    values = {}
    for folder in arguments.runs:
        values[folder.name] = measured(folder, arguments.photos)
        shown = {key: value for key, value in values[folder.name].items() if key != "runs"}
        print(folder.name, shown, flush=True)
    print("Written to", write_result("label-free", {"sets": values}))


if __name__ == "__main__":
    main()
