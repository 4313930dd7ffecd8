"""The state of a training goes through JSON and comes back; states of earlier versions too."""

from __future__ import annotations

import json

import pytest

from tellapart.training.schedule import Segment
from tellapart.training.state import Best, TrainingState
from tellapart.training.timing import Precision

BFLOAT16 = Precision("mixed_bfloat16", {"float32": 2.0, "mixed_bfloat16": 1.0}, "faster by measurement", 3.0)


def test_a_state_survives_json_between_segments_and_inside_one():
    first, second = Segment(48, 3, (0.0, 0.4)), Segment(64, 4, (0.4, 1.0))
    state = TrainingState(BFLOAT16, 80, epoch=3, done=0.4, segments=(first,), history=[{"epoch": 1, "loss": 0.5}])
    assert TrainingState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    state.segment, state.segments, state.first_epoch, state.first_step = second, (first, second), 3, 30
    state.best, state.snapshots, state.stopped = Best(2, 0.25), 1, True
    again = TrainingState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    assert again.last_epoch == 7


def test_checkpoints_of_earlier_versions_open():
    old = {
        "epoch": 3, "done": 0.4, "segments": [{"image_px": 48, "epochs": 3, "progress": [0.0, 0.4]}],
        "planned_steps": 80, "name": "float32", "milliseconds_per_image": {}, "reason": "set in the recipe",
        "compile_seconds": 0.0, "history": [{"epoch": 1}], "best": {"epoch": 1, "score": None},
        "seconds_training": 2.5, "image_px": 48, "epochs": 7, "first_step": 0, "first_epoch": 0,
    }  # fmt: skip
    state = TrainingState.from_dict(old)
    assert state.precision == Precision("float32", {}, "set in the recipe")
    assert state.segments == (Segment(48, 3, (0.0, 0.4)),)
    assert (state.segment, state.best, state.seconds_training) == (None, Best(1, None), 2.5)


def test_when_there_is_more_to_train():
    state = TrainingState(BFLOAT16, 80)
    assert state.goes_on
    state.done = 1.0
    assert not state.goes_on
    state.segment = Segment(48, 3, (0.0, 1.0))
    assert state.goes_on
    state.stopped = True
    assert not state.goes_on
    with pytest.raises(ValueError, match="there is none"):
        _ = TrainingState(BFLOAT16, 80).current


def test_progress_goes_on_inside_a_segment():
    """Of four epochs from 0.4 to 1 three are done."""
    state = TrainingState(BFLOAT16, 80, epoch=3, done=0.4)
    assert state.progress == 0.4
    state.segment, state.first_epoch = Segment(64, 4, (0.4, 1.0)), 3
    assert [state.progress, state.last_epoch] == pytest.approx([0.4, 7])
    state.epoch = 6
    assert state.progress == pytest.approx(0.85)
    state.epoch = 7
    assert state.progress == pytest.approx(1.0)


def test_a_state_of_the_first_version_begins_with_nothing_done_beside_what_it_says():
    old = {"epoch": 0, "done": 0.0, "segments": [], "planned_steps": 80}
    precision = {"name": "float32", "milliseconds_per_image": {}, "reason": ""}
    assert TrainingState.from_dict(old | precision) == TrainingState(Precision("float32", {}, ""), 80)


def test_a_segment_that_was_cut_is_still_cut_after_a_restart():
    """A replay of it looks at the validation photos only where it was looked at them."""
    cut = Segment(48, 3, (0.0, 0.4), is_cut=True)
    state = TrainingState(BFLOAT16, 80, epoch=2, segments=(cut,), segment=cut, processor_seconds_training=7.5)
    again = TrainingState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    assert again.current.is_cut
