"""The state of a training run on disk: written whole, read back exactly. Knows nothing about data."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RunError
from tellapart.files import atomic_file

Arrays = list[NDArray]


def save_checkpoint(path: Path, model: keras.Model, state: dict[str, Any]) -> None:
    """Write weights, the state of dropout's random numbers, the optimiser and `state`, atomically."""
    groups = {
        "model": [np.asarray(variable) for variable in _state_variables(model)],
        "optimizer": [np.asarray(variable) for variable in model.optimizer.variables],
    }
    _save(path, groups, state)


def load_checkpoint(path: Path, model: keras.Model) -> dict[str, Any]:
    """Give `model`, built and compiled as it was, the variables of a checkpoint; return its state.

    Raises:
        RunError: the file is missing, damaged or of another network.
    """
    groups, state = _load(path)
    # An optimiser has no variables before it is built.
    model.optimizer.build(model.trainable_variables)
    for name, variables in (("model", _state_variables(model)), ("optimizer", model.optimizer.variables)):
        values = groups.get(name, [])
        # Variables are known by their place alone: after a layer is added or moved, older checkpoints are those of
        # another network.
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [value.shape for value in values]:
            raise RunError(f"{path} belongs to another network or optimiser than the run's recipe describes.")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    return state


def save_weights(path: Path, weights: Arrays, state: dict[str, Any]) -> None:
    """Write the weights of a network alone, as `keras.Model.get_weights` returns them."""
    _save(path, {"weights": weights}, state)


def load_weights(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read what `save_weights` wrote."""
    groups, state = _load(path)
    return groups.get("weights", []), state


def _state_variables(model: keras.Model) -> list[Any]:
    """All variables but the metrics', which begin anew with each epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _save(path: Path, groups: dict[str, Arrays], state: dict[str, Any]) -> None:
    arrays = {f"{group}/{index:03d}": value for group, values in groups.items() for index, value in enumerate(values)}
    # In the same archive: variables and state can never be those of two different epochs.
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    with atomic_file(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _load(path: Path) -> tuple[dict[str, Arrays], dict[str, Any]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            state = json.loads(archive["state"].tobytes())
            groups: dict[str, Arrays] = {}
            # By number, not as text: densenet121 under AdamW with an average has more than 1,000 arrays of the
            # optimiser, and "1000" would come before "101".
            numbers = {name: int(name.split("/")[1]) for name in archive.files if name != "state"}
            for name in sorted(numbers, key=lambda name: numbers[name]):
                groups.setdefault(name.split("/")[0], []).append(archive[name])
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: the run ended before its first checkpoint.") from None
    # A damaged archive raises many kinds of error: zipfile raises NotImplementedError for an unknown compression.
    except (OSError, EOFError, ValueError, KeyError, IndexError, NotImplementedError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is not a whole checkpoint ({error}).") from error
    return groups, state


def seconds_spent(last: Path) -> float:
    """Return the seconds that interrupted tries trained for, from the last checkpoint; 0 without one."""
    return float(load_weights(last)[1].get("seconds_training", 0.0)) if last.exists() else 0.0
