"""Proves an artefact: what it says in every runtime that opens it, held against what the Keras model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Artefact, Proof
from tellapart.bundles.parity import EXACT, Tolerance, no_worse, parity
from tellapart.bundles.runtimes import RUNTIMES, answers
from tellapart.data.cache import Pictures
from tellapart.errors import BundleError
from tellapart.records import Progress
from tellapart.shipping.crashes import crashes

_COMPARED_AT_ONCE = 32


def prove(
    artefact: Artefact,
    path: Path,
    expected: NDArray[np.float32],
    pictures: Pictures,
    numbers: NDArray[np.int64],
    progress: Progress,
    announce: Callable[[str], None],
    *,
    margin: float | None = None,
) -> Artefact:
    """Run an artefact in every runtime that opens it, on all photos, and compare.

    Args:
        artefact: without proofs.
        path: its file or folder.
        expected: (num_images, num_classes) float32, what the Keras model says.
        pictures: the photos.
        numbers: (num_images,) their class numbers.
        progress: called often with (what, done, total).
        announce: called with a line for each runtime.
        margin: for an artefact with other weights than the Keras model's: the share of the photos by which it may be
            less accurate. A runtime that does not run it is refused, and the others go on.

    Returns:
        The artefact with its proofs.

    Raises:
        BundleError: one of its runtimes at full precision does not say what Keras says; or, with a margin, none passed.
    """
    proofs: dict[str, Proof] = {}
    # A runtime that is not installed here gets no proof, and is not chosen elsewhere (`usable`); by name it opens.
    names = [
        name
        for name, runtime in RUNTIMES.items()
        if runtime.runs(artefact) and runtime.installed and not runtime.proved_as
    ]
    # Integer kernels are what crashes: OpenVINO does on AMX, of a free batch size.
    crashed = crashes(path, names, pictures.image_px) if artefact.precision == "int8" else {}
    for name in names:
        runtime = RUNTIMES[name]
        tolerance = runtime.tolerance if margin is None else no_worse(margin)
        try:
            if name in crashed:
                raise BundleError(f"{path.name} ends the process of {runtime.package} by {crashed[name]}.")
            proof = _proof(name, path, expected, pictures, numbers, tolerance, progress)
        except BundleError as error:
            if margin is None:
                raise
            proof = Proof(
                passed=False, reason=str(error), num_images=len(pictures), agreement=0.0, largest_difference=1.0
            )
        proofs[name] = proof
        verdict = "passed" if proof.passed else f"refused: {proof.reason}"
        announce(f"{name}: {verdict} ({proof.agreement:.2%} of {len(pictures):,} photos agree).")
        # At full precision a difference means that the conversion failed, so no bundle is made. At reduced precision
        # only this runtime is excluded (`usable`).
        if not proof.passed and tolerance == EXACT:
            raise BundleError(
                f"The {artefact.id} model does not say what the Keras model says, in {name}: {proof.reason}. "
                "No bundle was made."
            )
    if margin is not None and not any(proof.passed for proof in proofs.values()):
        reasons = "; ".join(f"{name}: {proof.reason}" for name, proof in proofs.items()) or "no runtime here opens it"
        raise BundleError(f"The {artefact.precision} {artefact.format} model is refused. {reasons}.")
    return artefact.model_copy(update={"proofs": proofs})


def _proof(
    name: str,
    path: Path,
    expected: NDArray[np.float32],
    pictures: Pictures,
    numbers: NDArray[np.int64],
    tolerance: Tolerance,
    progress: Progress,
) -> Proof:
    """Return what one runtime's comparison found."""
    # All photos, not a sample: the card gives the accuracy on them.
    probabilities: list[NDArray[np.float32]] = []
    for part in answers(RUNTIMES[name], path, batches_of(pictures)):
        probabilities.append(part)
        progress(f"comparing {name} with Keras", sum(map(len, probabilities)), len(pictures))
    return parity(expected, np.concatenate(probabilities), numbers, tolerance)


def batches_of(pictures: Pictures) -> Iterator[NDArray[np.uint8]]:
    """Yield all pictures, a batch at a time: (num_images, image_px, image_px, 3) uint8."""
    for start in range(0, len(pictures), _COMPARED_AT_ONCE):
        yield pictures.batch(range(start, min(start + _COMPARED_AT_ONCE, len(pictures))))
