"""How near an estimate without labels comes to the accuracy, under 75 corruptions.

    python benchmarks/label_free.py RUN [RUN ...]

Test photos of each run go through its network as they are and with each of 15 corruptions at 5 severities; what is
estimated without their labels is held against the labels. Ours learns from damaged validation photos, and is asked
twice: after it has seen all corruptions (on other photos), and about each of their four groups after it has seen the
three others only, which is what it knows of a change that nobody thought of. Beside it, what needs no damaged photos:
average confidence, the same corrected by its error on validation photos (Guillory et al. 2021, "Predicting with
confidence on unseen distributions"), and the share of photos above the confidence that as many validation photos exceed
as are right (ATC, Garg et al. 2022, "Leveraging unlabeled data to predict out-of-distribution performance").

Which signs ours looks at was chosen on test photos of these runs: figures for them favour it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from machine import write_result
from tellapart.correctness import CorrectnessModel
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.decode import decode_square, resize
from tellapart.evaluation.predict import load
from tellapart.evaluation.robustness import CORRUPTED_PX, learn_under_corruption
from tellapart.models.embedding import feature_model
from tellapart.models.forward import Forward
from tellapart.monitoring.label_free import estimate_accuracy
from tellapart.randomness import generator
from tellapart.run_folder import RunFolder
from tellapart.unknown import load_detector

METHODS = "ours", "ours, group unseen", "threshold", "confidence", "confidence difference"


def by_confidence(known: np.ndarray, true: np.ndarray, came: np.ndarray) -> dict[str, float]:
    """Return what needs no damaged photos."""
    is_right, of_known, of_came = known.argmax(axis=1) == true, known.max(axis=1), came.max(axis=1)
    num_wrong = int((~is_right).sum())
    # As many validation photos lie above it as are right.
    threshold = np.sort(of_known)[num_wrong - 1] if num_wrong else np.nextafter(of_known.min(), -1)
    return {
        "threshold": float((of_came > threshold).mean()),
        "confidence": float(of_came.mean()),
        "confidence difference": float(np.clip(of_came.mean() + is_right.mean() - of_known.mean(), 0, 1)),
    }


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
    pool, forward = ThreadPoolExecutor(2), Forward(feature_model(classifier.model), is_converted=True)
    detector = load_detector(run.unknown_path)
    assert detector is not None, f"{folder} has no {run.unknown_path.name}: train it with more photos"
    pictures = list(pool.map(lambda path: decode_square((run.root / path).read_bytes(), CORRUPTED_PX), tested["path"]))

    def outputs(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = list(forward(squares[start : start + 32] for start in range(0, len(squares), 32)))
        embeddings, rows = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        return rows, embeddings.reshape(len(embeddings), -1)

    def learned(corruptions: list[str]) -> CorrectnessModel:
        model = learn_under_corruption(
            outputs, detector, [run.root / path for path in photos["path"][at]], true, classifier.image_px,
            max_pixels=classifier.max_pixels, corruptions=corruptions,
        )  # fmt: skip
        assert model is not None
        return model

    def asked(kind: tuple[str, int] | None) -> tuple[np.ndarray, np.ndarray]:
        def prepared(number: int) -> np.ndarray:
            picture = pictures[number]
            if kind is not None:
                picture = corrupt(picture, *kind, generator(0, "label-free", *kind, number))
            return resize(picture, classifier.image_px)

        rows, embeddings = outputs(np.stack(list(pool.map(prepared, range(len(pictures))))))
        # As a store keeps them.
        return rows.astype(np.float16).astype(np.float64), detector.similarity(embeddings)

    of_all = learned(list(CORRUPTIONS))
    without = {
        group: learned([name for name in CORRUPTIONS if CORRUPTIONS[name] != group])
        for group in sorted(set(CORRUPTIONS.values()))
    }
    rows = []
    for name in (None, *CORRUPTIONS):
        for severity in range(1, 6) if name else (0,):
            came, similarity = asked(None if name is None else (name, severity))
            accuracy = float((came.argmax(axis=1) == wanted).mean())
            ours = {
                "ours": estimate_accuracy(of_all, came, similarity),
                "ours, group unseen": estimate_accuracy(
                    without[CORRUPTIONS[name]] if name else of_all, came, similarity
                ),
            }
            rows.append({
                "corruption": name or "none", "severity": severity, "accuracy": accuracy,
                **{method: estimate.value for method, estimate in ours.items()}, **by_confidence(known, true, came),
                "inside": {method: estimate.interval.low <= accuracy <= estimate.interval.high
                           for method, estimate in ours.items()},
            })  # fmt: skip
    damaged = [row for row in rows if row["severity"]]
    errors = {method: np.array([row[method] - row["accuracy"] for row in damaged]) for method in METHODS}
    # What an estimate without any error would show: so many test photos are a sample themselves.
    accuracies = np.array([row["accuracy"] for row in damaged])
    floor = np.sqrt(2 / np.pi * accuracies * (1 - accuracies) / len(wanted)).mean()
    return {
        "validation_photos": len(true), "test_photos": len(wanted), "clean_accuracy": rows[0]["accuracy"],
        "mean_absolute_error_points": {method: 100 * float(np.abs(error).mean()) for method, error in errors.items()},
        "floor_points": 100 * float(floor),
        "clean_error_points": {method: 100 * (rows[0][method] - rows[0]["accuracy"]) for method in METHODS},
        "bias_points": {method: 100 * float(error.mean()) for method, error in errors.items()},
        "inside_the_interval": {
            method: float(np.mean([row["inside"][method] for row in damaged])) for method in METHODS[:2]
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
