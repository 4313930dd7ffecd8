"""Does MediaPipe's Image Classifier, which phones have, say of photos what the bundle says, from the same LiteRT file?

    python benchmarks/mediapipe_task.py BUNDLE ../shared/data/photos9 --python /tmp/mediapipe/bin/python

It reads size, classes and what to feed from the file's metadata. Asked twice: about the photos as they are, which it
shrinks its own way, and about photos that were shrunk before as `tellapart` shrinks them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from machine import write_result
from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.predictor import open_classifier
from tellapart.data.decode import decode_square
from tellapart.data.image_file import read_file
from tellapart.data.listing import image_files
from tellapart.proportions import wilson
from tellapart.randomness import generator


def asked(python: Path, model: Path, files: list[Path]) -> dict[str, Any]:
    """Ask the task about files."""
    command = [str(python), str(Path(__file__).parent / "peers" / "mediapipe_classify.py"), str(model)]
    names = json.dumps([str(path.resolve()) for path in files])
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=True)
    answers: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answers


def main() -> None:
    """Ask both, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of an environment with mediapipe")
    parser.add_argument("--num", type=int, default=200)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    artefact = next(part for part in bundle.record.artefacts if part.format == "litert")
    every = image_files([arguments.photos])
    files = [every[at] for at in generator(0, "photos").permutation(len(every))[: arguments.num]]
    runtime = "litert-int8" if artefact.precision == "int8" else "litert"
    expected = [answer.label for answer in open_classifier(arguments.bundle, runtime=runtime).predict(files)]
    values: dict[str, Any] = {"precision": artefact.precision, "bytes": artefact.bytes, "num_photos": len(files)}
    with tempfile.TemporaryDirectory() as folder:
        shrunk = []
        for number, path in enumerate(files):
            picture = decode_square(read_file(path), bundle.record.image_px, max_pixels=bundle.record.max_pixels)
            shrunk.append(Path(folder) / f"{number}.png")
            cv2.imwrite(str(shrunk[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        for name, asked_about in (("as they are", files), ("shrunk before", shrunk)):
            answers = asked(arguments.python, bundle.path(artefact), asked_about)
            found = [answer["label"] for answer in answers["answers"]]
            agreeing = sum(map(str.__eq__, found, expected))
            interval = wilson(agreeing, len(files))
            values["mediapipe"] = answers["version"]
            values[name] = {
                "agreeing": agreeing, "agreement": agreeing / len(files), "interval": [interval.low, interval.high],
                "p50_ms": float(np.median([answer["ms"] for answer in answers["answers"]][5:])),
            }  # fmt: skip
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('mediapipe-task', values)}")


if __name__ == "__main__":
    main()
