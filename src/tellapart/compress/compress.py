"""The story of a compression: narrower networks, in float32 and int8, each a bundle; then the smallest and the fastest.

Reads top to bottom. Every network is trained, exported and measured once: an interrupted compression goes on with what
is missing. Choices are made on validation photos; test photos are looked at once, for those that were chosen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Bundle, Proof, is_bundle, open_bundle
from tellapart.bundles.latency import benchmark
from tellapart.bundles.runtimes import FRAMEWORKS, RUNTIMES, answers, artefact_for
from tellapart.compress.narrowing import narrow_recipe, narrow_start
from tellapart.compress.picture import draw_pareto
from tellapart.data.cache import default_cache, open_rows
from tellapart.errors import BundleError, InputError, RunError
from tellapart.evaluation.calibration import calibration
from tellapart.evaluation.measure import class_numbers
from tellapart.experiments.jobs import Job, run_job
from tellapart.files import read_json, write_json, write_text
from tellapart.proportions import difference_interval
from tellapart.records import Announce, Observer, plain
from tellapart.run_folder import RunFolder
from tellapart.settings import Machine
from tellapart.shipping.export import FULL, export
from tellapart.shipping.proofs import batches_of

BUDGET = 0.005
"""Share of the photos by which a compressed model may be less accurate."""
SHARES = (0.9, 0.75, 0.55, 0.4)
"""Of the network's cost, that narrower networks have."""
TRAINED = "int8-trained"
"""The precision of networks that were trained with rounding: where rounding loses too much (`_rounding_lost`)."""
WEIGHTS = "int8-weights"
"""As small as int8 and as accurate as float32, and as slow: where only float32 keeps the budget."""
INT8_EPOCHS = 3
"""That a network is trained with rounding for, where rounding alone loses more than the budget (`_rounding_lost`)."""
RESULT = "compression.json"
_ROUNDS, _SECONDS = 3, 0.5
"""Times that each runtime is measured, and for how long."""


@dataclass(frozen=True)
class Candidate:
    """One bundle in one runtime.

    Attributes:
        name: of its network and precision.
        share: of the whole network's cost, as it was asked for.
        precision: "float32", "int8", `TRAINED` or `WEIGHTS`.
        runtime: that was measured.
        bytes: of the file that the runtime opens.
        p50_ms: median milliseconds for one picture on one thread.
        memory_mb: that a process takes more with the model open, MB (10^6 bytes).
        accuracy: on validation photos, 0 to 1.
        loss: of accuracy against the whole network, on validation photos; `loss_low` and `loss_high` are the ends of
            its 95 % interval (Newcombe 1998, paired, method 10).
        calibration_error: debiased expected calibration error on validation photos, 0 to 1.
        agreement: share of validation photos that it classifies as the whole network does.
        bundle: its folder, inside the compression's.
        error: why there is no such bundle, or why the runtime could not be measured; "" where there is.
    """

    name: str
    share: float
    precision: str
    runtime: str = ""
    bytes: int = 0
    p50_ms: float = float("nan")
    memory_mb: float = float("nan")
    accuracy: float = float("nan")
    loss: float = float("nan")
    loss_low: float = float("nan")
    loss_high: float = float("nan")
    calibration_error: float = float("nan")
    agreement: float = float("nan")
    bundle: str = ""
    error: str = ""

    def within(self, budget: float) -> bool:
        """Whether it was shown to lose less than the budget."""
        return not self.error and self.loss_high < budget


@dataclass(frozen=True)
class Confirmation:
    """What a chosen candidate does on test photos, which took no part in the choice.

    Attributes:
        accuracy: 0 to 1.
        whole: accuracy of the whole network on the same photos.
        loss: the difference; `low` and `high` are the ends of its 95 % interval.
    """

    accuracy: float
    whole: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Compression:
    """What came of a compression.

    Attributes:
        folder: with ``compression.json``, ``pareto.png``, ``runs/`` and ``bundles/``.
        budget: share of the photos by which a model may be less accurate.
        candidates: all, the whole network first.
        smallest: position of the smallest candidate within the budget; None: there is none.
        fastest: of the fastest one.
        confirmations: position of a chosen candidate → what it does on test photos; empty without test photos.
    """

    folder: Path
    budget: float
    candidates: tuple[Candidate, ...]
    smallest: int | None
    fastest: int | None
    confirmations: dict[int, Confirmation]


