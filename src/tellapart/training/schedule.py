"""How long to train, at which picture size and rate. Knows nothing about photos or files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import keras

from tellapart.settings import Recipe, Stage, Train

SNAPSHOTS_FROM = 0.5
"""Share of the schedule after which snapshots are taken: networks before it are much worse than the last one."""


@dataclass(frozen=True)
class Segment:
    """Epochs that are trained in one go.

    Attributes:
        image_px: side of the training pictures.
        epochs: how many.
        progress: where on the schedule the segment begins and ends, each 0 to 1.
        is_cut: whether time was over within it: its last epoch was not looked at for being the last.
        share: of the photos that each of its epochs takes, above 0 to 1: where few whole epochs fit a time, parts use
            more of it. Each draws anew which.
    """

    image_px: int
    epochs: int
    progress: tuple[float, float]
    is_cut: bool = False
    share: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Segment:
        """Read what `to_dict` wrote."""
        low, high = values["progress"]
        is_cut = bool(values.get("is_cut"))
        share = float(values.get("share", 1.0))
        return cls(int(values["image_px"]), int(values["epochs"]), (float(low), float(high)), is_cut, share)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        usual = {"is_cut": False, "share": 1.0}  # what runs of before lack means these
        return {name: value for name, value in asdict(self).items() if usual.get(name) != value}


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe; without any, one stage at ``data.image_px``."""
    return recipe.train.stages or (Stage(image_px=recipe.data.image_px, share=1.0),)


def plan(stages: Sequence[Stage], epochs: int, *, start: float = 0.0, longest: int | None = None) -> list[Segment]:
    """Divide `epochs` over the rest of the schedule.

    Args:
        stages: picture sizes with their shares of the whole schedule.
        epochs: epochs that are left.
        start: how much of the schedule is done, 0 to 1.
        longest: cut segments so that none has more epochs, to plan again in between.

    Returns:
        Segments whose epochs add up to `epochs`; progress runs from `start` to 1.
    """
    total = sum(stage.share for stage in stages)
    edges, edge = [], 0.0
    for stage in stages:
        edge += stage.share / total
        edges.append((edge, stage.image_px))
    segments: list[Segment] = []
    done = 0
    for edge, image_px in edges:
        # A stage that is over has a share below 0 and gets no epochs. The last stage takes all that are left, so that
        # rounding loses none.
        share = (min(edge, 1.0) - start) / (1 - start)
        until = epochs if edge >= 1 - 1e-9 else round(epochs * max(share, 0.0))
        while done < until:
            count = until - done if longest is None else min(until - done, longest)
            low, high = (start + (1 - start) * epoch / epochs for epoch in (done, done + count))
            segments.append(Segment(image_px, count, (low, high)))
            done += count
    return segments


def snapshots_due(segment: Segment, epochs: int, count: int) -> int:
    """Return how many of `count` snapshots belong to what is done of the schedule.

    They divide the schedule from `SNAPSHOTS_FROM` to its end into equal parts; the end itself is the run's own network.

    Args:
        segment: the one under way.
        epochs: of it that are done.
        count: how many there are in all.
    """
    low, high = segment.progress
    done = low + (high - low) * epochs / segment.epochs
    return sum(
        done >= SNAPSHOTS_FROM + (1 - SNAPSHOTS_FROM) * number / (count + 1) - 1e-9 for number in range(1, count + 1)
    )


# For the tests and readers: what trains is `PlannedRate.__call__`, which must say the same.
def rate_at(progress: float, train: Train) -> float:
    """Return the learning rate after the share `progress` of training, 0 to 1.

    Rises linearly during the warm-up, then falls as half a cosine from ``learning_rate`` to
    ``final_learning_rate`` (Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts).
    """
    # Half of the training at most: a few epochs would otherwise never get past the warm-up.
    warmup = min(train.warmup_epochs / train.epochs, 0.5)
    if progress < warmup:
        return train.learning_rate * progress / warmup
    position = min(max((progress - warmup) / (1 - warmup), 0.0), 1.0)
    span = train.learning_rate - train.final_learning_rate
    return train.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * position))


class PlannedRate(keras.optimizers.schedules.LearningRateSchedule):
    """`rate_at` as a Keras schedule whose speed can be changed between two calls of `fit`.

    Progress is linear in the steps of the current segment. A step's rate is that of its middle, so
    that the first step of a warm-up moves.
    """

    def __init__(self, train: Train) -> None:
        super().__init__()
        self.train = train
        # Variables: a step that TensorFlow has compiled reads them anew, and would keep a plain number for ever.
        self.first_step = keras.Variable(0.0, trainable=False, dtype="float32", name="first_step")
        self.start = keras.Variable(0.0, trainable=False, dtype="float32", name="start")
        self.per_step = keras.Variable(0.0, trainable=False, dtype="float32", name="per_step")
        self._given: Any = None

    def enter(self, segment: Segment, first_step: int, steps: int) -> None:
        """Spread the progress of `segment` over `steps` steps, beginning with `first_step`."""
        low, high = segment.progress
        self.first_step.assign(float(first_step))
        self.start.assign(low)
        self.per_step.assign((high - low) / steps)

    @property
    def speed(self) -> tuple[Any, Any, Any]:
        """What `enter` decided: the first step, the progress there, and the progress in each step."""
        return self.first_step, self.start, self.per_step

    @contextmanager
    def given(self, speed: Any) -> Iterator[None]:
        """Take `speed` instead of the own one for a while: a function that is compiled gets it as an argument."""
        self._given = speed
        try:
            yield
        finally:
            self._given = None

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of `step`, a scalar tensor."""
        # The same as `rate_at`, in operations of the backend.
        ops, train = keras.ops, self.train
        first_step, start, per_step = self.speed if self._given is None else self._given
        done = ops.cast(step, "float32") - first_step + 0.5
        progress = ops.clip(start + done * per_step, 0.0, 1.0)
        warmup = min(train.warmup_epochs / train.epochs, 0.5)
        position = ops.clip((progress - warmup) / (1 - warmup), 0.0, 1.0)
        span = train.learning_rate - train.final_learning_rate
        cosine = train.final_learning_rate + span * 0.5 * (1 + ops.cos(math.pi * position))
        # `where` computes both sides: without a warm-up one of them divides by 0.
        if not warmup:
            return cosine
        return ops.where(progress < warmup, train.learning_rate * progress / warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the speed is not part of them."""
        return {"train": self.train.model_dump(mode="json")}
