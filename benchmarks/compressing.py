"""What `tellapart compress` makes of a run, beside other quantizers with their defaults.

    python benchmarks/compressing.py RUN [RUN ...] --name mobilenet_v2 --shares 0.75,0.55,0.4

The whole search, of each run (further ones are of other seeds): sizes, milliseconds on one thread (three rounds in
turns, medians), accuracy on validation and, for what was chosen, on test photos. Ratios are against the whole network's
file and its fastest runtime. Peers, on the same network, calibration photos and processor: ONNX Runtime's
`quantize_static` as it comes and with weights by channel, `quantize_dynamic` and NNCF as they come, each in ONNX
Runtime and OpenVINO, and ai-edge-quantizer in LiteRT; the last two where they are installed. Peers, the whole network
and what was chosen are timed alike: each in a process of its own, in turns. A finished search is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray

from machine import write_result
from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.runtimes import FRAMEWORKS, RUNTIMES
from tellapart.compress.compress import Candidate, Compression, compress
from tellapart.data.cache import default_cache, open_rows
from tellapart.evaluation.measure import class_numbers
from tellapart.proportions import difference_interval
from tellapart.randomness import generator
from tellapart.records import Observer, plain
from tellapart.run_folder import RunFolder
from tellapart.shipping.export import export

ROUNDS, SECONDS = 3, 1.0
Pictures = NDArray[np.uint8]


def pictures_of(
    run: RunFolder, split: str, image_px: int, most: int | None = None
) -> tuple[Pictures, NDArray[np.int64]]:
    """Return a split's photos as the network sees them, or some of them, drawn; and their class numbers."""
    frame = run.readable()
    frame = frame[frame["split"] == split].reset_index(drop=True)
    if most is not None and most < len(frame):
        chosen = np.sort(generator(0, "calibration").permutation(len(frame))[:most])
        frame = frame.iloc[chosen].reset_index(drop=True)
    with open_rows(run.root, frame, image_px, folder=default_cache()) as pictures:
        return pictures.batch(np.arange(len(frame))), class_numbers(frame, run.record().classes)


class Reader:
    """Hands out pictures one by one, as ONNX Runtime's documentation shows it."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = iter(pictures)

    def get_next(self) -> dict[str, Pictures] | None:
        """Return the next input; None: there is none."""
        picture = next(self._pictures, None)
        return None if picture is None else {"image": picture[None]}


def by_onnxruntime_static(source: Path, target: Path, pictures: Pictures) -> None:
    """As it comes: int8 by tensor, after the preparation that its documentation asks for."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(prepared, target, Reader(pictures))
    prepared.unlink()


def by_onnxruntime_by_channel(source: Path, target: Path, pictures: Pictures) -> None:
    """With a scale for each channel of the weights, and activations from 0 to 255, as its documentation advises."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        prepared, target, Reader(pictures), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()


def by_onnxruntime_dynamic(source: Path, target: Path, pictures: Pictures) -> None:
    """As it comes; it needs no pictures."""
    from onnxruntime.quantization import quantize_dynamic

    del pictures
    quantize_dynamic(source, target)


def by_nncf(source: Path, target: Path, pictures: Pictures) -> None:
    """As it comes, on the ONNX file."""
    import nncf
    import onnx

    dataset = nncf.Dataset(list(pictures), lambda picture: {"image": picture[None]})
    onnx.save(nncf.quantize(onnx.load(source), dataset), target)


def by_ai_edge_quantizer(source: Path, target: Path, pictures: Pictures) -> None:
    """Its recipe for weights and activations in int8, on the LiteRT file."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(str(source))
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    found = made.calibrate({"serving_default": [{"image": picture[None]} for picture in pictures]})
    made.quantize(found).export_model(str(target), overwrite=True)


def by_ai_edge_quantizer_dynamic(source: Path, target: Path, pictures: Pictures) -> None:
    """Its recipe for weights alone; it needs no pictures."""
    from ai_edge_quantizer import quantizer, recipe

    del pictures
    made = quantizer.Quantizer(str(source))
    made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    made.quantize().export_model(str(target), overwrite=True)