def compress(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    budget: float = BUDGET,
    shares: Sequence[float] = SHARES,
    epochs: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
    observer: Observer | None = None,
) -> Compression:
    """Find the smallest and the fastest model that is not less accurate than a run's by more than a budget.

    Channels are taken out of the network in several steps, and what is left is fitted to what was there; where that
    does not keep the budget it is trained, with the whole network as its teacher. Each network becomes a bundle in
    float32 and one in int8, which is measured in every runtime that is installed.

    Args:
        run: a finished run folder with its weights.
        out: the folder to make, or that of an interrupted compression of the same run.
        budget: share of the photos by which a model may be less accurate, 0 to 1. That it loses less must be shown: the
            upper end of the 95 % interval of its loss lies below the budget.
        shares: of the network's cost (mean of the shares of multiplications and weights), each from 0 to 1.
        epochs: that a narrower network is trained for, if it is; None: by its recipe.
        cache: the folder for decoded pictures; None: the user's.
        machine: threads and disk space, as `tellapart.train` takes it.
        observer: whom to tell.

    Raises:
        RunError: the run is an ensemble, or has no weights, or `out` is of another run.
        InputError: the budget or the shares are out of range, or there are no validation photos.
    """
    original, folder, observer = RunFolder(Path(run)), Path(out), observer or Observer()
    cache_folder = default_cache() if cache is None else Path(cache)
    shares = tuple(sorted(set(shares), reverse=True))
    _check(original, folder, budget, shares)
    settings = _Settings(original, folder, budget, epochs, cache_folder, machine, observer)

    whole, _ = _predictions(original, "validation")
    candidates: list[Candidate] = []
    above, parent, network = 1.0, original, original
    for share in (1.0, *shares):
        name = "whole" if share == 1 else f"{round(100 * share)}-percent"
        if share < 1:
            observer.announce(f"Network: {share:.0%} of the cost.")
            network = _narrowed(settings, name, parent, share / above, whole)
            # Errors of fits would add up: what was not trained is no parent.
            if network.recipe().train.epochs:
                above, parent = share, network
        found = _of_network(settings, name, share, network, whole)
        candidates += found
        _save(folder, Compression(folder, budget, tuple(candidates), None, None, {}))
        if share < 1 and not any(candidate.within(budget) for candidate in found):
            observer.announce(f"{name} was not shown to keep the budget: narrower ones would lose more.")
            break
    candidates = _timed(settings, candidates)
    smallest = _best(candidates, budget, lambda candidate: (candidate.bytes, candidate.p50_ms))
    fastest = _best(candidates, budget, lambda candidate: (candidate.p50_ms, candidate.bytes))
    confirmations = {
        at: confirmation
        for at in sorted({at for at in (smallest, fastest) if at is not None})
        if (confirmation := _confirmed(settings, candidates[at])) is not None
    }
    result = Compression(folder, budget, tuple(candidates), smallest, fastest, confirmations)
    draw_pareto(result, folder / "pareto.png")
    _save(folder, result)
    return result


@dataclass(frozen=True)
class _Settings:
    """What every step needs."""

    original: RunFolder
    folder: Path
    budget: float
    epochs: int | None
    cache: Path
    machine: Machine | None
    observer: Observer


