"""What a reviewer's labels bring, in the order of the review page and in a random one.

    python benchmarks/review.py RUN [RUN ...]

A RUN is a head on frozen features (`--recipe transfer`, or a race that kept one). A head begins with a few labelled
photos; the rest of the training photos wait without labels, as predictions of that head in a request store. A hundred
of them are labelled at a time, those that `next_questions` asks about or any, and the head is fitted again. Accuracy on
the test photos, of which nothing was chosen. Both ways begin with the same photos; five draws of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from machine import write_result
from tellapart.evaluation.calibration import conformal_threshold
from tellapart.evaluation.features import read_outputs
from tellapart.evaluation.intervals import mean_interval
from tellapart.monitoring.review import next_questions
from tellapart.request_store import RequestStore, StoredPrediction
from tellapart.run_folder import RunFolder
from tellapart.training.transfer import fit_head
from tellapart.unknown import fit_detector

AT_ONCE, MOST, DRAWS = 100, 1000, 5


def simulated(run: RunFolder, num_first: int) -> dict[str, Any]:
    """Return what both ways reach on the photos of a run."""
    outputs = read_outputs(run)
    assert outputs is not None, "the run has kept no features"
    features, photos = outputs[0].astype(np.float32), run.readable()
    classes = sorted(photos["label"].unique())
    numbers = photos["label"].map({name: number for number, name in enumerate(classes)}).to_numpy(np.int64)
    pool, held_out, test = (
        np.flatnonzero((photos["split"] == split).to_numpy()) for split in ("train", "validation", "test")
    )
    # As few as a young model would have.
    held_out = np.random.default_rng(0).permutation(held_out)[:90]

    def fitted(chosen: np.ndarray) -> tuple[np.ndarray, float]:
        """Return probabilities of all photos, and the accuracy on the test photos."""
        kernel, bias, _ = fit_head(
            features[chosen], numbers[chosen], features[held_out], numbers[held_out], len(classes)
        )
        probabilities = softmax(features @ kernel + bias, axis=1)
        return probabilities, float((probabilities[test].argmax(axis=1) == numbers[test]).mean())

    def asked(chosen: np.ndarray, probabilities: np.ndarray, file: Path) -> np.ndarray:
        """Return the photos that the review page would show next."""
        detector = fit_detector(features[chosen], numbers[chosen], features[held_out])
        threshold = conformal_threshold(numbers[held_out], probabilities[held_out], 0.95)
        waiting = np.setdiff1d(pool, chosen)
        similarity = detector.similarity(features[waiting])
        store = RequestStore(f"sqlite:///{file}")
        store.add([
            StoredPrediction(
                str(place), 1.0, "pets", "v", classes[row.argmax()], float(row.max()),
                embedding=features[place].astype(np.float16), is_unknown=bool(unknown),
                abstains=int((row >= threshold).sum()) != 1, similarity=float(alike), photo=b"x",
            )
            for place, row, unknown, alike in zip(
                waiting, probabilities[waiting], detector.is_unknown(similarity), similarity, strict=True
            )
        ])  # fmt: skip
        found = [int(question.photo.id) for question in next_questions(store, "pets", count=AT_ONCE)]
        store.close()
        return np.array(found)

    curves: dict[str, list[list[float]]] = {"the page's order": [], "any": []}
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        first = rng.permutation(pool)[:num_first]
        # Each class once at least: a head needs them all.
        first = np.union1d(first, [rng.permutation(pool[numbers[pool] == number])[0] for number in range(len(classes))])
        for way, curve in curves.items():
            chosen, accuracies = first, []
            while True:
                probabilities, accuracy = fitted(chosen)
                accuracies.append(accuracy)
                if len(chosen) >= len(first) + MOST:
                    break
                if way == "any":
                    more = rng.permutation(np.setdiff1d(pool, chosen))[:AT_ONCE]
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        more = asked(chosen, probabilities, Path(folder) / "requests.db")
                chosen = np.union1d(chosen, more)
            curve.append(accuracies)
            print(draw, way, [round(value, 3) for value in accuracies], flush=True)
    ours, other = (np.array(curve) for curve in curves.values())
    table: dict[str, Any] = {}
    for labels in (0, 200, 500, 1000):
        at = labels // AT_ONCE
        gain = mean_interval(ours[:, at] - other[:, at])
        table[str(labels)] = {
            "the page's order": float(ours[:, at].mean()), "any": float(other[:, at].mean()),
            "points": 100 * float((ours[:, at] - other[:, at]).mean()), "interval": [100 * gain.low, 100 * gain.high],
        }  # fmt: skip
    return {"photos": len(pool), "test_photos": len(test), "after_labels": table, "curves": curves}


def main() -> None:
    """Simulate both ways on each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--first", type=int, default=45, help="labelled photos to begin with")
    arguments = parser.parse_args()
    sets = {folder.name: simulated(RunFolder(folder), arguments.first) for folder in arguments.runs}
    for name, values in sets.items():
        print(name, values["after_labels"])
    print("Written to", write_result("review", {"first": arguments.first, "draws": DRAWS, "sets": sets}))


if __name__ == "__main__":
    main()
