"""Fits a run into a time before a photo is scanned: which picture sizes, and how many of the photos.

A few photos are read and decoded, a few steps of the recipe's network are timed on noise; the rest is arithmetic. What
happens within training, epoch by epoch, is planned by `tellapart.training.planning`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import clean_batch_size
from tellapart.data.decode import decode_square
from tellapart.data.image_file import decoding_threads, read_file
from tellapart.data.scan import inspect
from tellapart.errors import DecodeError
from tellapart.models.build import build
from tellapart.models.forward import Forward
from tellapart.randomness import generator
from tellapart.settings import Backbone, Recipe, with_settings
from tellapart.training.features import pretrained_extractor
from tellapart.training.network import compiled
from tellapart.training.planning import SECONDS_PER_ROW
from tellapart.training.schedule import Segment, stages_of
from tellapart.training.timing import Precision, choose_precision, seconds_per_prediction, step_time

FEWEST_EPOCHS = 10
"""From scratch, pictures are made smaller until so many epochs fit: one look at each photo teaches a network little."""
_FEWEST_OF_A_PART = 4
"""Epochs below which, at the smallest size, photos are left out instead."""
_SMALLEST_PX = 32
_SMALLEST_PRETRAINED_PX = 96
"""Of a smaller picture hardly anything is left after five halvings."""
_SAMPLE = 48
_WARM_UP = 8
_FEATURES_SHARE = 0.8
"""Of the time at most, for scan, decoding and features of a pretrained network; the head and the end need the rest."""
_SECONDS_FOR_A_HEAD = 15.0
"""For a pretrained network that is built, the first fit of its head, and the end of the run: 12 to 14 were seen."""
_SLOWER = 1.1
"""Times what a few photos took: with the caches being written all of them took up to 1.13 of it."""
_READING_SHARE = 0.4
"""Of the time, for scan, decoding and the final prediction, where the network has yet to be trained."""
_LEAST_SHARE = 0.01
"""Of the photos, however short the time is: less than that tells nothing."""
_SECONDS_TO_CHECK = 1.5e-4
"""For a photo's part in the search for copies and in the health check: 0.06 ms of 10,000 photos, 0.14 ms of 41,000."""
_SECONDS_BESIDES = 12.0
"""For steps that are timed, steps that are compiled at two sizes, and the end of the run, from scratch."""


@dataclass(frozen=True)
class Costs:
    """What one photo costs, in seconds of the clock with all processors at work.

    Attributes:
        scan: read, hash, decode a thumbnail.
        decode: to the recipe's sizes.
        forward: through the network, for a prediction.
        step: in one epoch of training, at the recipe's last stage; 0 where a head is fitted to features first.
    """

    scan: float
    decode: float
    forward: float
    step: float


@dataclass(frozen=True)
class TimePlan:
    """What a run with a time budget begins with.

    Attributes:
        recipe: the recipe, with picture sizes that fit the time and the photos.
        share: of the photos that are used, above 0 to 1.
        costs: of one photo, at the sizes of `recipe`.
        precision: of training, where it was measured.
        photo_px: side of most photos, as a square of the same area.
    """

    recipe: Recipe
    share: float
    costs: Costs
    precision: Precision | None
    photo_px: int

    def to_dict(self) -> dict[str, Any]:
        """Return what ``environment.json`` says of it; the recipe has its own file."""
        # `run._fit_into` and `preparation.prepare` read these names back: a resumed run keeps its share of the photos
        # and its precision.
        precision = {} if self.precision is None else {"precision": asdict(self.precision)}
        costs = {"seconds_per_photo": asdict(self.costs)}
        return (
            {"share": self.share, "photo_px": self.photo_px, "image_px": self.recipe.data.image_px} | costs | precision
        )


