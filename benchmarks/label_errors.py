"""Plants wrong labels among real photos, trains on them, and counts how many the report finds.

    python benchmarks/label_errors.py ../shared/data/photos9 --share 0.03 --time 3m

The first so many photos of the report's list are flagged as were planted. The peer is what needs no cross-validation:
the trained network's own probability of each label, training photos included. Wrong labels that the data set had
before count as false alarms.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tellapart
from machine import write_result
from tellapart.data.scan import find_photos
from tellapart.proportions import wilson
from tellapart.randomness import generator
from tellapart.report.subject import open_subject, photos_of_run
from tellapart.report.suspects import suspects
from tellapart.settings import parse_duration


def plant(photos: Path, share: float, table: Path, seed: int) -> set[str]:
    """Write a table in which a share of the labels is wrong, and return the paths of those."""
    root, frame, _ = find_photos(photos)
    rng = generator(seed, "planted labels")
    classes = sorted(frame["label"].unique())
    wrong = rng.choice(len(frame), round(share * len(frame)), replace=False)
    labels = frame["label"].to_numpy(object).copy()
    for row in wrong:
        labels[row] = rng.choice([name for name in classes if name != labels[row]])
    paths = [str(root / path) for path in frame["path"]]
    frame.assign(path=paths, label=labels)[["path", "label"]].to_csv(table, index=False)
    return {paths[row] for row in wrong}


def score(flagged: list[str], planted: set[str]) -> dict[str, object]:
    """Return precision and recall with their intervals."""
    hits = len(planted.intersection(flagged))
    precision, recall = wilson(hits, len(flagged)), wilson(hits, len(planted))
    return {
        "flagged": len(flagged),
        "hits": hits,
        "precision": hits / len(flagged),
        "precision_interval": [precision.low, precision.high],
        "recall": hits / len(planted),
        "recall_interval": [recall.low, recall.high],
    }


def main() -> None:
    """Plant, train, look, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--share", type=float, default=0.03)
    parser.add_argument("--time", default="3m")
    parser.add_argument("--work", type=Path, default=Path("runs/label-errors"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    table, run, cache = (arguments.work / name for name in ("planted.csv", "run", "cache"))
    planted = plant(arguments.photos, arguments.share, table, seed=0)
    if not (run / "metrics.json").exists():
        tellapart.train(table, recipe="fast", time_budget=parse_duration(arguments.time), out=run, cache=cache)
    subject = open_subject(tellapart.load(run), *photos_of_run(run), cache=cache)
    start = time.perf_counter()
    table_of_suspects = suspects(subject, own_photos=True)
    seconds = time.perf_counter() - start
    ours = table_of_suspects["path"].head(len(planted)).tolist()
    own = subject.probabilities[np.arange(len(subject.numbers)), subject.numbers]
    theirs = subject.frame["path"].iloc[np.argsort(own, kind="stable")[: len(planted)]].tolist()
    counted = table_of_suspects["path"][table_of_suspects["suspected"]].tolist()
    values = {
        "what": f"{len(planted)} wrong labels among {len(subject.numbers)} photos of {arguments.photos.name}, "
        f"training for {arguments.time}",
        "test_accuracy": json.loads((run / "metrics.json").read_text())["test"]["accuracy"],
        "first_flagged": score(ours, planted),
        "confident_learning": score(counted, planted),
        "network_alone": score(theirs, planted),
        "seconds": seconds,
    }
    values["precision_over_network_alone"] = values["first_flagged"]["precision"] / values["network_alone"]["precision"]
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result(f'label-errors-{arguments.time}', values)}")


if __name__ == "__main__":
    main()
