"""Imports torchvision beside a CPU torch, also where only torchvision's CUDA build can be had.

PyPI's wheel of torchvision is that build: its compiled half finds no CUDA torch to load, and its import then fails for
want of the operators `nms` and `qnms`. They are for detection; to declare them is enough for all that classification
uses, which is plain torch. With a torchvision that loads, this is no more than its import. Shared by the torch peers.
"""

from __future__ import annotations

import torch

try:
    import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    DECLARED = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        DECLARED.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
