"""Training on a GPU under JAX: whole commands as a user runs them, and single steps beside PyTorch in the same run.

    KERAS_BACKEND=jax python benchmarks/gpu.py ../shared/data/photos9 --rounds 3 --seeds 3

Steps: the reference network, forward, backward and optimiser, in bfloat16. Tellapart's batches are drawn and augmented
on the device as in training; PyTorch (compiled, channels last, one CUDA graph of the whole step) gets one batch again
and again, not augmented. Rounds take turns. Commands: the recipe `fast` with an empty cache of compiled steps and then
with a full one, each time with no decoded photos, and the recipe `reference`. One more run of each, compiled before, is
watched by XLA's profiler: the share of its training in which no stream of the device had work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from machine import write_result
from tellapart.evaluation.intervals import mean_interval
from tellapart.proportions import wilson

HERE = Path(__file__).parent
STEPS = [("fast", 64, 32), ("fast", 64, 256), ("reference", 224, 32), ("reference", 224, 256)]


def ours(recipe_name: str, image_px: int, batch_size: int) -> dict:
    """Return the speed of training steps on drawn numbers, in this process."""
    import jax
    import pandas as pd

    from tellapart.data.cache import Pictures
    from tellapart.settings import load_recipe, with_settings
    from tellapart.training.inputs import Inputs, Photos
    from tellapart.training.network import compiled
    from tellapart.training.on_device import OnDevice, peak_memory_mb
    from tellapart.training.schedule import Segment

    source = 96 if recipe_name == "fast" else image_px
    changes = {"train.batch_size": batch_size, "data.image_px": image_px, "train.stages": []}
    recipe = with_settings(load_recipe(recipe_name), changes)
    count = 4096 if image_px < 100 else 2048
    levels = np.random.default_rng(0).integers(0, 256, (count, source, source, 3), np.uint8)

    class Held(Pictures):
        """Pictures that lie in memory."""

        def read(self, position: int) -> np.ndarray:
            return levels[position]

    pictures = Held([Path()] * count, [""] * count, source)
    labels = [f"class {number % 9}" for number in range(count)]
    frame = pd.DataFrame({"label": labels, "split": ["train"] * count})
    inputs = Inputs(recipe, Photos(pictures, pictures, frame, sorted(set(labels))))
    model, rate = compiled(recipe, 9, "mixed_bfloat16")
    rate.enter(Segment(image_px, 1, (0.0, 1.0)), 0, 1000)
    start = time.perf_counter()
    device = OnDevice(model, rate, inputs, [image_px])
    device.seconds_per_image(image_px)
    ready = time.perf_counter() - start
    speeds = [1 / device.seconds_per_image(image_px) for _ in range(5)]
    return {
        "images_per_second": max(speeds),
        "slowest_images_per_second": min(speeds),
        "seconds_until_ready": ready,
        "peak_memory_mb": peak_memory_mb(),
        "versions": {"jax": jax.__version__},
    }


def watched(photos: Path, recipe: str, out: Path) -> dict:
    """Train in this process, watched by XLA's profiler; say what share of training the device had nothing to do."""
    import jax

    import tellapart
    from tellapart.training import train

    fit_segments = train._fit_segments

    def traced(*arguments: object, **named: object) -> None:
        with jax.profiler.trace(str(out / "trace")):
            fit_segments(*arguments, **named)

    train._fit_segments = traced  # reading, decoding and the measuring at the end are left out
    tellapart.train(photos, recipe=recipe, out=out / "run")
    (file,) = (out / "trace").rglob("*.xplane.pb")
    spans = [
        (event.start_ns, event.end_ns)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream")  # others sum up whole calls, with what lies between their kernels
        for event in line.events
    ]
    return {"idle_share": idle_share(spans), "events": len(spans)}


def idle_share(spans: list[tuple[float, float]]) -> float | None:
    """Return the share of the time from the first start to the last end that no (start, end) covers; None: no spans."""
    if not spans:
        return None
    spans = sorted(spans)
    first = covered_until = spans[0][0]
    idle = 0.0
    for start, end in spans:
        idle += max(0.0, start - covered_until)
        covered_until = max(covered_until, end)
    return idle / (covered_until - first)


