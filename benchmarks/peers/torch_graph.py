"""Times a training step of the reference network in PyTorch on a GPU at its best: one CUDA graph of the whole step.

Channels last, bfloat16, forward and backward compiled, fused Adam; the batch lies on the device and is not augmented.
Prints one JSON line. Run it as: python benchmarks/peers/torch_graph.py --image-px 224 --batch-size 32
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch.nn import functional
from torch_compiled import Network


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile-mode", default="max-autotune-no-cudagraphs", help="the graph is captured here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    network = Network(9).cuda().to(memory_format=torch.channels_last).train()
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    groups = [{"params": kernels, "weight_decay": 2e-4}, {"params": others}]
    optimizer = torch.optim.Adam(groups, lr=1e-3, eps=1e-7, fused=True, capturable=True)
    shape = (arguments.batch_size, arguments.image_px, arguments.image_px, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
    targets = torch.randint(0, 9, shape[:1], device="cuda")

    @torch.compile(mode=arguments.compile_mode)
    def loss_of(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(pixels).float(), targets, label_smoothing=0.1)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(pixels, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # a graph writes to the same gradients each time

    start = time.perf_counter()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    torch.cuda.synchronize()
    ready = time.perf_counter() - start
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(arguments.steps // 5):
            graph.replay()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / (arguments.steps // 5))
    print(
        json.dumps(
            {
                "images_per_second": arguments.batch_size / min(seconds),
                "slowest_images_per_second": arguments.batch_size / max(seconds),
                "seconds_until_ready": ready,
                "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6,
                "compile_mode": arguments.compile_mode,
                "versions": {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()},
            }
        )
    )


if __name__ == "__main__":
    main()