def _check(original: RunFolder, folder: Path, budget: float, shares: Sequence[float]) -> None:
    if not original.is_finished:
        raise RunError(f"{original.path} is not a finished run. Expected one made by tellapart train.")
    original.refuse_ensemble()
    if not 0 < budget < 1:
        raise InputError(f"The budget is {budget:g}. Expected a share of the photos between 0 and 1, such as 0.005.")
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"The shares are {', '.join(map(str, shares))}. Expected each between 0 and 1.")
    if not (original.readable()["split"] == "validation").any():
        raise InputError(f"{original.path} has no validation photos: nothing could be chosen or proved.")
    if folder.exists() and any(folder.iterdir()):
        known = read_json(folder / RESULT).get("run_id") if (folder / RESULT).is_file() else None
        if known != original.record().run_id:
            raise RunError(f"{folder} is not empty, and not a compression of {original.path}. Name a new folder.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, {"run_id": original.record().run_id, "run": str(original.path.resolve())})


def _narrowed(settings: _Settings, name: str, parent: RunFolder, share: float, whole: NDArray[np.int64]) -> RunFolder:
    """Take channels out of a network, and train what is left where it has to be, with the whole one as its teacher."""
    progress, runs = settings.observer.progress, settings.folder / "runs"
    trained, untrained = RunFolder(runs / name), RunFolder(runs / f"{name}-untrained")
    if trained.is_finished:
        return trained
    start = narrow_start(parent, share, settings.folder / "starts" / name, settings.cache, progress)
    # What it began from stays: who reproduces the run begins there again.
    for run, epochs in ((untrained, 0), (trained, settings.epochs)):
        if not run.is_finished:
            job = Job(run.path, narrow_recipe(start, settings.original, epochs), settings.original.path, start.path)
            run_job(
                job, cache=settings.cache, progress=progress, watch=settings.observer.watch, machine=settings.machine
            )
        if run is untrained:
            predicted, true = _predictions(run, "validation")
            interval = difference_interval(*_pairs(predicted == true, whole == true))
            settings.observer.announce(f"{name}, not trained: loses {interval.high:.2%} at most.")
            if interval.high < settings.budget:
                return untrained
    return trained


def _of_network(
    settings: _Settings, name: str, share: float, network: RunFolder, whole: NDArray[np.int64]
) -> list[Candidate]:
    """Export a network in float32 and in fewer bits, those that may still keep the budget."""
    made = partial(_candidates, settings, share=share, network=network, whole=whole)
    found = made(f"{name}-{FULL}", precision=FULL)
    # Of the whole network int8 is made in any case: with few photos nothing is shown, and the user sees how near it is.
    if share < 1 and not any(candidate.within(settings.budget) for candidate in found):
        return found
    found += made(f"{name}-int8", precision="int8")
    if _rounding_lost(found, f"{name}-int8"):
        settings.observer.announce(
            f"{name}: rounding alone loses too much: trained with rounding for {INT8_EPOCHS} epochs, which takes "
            "longer than all else."
        )
        found += made(f"{name}-{TRAINED}", precision=TRAINED)
    if {candidate.precision for candidate in found if candidate.within(settings.budget)} == {FULL}:
        settings.observer.announce(f"{name}: int8 loses too much: the weights alone.")
        found += made(f"{name}-{WEIGHTS}", precision=WEIGHTS)
    return found


def _candidates(
    settings: _Settings,
    name: str,
    *,
    share: float,
    network: RunFolder,
    precision: str,
    whole: NDArray[np.int64],
) -> list[Candidate]:
    """Export a network in one precision, and say how accurate it is in each runtime; not how fast yet."""
    target, blank = settings.folder / "bundles" / name, Candidate(name, share, precision)
    # Training with rounding may be what was refused: a search that goes on must not do it again. With its budget in the
    # name: a larger one may allow it.
    refusal = target.with_name(f"{name}.refused-at-{100 * settings.budget:g}pp.txt")
    if refusal.is_file():
        return [replace(blank, error=refusal.read_text("utf-8"))]
    if not is_bundle(target):
        is_trained = precision == TRAINED
        formats = ("litert",) if precision != FULL and RUNTIMES["litert-int8"].installed else ()
        try:
            export(
                network.path, target, name=name, formats=formats, precision="int8" if is_trained else precision,
                margin=settings.budget, int8_epochs=INT8_EPOCHS if is_trained else 0, cache=settings.cache,
                progress=settings.observer.progress, announce=_warnings(settings.observer),
            )  # fmt: skip
        except BundleError as error:
            settings.observer.announce(f"{name}: {error}")
            write_text(refusal, str(error))
            return [replace(blank, error=str(error))]
    bundle = open_bundle(target)
    found = [
        _measured(settings, bundle, runtime, replace(blank, bytes=artefact.bytes, error=_refused(proof)), whole)
        for artefact in bundle.record.artefacts
        for runtime, proof in artefact.proofs.items()
        if runtime not in FRAMEWORKS
    ]
    # Not a number where a runtime did not run it: that is never the best.
    best = min(found, key=lambda candidate: float(np.nan_to_num(candidate.loss_high, nan=1)))
    settings.observer.announce(
        f"{name}: {best.accuracy:.3f} on validation in {best.runtime}, loses {best.loss_high:.2%} at most."
    )
    return found


def _refused(proof: Proof) -> str:
    return "" if proof.passed else proof.reason


def _measured(
    settings: _Settings, bundle: Bundle, runtime: str, known: Candidate, whole: NDArray[np.int64]
) -> Candidate:
    """Say how accurate a bundle is in one runtime, also where that was refused: the user sees how near it came."""
    known = replace(known, runtime=runtime, bundle=bundle.folder.relative_to(settings.folder).as_posix())
    try:
        probabilities, true = _probabilities(settings, bundle, runtime, "validation")
    except BundleError as error:
        return replace(known, error=known.error or str(error))
    predicted = probabilities.argmax(axis=1)
    interval = difference_interval(*_pairs(predicted == true, whole == true))
    return replace(
        known,
        accuracy=float((predicted == true).mean()),
        loss=float((whole == true).mean() - (predicted == true).mean()),
        loss_low=interval.low,
        loss_high=interval.high,
        calibration_error=calibration(true, probabilities.astype(np.float64)).ece,
        agreement=float((predicted == whole).mean()),
    )


def _rounding_lost(candidates: Sequence[Candidate], name: str) -> bool:
    """Whether int8 was refused in all runtimes of a format that are installed here: a server's or a phone's.

    In one of several the last photos decide, which training moves as little as it moves others (docs/experiments.md).
    """
    passed = {candidate.runtime for candidate in candidates if candidate.name == name and not candidate.error}
    known = {name: runtime for name, runtime in RUNTIMES.items() if "int8" in runtime.precisions and runtime.installed}
    formats = {runtime.format for runtime in known.values()}
    return formats != {known[runtime].format for runtime in passed & known.keys()}


def _warnings(observer: Observer) -> Announce:
    """Hand on what an export warns of; the rest would drown what the search says."""
    return lambda line: observer.announce(line) if line.startswith("warning") else None


def _pairs(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return how many photos both got right, only the first, only the second, and neither."""
    return tuple(int(part.sum()) for part in (first & second, first & ~second, ~first & second, ~first & ~second))  # type: ignore[return-value]


def _predictions(run: RunFolder, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what a run's network says of a split's photos, and what they are: (num_photos,) class numbers each."""
    photos, classes, probabilities = run.predictions()
    chosen = (photos["split"] == split).to_numpy()
    return np.asarray(probabilities[chosen].argmax(axis=1), np.int64), class_numbers(photos[chosen], classes)


def _probabilities(
    settings: _Settings, bundle: Bundle, runtime: str, split: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (num_photos, num_classes) probabilities that a runtime gives for a split, and the true classes."""
    run, classes = settings.original, list(bundle.record.classes)
    frame = run.readable()
    frame = frame[frame["split"] == split].reset_index(drop=True)
    parts = [np.zeros((0, len(classes)), np.float32)]
    artefact = artefact_for(bundle, RUNTIMES[runtime])
    assert artefact is not None  # its proof is where the runtime's name came from
    options = {"folder": settings.cache, "max_pixels": bundle.record.max_pixels}
    if len(frame):
        with open_rows(run.root, frame, bundle.record.image_px, **options) as pictures:
            for part in answers(RUNTIMES[runtime], bundle.path(artefact), batches_of(pictures)):
                parts.append(part)
                done = sum(map(len, parts))
                settings.observer.progress(f"measuring {bundle.record.name} in {runtime}", done, len(frame))
    return np.concatenate(parts), class_numbers(frame, classes)


def _timed(settings: _Settings, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Measure every bundle in every runtime, in turns: whatever else the machine does slows all alike."""
    folders = list(dict.fromkeys(candidate.bundle for candidate in candidates if candidate.bundle))
    laps: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for done in range(_ROUNDS):
        for number, folder in enumerate(folders):
            settings.observer.progress("timing", done * len(folders) + number, _ROUNDS * len(folders))
            for speed in benchmark(settings.folder / folder, threads=1, seconds=_SECONDS, batches=(1,)):
                laps.setdefault((folder, speed.runtime), []).append((speed.p50_ms, speed.memory_mb, speed.error))
    settings.observer.progress("timing", 1, 1)
    timed = []
    for candidate in candidates:
        of_runtime = laps.get((candidate.bundle, candidate.runtime), [])
        errors = [error for _, _, error in of_runtime if error]
        if candidate.error or errors or not of_runtime:
            timed.append(replace(candidate, error=candidate.error or (errors or ["it was not measured"])[0]))
            continue
        p50, memory = (float(np.median([lap[at] for lap in of_runtime])) for at in (0, 1))
        timed.append(replace(candidate, p50_ms=p50, memory_mb=memory))
    return timed


def _best(
    candidates: Sequence[Candidate], budget: float, key: Callable[[Candidate], tuple[float, float]]
) -> int | None:
    """Return the position of the best compressed candidate that keeps the budget; None: none does."""
    allowed = [
        at
        for at, candidate in enumerate(candidates)
        if candidate.within(budget) and (candidate.share, candidate.precision) != (1.0, FULL)
    ]
    return min(allowed, key=lambda at: key(candidates[at]), default=None)


def _confirmed(settings: _Settings, candidate: Candidate) -> Confirmation | None:
    """Look at the test photos, once; None: there are none."""
    bundle = open_bundle(settings.folder / candidate.bundle)
    probabilities, true = _probabilities(settings, bundle, candidate.runtime, "test")
    if not len(true):
        return None
    predicted = probabilities.argmax(axis=1)
    whole, _ = _predictions(settings.original, "test")
    interval = difference_interval(*_pairs(predicted == true, whole == true))
    accuracies = float((predicted == true).mean()), float((whole == true).mean())
    return Confirmation(*accuracies, accuracies[1] - accuracies[0], interval.low, interval.high)


def _save(folder: Path, result: Compression) -> None:
    known = {name: value for name, value in read_json(folder / RESULT).items() if name in ("run_id", "run")}
    values = {name: value for name, value in asdict(result).items() if name != "folder"}
    write_json(folder / RESULT, known | plain(values))
