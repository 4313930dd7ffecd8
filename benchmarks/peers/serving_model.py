"""What each peer's server runs for one picture: OpenCV, and the bundle's ONNX in OpenVINO at bfloat16.

Pictures are decoded as the bundle's own decoder does for an ordinary JPEG: read whole, resized to a square.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import openvino

cv2.setNumThreads(1)


LONE = os.environ.get("PEER_MODE") == "lone"
"""Whether one client asks at a time: then all processors work on its picture, else one on each of several."""
CORES = os.cpu_count() or 1


class Model:
    """The network of a bundle; each thread has a request of its own."""

    def __init__(self, bundle: str, threads: int, streams: int = 1) -> None:
        record = json.loads((Path(bundle) / "bundle.json").read_text())
        self.classes, self.side = record["classes"], record["preprocessing"]["image_px"]
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": os.environ.get("PEER_PRECISION", "bf16"),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # Pinned, the threads of two processes would share one processor: tellapart's own runtime does the same.
            "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
        }
        self.compiled = core.compile_model(core.read_model(Path(bundle) / "model.onnx"), "CPU", settings)
        self.output = self.compiled.output("probabilities")
        self.local = threading.local()

    def predict(self, data: bytes) -> dict:
        """Name one encoded picture."""
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        square = cv2.resize(picture, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        picture = openvino.Tensor(square[None], shared_memory=True)
        row = np.array(self.local.request.infer(picture, share_inputs=True, share_outputs=True)[self.output][0])
        best = np.argsort(-row)[:3]
        return {
            "label": self.classes[best[0]],
            "probability": float(row[best[0]]),
            "top": [{"label": self.classes[i], "probability": float(row[i])} for i in best],
        }