class _Noise:
    """Batches of noise, for timing a network before there are pictures."""

    # What `timing._Few` takes over from the batches that it stands for.
    workers, max_queue_size = 1, 4

    def __init__(self, image_px: int, batch_size: int, num_classes: int, num_targets: int) -> None:
        self.image_px, self.batch_size = image_px, batch_size
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (batch_size, image_px, image_px, 3), np.uint8)
        targets = np.eye(num_classes, dtype=np.float32)[rng.integers(0, num_classes, batch_size)]
        self._targets = np.tile(targets, num_targets // num_classes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return self._images, self._targets


def plan_for_time(paths: Sequence[Path], num_classes: int, recipe: Recipe, seconds: float) -> TimePlan:
    """Choose picture sizes and a share of the photos so that a run fits its time.

    Args:
        paths: all photo files.
        num_classes: how many classes they have.
        recipe: what is to be done.
        seconds: that are left.

    Returns:
        The recipe with sizes no larger than most photos, smaller where else fewer than `FEWEST_EPOCHS` epochs fit, and
        the share of the photos that can be scanned, decoded, learned from and predicted in the time.
    """
    began = time.monotonic()
    sample = _sample(paths, recipe)
    scan_seconds, photo_px = _time_scan(sample, recipe.data.max_pixels)
    recipe = _no_larger_than(recipe, photo_px)
    costs, precision = _time(sample, len(paths), num_classes, recipe, scan_seconds)
    # The timing itself is paid from the budget.
    left = seconds - (time.monotonic() - began)
    if recipe.model.weights:
        for_photos = min(_FEATURES_SHARE * left, max(left - _SECONDS_FOR_A_HEAD, left / 4) / _SLOWER)
        share = for_photos / (len(paths) * _once(costs))
        return TimePlan(recipe, min(1.0, max(_LEAST_SHARE, share)), costs, precision, photo_px)
    recipe, costs = _with_enough_epochs(recipe, costs, len(paths), left)
    return TimePlan(recipe, _share_that_fits(recipe, costs, len(paths), left), costs, precision, photo_px)


def expected_seconds(paths: Sequence[Path], num_classes: int, recipe: Recipe) -> tuple[float, Costs]:
    """Return about how long a run without a time budget takes, and what a photo costs, by timing a few.

    Args:
        paths: all photo files.
        num_classes: how many classes they have.
        recipe: what is to be done.
    """
    sample = _sample(paths, recipe)
    costs, _ = _time(sample, len(paths), num_classes, recipe, _time_scan(sample, recipe.data.max_pixels)[0])
    seconds = _SECONDS_BESIDES + len(paths) * _once(costs)
    if recipe.model.weights:  # the features are most of it; what fine-tuning takes is not known before
        return seconds, costs
    stages, last = stages_of(recipe), stages_of(recipe)[-1].image_px
    shares = sum(stage.share for stage in stages)
    # Steps were timed at the last size; their cost goes with the area of the pictures.
    area = sum(stage.share * (stage.image_px / last) ** 2 for stage in stages) / shares
    validation = recipe.data.split[1] * costs.forward / recipe.train.validate_every
    return seconds + recipe.train.epochs * len(paths) * (recipe.data.split[0] * area * costs.step + validation), costs


def _sample(paths: Sequence[Path], recipe: Recipe) -> list[Path]:
    # Drawn, not the first ones: paths are sorted, so these are mostly of one class, whose photos may be the smallest.
    chosen = generator(recipe.train.seed, "timed photos").permutation(len(paths))[: _SAMPLE + _WARM_UP]
    return [paths[position] for position in chosen]


def _time(
    sample: Sequence[Path], num_photos: int, num_classes: int, recipe: Recipe, scan_seconds: float
) -> tuple[Costs, Precision | None]:
    """Return what a photo costs at the recipe's sizes, and the precision of training, where it was measured."""
    precision, step = _time_training(recipe, num_classes)
    forward = _time_forward(recipe, num_classes, num_photos)
    return Costs(scan_seconds, _time_decoding(sample, recipe), forward, step), precision


def _with_enough_epochs(recipe: Recipe, costs: Costs, num_photos: int, seconds: float) -> tuple[Recipe, Costs]:
    """Return the recipe with the largest pictures for which enough epochs fit, and its costs."""
    full = recipe
    # From large to small: the first size that leaves enough epochs is the largest.
    for scale in (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25):
        smaller = _scaled(full, scale)
        if smaller.data.image_px < min(_SMALLEST_PX, full.data.image_px):
            break
        area = (smaller.data.image_px / full.data.image_px) ** 2
        recipe, scaled = smaller, replace(costs, forward=costs.forward * area, step=costs.step * area)
        if _epochs(recipe, scaled, num_photos, seconds) >= FEWEST_EPOCHS:
            return recipe, scaled
    area = (recipe.data.image_px / full.data.image_px) ** 2
    return recipe, replace(costs, forward=costs.forward * area, step=costs.step * area)


def _once(costs: Costs) -> float:
    """Return the seconds that a photo takes before and after training."""
    return costs.scan + costs.decode + costs.forward + _SECONDS_TO_CHECK + SECONDS_PER_ROW


def _for_photos(seconds: float) -> float:
    """Return the seconds that are left for photos; of a short budget at least a quarter."""
    return max(seconds - _SECONDS_BESIDES, seconds / 4)


def _epochs(recipe: Recipe, costs: Costs, num_photos: float, seconds: float) -> float:
    validation = recipe.data.split[1] * costs.forward / recipe.train.validate_every
    left = _for_photos(seconds) - num_photos * _once(costs)
    return left / (num_photos * (recipe.data.split[0] * costs.step + validation))


def _share_that_fits(recipe: Recipe, costs: Costs, num_photos: int, seconds: float) -> float:
    # Of so few epochs each ends a part of the schedule, and is validated.
    epoch = recipe.data.split[0] * costs.step + recipe.data.split[1] * costs.forward
    once = num_photos * _once(costs)
    all_of_them = once + _FEWEST_OF_A_PART * num_photos * epoch
    # Where the timing alone has taken the time, what is left is below 0.
    return max(_LEAST_SHARE, min(1.0, _READING_SHARE * seconds / once, _for_photos(seconds) / all_of_them))


def _no_larger_than(recipe: Recipe, photo_px: int) -> Recipe:
    """Return the recipe with pictures no larger than the photos: what is blown up costs time and shows nothing new."""
    if recipe.model.weights:  # it halves a picture five times
        photo_px = max(32 * math.ceil(photo_px / 32), _SMALLEST_PRETRAINED_PX)
    photo_px = max(photo_px, _SMALLEST_PX)
    return _scaled(recipe, photo_px / recipe.data.image_px, largest=photo_px)


def at_size(recipe: Recipe, image_px: int) -> Recipe:
    """Return the recipe for pictures of the size that a plan found: its own or a smaller one."""
    return _scaled(recipe, image_px / recipe.data.image_px, largest=image_px)


def _scaled(recipe: Recipe, scale: float, largest: int = 1024) -> Recipe:
    """Return the recipe with all picture sizes scaled; multiples of 4, which two poolings halve without a rest."""
    if scale >= 1:
        return recipe

    def size(px: int) -> int:
        return max(16, min(4 * round(px * scale / 4), 4 * (largest // 4)))

    changes: dict[str, Any] = {"data.image_px": size(recipe.data.image_px)}
    if recipe.train.source_px:
        changes["train.source_px"] = size(recipe.train.source_px)
    if recipe.train.stages:
        changes["train.stages"] = [
            stage.model_dump() | {"image_px": size(stage.image_px)} for stage in recipe.train.stages
        ]
    return with_settings(recipe, changes)


def _time_scan(sample: Sequence[Path], max_pixels: int) -> tuple[float, int]:
    """Return the seconds that a photo takes to scan, and the side that three quarters of them do not exceed."""
    seconds, rows = _time_per_file(lambda path: inspect(path, max_pixels)[0], sample)
    areas = [row["width"] * row["height"] for row in rows if not row["error"]]
    return seconds, round(float(np.quantile(np.sqrt(areas), 0.75))) if areas else 1024


def _time_decoding(sample: Sequence[Path], recipe: Recipe) -> float:
    """Return the seconds that a photo takes to be decoded to each size that the run reads."""
    sizes = {recipe.data.image_px, recipe.train.source_px or recipe.data.image_px}

    def decode_all(path: Path) -> None:
        try:
            for image_px in sizes:
                decode_square(read_file(path), image_px, max_pixels=recipe.data.max_pixels)
        except DecodeError:
            return

    return _time_per_file(decode_all, sample)[0]


def _time_per_file(work: Callable[[Path], Any], sample: Sequence[Path]) -> tuple[float, list[Any]]:
    """Do the work for each file in as many threads as scanning and decoding have; return (seconds a file, results)."""
    warm_up = _WARM_UP if len(sample) > 2 * _WARM_UP else 0
    with ThreadPoolExecutor(decoding_threads(sample)) as pool:
        # The first files also pay for starting the threads: they are not timed.
        results = list(pool.map(work, sample[:warm_up]))
        start = time.perf_counter()
        results += list(pool.map(work, sample[warm_up:]))
        seconds = time.perf_counter() - start
    return seconds / max(len(sample) - warm_up, 1), results


def _time_training(recipe: Recipe, num_classes: int) -> tuple[Precision | None, float]:
    """Return the faster precision and the seconds that one picture takes in training; none for a head on features."""
    if recipe.model.weights:
        return None, 0.0
    num_targets = num_classes * (2 if recipe.distill.teacher else 1)
    noise: Any = _Noise(stages_of(recipe)[-1].image_px, recipe.train.batch_size, num_classes, num_targets)

    def model_in(precision: str) -> Any:
        model, rate = compiled(recipe, num_classes, precision)
        # The rate needs a schedule, any one: these steps teach nothing.
        rate.enter(Segment(noise.image_px, 1, (0.0, 0.01)), 0, 1000)
        return model

    precision = choose_precision(recipe.train.precision, model_in, noise)
    # The precision was settled without timing steps: time them now.
    if precision.name not in precision.milliseconds_per_image:
        timed = step_time(model_in(precision.name), noise)
        precision = replace(
            precision,
            milliseconds_per_image={precision.name: 1000 * timed.per_image},
            compile_seconds=timed.compiling,
            timed_px=noise.image_px,
        )
    return precision, precision.milliseconds_per_image[precision.name] / 1000


def _time_forward(recipe: Recipe, num_classes: int, num_photos: int) -> float:
    """Return the seconds that one picture takes through the network, as the run will ask it."""
    image_px = recipe.data.image_px
    # As many as a prediction takes at once: in batches of 32 a picture of 32 px took 0.28 ms, so 0.20 ms.
    noise = _Noise(image_px, clean_batch_size(image_px), num_classes, num_classes)[0][0]
    if isinstance(recipe.model, Backbone) and recipe.model.weights:
        return seconds_per_prediction(pretrained_extractor(recipe.model, image_px, num_photos).forward, noise)
    return seconds_per_prediction(Forward(build(recipe.model, num_classes, image_px), is_converted=False), noise)
