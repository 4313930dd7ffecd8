"""Photos learned from scratch with fastai: an xresnet18 by the one-cycle policy, within a time.

    PYTHON benchmarks/peers/fastai_classify.py FOLDER --seconds 300

FOLDER has train, validation and test with a folder per class. The settings are those which fastai documents for
training from scratch, its Imagenette example and its book's chapter 7: 128 px, `RandomResizedCrop` of at least 0.35 of
the photo, `aug_transforms`, normalised, xresnet with Mish, label smoothing, `fit_one_cycle` at 3e-3. The smallest
xresnet and batches of 32, not 64, are for two cores and some hundreds of photos. Channels last, which is faster; its
mixed precision is for CUDA only.
From scratch since nobody here has pretrained torch weights: the machine reaches no server of weights, so this says
nothing of `vision_learner` with a pretrained network, which is how fastai is mostly used.

The first epoch is timed, and the one-cycle planned for as many as fit the rest; both count. Another epoch that does not
fit any more is not begun, and one that outlasts the time is cut, and validated like the others. The weights of the best
epoch by validation accuracy are tested once. Prints one JSON line: `wall_seconds` is all since the imports, as in
keras_transfer.py, `train_seconds` without the test. Imports nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import fastai
import torch
from cpu_torchvision import torchvision
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CancelTrainException,
    ImageDataLoaders,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Mish,
    Normalize,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    set_seed,
    xresnet18,
)

START = time.time()
"""The start of torch and fastai aside: they are imported above."""
IMAGE_PX = 128
BATCH = 32
RATE = 3e-3


class Until(Callback):
    """Stops where another epoch would end after a time, and keeps the best weights by validation accuracy."""

    order = 70
    """After fastai's recorder, which notes the epoch's accuracy."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.best, self.weights, self.epochs, self.seconds = deadline, -1.0, None, 0, 0.0

    def before_epoch(self) -> None:
        """Start the clock."""
        self.began = time.time()

    def after_batch(self) -> None:
        """Cut an epoch that outlasts the time; fastai validates all the same."""
        if self.training and time.time() > self.deadline:
            raise CancelTrainException

    def after_epoch(self) -> None:
        """Keep the weights if they are the best; stop if no further epoch fits."""
        self.epochs += 1
        self.seconds = time.time() - self.began
        found = float(self.recorder.values[-1][-1])
        if found > self.best:
            self.best = found
            self.weights = {name: value.clone() for name, value in self.learn.model.state_dict().items()}
        if time.time() + self.seconds > self.deadline:
            raise CancelFitException


def print_result(until: Until, test: float, trained: float, planned: int, **network: Any) -> None:
    """Print the JSON line that race.py reads."""
    versions = {"fastai": fastai, "torch": torch, "torchvision": torchvision}
    result = {
        "test": test,
        "validation": until.best,
        "epochs": until.epochs,
        "planned_epochs": planned,
        "wall_seconds": time.time() - START,
        "train_seconds": trained,
        **network,
        "versions": {name: module.__version__ for name, module in versions.items()}
        | {"python": platform.python_version()},
    }
    print(json.dumps(result))


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    photos = ImageDataLoaders.from_folder(
        arguments.folder,
        train="train",
        valid="validation",
        item_tfms=RandomResizedCrop(IMAGE_PX, min_scale=0.35),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        bs=min(BATCH, len(get_image_files(arguments.folder / "train"))),
        device=torch.device("cpu"),
    )
    learner = Learner(
        photos,
        xresnet18(n_out=photos.c, act_cls=Mish),
        loss_func=LabelSmoothingCrossEntropyFlat(),
        metrics=accuracy,
    )
    learner.to_channelslast(use_amp=False)
    until = Until(START + arguments.seconds)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, RATE, cbs=until)
        planned = int((until.deadline - time.time()) / until.seconds)
        if planned:
            learner.fit_one_cycle(planned, RATE, cbs=until)
        trained = time.time() - START
        learner.model.load_state_dict(until.weights)
        test = photos.test_dl(get_image_files(arguments.folder / "test"), with_labels=True)
        found = float(learner.validate(dl=test)[-1])
    print_result(until, found, trained, 1 + planned, network="xresnet18", image_px=IMAGE_PX, pretrained=False)


if __name__ == "__main__":
    main()
