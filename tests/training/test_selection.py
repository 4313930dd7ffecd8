"""Which epoch is kept, by table."""

from __future__ import annotations

import math

import pytest

from tellapart.training.selection import Decision, best_epoch, decide

NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([(0.9, 0.5), (0.8, 0.4), (0.7, 0.45)], 2),
        ([(0.9, None), (0.1, None), (0.8, 0.7), (0.05, None), (0.04, None), (0.7, 0.6)], 6),  # every third is validated
        ([(0.9, None), (0.8, 0.3), (0.1, None)], 2),  # the last epochs' training loss does not compete
        ([(0.9, 0.4), (0.8, 0.4)], 1),  # equal: the first
        ([(0.9, NAN), (0.8, 0.9), (0.7, math.inf)], 2),
        ([(0.9, NAN), (0.8, NAN)], 2),  # nothing to compare: the last
        ([(0.5, None), (0.6, None), (0.7, None)], 3),  # no validation photos: the last, not the lowest training loss
    ],
)
def test_only_validated_epochs_compete(losses, kept):
    rows = [
        {"epoch": number, "loss": loss} | ({} if val_loss is None else {"val_loss": val_loss})
        for number, (loss, val_loss) in enumerate(losses, start=1)
    ]
    assert best_epoch(rows) == kept


def test_a_fitted_head_is_epoch_0_and_competes():
    rows = [{"epoch": 0, "loss": 0.1, "val_loss": 0.2}, {"epoch": 1, "loss": 0.05, "val_loss": 0.3}]
    assert best_epoch(rows) == 0
    with pytest.raises(ValueError, match="at least one epoch"):
        best_epoch([])


@pytest.mark.parametrize(
    ("losses", "decision"),
    [
        ([0.5], Decision(keep=True, stop=False)),
        ([0.5, 0.4], Decision(keep=True, stop=False)),
        ([0.4, 0.5], Decision(keep=False, stop=False)),
        ([0.4, 0.5, 0.4], Decision(keep=False, stop=True)),  # equal is no better
        ([0.4, None, None], Decision(keep=False, stop=True)),  # waiting counts epochs, validated or not
        ([0.4, 0.5, 0.3], Decision(keep=True, stop=False)),
        ([None, None, None, None], Decision(keep=False, stop=False)),
        ([NAN, NAN, NAN], Decision(keep=False, stop=False)),
    ],
)
def test_what_follows_from_an_epoch_with_a_patience_of_two(losses, decision):
    rows = [
        {"epoch": number, "loss": 1.0} | ({} if loss is None else {"val_loss": loss})
        for number, loss in enumerate(losses, start=1)
    ]
    assert decide(rows, patience=2) == decision


def test_the_kept_epoch_of_a_table_is_a_plain_number():
    """A table with a gap holds its epochs as floats; JSON would say "best_epoch": 2.0."""
    rows = [{"epoch": 1.0, "val_loss": 0.5}, {"epoch": 2.0, "val_loss": 0.4}]
    for history in (rows, rows[:1], [{"epoch": 2.0, "val_loss": NAN}]):
        assert type(best_epoch(history)) is int


def test_patience_counts_from_the_fitted_head():
    """Fine-tuning that never gets better than the head stops after as many epochs as any other training."""
    rows = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate([0.3, 0.5, 0.4, 0.35])]
    assert [decide(rows[: count + 1], patience=3).stop for count in range(4)] == [False, False, False, True]
