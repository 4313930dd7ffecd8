"""Bundles that a test writes: records, checksums and files as of a real one, without a network behind them."""

from __future__ import annotations

from pathlib import Path

from tellapart.bundles.bundle import Artefact, BundleRecord, Preprocessing, Proof, write_record

PROOF = Proof(passed=True, reason="equal", num_images=9, agreement=1.0, largest_difference=1e-6)


def bundle_record(**changes: object) -> BundleRecord:
    values = {
        "name": "pets", "created": "2026-01-01T00:00:00Z", "classes": ("cat", "dog", "owl"),
        "preprocessing": Preprocessing(image_px=32, decoder_version=2), "max_pixels": 10**8, "temperature": 1.2,
        "coverage": 0.9, "threshold": 0.4,
        "quality_range": {"sharpness": (3.0, None), "brightness": (20.0, 230.0)}, "metrics": {}, "source": {"run": "r"},
        "artefacts": (Artefact(id="onnx", format="onnx", path="model.onnx", bytes=3, proofs={"onnxruntime": PROOF}),),
        "explains": None, "reference_images": {"reference_images/01.png": (0.7, 0.2, 0.1)},
    }  # fmt: skip
    return BundleRecord(**(values | changes))


def write_bundle(folder: Path, *, model: bytes = b"abc", **changes: object) -> Path:
    """Write a bundle; another `model` gives it another version."""
    (folder / "reference_images").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "reference_images" / "01.png").write_bytes(b"png")
    write_record(folder, bundle_record(**changes))
    return folder
