"""BentoML with a worker for each processor, or one with all of them for a lone client.

Run: BUNDLE=… bentoml serve serve_bentoml:Classifier --port PORT --host 127.0.0.1."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from serving_model import CORES, LONE, Model


@bentoml.service(workers=1 if LONE else CORES, traffic={"timeout": 30})
class Classifier:
    """One picture in, its classes out."""

    def __init__(self) -> None:
        self.model = Model(os.environ["BUNDLE"], threads=CORES if LONE else 1)

    @bentoml.api
    def predict(self, file: Path) -> dict:
        """Name the picture."""
        return self.model.predict(file.read_bytes())
