"""LitServe with a worker for each processor, or one with all of them for a lone client.

Run: python serve_litserve.py BUNDLE PORT.
"""

from __future__ import annotations

import sys

import litserve
from serving_model import CORES, LONE, Model


class Classifier(litserve.LitAPI):
    """One picture in, its classes out."""

    def setup(self, device: str) -> None:
        """Open the model in this worker."""
        self.model = Model(sys.argv[1], threads=CORES if LONE else 1)

    def decode_request(self, request):
        """Return the bytes of the picture."""
        return request["file"].file.read()

    def predict(self, data: bytes) -> dict:
        """Name the picture."""
        return self.model.predict(data)

    def encode_response(self, output: dict) -> dict:
        """Return it as it is."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=1 if LONE else CORES)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
