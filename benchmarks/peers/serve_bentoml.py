"""BentoML with two workers. Run: BUNDLE=… bentoml serve serve_bentoml:Classifier --port PORT --host 127.0.0.1."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from serving_model import Model


@bentoml.service(workers=2, traffic={"timeout": 30})
class Classifier:
    """One picture in, its classes out."""

    def __init__(self) -> None:
        self.model = Model(os.environ["BUNDLE"], threads=1)

    @bentoml.api
    def predict(self, file: Path) -> dict:
        """Name the picture."""
        return self.model.predict(file.read_bytes())
