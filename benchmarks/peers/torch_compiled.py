"""Times training the reference network in PyTorch at its best: channels last, compiled, bfloat16, fused Adam.

Photos are decoded by OpenCV in worker processes. Augmentation is one OpenCV warp in the workers, or one
`grid_sample` on the batch; on a CPU the first is faster, on a GPU the second.
Prints one JSON line. Imports nothing of tellapart: it is what tellapart is measured against.
Run it as: python benchmarks/peers/torch_compiled.py FOLDER --image-px 224 --batch-size 32 --steps 40
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("This peer needs PyTorch, which is not installed: pip install 'tellapart[benchmark]'.")

import cv2
import numpy as np
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

ROTATION, ZOOM, CONTRAST = 0.2, 0.2, 0.2
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """A folder per class, each photo decoded, resized and, where asked, augmented when it is read."""

    def __init__(self, folder: str, image_px: int, augment: bool) -> None:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        self.files = [
            (str(path), target)
            for target, name in enumerate(names)
            for path in sorted(Path(folder, name).rglob("*"))
            if path.suffix.lower() in EXTENSIONS
        ]
        self.num_classes = len(names)
        self.image_px = image_px
        self.augment = augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, target = self.files[index]
        pixels = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise ValueError(f"{path} cannot be decoded. Take it out of the folder.")
        if self.augment:
            pixels = augmented(pixels, self.image_px)
        else:
            pixels = cv2.resize(pixels, (self.image_px, self.image_px), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(pixels), target


class Network(nn.Module):
    """The reference network on (num_images, 3, height, width) uint8 pictures."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, 32, 64, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels[i], channels[i + 1], 3, padding="same") for i in range(3))
        # Keras' momentum 0.99 and epsilon, in PyTorch's meaning.
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3, momentum=0.01) for width in channels[1:])
        self.hidden = nn.Linear(128, 256)
        self.dropout = nn.Dropout(0.5)
        self.logits = nn.Linear(256, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (num_images, num_classes) logits."""
        maps = pixels.float() / 255
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            maps = norm(functional.relu(convolution(maps)))
            if i < 2:
                maps = functional.max_pool2d(maps, 2)
        features = functional.relu(self.hidden(maps.mean((2, 3))))
        return self.logits(self.dropout(features))


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    on_gpu = arguments.device == "cuda"
    in_workers = arguments.augment == "workers" or (arguments.augment == "auto" and not on_gpu)
    photos = Photos(arguments.folder, arguments.image_px, in_workers)
    if len(photos) < arguments.batch_size:
        sys.exit(f"{arguments.folder} holds {len(photos)} photos, fewer than --batch-size.")
    result: dict[str, Any] = {
        "peer": "torch_compiled",
        "training": not arguments.no_training,
        "precision": arguments.precision,
        "device": arguments.device,
        "image_px": arguments.image_px,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "augmentation": "workers" if in_workers else "batch",
        "first_epoch_images_per_second": first_epoch(photos, arguments),
    }
    if not arguments.no_training:
        result |= time_training(photos, arguments, augment_batch=not in_workers)
    result["versions"] = {
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder per class")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="steps that are timed")
    parser.add_argument("--warmup-steps", type=int, default=5, help="steps before them that are not")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--augment", choices=("auto", "workers", "batch"), default="auto")
    parser.add_argument(
        "--compile-mode",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
        default="default",
        help="of torch.compile; none does not compile",
    )
    parser.add_argument("--no-training", action="store_true", help="time only reading the first epoch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not os.path.isdir(arguments.folder):
        sys.exit(f"{arguments.folder} is no folder. Expected a folder per class with photos in it.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no GPU here. Use --device cpu.")
    if arguments.warmup_steps < 1:
        sys.exit("--warmup-steps must be at least 1: the first step compiles.")
    return arguments


# Reading ------------------------------------------------------------------------------------------


def augmented(pixels: np.ndarray, image_px: int) -> np.ndarray:
    """Resize, flip, turn, zoom and change contrast: one warp and one table per channel."""
    random = np.random.default_rng(int(torch.randint(2**31, ()).item()))
    resized = cv2.resize(pixels, (image_px, image_px), interpolation=cv2.INTER_LINEAR)
    angle = 2 * math.pi * random.uniform(-ROTATION, ROTATION)
    zoom, mirror = 1 + random.uniform(-ZOOM, ZOOM), random.choice((-1.0, 1.0))
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    matrix = np.array([[mirror * cosine, -sine, 0], [mirror * sine, cosine, 0]])
    middle = (image_px - 1) / 2
    matrix[:, 2] = middle - matrix[:, :2] @ (middle, middle)
    warped = cv2.warpAffine(
        resized,
        matrix,
        (image_px, image_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    means = np.array(cv2.mean(warped)[:3])
    factor = 1 + random.uniform(-CONTRAST, CONTRAST)
    table = (np.arange(256)[:, None] - means) * factor + means
    return cv2.LUT(warped, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])


def batches(photos: Photos, arguments: argparse.Namespace, num_images: int) -> DataLoader[Any]:
    """Return a loader of whole batches of `num_images` random photos, as many epochs as that takes."""
    on_gpu = arguments.device == "cuda"
    return DataLoader(
        photos,
        batch_size=arguments.batch_size,
        sampler=RandomSampler(photos, num_samples=num_images),
        num_workers=arguments.workers,
        worker_init_fn=one_thread,
        pin_memory=on_gpu,
        drop_last=True,
        prefetch_factor=4 if arguments.workers else None,
    )


def one_thread(worker: int) -> None:
    """Keep a worker process to one thread."""
    del worker
    cv2.setNumThreads(1)


def first_epoch(photos: Photos, arguments: argparse.Namespace) -> float:
    """Return images per second of reading the photos for the first time, at most a first epoch.

    With training only as many batches as are trained on. The start of the workers is counted.
    """
    wanted = len(photos) if arguments.no_training else arguments.steps * arguments.batch_size
    start, num_images = time.perf_counter(), 0
    for pixels, _ in batches(photos, arguments, min(len(photos), wanted)):
        num_images += len(pixels)
    return num_images / (time.perf_counter() - start)


# Training -----------------------------------------------------------------------------------------


def time_training(photos: Photos, arguments: argparse.Namespace, *, augment_batch: bool) -> dict[str, Any]:
    """Return the figures of `arguments.steps` steps."""
    device = torch.device(arguments.device)
    num_steps = arguments.warmup_steps + arguments.steps
    step = train_step(Network(photos.num_classes).to(device), arguments, augment_batch)
    loader = batches(photos, arguments, num_steps * arguments.batch_size)
    wall: list[float] = []
    processor: list[float] = []
    for pixels, targets in on_device(loader, device):
        step(pixels, targets).item()  # waits for the step, as a progress bar that shows the loss does
        wall.append(time.perf_counter())
        processor.append(processor_seconds())
    first = arguments.warmup_steps - 1
    num_images = arguments.steps * arguments.batch_size
    pairs = zip(wall[first:], wall[first + 1 :], strict=False)
    figures: dict[str, Any] = {
        "images_per_second": num_images / (wall[-1] - wall[first]),
        "seconds_per_image": (wall[-1] - wall[first]) / num_images,
        "cpu_seconds_per_image": (processor[-1] - processor[first]) / num_images,
        "median_step_seconds": statistics.median(later - earlier for earlier, later in pairs),
        "steps": arguments.steps,
        "compile_mode": arguments.compile_mode,
    }
    if device.type == "cuda":
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        figures["gpu"] = torch.cuda.get_device_name()
    return figures


def train_step(
    network: Network, arguments: argparse.Namespace, augment_batch: bool
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function that takes one step on a batch and returns its loss."""
    network = network.to(memory_format=torch.channels_last).train()
    # Keras' L2(1e-4) adds 1e-4 w² to the loss: its gradient is a coupled weight decay of 2e-4.
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    optimizer = torch.optim.Adam(
        [{"params": kernels, "weight_decay": 2e-4}, {"params": others}], lr=1e-3, eps=1e-7, fused=True
    )

    def loss_of(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if augment_batch:
            pixels = augmented_batch(pixels)
        return functional.cross_entropy(network(pixels).float(), targets, label_smoothing=0.1)

    compiled = loss_of if arguments.compile_mode == "none" else torch.compile(loss_of, mode=arguments.compile_mode)

    def step(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            loss = compiled(pixels, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def augmented_batch(pixels: torch.Tensor) -> torch.Tensor:
    """Flip, turn, zoom and change contrast of (num_images, 3, height, width) uint8 pictures, in float32."""
    with torch.autocast(pixels.device.type, enabled=False):
        images = pixels.float()
        number = len(images)

        def random(limit: float) -> torch.Tensor:
            return (torch.rand(number, device=images.device) * 2 - 1) * limit

        angle, zoom = random(2 * math.pi * ROTATION), 1 + random(ZOOM)
        mirror = torch.where(random(1.0) < 0, -1.0, 1.0)
        cosine, sine, zero = zoom * angle.cos(), zoom * angle.sin(), torch.zeros_like(angle)
        rows = (torch.stack([mirror * cosine, -sine, zero], 1), torch.stack([mirror * sine, cosine, zero], 1))
        grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        means = images.mean((2, 3), keepdim=True)
        return ((images - means) * (1 + random(CONTRAST)).view(-1, 1, 1, 1) + means).clamp(0, 255)


def on_device(loader: DataLoader[Any], device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches as (num_images, 3, height, width); stacked HWC pictures are channels last already."""
    for pixels, targets in loader:
        moved = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        yield moved, targets.to(device, non_blocking=True)


def processor_seconds() -> float:
    """Return the processor time of this process and of its living workers, from /proc where there is one."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
