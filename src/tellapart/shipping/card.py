"""The model card of a bundle: what the model is for, how good it is, where it ends. Knows nothing about files.

After Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from __future__ import annotations

from typing import Any

from tellapart.bundles.bundle import BundleRecord
from tellapart.unknown import UnknownDetector

_MEASURES = {
    "sharpness": "sharpness (standard deviation of the Laplacian, grey levels)",
    "noise": "noise (standard deviation, grey levels)",
    "brightness": "brightness (mean grey level)",
    "contrast": "contrast (standard deviation of grey levels)",
    "clipped": "share of black and white pixels",
    "jpeg_quality": "JPEG quality",
    "short_side_px": "shorter side, pixels",
}


def model_card(record: BundleRecord, detector: UnknownDetector | None = None) -> str:
    """Return the card as Markdown.

    Args:
        record: of the bundle.
        detector: of photos of no known class; None: the bundle has none.
    """
    lines = [
        f"# {record.name}",
        "",
        f"Names pictures as one of {len(record.classes)} classes: {', '.join(record.classes)}.",
        f"Made {record.created} from the run {record.source.get('run', '?')}.",
        "",
        "## How good it is",
        "",
        *_metrics_table(record.metrics),
        "",
        "95 % intervals in brackets. Test photos were not used for training or calibration.",
        "",
        "## How sure it is",
        "",
        f"Probabilities are calibrated on validation photos (temperature {record.temperature:.3f}).",
        _sets_sentence(record),
        "",
        "## Where it ends",
        "",
        "The accuracy was measured on photos within these limits. Beyond them nothing is known:",
        "",
        *_quality_lines(record.quality_range),
        "",
        _unknown_sentence(detector),
        "",
        "## Where it comes from",
        "",
        *(f"- {key}: {_plain(value)}" for key, value in record.source.items()),
        "",
        "## What runs it",
        "",
        *_proof_lines(record),
        "",
    ]
    return "\n".join(lines)


def _metrics_table(metrics: dict[str, Any]) -> list[str]:
    splits = list(metrics)
    rows = [
        "| | " + " | ".join(f"{split} ({metrics[split]['num_images']:,})" for split in splits) + " |",
        "|---|" + "---|" * len(splits),
    ]
    for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro"):
        cells = []
        for split in splits:
            cell = f"{metrics[split][name]:.3f}"
            if ends := metrics[split].get("intervals"):  # none on training photos, which the network knows
                cell += f" ({ends[name][0]:.3f} to {ends[name][1]:.3f})"
            cells.append(cell)
        rows.append(f"| {name.replace('_', ', ')} | " + " | ".join(cells) + " |")
    return rows


def _sets_sentence(record: BundleRecord) -> str:
    if record.threshold is None:
        return "There were no validation photos: the model always answers."
    return (
        f"All classes with a probability of at least {record.threshold:.3f} together hold the true one in "
        f"{record.coverage:.0%} of photos like these; where that is not exactly one class the model abstains."
    )


def _unknown_sentence(detector: UnknownDetector | None) -> str:
    always = "It always names one of its classes: a picture of anything else gets the class that it resembles most"
    if detector is None:
        return f"{always}. It cannot tell such pictures."
    return (
        f"{always}, and is called unknown where it is less like the training photos (cosine of the embeddings to the "
        f"nearest of {len(detector.references):,} references below {detector.threshold:.3f}) than at least "
        f"{1 - detector.refused:.0%} of photos of its classes are. How often that finds a picture of something else "
        "depends on what it is: the run's report says so."
    )


def _quality_lines(quality_range: dict[str, tuple[float | None, float | None]]) -> list[str]:
    lines = []
    for name, (low, high) in quality_range.items():
        ends = [f"at least {low:.3g}" if low is not None else "", f"at most {high:.3g}" if high is not None else ""]
        limits = " and ".join(end for end in ends if end)
        if limits:
            lines.append(f"- {_MEASURES.get(name, name)}: {limits}")
    return lines or ["- no limits: the quality of the photos could not be measured"]


def _proof_lines(record: BundleRecord) -> list[str]:
    lines = []
    for artefact in record.artefacts:
        precision = "" if artefact.precision == "float32" else f", {artefact.precision}"
        if artefact.float_layers:
            precision += f" but for {', '.join(artefact.float_layers)}"
        lines.append(f"- {artefact.id} (`{artefact.path}`, {artefact.bytes / 1e6:.2f} MB{precision})")
        # Other weights are another model: it was shown to be as accurate within a margin, not to be equal.
        verdict = "as accurate as Keras within the margin" if precision else "equal to Keras"
        for runtime, proof in artefact.proofs.items():
            lines.append(
                f"  - {runtime}: {verdict if proof.passed else 'refused'}; {proof.agreement:.2%} of "
                f"{proof.num_images:,} photos agree, probabilities differ by at most {proof.largest_difference:.1g}"
                + ("" if proof.passed else f" ({proof.reason})")
            )
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