Quantizer = Callable[[Path, Path, Pictures], None]
ONNX, LITERT = ("onnxruntime-int8", "openvino-int8"), ("litert-int8",)
QUANTIZERS: dict[str, tuple[str, Quantizer, tuple[str, ...]]] = {
    "onnxruntime quantize_static": ("", by_onnxruntime_static, ONNX),
    "onnxruntime quantize_static by channel": ("", by_onnxruntime_by_channel, ONNX),
    "onnxruntime quantize_dynamic": ("", by_onnxruntime_dynamic, ONNX),
    "nncf": ("nncf", by_nncf, ONNX),
    "ai-edge-quantizer static": ("ai_edge_quantizer", by_ai_edge_quantizer, LITERT),
    "ai-edge-quantizer dynamic": ("ai_edge_quantizer", by_ai_edge_quantizer_dynamic, LITERT),
}
"""Name → the package beside ours that it needs, how it is called, and the runtimes that open what it makes."""


def laps(predict: Callable[[Pictures], Any], picture: Pictures) -> float:
    """Return the median milliseconds of a call."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 15:
        begin = time.perf_counter()
        predict(picture)
        times.append(time.perf_counter() - begin)
    return 1000 * float(np.median(times[5:]))


def timed(path: Path, runtime: str, image_px: int) -> float:
    """Return the median milliseconds of a call, measured in a process of its own."""
    words = [sys.executable, __file__, str(path), "--name", "lap", "--lap", runtime, str(image_px)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def peers(folder: Path, run: RunFolder, ours: Sequence[Bundle]) -> list[dict[str, Any]]:
    """Quantize the whole network's file with each peer, and measure what comes of it beside our bundles."""
    whole_bundle = export(run.path, folder / "whole", formats=["litert"])
    sources = {artefact.format: whole_bundle.path(artefact) for artefact in whole_bundle.record.artefacts}
    image_px = whole_bundle.record.image_px
    calibration, _ = pictures_of(run, "train", image_px, 256)
    validation, true = pictures_of(run, "validation", image_px)
    whole = predicted(RUNTIMES["onnxruntime"].opens(sources["onnx"], os.cpu_count() or 1), validation) == true
    rows: list[dict[str, Any]] = []
    files: dict[int, Path] = {}

    def add(name: str, runtime: str, path: Path) -> None:
        row: dict[str, Any] = {"quantizer": name, "runtime": runtime}
        rows.append(row)
        try:
            right = predicted(RUNTIMES[runtime].opens(path, os.cpu_count() or 1), validation) == true
        except Exception as error:  # noqa: BLE001  that it does not work is a result
            row["error"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            return
        counts = [int(part.sum()) for part in (right & whole, right & ~whole, ~right & whole, ~right & ~whole)]
        interval = difference_interval(*counts)
        # Of the loss, as for our own: positive where it is less accurate.
        row |= {
            "bytes": path.stat().st_size, "accuracy": float(right.mean()),
            "loss": float(whole.mean() - right.mean()), "interval": [interval.low, interval.high], "p50_ms": [],
        }  # fmt: skip
        files[len(rows) - 1] = path

    for bundle in ours:
        for artefact in bundle.record.artefacts:
            for runtime in artefact.proofs:
                if runtime not in FRAMEWORKS and artefact.proofs[runtime].passed:
                    add(f"tellapart {bundle.record.name}", runtime, bundle.path(artefact))
    for name, (package, quantize, runtimes) in QUANTIZERS.items():
        if package and not importlib.util.find_spec(package):
            continue
        format_ = "litert" if runtimes == LITERT else "onnx"
        path = folder / f"{name.replace(' ', '-')}{sources[format_].suffix}"
        if not path.exists():
            try:
                quantize(sources[format_], path, calibration)
            except Exception as error:  # noqa: BLE001
                rows.append({"quantizer": name, "runtime": "", "error": f"{type(error).__name__}: {error}"[:300]})
                continue
        for runtime in runtimes:
            add(name, runtime, path)
    for _ in range(ROUNDS):
        for at, path in files.items():
            rows[at]["p50_ms"].append(timed(path, rows[at]["runtime"], image_px))
    return rows


def predicted(predict: Callable[[Pictures], Any], pictures: Pictures) -> NDArray[np.int64]:
    """Return the class numbers of all pictures."""
    parts = [predict(pictures[at : at + 32])[0].argmax(axis=1) for at in range(0, len(pictures), 32)]
    return np.concatenate(parts)


def floors(run: RunFolder) -> dict[str, Any]:
    """Return what no whole network in int8 goes below: a byte for each weight, and its products at int8 rate.

    The rate is that of a product of two matrices of 1,024 × 1,024 in ONNX Runtime, on one thread, the fastest of many.
    """
    import keras
    import onnx
    import onnxruntime

    from tellapart.models.channels import channels_of

    image_px = run.recipe().data.image_px
    cost = channels_of(keras.models.load_model(run.model_path), image_px).cost()
    side = 1024
    shapes = [
        onnx.helper.make_tensor_value_info(name, kind, [side, side])
        for name, kind in (("a", onnx.TensorProto.UINT8), ("b", onnx.TensorProto.INT8), ("c", onnx.TensorProto.INT32))
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product", shapes[:2], shapes[2:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {"a": np.ones((side, side), np.uint8), "b": np.ones((side, side), np.int8)}
    seconds = min(timed_once(lambda: session.run(None, values)) for _ in range(100))
    rate = 2 * side**3 / seconds
    return {
        "weights": cost.weights, "multiplications": cost.multiplications, "int8_operations_per_second": rate,
        "megabytes": cost.weights / 1e6, "milliseconds": 2000 * cost.multiplications / rate,
    }  # fmt: skip


def timed_once(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratios(result: Compression) -> dict[str, Any]:
    """Return how much smaller and faster the chosen candidates are than the whole network in its fastest runtime."""
    whole = [c for c in result.candidates if c.share == 1 and c.precision == "float32" and not c.error]
    fastest = min(whole, key=lambda candidate: candidate.p50_ms)

    def beside(at: int | None) -> dict[str, Any] | None:
        if at is None:
            return None
        candidate: Candidate = result.candidates[at]
        return {
            "name": candidate.name, "runtime": candidate.runtime, "times_smaller": fastest.bytes / candidate.bytes,
            "times_faster": fastest.p50_ms / candidate.p50_ms,
        }  # fmt: skip

    return {"whole": fastest.runtime, "smallest": beside(result.smallest), "fastest": beside(result.fastest)}


def main() -> None:
    """Search, measure the peers and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="the same recipe with other seeds after the first")
    parser.add_argument("--name", required=True, help="of the result: compression-NAME.json")
    parser.add_argument("--budget", type=float, default=0.005)
    parser.add_argument("--shares", default="0.75,0.55,0.4", help="empty: the whole network alone")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/compression"))
    parser.add_argument("--lap", nargs=2, help=argparse.SUPPRESS)  # one file: its runtime, and the picture's side
    arguments = parser.parse_args()
    if arguments.lap:
        runtime, side = arguments.lap[0], int(arguments.lap[1])
        picture = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
        print(laps(RUNTIMES[runtime].opens(arguments.run[0], 1), picture))
        return
    shares = [float(part) for part in arguments.shares.split(",") if part]
    searches, first = [], None
    for number, path in enumerate(arguments.run):
        result = compress(
            path, arguments.work / f"{arguments.name}-{number}", budget=arguments.budget, shares=shares,
            epochs=arguments.epochs, observer=Observer(announce=print),
        )  # fmt: skip
        first = first or result
        searches.append({
            "ratios": ratios(result), "candidates": plain(list(result.candidates)),
            "confirmations": {result.candidates[at].name: plain(part) for at, part in result.confirmations.items()},
        })  # fmt: skip
        print(json.dumps(searches[-1]["ratios"], indent=2), json.dumps(searches[-1]["confirmations"], indent=2))
    assert first is not None  # at least one run
    wanted = {"bundles/whole-float32", "bundles/whole-int8"}
    wanted |= {first.candidates[at].bundle for at in (first.smallest, first.fastest) if at is not None}
    ours = [open_bundle(first.folder / bundle) for bundle in sorted(wanted)]
    run, others = RunFolder(arguments.run[0]), arguments.work / f"{arguments.name}-peers"
    others.mkdir(parents=True, exist_ok=True)
    values = {
        "network": run.recipe().model.name, "image_px": run.recipe().data.image_px, "budget": arguments.budget,
        "searches": searches, "floors": floors(run), "peers": peers(others, run, ours),
    }  # fmt: skip
    for row in values["peers"]:
        print(row)
    print(f"Written to {write_result(f'compression-{arguments.name}', values)}")


if __name__ == "__main__":
    main()