def run(command: list[str], environment: dict[str, str] | None = None) -> dict:
    """Return the JSON line that a contestant prints; `environment` is added to this process's."""
    environment = os.environ | (environment or {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def steps(rounds: int, compile_mode: str, sizes: list[int]) -> dict:
    """Measure single steps, and return medians with the ratio within each round."""
    results: dict[str, dict] = {}
    for recipe, image_px, batch_size in STEPS:
        if image_px not in sizes:
            continue
        size = ["--image-px", str(image_px), "--batch-size", str(batch_size)]
        torch = [sys.executable, str(HERE / "peers" / "torch_graph.py"), *size, "--compile-mode", compile_mode]
        mine = [sys.executable, __file__, "--ours", recipe, str(image_px), str(batch_size)]
        pairs = [(run(mine), run(torch)) for _ in range(rounds)]
        both = [(a, b) for a, b in pairs if "error" not in a and "error" not in b]
        name = f"{image_px} px, batch {batch_size}"
        results[name] = {
            "ratio_to_torch": [a["images_per_second"] / b["images_per_second"] for a, b in both],
            "rounds": [{"tellapart": a, "torch": b} for a, b in pairs],
        }
        for index, who in enumerate(("tellapart", "torch")):
            speeds = [pair[index]["images_per_second"] for pair in both]
            results[name][f"median_images_per_second_{who}"] = statistics.median(speeds) if speeds else None
        print(name, {key: value for key, value in results[name].items() if key != "rounds"}, flush=True)
    return results


def command(photos: Path, recipe: str, seed: int, work: Path, *, cold: bool) -> dict:
    """Run `tellapart train` once, timed from the outside."""
    out, compiled = work / f"{recipe}-{seed}", work / "xla"
    for folder in (out, work / "cache", *([compiled] if cold else [])):
        shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "TELLAPART_CACHE": str(work / "cache"), "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    line = [sys.executable, "-m", "tellapart", "train", str(photos), "--recipe", recipe, "--out", str(out)]
    start = time.perf_counter()
    subprocess.run([*line, "--set", f"train.seed={seed}"], env=environment, check=True, capture_output=True)
    wall = time.perf_counter() - start
    metrics = json.loads((out / "metrics.json").read_text())
    history = (out / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("seconds")
    figures = {
        "seed": seed,
        "compiled_before": not cold,
        "wall_seconds": wall,
        "seconds_training": metrics["seconds_training"],
        "first_epoch_seconds": float(history[1].split(",")[column]),
        "images_per_second": metrics["images_per_second"],
        "epochs": len(history) - 1,
        "peak_device_memory_mb": metrics["peak_device_memory_mb"],
        "test_accuracy": metrics["test"]["accuracy"],
        "num_test": metrics["test"]["num_images"],
        "precision": json.loads((out / "environment.json").read_text())["precision"],
    }
    print(recipe, figures, flush=True)
    return figures


def commands(photos: Path, seeds: int, work: Path) -> dict:
    """Run both recipes with each seed; `fast` first with nothing compiled."""
    results = {}
    for recipe in ("fast", "reference"):
        runs = [command(photos, recipe, 0, work, cold=True)]
        runs += [command(photos, recipe, seed, work, cold=False) for seed in range(seeds)]
        warm = [one for one in runs if one["compiled_before"]]
        accuracies = np.array([one["test_accuracy"] for one in warm])
        pooled, over = wilson(accuracies.mean() * warm[0]["num_test"], warm[0]["num_test"]), mean_interval(accuracies)
        results[recipe] = {
            "cold_wall_seconds": runs[0]["wall_seconds"],
            "warm_wall_seconds": statistics.median(one["wall_seconds"] for one in warm),
            "warm_seconds_training": statistics.median(one["seconds_training"] for one in warm),
            "mean_test_accuracy": float(accuracies.mean()),
            "interval_over_seeds": [over.low, over.high] if len(warm) > 1 else None,
            "interval_over_test_photos": [pooled.low, pooled.high],
            "device_idle": idle(photos, recipe, work),
            "runs": runs,
        }
    return results


def idle(photos: Path, recipe: str, work: Path) -> dict:
    """Run `watched` in a process of its own, after the same steps were compiled."""
    out = work / f"{recipe}-watched"
    shutil.rmtree(out, ignore_errors=True)
    environment = {"TELLAPART_CACHE": str(work / "cache"), "JAX_COMPILATION_CACHE_DIR": str(work / "xla")}
    found = run([sys.executable, __file__, str(photos), "--watched", recipe, "--work", str(out)], environment)
    print(recipe, found, flush=True)
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("steps", "commands"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 224], help="of the pictures in steps")
    parser.add_argument("--compile-mode", default="max-autotune-no-cudagraphs", help="of PyTorch")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--watched", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        recipe, image_px, batch_size = arguments.ours
        print(json.dumps(ours(recipe, int(image_px), int(batch_size))))
        return
    if arguments.watched:
        print(json.dumps(watched(arguments.photos, arguments.watched, arguments.work)))
        return
    if arguments.only != "steps":
        arguments.work.mkdir(parents=True, exist_ok=True)
        results = commands(arguments.photos.resolve(), arguments.seeds, arguments.work.resolve())
        print("Written to", write_result("gpu-training", {"commands": results}))
    if arguments.only != "commands":
        results = steps(arguments.rounds, arguments.compile_mode, arguments.sizes)
        print("Written to", write_result("gpu-steps", {"steps": results}))


if __name__ == "__main__":
    main()
