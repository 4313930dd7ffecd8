"""Pretrained weights that are at hand: on a shelf of our own, or where Keras keeps what it has downloaded.

A machine without a network trains from the shelf: files are brought there by hand. Knows nothing about photos.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from tellapart.errors import InputError, nearest
from tellapart.models.backbones import BACKBONES, at_hand, backbone_network, load_pretrained, shelf
from tellapart.settings import Backbone

_PATIENCE = 20.0
"""Seconds without an answer after which a download has failed."""


@dataclass(frozen=True)
class Weights:
    """The pretrained weights of one network.

    Attributes:
        name: of the network, as in ``model.name``.
        path: of the file; None: they are not at hand.
    """

    name: str
    path: Path | None


def listed() -> list[Weights]:
    """Return what is at hand of each network."""
    return [Weights(name, at_hand(name)) for name in BACKBONES]


def add(path: Path, name: str) -> Path:
    """Put a file of weights on the shelf, after it was loaded once.

    Args:
        path: of the network without its top, ``.weights.h5`` or ``.h5``.
        name: of the network.

    Returns:
        The file on the shelf.

    Raises:
        InputError: there is no such network or file, or it holds other weights.
    """
    network = _network(name)
    # Before it is copied: a file that does not fit must never stand on the shelf.
    load_pretrained(network, Backbone(name=name, weights=str(path)))
    target = shelf() / f"{name}{'.weights.h5' if path.name.endswith('.weights.h5') else '.h5'}"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Copied beside its place and renamed, so that nobody loads half of it.
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(path, part)
    part.replace(target)
    # One file for a network: of two the one with the other ending might be found first.
    for ending in (".weights.h5", ".h5"):
        if (other := shelf() / f"{name}{ending}") != target:
            other.unlink(missing_ok=True)
    return target


def get(name: str) -> Path | None:
    """Have Keras download a network's weights, unless they are at hand.

    Returns:
        Their file; None: Keras keeps it under a name that is not known here, and finds it again itself.

    Raises:
        InputError: there is no such network, or no connection.
    """
    network = _network(name)
    if at_hand(name) is None:
        with _patience(_PATIENCE):
            load_pretrained(network, Backbone(name=name, weights="imagenet"))
    return at_hand(name)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let a connection that says nothing fail after a time: behind some firewalls Keras would wait for minutes."""
    # Keras passes no timeout on; the default holds for the whole process, so it is put back.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def with_weights_at_hand(changes: Sequence[str]) -> list[str]:
    """Return settings, each "section.key=value", with the pretrained weights of the network that they name.

    Where nothing is said of weights, and they are at hand: who names such a network mostly wants it trained.
    """
    settings = {
        name.strip(): value.strip().strip("\"'") for name, _, value in (change.partition("=") for change in changes)
    }
    name = settings.get("model.name", "")
    if "model.weights" in settings or name not in BACKBONES or at_hand(name) is None:
        return list(changes)
    return [*changes, "model.weights=imagenet"]


def _network(name: str) -> keras.Model:
    if name not in BACKBONES:
        raise InputError(
            f"There is no network {name!r}.{nearest(name, BACKBONES)} Expected one of {', '.join(BACKBONES)}."
        )
    return backbone_network(Backbone(name=name), 2, None)
