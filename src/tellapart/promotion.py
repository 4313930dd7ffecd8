"""Whether a version may take the place of the champion: gates, each with its measure, its limit and its reason.

Both versions are judged on the same photos, which neither learned from (`experiments.compare`), and both bundles on
this machine. Knows nothing about what serves them.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.latency import median_latencies
from tellapart.errors import InputError
from tellapart.evaluation.wording import points
from tellapart.experiments.compare import compare_finished_runs, write_comparison
from tellapart.experiments.comparison import Comparison, Pair
from tellapart.experiments.cost import cost_of
from tellapart.experiments.finished_run import FinishedRun, open_finished_run
from tellapart.monitoring.ab_test import SHADOW, SPLIT, TEST_NOTE, ABTest, Standing
from tellapart.records import Progress, no_progress
from tellapart.registry import RegisteredVersion, Registry

_CHANCE = 0.05


@dataclass(frozen=True)
class GateLimits:
    """What a new champion may cost.

    Attributes:
        accuracy_points: that may be lost at most; the whole 95 % interval must lie above.
        class_points: that a single class may lose; it fails where a class lost more and chance does not explain it.
        negative_flips: percent of the photos that the champion classified correctly and the new version does not.
        loss_nats: that the log loss may rise, unless chance explains it: a model may become less calibrated while its
            accuracy stays.
        slowdown: ratio of the median milliseconds of one picture.
    """

    accuracy_points: float = 1.0
    class_points: float = 5.0
    negative_flips: float = 3.0
    loss_nats: float = 0.05
    slowdown: float = 1.5


@dataclass(frozen=True)
class Gate:
    """One gate and how it went.

    Attributes:
        name: in words.
        passed: whether it lets the version through.
        reason: what was measured, and the limit.
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What all gates say together.

    Attributes:
        gates: in their order.
        comparison: of the champion and the new version; None: there is no champion.
    """

    gates: tuple[Gate, ...]
    comparison: Comparison | None = None

    @property
    def passed(self) -> bool:
        """Whether all gates let the version through."""
        return all(gate.passed for gate in self.gates)

    @property
    def reason(self) -> str:
        """One sentence about the outcome."""
        failed = [f"{gate.name} ({gate.reason})" for gate in self.gates if not gate.passed]
        return f"failed: {'; '.join(failed)}" if failed else f"passed {len(self.gates)} gates"


def judge(
    registry: Registry,
    version: RegisteredVersion,
    *,
    limits: GateLimits | None = None,
    progress: Progress = no_progress,
) -> Verdict:
    """Hold a version against the champion of its model.

    Args:
        registry: that both are in.
        version: the one that wants to be champion.
        limits: None: the usual ones.
        progress: called with (what, done, total).

    Raises:
        InputError: one of the two was added without its run, or they share no test photos.
    """
    limits, champion = limits or GateLimits(), registry.champion(version.name)
    with tempfile.TemporaryDirectory(prefix="tellapart-gates-") as folder:
        new = open_bundle(registry.fetch_bundle(version, Path(folder)))
        if champion is None or champion.number == version.number:
            return Verdict((_equality(new),))
        comparison = compare_versions(registry, champion, version, progress=progress)
        old = open_bundle(registry.fetch_bundle(champion, Path(folder)))
        before, after = median_latencies([old, new], progress=progress)
        pair = comparison.pairs[0]
        gates = (
            _accuracy(pair, comparison, limits), _classes(pair, limits), _flips(pair, comparison, limits),
            _calibration(pair, limits), _latency(before, after, limits), _equality(new),
        )  # fmt: skip
    return Verdict(gates, comparison)


def begin_test(
    registry: Registry, version: RegisteredVersion, mode: str, share: float, *, id_: str | None = None
) -> ABTest:
    """Make a version the challenger, and test it beside the champion; servers that follow take it up by themselves.

    Args:
        registry: that both are in.
        version: the challenger.
        mode: "split" or "shadow".
        share: of the subjects that it answers, or of the requests that it sees in shadow, above 0 to 1.
        id_: of the test; one with that id that runs already is returned as it is. None: a new one.

    Raises:
        InputError: there is no champion, the version is it, another test runs, or mode or share are none.
    """
    name, champion = version.name, registry.champion(version.name)
    if mode not in (SPLIT, SHADOW):
        raise InputError(f"The mode of the test is {mode!r}. Expected {SPLIT} or {SHADOW}.")
    # In a split the whole would leave nobody to compare with.
    if not 0 < share <= 1 or (mode == SPLIT and share == 1):
        raise InputError(f"The share is {share:g}. Expected above 0 and {'below 1' if mode == SPLIT else 'at most 1'}.")
    running = ABTest.from_json(registry.note(name, TEST_NOTE))
    # Before all checks: a call that is repeated after a kill finds its own test, whoever has become champion meanwhile.
    if running is not None and running.id == id_:
        return running
    if champion is None:
        raise InputError(f"{name} has no champion to be compared with. Expected: tellapart models promote {name} 1.")
    if champion.number == version.number:
        raise InputError(f"{name} {version.number} is the champion itself. Expected another version as challenger.")
    if running is not None:
        raise InputError(f"The test {running.id} of {name} runs already. End it first: tellapart ab stop {name}.")
    test = ABTest(
        id_ or secrets.token_hex(4), champion.digest, version.digest, mode, share, secrets.token_hex(8), time.time()
    )
    # The alias before the note, by which servers act: a kill between the two leaves a challenger in no test, and the
    # call can be repeated.
    registry.set_challenger(version)
    registry.write_note(name, TEST_NOTE, test.to_json())
    return test


def end_test(registry: Registry, name: str, test: ABTest, standing: Standing) -> RegisteredVersion:
    """Promote the challenger of a test or send it back, as its standing says, and return it.

    A call that was killed in its middle is finished by another one.
    """
    # By the digest in the test, not by the alias, which an earlier call that was killed may have taken away.
    challenger = registry.version(name, test.challenger)
    # The alias before the note: after a kill between the two the note is of a champion that was replaced, which servers
    # ignore.
    if standing.action == "promote":
        registry.promote(challenger, f"test {test.id}: {standing.reason}")
    else:
        registry.remove_challenger(name)
    registry.write_note(name, TEST_NOTE, None)
    return challenger


def compare_versions(
    registry: Registry,
    first: RegisteredVersion,
    second: RegisteredVersion,
    *,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare two versions photo by photo, on test photos that neither learned from.

    Where one knows more classes than the other, they are compared on the photos of the classes that both know; the
    other classes can be predicted by the one alone.

    Args:
        registry: that both are in.
        first: the baseline.
        second: the other.
        out: the folder for ``compare.json`` and ``compare.html``; None: nothing is written.
        progress: called with (what, done, total).

    Raises:
        InputError: one of them was added without its run, their classes differ on both sides, or they share no photos.
    """
    with tempfile.TemporaryDirectory(prefix="tellapart-versions-") as folder:
        runs = [
            open_finished_run(registry.fetch_run(version, Path(folder)), f"{version.name} {version.number}")
            for version in (first, second)
        ]
        runs = _with_same_classes(runs)
        costs = [cost_of(run.folder) for run in runs]
        comparison = compare_finished_runs(runs, costs, progress=progress)
        if out is not None:
            write_comparison(out, comparison, runs, progress=progress)
    return comparison


