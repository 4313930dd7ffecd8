"""What choosing a network on the photos that fit its prediction sets does to the coverage that the sets promise.

    OMP_NUM_THREADS=1 python benchmarks/promised_coverage.py

A run keeps the epoch with the lowest validation loss, and then fits temperature and conformal threshold on the same
validation photos. Split conformal prediction promises its coverage for a network that does not know these photos. Here
candidates (the epochs) are networks of the same accuracy on average whose logits differ by noise, the best of them is
chosen by the loss of the validation photos, temperature and threshold are fitted on the same photos, and coverage is
counted on 5,000 fresh ones; beside it, the same with a threshold from as many photos that nothing was chosen by.
"""

from __future__ import annotations

import argparse

import numpy as np

from machine import write_result
from tellapart.evaluation.calibration import at_temperature, conformal_sets, conformal_threshold, fit_temperature
from tellapart.evaluation.metrics import photo_losses
from tellapart.randomness import generator

NUM_CLASSES = 5
FRESH = 5_000
COVERAGES = (0.9, 0.95, 0.99)


def photos(rng: np.random.Generator, count: int, num_candidates: int, differ: float) -> tuple[np.ndarray, np.ndarray]:
    """Return true classes and (num_candidates, count, classes) probabilities of candidates with noise of their own."""
    true = rng.integers(0, NUM_CLASSES, count)
    features = 2.2 * np.eye(NUM_CLASSES)[true] + rng.normal(size=(count, NUM_CLASSES))
    own = differ * rng.normal(size=(num_candidates, count, NUM_CLASSES))
    logits = 3.0 * (features + own)  # too sure, as trained networks are
    odds = np.exp(logits - logits.max(2, keepdims=True))
    return true, odds / odds.sum(2, keepdims=True)


def covered(rng: np.random.Generator, num_validation: int, num_candidates: int, differ: float) -> np.ndarray:
    """Return (2, num_coverages): coverage on fresh photos, the threshold from the choosing photos and from others."""
    true, candidates = photos(rng, num_validation, num_candidates, differ)
    best = int(np.argmin([photo_losses(true, candidate).mean() for candidate in candidates]))
    temperature = fit_temperature(true, candidates[best])
    other_true, others = photos(rng, num_validation, 1, differ)
    fresh_true, fresh = photos(rng, FRESH, 1, differ)
    scaled = at_temperature(fresh[0], temperature)
    rows = []
    for known, probabilities in ((true, candidates[best]), (other_true, others[0])):
        mended = at_temperature(probabilities, temperature)
        thresholds = [conformal_threshold(known, mended, coverage) for coverage in COVERAGES]
        rows.append(
            [conformal_sets(scaled, threshold)[np.arange(FRESH), fresh_true].mean() for threshold in thresholds]
        )
    return np.array(rows)


def main() -> None:
    """Simulate, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=150)
    arguments = parser.parse_args()
    rows = []
    for num_validation in (50, 200, 1000):
        for num_candidates in (1, 10, 50):
            for differ in (0.1, 0.5):
                rng = generator(0, "promised coverage", num_validation, num_candidates, differ)
                draws = np.array([
                    covered(rng, num_validation, num_candidates, differ) for _ in range(arguments.draws)
                ])  # fmt: skip
                row = {"num_validation": num_validation, "num_candidates": num_candidates, "candidates_differ": differ}
                for at, coverage in enumerate(COVERAGES):
                    row[f"promised {coverage}"] = {
                        "same_photos": float(draws[:, 0, at].mean()), "other_photos": float(draws[:, 1, at].mean()),
                        "noise": float(draws[:, 0, at].std() / np.sqrt(arguments.draws)),
                        "worst_tenth": float(np.quantile(draws[:, 0, at], 0.1)),
                    }  # fmt: skip
                rows.append(row)
                cells = ", ".join(
                    f"{coverage}: {row[f'promised {coverage}']['same_photos']:.3f} "
                    f"({row[f'promised {coverage}']['other_photos']:.3f})" for coverage in COVERAGES
                )  # fmt: skip
                print(f"{num_validation:5} photos, {num_candidates:3} candidates, {differ}: {cells}", flush=True)
    title = "coverage of prediction sets whose threshold comes from the photos that chose the network, and from others"
    print(f"Written to {write_result('promised-coverage', {'what': title, 'draws': arguments.draws, 'rows': rows})}")


if __name__ == "__main__":
    main()
