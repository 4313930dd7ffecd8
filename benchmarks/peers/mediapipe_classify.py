"""Classifies files with MediaPipe's Image Classifier task, as its guide for Python shows it.

Reads a list of files as JSON from standard input; writes the head, class and score of each, and milliseconds, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata

import mediapipe
from mediapipe.tasks import python as tasks
from mediapipe.tasks.python import vision


def main() -> None:
    """Classify every file that standard input names."""
    options = vision.ImageClassifierOptions(
        base_options=tasks.BaseOptions(model_asset_path=sys.argv[1]),
        max_results=1,
        running_mode=vision.RunningMode.IMAGE,
    )
    answers = []
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for path in json.load(sys.stdin):
            image = mediapipe.Image.create_from_file(path)
            begin = time.perf_counter()
            result = classifier.classify(image)
            seconds = time.perf_counter() - begin
            (head,) = (head for head in result.classifications if head.head_name == "probabilities")
            best = head.categories[0]
            answers.append({"label": best.category_name, "score": best.score, "ms": 1000 * seconds})
    print(json.dumps({"version": metadata.version("mediapipe"), "answers": answers}))


if __name__ == "__main__":
    main()
