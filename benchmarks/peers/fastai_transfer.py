"""Transfer learning as fastai documents it, from the very weights that tellapart begins from, within a time.

    PYTHON benchmarks/peers/fastai_transfer.py FOLDER --weights OUT.npz --seconds 300

FOLDER has train, validation and test with a folder per class; mobilenet_v2_torch.py wrote OUT.npz. `vision_learner` and
what `fine_tune` does, with its own rates and the transforms of the book's chapter 2: 224 px, `RandomResizedCrop` of at
least half of the photo, `aug_transforms`. Batches of 32, not 64, are for some hundreds of photos. Pictures are scaled
to -1 to 1, as these weights were trained. Channels last, since that takes half the time; its mixed precision is for
CUDA only.

The epoch with a frozen body is timed. As many epochs of the whole network follow as fit the rest, each taken for a
quarter longer; where none fits, further ones with the frozen body. The clock, the cut of an epoch that outlasts the
time, and the choice of the epoch are those of fastai_classify.py. Prints one JSON line. Imports nothing of tellapart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import cpu_torchvision  # noqa: F401  # makes torchvision importable, so it comes before fastai
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    default_split,
    get_image_files,
    model_meta,
    set_seed,
    vision_learner,
)
from fastai_classify import BATCH, START, Until, print_result
from mobilenet_v2_torch import IMAGE_PX, mobilenet_v2

RATE = 2e-3
UNFROZEN = 1.25
"""Times as long as with a frozen body, whose batch normalisations learn all the same, so that gradients pass through
all of it: 1.17 to 1.23 on one thread."""


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    photos = ImageDataLoaders.from_folder(
        arguments.folder,
        train="train",
        valid="validation",
        item_tfms=RandomResizedCrop(IMAGE_PX, min_scale=0.5),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        bs=min(BATCH, len(get_image_files(arguments.folder / "train"))),
        device=torch.device("cpu"),
    )

    def pretrained(**_: Any) -> Any:
        return mobilenet_v2(arguments.weights)

    model_meta[pretrained] = {"cut": -1, "split": default_split}  # vision_learner does not pass its own `cut` on
    learner = vision_learner(photos, pretrained, normalize=False, metrics=accuracy)
    learner.to_channelslast(use_amp=False)
    until = Until(START + arguments.seconds)
    with learner.no_bar(), learner.no_logging():
        # What `fine_tune` does, with the number of epochs found between its two parts.
        learner.freeze()
        learner.fit_one_cycle(1, slice(RATE), pct_start=0.99, cbs=until)
        left = until.deadline - time.time()
        planned, frozen = int(left / (UNFROZEN * until.seconds)), int(left / until.seconds)
        if planned:
            learner.unfreeze()
            learner.fit_one_cycle(planned, slice(RATE / 200, RATE / 2), pct_start=0.3, div=5.0, cbs=until)
        elif frozen:
            learner.fit_one_cycle(frozen, slice(RATE), cbs=until)
        trained = time.time() - START
        learner.model.load_state_dict(until.weights)
        test = photos.test_dl(get_image_files(arguments.folder / "test"), with_labels=True)
        found = float(learner.validate(dl=test)[-1])
    print_result(
        until, found, trained, 1 + (planned or frozen), network="mobilenet_v2", image_px=IMAGE_PX, pretrained=True
    )


if __name__ == "__main__":
    main()
