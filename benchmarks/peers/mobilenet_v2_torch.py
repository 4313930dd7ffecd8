"""MobileNetV2 in torch with the weights of Keras' file, so that torch peers begin from what Keras and tellapart have.

    python benchmarks/peers/mobilenet_v2_torch.py FILE.weights.h5 OUT.npz   # with Keras
    PYTHON benchmarks/peers/mobilenet_v2_torch.py OUT.npz                   # with torch: prints the largest difference

torchvision's network pads its strided convolutions on both sides, Keras' on the right and below, and their batch
normalisations have other constants; here they are Keras'. The arrays stand in the file in the order of the layers,
which is the same in both, with a picture and Keras' features of it, by which the second command checks them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_PX = 224


def convert(weights: Path, to: Path) -> None:
    """Write the weights as torch has them."""
    import keras

    network = keras.applications.MobileNetV2((IMAGE_PX, IMAGE_PX, 3), include_top=False, weights=str(weights))
    arrays: list[np.ndarray] = []
    for layer in network.layers:
        values = layer.get_weights()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            arrays.append(values[0].transpose(2, 3, 0, 1))
        elif isinstance(layer, keras.layers.Conv2D):
            arrays.append(values[0].transpose(3, 2, 0, 1))
        elif isinstance(layer, keras.layers.BatchNormalization):
            arrays += values  # gamma, beta, mean, variance
    picture = np.random.default_rng(0).uniform(-1, 1, (2, IMAGE_PX, IMAGE_PX, 3)).astype(np.float32)
    known = {"picture": picture.transpose(0, 3, 1, 2), "features": np.asarray(network(picture)).transpose(0, 3, 1, 2)}
    np.savez(to, **{f"{number:03d}": array for number, array in enumerate(arrays)}, **known)


def mobilenet_v2(weights: Path) -> Any:
    """Return torchvision's network with these weights; its classifier is as it was. Pictures are from -1 to 1."""
    import torch
    from cpu_torchvision import torchvision
    from torch import nn

    network = torchvision.models.mobilenet_v2(weights=None)
    with np.load(weights) as file:
        arrays = [file[name] for name in sorted(file.files) if name.isdigit()]
    left = iter(arrays)

    def taken(parameter: torch.Tensor) -> None:
        parameter.data.copy_(torch.from_numpy(next(left)).reshape(parameter.shape))

    for module in list(network.features.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.001
            for parameter in (module.weight, module.bias, module.running_mean, module.running_var):
                taken(parameter)
        elif isinstance(module, nn.Conv2d):
            taken(module.weight)
        elif isinstance(module, nn.Sequential):
            for number, convolution in enumerate(module):
                if isinstance(convolution, nn.Conv2d) and convolution.stride == (2, 2):
                    convolution.padding = (0, 0)
                    module[number] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), convolution)
    if next(left, None) is not None:
        raise SystemExit("The file holds more arrays than the network takes. Expected MobileNetV2 1.0 without its top.")
    return network


def main() -> None:
    """Convert, or check what was converted."""
    if len(sys.argv) == 3:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    import torch

    network = mobilenet_v2(Path(sys.argv[1])).eval()
    with np.load(sys.argv[1]) as file, torch.no_grad():
        found, expected = network.features(torch.from_numpy(file["picture"])).numpy(), file["features"]
    print(f"largest difference {np.abs(found - expected).max():.2g} of {np.abs(expected).max():.3g}")


if __name__ == "__main__":
    main()
