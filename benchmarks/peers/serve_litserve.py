"""LitServe with two workers: python serve_litserve.py BUNDLE PORT."""

from __future__ import annotations

import sys

import litserve
from serving_model import Model


class Classifier(litserve.LitAPI):
    """One picture in, its classes out."""

    def setup(self, device: str) -> None:
        """Open the model in this worker."""
        self.model = Model(sys.argv[1], threads=1)

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
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
