"""How far a training has come: what goes into every checkpoint, and what a resumed run needs. Knows no networks.

Only the planner, the checkpoints and `train_network` change it; everybody else reads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tellapart.training.schedule import Segment
from tellapart.training.timing import Precision


@dataclass(frozen=True)
class Best:
    """The epoch whose weights are kept.

    Attributes:
        epoch: counted from 1; 0 is the fitted head of a pretrained network.
        score: its validation loss; None without validation photos.
    """

    epoch: int
    score: float | None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Best:
        """Read what `asdict` gave."""
        return cls(int(values["epoch"]), values["score"])


@dataclass
class TrainingState:
    """How far a training has come.

    Attributes:
        precision: what the network computes in, and why.
        planned_steps: as many as were planned at first; the weight average takes its length from them.
        epoch: epochs that are done.
        done: share of the schedule that is done, 0 to 1.
        segments: entered so far, the one under way among them.
        segment: the one under way; None between two.
        first_epoch: epochs that were done when it began.
        first_step: steps that the optimiser had taken when it began.
        epochs: epochs that the run will have in all, as far as is known now.
        history: a row for each epoch.
        best: whose weights are kept so far.
        seconds_training: spent in epochs, validation included.
        processor_seconds_training: of all processors in that time.
        snapshots: weights kept on the way.
        stopped: validation no longer improves.
    """

    # All fields go into checkpoints as JSON: a new one needs a value in `from_dict` for checkpoints that lack it.
    precision: Precision
    planned_steps: int
    epoch: int = 0
    done: float = 0.0
    segments: tuple[Segment, ...] = ()
    segment: Segment | None = None
    first_epoch: int = 0
    first_step: int = 0
    epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    seconds_training: float = 0.0
    processor_seconds_training: float = 0.0
    snapshots: int = 0
    stopped: bool = False

    @property
    def current(self) -> Segment:
        """The segment under way.

        Raises:
            ValueError: none is.
        """
        if self.segment is None:
            raise ValueError("Expected a segment under way; there is none.")
        return self.segment

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, within the segment under way too."""
        if self.segment is None:
            return self.done
        low, high = self.segment.progress
        return low + (high - low) * (self.epoch - self.first_epoch) / self.segment.epochs

    @property
    def last_epoch(self) -> int:
        """Epochs that are done when the segment under way is over."""
        return self.first_epoch + self.current.epochs

    @property
    def goes_on(self) -> bool:
        """Whether there is more to train, in the segment under way or after it."""
        return not self.stopped and (self.done < 1 or self.segment is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingState:
        """Read what `to_dict` wrote, or what runs wrote before the state had a type."""
        # Earlier versions wrote the fields of `Precision` beside the others, and fewer fields in all.
        old = values.get("precision")
        names = ("name", "milliseconds_per_image", "reason", "compile_seconds")
        precision = old if isinstance(old, dict) else {name: values[name] for name in names if name in values}
        segment, best = values.get("segment"), values.get("best")
        return cls(
            precision=Precision(**precision),
            planned_steps=values["planned_steps"],
            epoch=values["epoch"],
            done=values["done"],
            segments=tuple(map(Segment.from_dict, values["segments"])),
            segment=Segment.from_dict(segment) if segment else None,
            first_epoch=values.get("first_epoch", 0),
            first_step=values.get("first_step", 0),
            epochs=values.get("epochs", 0),
            history=values.get("history", []),
            best=Best.from_dict(best) if best else None,
            seconds_training=values.get("seconds_training", 0.0),
            processor_seconds_training=values.get("processor_seconds_training", 0.0),
            snapshots=values.get("snapshots", 0),
            stopped=values.get("stopped", False),
        )
