"""The sections of a recipe: which settings there are, their ranges and defaults. Knows nothing about files.

Which of them act beside which others only stands in `tellapart.conditions`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """What all sections have in common: unknown keys are errors, and nothing is changed in place."""

    # pydantic's `model_copy(update=…)` checks nothing: what may break a range or a condition goes through
    # `settings.with_settings`.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """How photos become splits and arrays."""

    image_px: int = Field(224, ge=16, le=1024, description="side of the square picture the network sees")
    split: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.2, 0.1), description="shares of train, validation and test"
    )
    split_seed: int = Field(0, description="another number gives another split")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are refused before they are decoded")

    @model_validator(mode="after")
    def _shares_add_up(self) -> Data:
        # Not exactly 1: in binary 0.7 + 0.2 + 0.1 is a little less.
        if abs(sum(self.split) - 1) > 1e-6 or self.split[0] <= 0:
            raise ValueError(f"split {list(self.split)} must add up to 1 with a train share above 0")
        return self


class Augment(Section):
    """The random changes made to each training picture, in Keras' meaning of the ranges."""

    flip: bool = Field(True, description="mirror left and right, one time in two")
    rotation: float = Field(0.2, ge=0, le=0.5, description="largest turn either way, as a share of a full circle")
    zoom: float = Field(0.2, ge=0, lt=1, description="largest zoom out or in, as a share of the side")
    translation: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a share of the side")
    brightness: float = Field(0.0, ge=0, le=1, description="largest change of brightness, as a share of white")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest change of contrast about each channel's mean")
    randaugment_ops: int = Field(0, ge=0, le=14, description="operations of RandAugment on each picture; 0: none")
    randaugment_magnitude: float = Field(0.3, ge=0, le=1, description="strength of RandAugment's operations")
    erase: Fraction = Field(0.0, description="share of the pictures that lose a random rectangle to noise")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of MixUp's Beta distribution; 0: no MixUp")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of CutMix's Beta distribution; 0: no CutMix; with mixup each batch takes one",
    )
    mix_probability: Fraction = Field(1.0, description="share of the batches that mixup or cutmix mixes")


Channels = dict[str, Annotated[int, Field(ge=1)]]
_CHANNELS: Any = Field(
    {},
    # Recipes of networks that are whole stay as they were: a search that goes on compares them with saved ones.
    exclude_if=lambda channels: not channels,
    description="how many channels of a layer are left, by its name, as tellapart compress writes it",
)


class ConvNet(Section):
    """The convnet, which is trained from scratch."""

    # No settings of this network, but what training asks of each one.
    weights: ClassVar[str] = ""
    unfreeze: ClassVar[float] = 0.0

    name: Literal["convnet"] = Field("convnet", description="which network")
    width: float = Field(1.0, gt=0, le=4, description="times the channels, in eights: 2 is twice as many in each layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the features that are dropped in training")
    l2: float = Field(1e-4, ge=0, description="L2 penalty on all kernels")
    batchnorm: bool = Field(True, description="BatchNormalization after each convolution")
    batchnorm_momentum: float = Field(0.99, gt=0, lt=1, description="of the running mean and variance")
    channels: Channels = _CHANNELS

    @field_validator("channels")
    @classmethod
    def _layers_exist(cls, channels: dict[str, int]) -> dict[str, int]:
        layers = ("conv1", "conv2", "conv3", "hidden")
        if unknown := sorted(set(channels) - set(layers)):
            raise ValueError(f"convnet has no layer {unknown[0]!r} to narrow. Expected any of {', '.join(layers)}")
        return channels


class Backbone(Section):
    """A network of keras.applications with a head of our own."""

    # The keys of `models.backbones.BACKBONES`, written out: that module needs Keras, and recipes are read without it.
    name: Literal[
        "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet50", "densenet121", "efficientnet_b0",
        "efficientnet_v2_b0", "convnext_tiny",
    ] = Field(description="which network")  # fmt: skip
    weights: str = Field("", description='to begin from: "imagenet" (Keras downloads it), or a file; "": from scratch')
    unfreeze: Fraction = Field(
        0.0, description="share of a pretrained network's layers, from the top, that learn after its head"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the features that are dropped in training")
    l2: float = Field(1e-4, ge=0, description="L2 penalty on the kernel of the head")
    channels: Channels = _CHANNELS


# In this order defaults are looked up (`settings._default`): a recipe that names no network means the convnet.
Model = ConvNet | Backbone


class Stage(Section):
    """One stage of progressive resizing."""

    image_px: int = Field(ge=16, le=1024, description="side of the training pictures in this stage")
    share: float = Field(gt=0, description="of the epochs, relative to the other stages")


class Train(Section):
    """The optimisation."""

    # A new setting of training belongs into `conditions._OF_TRAINING` too, or a fitted head takes it and ignores it.
    epochs: int = Field(
        45, ge=0, description="times over the training photos; 0: what it begins with, or its fitted head, is kept"
    )
    batch_size: int = Field(32, ge=1, description="pictures per step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="which optimiser")
    learning_rate: float = Field(1e-3, gt=0, description="highest rate")
    final_learning_rate: float = Field(1e-4, ge=0, description="rate at the end of the cosine")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, of adamw")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    weight_average: float = Field(
        0.0, ge=0, lt=1, description="length of the running average of the weights, as a share of all steps; 0: none"
    )
    snapshots: int = Field(
        0,
        ge=0,
        le=20,
        description="weights kept on the way, in the second half of the schedule, for `tellapart ensemble`",
    )
    patience: int = Field(10, ge=1, description="epochs without a better validation score before stopping")
    stages: tuple[Stage, ...] = Field((), description="progressive resizing; none: image_px throughout")
    source_px: int = Field(
        0, ge=0, le=1024, description="side of the stored pictures that training crops from; 0: image_px"
    )
    recalibrate_photos: int = Field(
        0, ge=0, description="clean photos that BatchNorm's statistics are estimated on again; 0 for none"
    )
    validate_every: int = Field(1, ge=1, description="epochs between two looks at the validation photos")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="auto measures both and keeps the faster"
    )
    balance: Literal["none", "auto"] = Field(
        "none",
        description="auto: where a class has ten times the photos of another, the network is moved towards rare "
        "classes as far as macro F1 on validation asks for",
    )
    deterministic: bool = Field(False, description="the same weights, bit for bit, on the same machine")
    seed: int = Field(0, description="of initial weights, order, augmentation and dropout")


class Distill(Section):
    """What is learned from another run, such as an ensemble, beside the labels."""

    teacher: str = Field("", description='a finished run folder whose probabilities are learned; "": labels alone')
    weight: Fraction = Field(0.7, description="share of the loss that the teacher decides; the labels decide the rest")
    temperature: float = Field(4.0, gt=0, le=20, description="softens teacher and student alike; 1: as they are")
