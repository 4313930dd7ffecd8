"""Which further networks a run's checkpoints hold, on checkpoints that were written here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest

from held import drawn, noise
from tellapart.errors import RunError
from tellapart.run_folder import RunFolder
from tellapart.settings import load_recipe
from tellapart.training.checkpoint import save_checkpoint, save_weights
from tellapart.training.network import compiled
from tellapart.training.schedule import Segment
from tellapart.training.snapshots import kept_networks
from tellapart.training.state import Best, TrainingState
from tellapart.training.timing import Precision

RECIPE = load_recipe(changes=["data.image_px=16", "model.width=0.25", "train.snapshots=3", "train.weight_average=0.2"])
STATE = TrainingState(Precision("float32", {}, ""), 60, 4, 1.0, (Segment(16, 4, (0.0, 1.0)),), best=Best(4, 0.5))


def network(seed: int) -> keras.Model:
    model, _ = compiled(RECIPE, 3, "float32")
    model.set_weights(drawn(model, seed))
    return model


def write(folder: Path, *, snapshots: tuple[int, ...] = (), last: int | None = None, best: int | None = None) -> Path:
    """Write the checkpoints of a run: the weights of each network are drawn from its number."""
    checkpoints = RunFolder(folder).checkpoints
    for number in snapshots:
        save_weights(checkpoints / f"snapshot-{number}.npz", network(number).get_weights(), {"epoch": number})
    if last is not None:
        save_checkpoint(checkpoints / "last.npz", network(last), STATE.to_dict())
    if best is not None:
        save_weights(checkpoints / "best.npz", network(best).get_weights(), asdict(STATE.best))
    return folder


def test_each_snapshot_and_the_weights_before_averaging_are_networks_of_plain_layers(tmp_path: Path):
    run = write(tmp_path, snapshots=(1, 3), last=7, best=8)
    found = kept_networks(run, RECIPE, 3)
    assert list(found) == ["snapshot-1", "snapshot-3", "last"], "one that was never due is no network"
    pictures = noise(4, 16)
    for name, seed in (("snapshot-1", 1), ("snapshot-3", 3), ("last", 7)):
        expected = keras.ops.convert_to_numpy(network(seed)(pictures, training=False))
        np.testing.assert_allclose(found[name](pictures, training=False), expected, atol=1e-5)
        assert all(layer.__module__.startswith("keras.") for layer in found[name].layers)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ({"last": 7, "best": 7}, []),  # no averaging: the last weights are those that were kept
        ({"last": 7, "best": 8}, ["last"]),
        ({"best": 8}, []),  # a head that was fitted and never tuned has no last step
        ({"last": 7}, []),
        ({"snapshots": (4,), "best": 8}, []),  # of an earlier recipe with more snapshots
        ({}, []),
    ],
)
def test_the_runs_own_network_is_not_among_its_further_ones(tmp_path: Path, written: dict, names: list[str]):
    assert list(kept_networks(write(tmp_path, **written), RECIPE, 3)) == names


def test_checkpoints_of_another_network_are_refused(tmp_path: Path):
    run = write(tmp_path, snapshots=(2,), last=7, best=8)
    with pytest.raises(RunError, match=r"snapshot-2\.npz belongs to another network"):
        kept_networks(run, RECIPE, 4)
    (run / "checkpoints" / "snapshot-2.npz").unlink()
    with pytest.raises(RunError, match=r"last\.npz belongs to another network or optimiser"):
        kept_networks(run, RECIPE, 4)


def test_weights_that_differ_in_their_statistics_alone_are_another_network(tmp_path: Path):
    """Without an average, statistics of clean photos are all that validation changes."""
    run, model = RunFolder(tmp_path), network(7)
    save_checkpoint(run.last_checkpoint, model, STATE.to_dict())
    statistics = [place for place, variable in enumerate(model.weights) if "moving_" in variable.path]
    weights = [weight + (place in statistics) for place, weight in enumerate(model.get_weights())]
    save_weights(run.best_weights, weights, asdict(STATE.best))
    assert list(kept_networks(tmp_path, RECIPE, 3)) == ["last"]
