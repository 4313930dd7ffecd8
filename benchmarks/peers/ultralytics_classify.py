"""Photos learned from scratch with Ultralytics' classifier: `yolo classify train`, within a time.

    PYTHON benchmarks/peers/ultralytics_classify.py FOLDER --seconds 300

FOLDER has train, validation and test with a folder per class. The newest of its smallest classifiers, from its YAML and
so without weights, and its documented defaults for it: 224 px, batches of 16, RandAugment, erasing, colours, crops and
flips, optimizer and rate chosen by itself (`optimizer=auto`), its moving average of the weights. From scratch since
nobody here has pretrained torch weights: the machine reaches no server of weights, so this says nothing of
`yolo26n-cls.pt`, which is how Ultralytics is mostly used. Its own `time=` plans the epochs, as documented, and stops
within one; it is told what is left, less two validations: the one that follows the stop and one of its best weights. On
a CPU it would take one core less than there are and read photos between steps; here it has both cores and readers
beside, as the others have.

The weights of the best epoch by validation accuracy (its own measure takes the top five in too) are tested once. Prints
one JSON line: `wall_seconds` is all since the imports, as in keras_transfer.py, `train_seconds` without the test.
Imports nothing of tellapart. Ultralytics is AGPL-3.0: a peer in this benchmark, never a dependency of the project. It
runs offline: no telemetry, no trackers, no plots (so no font), no mixed precision (whose check asks for weights). It
sees links of its own to the photos, for it would write a damaged JPEG anew in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cpu_torchvision import torchvision

NETWORK = "yolo26n-cls"
IMAGE_PX = 224
_WARM_UP = 10
"""Batches."""


class Until:
    """Tells the trainer what is left of the time, and keeps the best weights by validation accuracy."""

    def __init__(self, deadline: float, weights: Path) -> None:
        self.deadline, self.weights, self.best, self.epochs, self.batches = deadline, weights, -1.0, 0, 0

    def at_first(self, trainer: Any) -> None:
        """Give the trainer all cores; it has just taken one of them less, and no readers."""
        torch.set_num_threads(os.cpu_count() or 1)
        trainer.args.workers = os.cpu_count() or 1

    def before_training(self, trainer: Any) -> None:
        """Take what the start took from the time."""
        self.leave(trainer, 0.0)

    def after_batch(self, trainer: Any) -> None:
        """Guess at the first validation: half of what training takes for a photo, when that is known.

        Not by the first batches, which start readers and allocate memory: by them a validation would take minutes, and
        the trainer would be told that its time is over.
        """
        self.batches += 1
        if self.batches == _WARM_UP:
            self.warm = time.time()
        if not self.epochs and self.batches >= 2 * _WARM_UP:
            per_photo = (time.time() - self.warm) / ((self.batches - _WARM_UP) * trainer.batch_size)
            self.leave(trainer, per_photo / 2 * len(trainer.test_loader.dataset))

    def leave(self, trainer: Any, validation: float) -> None:
        """Let the trainer's time end so early that two validations, of so many seconds each, fit."""
        trainer.args.time = max(self.deadline - 2 * validation - trainer.train_time_start, 1.0) / 3600

    def before_validation(self, trainer: Any) -> None:
        """Start the clock."""
        self.began = time.time()

    def after_validation(self, trainer: Any) -> None:
        """Keep the weights if they are the best; keep time for two more validations."""
        self.epochs += 1
        if trainer.metrics["metrics/accuracy_top1"] > self.best:
            self.best = trainer.metrics["metrics/accuracy_top1"]
            shutil.copyfile(trainer.last, self.weights)
        self.leave(trainer, time.time() - self.began)


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(run(arguments, Path(work))))


def run(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train and test in a folder of its own, which takes its settings and lists of photos too."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ["YOLO_CONFIG_DIR"] = str(work)
    import ultralytics
    from ultralytics import YOLO, settings

    start = time.time()
    trackers = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
    settings.update({"sync": False, **dict.fromkeys(trackers, False)})
    data = work / "data"
    for side in ("train", "validation", "test"):
        for photo in (arguments.folder / side).glob("*/*"):
            link = data / side / photo.parent.name / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo.resolve())
    until = Until(start + arguments.seconds, work / "best.pt")
    model = YOLO(f"{NETWORK}.yaml", task="classify")
    model.add_callback("on_pretrain_routine_start", until.at_first)
    model.add_callback("on_train_start", until.before_training)
    model.add_callback("on_train_batch_end", until.after_batch)
    model.add_callback("on_train_epoch_end", until.before_validation)
    model.add_callback("on_model_save", until.after_validation)
    common = {
        "data": str(data),
        "imgsz": IMAGE_PX,
        "device": "cpu",
        "plots": False,
        "verbose": False,
        "project": str(work / "runs"),
    }
    model.train(
        **common, pretrained=False, time=arguments.seconds / 3600, amp=False, seed=arguments.seed, name="training"
    )
    trained = time.time() - start
    found = YOLO(until.weights, task="classify").val(**common, split="test", name="test")
    return {
        "test": float(found.top1),
        "validation": float(until.best),
        "epochs": until.epochs,
        "wall_seconds": time.time() - start,
        "train_seconds": trained,
        "network": NETWORK,
        "image_px": IMAGE_PX,
        "pretrained": False,
        "versions": {
            "ultralytics": ultralytics.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