def _with_same_classes(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Give a run columns of zeros for classes that only the other one knows."""
    first, second = runs
    larger = first if set(first.classes) >= set(second.classes) else second
    if not set(larger.classes) >= {*first.classes, *second.classes}:
        alone = [sorted(set(a.classes) - set(b.classes)) for a, b in ((first, second), (second, first))]
        raise InputError(
            f"{first.name} alone knows {', '.join(alone[0])}; {second.name} alone knows {', '.join(alone[1])}. "
            "Expected versions of which one knows all classes of the other."
        )
    return [_with_classes(run, larger.classes) for run in runs]


def _with_classes(run: FinishedRun, classes: list[str]) -> FinishedRun:
    # Zeros meet no logarithm: photos of such a class are not known to the other run, and so are not compared.
    probabilities = np.zeros((len(run.probabilities), len(classes)))
    probabilities[:, [classes.index(name) for name in run.classes]] = run.probabilities
    return replace(run, classes=classes, probabilities=probabilities)


def _accuracy(pair: Pair, comparison: Comparison, limits: GateLimits) -> Gate:
    gained, margin = pair.differences["accuracy"], limits.accuracy_points
    low, high = 100 * gained.interval.low, 100 * gained.interval.high
    passed = low > -margin
    reason = (
        f"{points(gained.value)} points ({_signed(low)} to {_signed(high)}) on {comparison.num_photos:,} test photos; "
        f"the interval must lie above {_signed(-margin)}"
    )
    # Two failures that ask for different things: a worse model, or more photos.
    if not passed and high > 0:
        reason += ", so these photos are too few to tell"
    return Gate("no worse overall", passed, reason)


def _classes(pair: Pair, limits: GateLimits) -> Gate:
    of_classes = [part for part in pair.slices if part.column == "class"]
    if not of_classes:
        return Gate("no class worse", True, "no class has enough test photos to be looked at")
    worst = min(of_classes, key=lambda part: part.difference.value)
    # Without correction for several classes: a gate had better ask once too often.
    lost = [
        part for part in of_classes if 100 * part.difference.value < -limits.class_points and part.p_value < _CHANCE
    ]
    named = min(lost, key=lambda part: part.difference.value) if lost else worst
    return Gate(
        "no class worse",
        not lost,
        f"{'lost' if lost else 'at worst'} {points(named.difference.value)} points: {named.value}, "
        f"{named.num_images} photos; at most {limits.class_points:g} may be lost, unless chance explains it",
    )


def _flips(pair: Pair, comparison: Comparison, limits: GateLimits) -> Gate:
    share = 100 * len(pair.only_first) / comparison.num_photos
    return Gate(
        "negative flips",
        share <= limits.negative_flips,
        f"{len(pair.only_first)} photos ({share:.1f} %) that were right are wrong now, {len(pair.only_second)} the "
        f"other way round; at most {limits.negative_flips:g} %",
    )


def _calibration(pair: Pair, limits: GateLimits) -> Gate:
    rose = pair.differences["loss"]
    is_worse = rose.value > limits.loss_nats and rose.interval.low > 0
    return Gate(
        "calibration",
        not is_worse,
        f"log loss {rose.value:+.3f} nats ({rose.interval.low:+.3f} to {rose.interval.high:+.3f}); it may rise by "
        f"{limits.loss_nats:g}, unless chance explains it".replace("-", "−"),
    )


def _latency(before: float, after: float, limits: GateLimits) -> Gate:
    return Gate(
        "latency",
        after <= limits.slowdown * before,
        f"{after:.2f} ms a picture, {before:.2f} before; at most {limits.slowdown:g} times",
    )


def _equality(bundle: Bundle) -> Gate:
    """Whether the files are what they were, and answer as the Keras model did."""
    artefact = bundle.record.artefact()
    assert artefact is not None  # a record without it does not open
    passed = sorted(runtime for runtime, proof in artefact.proofs.items() if proof.passed)
    failed = {runtime: proof.reason for runtime, proof in artefact.proofs.items() if not proof.passed}
    reason = f"equal to the Keras model in {', '.join(passed)}" if passed else "no runtime was proved equal to Keras"
    # One runtime is enough to serve; those that failed are never chosen.
    return Gate(
        "equal to the trained model", bool(passed), reason + "".join(f"; {name}: {why}" for name, why in failed.items())
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
