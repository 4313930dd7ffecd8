"""Which settings of a recipe act beside which others only. Knows nothing about files, defaults or pydantic.

A setting that cannot act is refused: whoever gave it would believe that it was tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """What some settings need to act.

    Attributes:
        settings: that need it, by "section.key".
        beside: the settings that decide.
        holds: whether it is met, from the values of `beside`.
        rule: what a message and the docs say, "acts with …".
        remedy: what to do instead of leaving the setting out.
        essential: whether a change of `beside` must not switch the settings off in passing.
    """

    settings: tuple[str, ...]
    # `holds` gets the values of `beside` by place: its parameters must stand in that order.
    beside: tuple[str, ...]
    holds: Callable[..., bool]
    rule: str
    remedy: str
    essential: bool = False


_OF_TRAINING = (
    "augment.flip", "augment.rotation", "augment.zoom", "augment.translation", "augment.brightness",
    "augment.contrast", "augment.randaugment_ops", "augment.randaugment_magnitude", "augment.erase", "augment.mixup",
    "augment.cutmix", "augment.mix_probability", "model.dropout", "train.epochs", "train.batch_size",
    "train.optimizer", "train.learning_rate", "train.final_learning_rate", "train.warmup_epochs",
    "train.weight_decay", "train.weight_average", "train.snapshots", "train.patience", "train.stages",
    "train.source_px", "train.recalibrate_photos", "train.validate_every",
)  # fmt: skip
"""What a head alone, which is fitted to features, has no use for. `train.label_smoothing` and `model.l2` are not among
them: they count in the loss that such a run reports."""

# The check, its messages, the docs and the conditional settings of a search are all made from these rows. Their order
# is that of precedence: of several reasons why a setting cannot act, the first one is told.
CONDITIONS = (
    Condition(
        ("model.weights",),
        ("model.name",),
        lambda name: name != "convnet",
        "acts on networks of keras.applications only: there are no pretrained weights of convnet",
        "name another network, as in mobilenet_v2",
        essential=True,
    ),
    Condition(
        ("model.width", "model.batchnorm", "model.batchnorm_momentum"),
        ("model.name",),
        lambda name: name == "convnet",
        "acts on the convnet only",
        'choose model.name = "convnet"',
    ),
    Condition(
        ("model.unfreeze",),
        ("model.name", "model.weights"),
        lambda name, weights: name != "convnet" and bool(weights),
        "acts with pretrained model.weights only: without them the whole network learns",
        "set model.weights",
    ),
    Condition(
        ("model.batchnorm_momentum",),
        ("model.batchnorm",),
        bool,
        "acts with model.batchnorm only",
        "set model.batchnorm = true",
    ),
    Condition(
        ("model.batchnorm_momentum",),
        ("train.recalibrate_photos",),
        lambda photos: not photos,
        "acts with train.recalibrate_photos = 0 only: else the statistics are estimated anew on clean photos",
        "set train.recalibrate_photos = 0",
    ),
    Condition(
        ("train.recalibrate_photos",),
        ("model.name", "model.batchnorm"),
        lambda name, batchnorm: name != "convnet" or batchnorm,
        "acts on BatchNormalization only",
        "set model.batchnorm = true",
    ),
    Condition(
        ("train.recalibrate_photos",),
        ("model.name", "model.weights"),
        lambda name, weights: name != "convnext_tiny" and (name == "convnet" or not weights),
        "acts on BatchNormalization that learns only: that of pretrained networks is frozen, convnext_tiny has none",
        "leave out model.weights",
    ),
    Condition(
        ("train.weight_decay",),
        ("train.optimizer",),
        lambda optimizer: optimizer == "adamw",
        'acts with train.optimizer = "adamw" only',
        "choose adamw",
    ),
    Condition(
        ("augment.randaugment_magnitude",),
        ("augment.randaugment_ops",),
        bool,
        "acts with augment.randaugment_ops above 0 only",
        "set augment.randaugment_ops, as in 2",
    ),
    Condition(
        ("augment.mix_probability",),
        ("augment.mixup", "augment.cutmix"),
        lambda mixup, cutmix: bool(mixup or cutmix),
        "acts with augment.mixup or augment.cutmix above 0 only",
        "set one of them",
    ),
    Condition(
        ("distill.weight", "distill.temperature"),
        ("distill.teacher",),
        bool,
        "acts with a distill.teacher only",
        "name one",
    ),
    Condition(
        _OF_TRAINING,
        ("model.name", "model.weights", "model.unfreeze"),
        lambda name, weights, unfreeze: name == "convnet" or not weights or bool(unfreeze),
        "acts on a network that is trained: with model.weights and model.unfreeze = 0 only a head is fitted",
        "set model.unfreeze, as in 0.35",
    ),
)

ESSENTIAL = frozenset(name for condition in CONDITIONS if condition.essential for name in condition.settings)


def unused(given: Collection[str], value: Callable[[str], Any]) -> dict[str, str]:
    """Return why each of the given settings cannot act, by "section.key"; nothing for those that act.

    Args:
        given: the settings to look at.
        value: returns the value of a setting, its default where none was given.
    """
    problems: dict[str, str] = {}
    for condition in CONDITIONS:
        # The first condition that does not hold explains a setting; one reason is enough.
        affected = [name for name in condition.settings if name in given and name not in problems]
        values = {name: value(name) for name in condition.beside}
        if not affected or condition.holds(*values.values()):
            continue
        # As JSON, which for such values is how TOML writes them.
        state = " and ".join(f"{name} is {json.dumps(value, default=str)}" for name, value in values.items())
        for name in affected:
            problems[name] = f"{name} {condition.rule}; here {state}. Leave it out, or {condition.remedy}."
    return problems


def decides(one: str, other: str) -> bool:
    """Return whether the value of one setting can decide if another one acts."""
    return any(other in condition.settings and one in condition.beside for condition in CONDITIONS)
