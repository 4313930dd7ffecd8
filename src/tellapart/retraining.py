"""Automated retraining: one call does what is due, and goes on where an earlier one was interrupted.

The steps are rows of `RetrainingHistory`: trigger, gather, train, export, register, judge, trial, end. A step is noted
when it is done, and each can be done again: after a kill the next call repeats at most the one that was under way.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from sqlalchemy.exc import InterfaceError, OperationalError

from tellapart.bundles.bundle import Bundle, is_bundle, open_bundle
from tellapart.data.duplicates import near_duplicates
from tellapart.data.scan import scan
from tellapart.databases import reason_of
from tellapart.errors import InputError, TellapartError, UnavailableError
from tellapart.files import sha256, write_text
from tellapart.locks import locked
from tellapart.monitoring.ab_test import SHADOW, TEST_NOTE, ABTest, Rules, evaluate_test, outcomes_of
from tellapart.monitoring.retraining_history import Retraining, RetrainingHistory, Step
from tellapart.monitoring.watching import look
from tellapart.promotion import GateLimits, begin_test, end_test, judge
from tellapart.records import Observer
from tellapart.registry import RegisteredVersion, Registry
from tellapart.request_store import Feedback, RequestStore, StoredPrediction
from tellapart.run_folder import RunFolder
from tellapart.shipping.export import export
from tellapart.verbs import resume, train

FEWEST_LABELS = 20
"""New labelled photos without which nothing could be learned, whatever the trigger."""
_FEWEST_OF_A_CLASS = 10
"""Photos of a class that the champion does not know, for it to become one."""

_AGAIN_SECONDS = 86400.0
"""After which a retraining that failed is tried again with the same labels."""

T = TypeVar("T")
State = Literal["not needed", "waiting", "promoted", "rejected", "rolled back", "failed"]


@dataclass(frozen=True)
class RetrainingOptions:
    """When a model is trained again, and what happens to the new version.

    Attributes:
        labels: new labelled photos that are reason enough.
        max_days: age of the champion that is reason enough, in days; None: its age is none.
        on_drift: whether drift is.
        false_alarm_every: photos until a false alarm of drift, on average, at the least.
        time_budget: seconds for the training; None: as long as the champion's recipe says, ten minutes for a race.
        trial: what stands between the gates and the promotion: "shadow", "split" or "none".
        share: of the requests in shadow, or of the subjects in a split, that the new version gets; None: all in shadow,
            a tenth in a split.
        margin: of accuracy that it may be worse in the trial and is promoted all the same, 0 to 1.
        most_labels: of the trial, after which the champion stays; None: it goes on.
        limits: of the gates.
        patience: seconds for which a database that does not answer is waited for.
    """

    labels: int = 200
    max_days: float | None = None
    on_drift: bool = True
    false_alarm_every: float = 10_000
    time_budget: float | None = None
    trial: str = "shadow"
    share: float | None = None
    margin: float = 0.0
    most_labels: int | None = None
    limits: GateLimits = field(default_factory=GateLimits)
    patience: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        state: "waiting" where a trial needs more labels; the next call looks again. "failed" where a step cannot be
            done, such as for photos that are gone.
        reason: in words.
        retraining: as its rows say; None: none was begun.
    """

    state: State
    reason: str
    retraining: Retraining | None = None


def retrain(
    registry: Registry,
    store: RequestStore,
    name: str,
    folder: str | os.PathLike[str],
    *,
    if_needed: bool = True,
    anew: bool = False,
    options: RetrainingOptions | None = None,
    cache: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Do what is due for a model, as far as it can be done now.

    Args:
        registry: that its versions are in.
        store: that its server keeps photos and verdicts in.
        name: of the model, in the registry and where it is served.
        folder: that gathered photos, runs and bundles are kept in; photos stay there, for later runs need them.
        if_needed: begin only where there is a reason; False: begin in any case.
        anew: give up one that was begun in another place, such as a machine that is gone.
        options: None: the usual ones.
        cache: the folder for decoded pictures; None: the user's.
        observer: whom to tell.

    Raises:
        InputError: another process does it on this machine, it was begun on another one, or there is no champion.
        UnavailableError: a database has not answered for as long as `RetrainingOptions.patience`.
    """
    place, options, observer = Path(folder).resolve(), options or RetrainingOptions(), observer or Observer()
    place.mkdir(parents=True, exist_ok=True)
    history = RetrainingHistory(store)
    patiently = _Patience(options.patience, observer)
    with _alone(place / f"{name}.lock", name):
        # Under the lock: a second process on this machine would find the same open row, and do its steps beside the
        # first.
        here = f"{socket.gethostname()}:{place}"
        going, reason = patiently(lambda: history.open_of(name)), "asked for"
        if going is not None and going.place != here and anew:
            given_up = going
            patiently(lambda: history.end(given_up, "failed", f"given up by {here}"))
            going, if_needed, reason = None, False, f"asked for, and given up in {given_up.place}"
        if going is None:
            if if_needed:
                is_needed, reason = patiently(lambda: why(registry, store, name, options))
                if not is_needed:
                    return Outcome("not needed", reason)
            observer.announce(f"Retraining of {name}: {reason}.")
            going = patiently(lambda: history.begin(name, here, reason))
            # A commit that was not confirmed is tried again, and meets its own row.
            going = going or patiently(lambda: history.open_of(name))
        # By machine and folder: the same path on another machine holds none of the files that earlier steps have left.
        if going is None or going.place != here:
            raise InputError(
                f"{name} is being retrained in {going.place if going else 'another place'}. Expected that one to be "
                "finished first: call tellapart retrain there; or give it up with --anew, if that place is gone."
            )
        return _Retraining(registry, store, history, going, place, options, cache, patiently).go_on()


def why(registry: Registry, store: RequestStore, name: str, options: RetrainingOptions) -> tuple[bool, str]:
    """Return whether a model is to be trained again, and why or why not.

    Photos that an earlier retraining has learned from, whose version was not promoted, are no reason a second time.

    Raises:
        InputError: it has no champion.
    """
    champion = _champion(registry, name)
    known = _known_digests(registry, champion)
    tried = _tried_until(RetrainingHistory(store).all_of(name), champion)
    count = sum(1 for photo in _new_photos(store, name, known) if photo.said_at > tried)
    reasons = []
    if count >= options.labels:
        reasons.append(f"{count:,} new labelled photos")
    if options.max_days is not None and (age := (time.time() - champion.created) / 86400) > options.max_days:
        reasons.append(f"{name} {champion.number} is {age:.0f} days old")
    if options.on_drift:
        with _opened_bundle(registry, champion) as bundle:
            seen = _look(bundle, store, name, options)
        if seen:
            reasons.append(f"drift: {seen}")
    said = f"{count:,} new labelled photos of {options.labels:,}"
    if not reasons:
        return False, said + (", and no drift" if options.on_drift else "")
    if count < FEWEST_LABELS:
        return False, f"{'; '.join(reasons)}; but only {said}: label some with tellapart review"
    return True, "; ".join([*reasons, *([] if count >= options.labels else [f"{count:,} new labelled photos"])])


def _tried_until(earlier: list[Retraining], champion: RegisteredVersion) -> float:
    """Return until when labels were learned from in vain, in seconds since 1970: they are no reason a second time.

    Args:
        earlier: retrainings of the model, the latest first.
        champion: the version that serves.
    """
    for one in earlier:
        if one.outcome == "failed":
            # Photos that were out of reach may be back: it is tried again, and not each hour.
            if time.time() - one.began < _AGAIN_SECONDS:
                return one.began
            continue
        registered = one.step("register")
        is_champion = registered is not None and str(registered.values["version"]) == str(champion.number)
        # The champion's own photos are known to it. From the beginning on, not the end: what was said while it trained
        # was not gathered, and is a reason still.
        return 0.0 if one.outcome == "promoted" and is_champion else one.began
    return 0.0


def _look(bundle: Bundle, store: RequestStore, name: str, options: RetrainingOptions) -> str:
    try:
        seen = look(bundle, store, name=name, false_alarm_every=options.false_alarm_every)
    except InputError:
        return ""  # a bundle that drift cannot be told of: other reasons may hold
    return seen.sentence.rstrip(".") if seen is not None and seen.is_drifting else ""


class _Retraining:
    """One retraining on its way."""

    def __init__(
        self,
        registry: Registry,
        store: RequestStore,
        history: RetrainingHistory,
        going: Retraining,
        place: Path,
        options: RetrainingOptions,
        cache: str | os.PathLike[str] | None,
        patiently: _Patience,
    ) -> None:
        self.registry, self.store, self.history, self.going = registry, store, history, going
        self.options, self.cache, self.observer, self.patiently = options, cache, patiently.observer, patiently
        self.name, self.folder = going.model, place / going.id
        self.folder.mkdir(parents=True, exist_ok=True)

    def go_on(self) -> Outcome:
        """Do the steps that are not done yet; one that cannot be done ends the retraining."""
        try:
            return self._go_on()
        # Before its base class: a database that is away ends this call, and not the retraining.
        except UnavailableError:
            raise
        except TellapartError as error:
            # Left open, it would fail again in each hour, and nobody could begin another one.
            return self._end("failed", str(error).rstrip("."))

    def _go_on(self) -> Outcome:
        # What a later step needs of an earlier one comes from its row: another process may have done that one.
        gathered = self._done("gather", self._gather)
        if not gathered.values["photos"]:
            return self._end("failed", f"nothing to learn from: {gathered.reason}")
        self._done("train", self._train)
        self._done("export", self._export)
        registered = self._done("register", self._register)
        judged = self._done("judge", lambda: self._judge(registered))
        if not judged.values["passed"]:
            return self._end("rejected", judged.reason)
        version = self.patiently(lambda: self.registry.version(self.name, str(registered.values["version"])))
        if self.options.trial == "none":
            self.patiently(lambda: self.registry.promote(version, f"retraining {self.going.id}: {judged.reason}"))
            return self._end("promoted", judged.reason)
        # Asked before the step, not left to `begin_test`: what that raises would end the retraining as failed.
        if self.going.step("trial") is None and (other := self._other_test()) is not None:
            return Outcome("waiting", f"the test {other} runs, and one at a time can", self.going)
        trial = self._done("trial", lambda: self._begin_trial(version))
        return self._decide(version, trial)

    def _other_test(self) -> str | None:
        """Return the id of a test of the model that is not this retraining's; None: none runs."""
        running = self.patiently(lambda: ABTest.from_json(self.registry.note(self.name, TEST_NOTE)))
        return None if running is None or running.id == self.going.id else running.id

    def _done(self, name: str, do: Callable[[], tuple[str, Mapping[str, Any]]]) -> Step:
        """Return a step, which is done first where it is not."""
        if (step := self.going.step(name)) is not None:
            return step
        self.observer.announce(f"{self.name}: {name} …")
        # What a step leaves first, its row afterwards: a kill between the two does the step again, so each must bear to
        # be done twice. The other way round it would be taken for done.
        reason, values = do()
        self.observer.announce(f"{self.name}: {name}: {reason}.")
        # The database may have gone while it was done.
        self.patiently(lambda: self.history.note(self.going, name, reason, values))
        self.going = replace(self.going, steps=(*self.going.steps, Step(name, time.time(), reason, values)))
        return self.going.steps[-1]

    def _end(self, outcome: State, reason: str) -> Outcome:
        self.patiently(lambda: self.history.end(self.going, outcome, reason))
        self.observer.announce(f"{self.name}: {outcome}: {reason}.")
        return Outcome(outcome, reason, self.going)

    # Steps --------------------------------------------------------------------------------------------------

    def _gather(self) -> tuple[str, Mapping[str, Any]]:
        champion = self.patiently(lambda: _champion(self.registry, self.name))
        known = self.patiently(lambda: _known_digests(self.registry, champion))
        run = self.patiently(lambda: _run_of(self.registry, champion, self.folder))
        classes = set(RunFolder(run).record().classes)
        target, part = self.folder / "photos", self.folder / ".photos.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)  # of a call that was killed before it noted them
        part.mkdir()
        labels: dict[str, str] = {}
        # A list, made inside: a generator would ask the database outside of the patience.
        for photo in self.patiently(lambda: list(_new_photos(self.store, self.name, known))):
            data = self.patiently(partial(self.store.photo, photo.id))
            if data is None:  # deleted meanwhile
                continue
            file = f"{photo.digest[:32]}.jpg"
            (part / file).write_bytes(data)
            labels[file] = photo.label
        usable, left_out = _usable(part, labels, classes)
        os.replace(part, target)
        table = pd.DataFrame({"path": [f"photos/{path}" for path in usable], "label": list(usable.values())})
        write_text(self.folder / "photos.csv", table.to_csv(index=False))
        reason = f"{len(usable):,} labelled photos that {self.name} {champion.number} does not know"
        reason += "".join(f"; {count:,} left out: {why_}" for why_, count in sorted(left_out.items()))
        return reason, {"photos": len(usable), "run": str(run)}

    def _train(self) -> tuple[str, Mapping[str, Any]]:
        run, gathered = RunFolder(self.folder / "run"), self.going.step("gather")
        assert gathered is not None
        if not run.is_begun:
            shutil.rmtree(run.path, ignore_errors=True)  # of a call that was killed while it made the folder
            result = train(
                self.folder / "photos.csv", extend=gathered.values["run"], time_budget=self.options.time_budget,
                out=run.path, cache=self.cache, observer=self.observer,
            )  # fmt: skip
        else:
            # Of a run that is finished too: it returns its metrics, after the comparison with the old ones if that is
            # missing.
            result = resume(run.path, cache=self.cache, observer=self.observer)
        test, extension = result.metrics["test"], result.metrics.get("extension") or {}
        reason = f"{100 * test['accuracy']:.1f} % of {test['num_images']:,} test photos"
        if extension:
            reason += (
                f"; on the {extension['num_test']:,} old ones {100 * extension['after']:.1f} %, before "
                f"{100 * extension['before']:.1f} %"
            )
        return reason, {}

    def _export(self) -> tuple[str, Mapping[str, Any]]:
        target = self.folder / "bundle"
        # Never exported twice: the time of making is in a bundle, so a second one would have another digest and become
        # another version.
        if is_bundle(target):
            bundle = open_bundle(target)
        else:
            bundle = export(
                self.folder / "run", target, name=self.name, cache=self.cache, progress=self.observer.progress,
                announce=self.observer.announce,
            )  # fmt: skip
        return f"bundle {bundle.version}", {}

    def _register(self) -> tuple[str, Mapping[str, Any]]:
        add = self.registry.add
        # Repeated without harm: a bundle that the registry knows is returned as the version that it is.
        version = self.patiently(lambda: add(self.folder / "bundle", run=self.folder / "run", name=self.name))
        return f"version {version.number}", {"version": version.number}

    def _judge(self, registered: Step) -> tuple[str, Mapping[str, Any]]:
        version = self.patiently(lambda: self.registry.version(self.name, str(registered.values["version"])))
        limits, progress = self.options.limits, self.observer.progress
        verdict = self.patiently(lambda: judge(self.registry, version, limits=limits, progress=progress))
        return verdict.reason, {"passed": verdict.passed}

    def _begin_trial(self, version: RegisteredVersion) -> tuple[str, Mapping[str, Any]]:
        mode, id_ = self.options.trial, self.going.id
        share = self.options.share or (1.0 if mode == SHADOW else 0.1)
        # With the retraining's own id: after a kill its test is found running, and not taken for somebody else's.
        test = self.patiently(lambda: begin_test(self.registry, version, mode, share, id_=id_))
        return f"test {test.id}, {mode}, {100 * share:g} %", {"test": test.to_json()}

    def _decide(self, version: RegisteredVersion, trial: Step) -> Outcome:
        test = ABTest.from_json(trial.values["test"])
        assert test is not None
        # The note before the champion: `end_test` moves the alias first and clears the note last. So where the note is
        # gone, the champion that is read after it is the one that the test has left.
        running = self.patiently(lambda: ABTest.from_json(self.registry.note(self.name, TEST_NOTE)))
        champion = self.patiently(lambda: _champion(self.registry, self.name))
        if champion.number == version.number:
            # By a call that was killed before it said so, or by hand.
            if running is not None and running.id == test.id:
                self.patiently(lambda: self.registry.write_note(self.name, TEST_NOTE, None))
            return self._end("promoted", f"{self.name} {version.number} is champion")
        if running is None or running.id != test.id:
            return self._end("rolled back", f"test {test.id} was stopped, and {champion.number} is champion")
        if champion.digest != test.champion:
            # A trial against another champion says nothing about this one.
            self.patiently(lambda: self.registry.remove_challenger(self.name))
            self.patiently(lambda: self.registry.write_note(self.name, TEST_NOTE, None))
            return self._end("rolled back", f"{self.name} {champion.number} became champion while it was tried")
        rules = Rules(margin=self.options.margin, most_labels=self.options.most_labels)
        # The rows are asked for inside: a generator whose connection has broken cannot be gone on with.
        standing = self.patiently(lambda: evaluate_test(test, outcomes_of(self.store.in_test(test.id), test), rules))
        if standing.action == "continue":
            return Outcome("waiting", f"test {test.id}: {standing.reason}", self.going)
        self.patiently(lambda: end_test(self.registry, self.name, test, standing))
        return self._end("promoted" if standing.action == "promote" else "rolled back", standing.reason)


class _Patience:
    """Calls something again while a database does not answer."""

    def __init__(self, seconds: float, observer: Observer) -> None:
        self._seconds, self.observer = seconds, observer

    def __call__(self, do: Callable[[], T]) -> T:
        until, pause = time.monotonic() + self._seconds, 1.0
        while True:
            try:
                return do()
            # The registry's errors are translated, the store's are SQLAlchemy's own. No wider: a statement that is
            # wrong would be repeated for ten minutes.
            except (UnavailableError, OperationalError, InterfaceError) as error:
                if time.monotonic() + pause > until:
                    if isinstance(error, UnavailableError):
                        raise
                    raise UnavailableError(
                        f"The request store does not answer: {reason_of(error)}. Expected a database that can be "
                        "reached; the same call goes on later."
                    ) from error
                self.observer.announce(f"warning: {reason_of(error)} Again in {pause:.0f} s.")
            time.sleep(pause)
            pause = min(2 * pause, 60.0)


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold a file's lock, which ends with the process however it ends.

    Raises:
        InputError: another process holds it.
    """
    with locked(lock, wait=False) as is_held:
        if not is_held:
            raise InputError(
                f"Another process retrains {name} in {lock.parent}. Expected one at a time: it ends by itself."
            )
        yield


@contextmanager
def _opened_bundle(registry: Registry, version: RegisteredVersion) -> Iterator[Bundle]:
    import tempfile

    # Only inside the block: a bundle reads its references from its folder when it is asked.
    with tempfile.TemporaryDirectory(prefix="tellapart-champion-") as folder:
        yield open_bundle(registry.fetch_bundle(version, Path(folder)))


def _champion(registry: Registry, name: str) -> RegisteredVersion:
    champion = registry.champion(name)
    if champion is None:
        raise InputError(f"{name} has no champion to begin with. Expected one: tellapart models promote {name} 1.")
    return champion


def _known_digests(registry: Registry, champion: RegisteredVersion) -> set[str]:
    """Return the SHA-256 of all photos that a version's run knows."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tellapart-run-") as folder:
        return set(RunFolder(registry.fetch_run(champion, Path(folder))).manifest()["sha256"])


def _run_of(registry: Registry, champion: RegisteredVersion, folder: Path) -> Path:
    """Return the folder of the run that a version was made from: with its weights where it is on this machine."""
    place = Path(champion.tags.get("tellapart.run_path", ""))
    run = RunFolder(place)
    # The path may be one of another machine, and another run may stand there by now: the id tells. Without a tag it
    # would be the current folder, which is not absolute.
    if place.is_absolute() and run.is_finished and run.record().run_id == champion.tags.get("tellapart.run_id"):
        return place
    return registry.fetch_run(champion, folder)


@dataclass(frozen=True)
class _LabelledPhoto:
    """A photo that somebody has labelled: its SHA-256, the id of a prediction, the class, and when that was said."""

    digest: str
    id: str
    label: str
    said_at: float


def _new_photos(store: RequestStore, name: str, known: set[str]) -> Iterator[_LabelledPhoto]:
    """Yield labelled photos that are not known, each once, however often it was sent.

    Photos with two labels are left out. The photos themselves are not among it: a store may hold more than the memory.
    """
    labels: dict[str, set[str]] = {}
    photos: dict[str, _LabelledPhoto] = {}
    for prediction, feedback in store.predictions(name, only_labelled=True):
        label = true_label(prediction, feedback)
        if label is None or prediction.photo is None or feedback is None:
            continue
        # Of the bytes as they are stored, since the file that is learned from holds the same ones: so the manifest of
        # that run has this digest, and the photo is known from then on.
        digest = sha256(prediction.photo)
        if digest not in known:
            labels.setdefault(digest, set()).add(label)
            photos[digest] = _LabelledPhoto(digest, prediction.id, label, feedback.at)
    yield from (photo for digest, photo in photos.items() if len(labels[digest]) == 1)


def true_label(prediction: StoredPrediction, feedback: Feedback | None) -> str | None:
    """Return the true class of a photo, as somebody said; None: nobody has said it."""
    if feedback is None:
        return None
    if feedback.verdict == "right":
        return prediction.label
    return feedback.label if feedback.verdict == "wrong" else None


def _usable(folder: Path, labels: dict[str, str], classes: set[str]) -> tuple[dict[str, str], Counter[str]]:
    """Return file → label of photos to learn from, and how many were left out by reason."""
    left_out: Counter[str] = Counter()
    counts = Counter(labels.values())
    small = {label for label, count in counts.items() if label not in classes and count < _FEWEST_OF_A_CLASS}
    if small:
        left_out[f"of new classes with fewer than {_FEWEST_OF_A_CLASS} photos"] = sum(counts[label] for label in small)
        labels = {path: label for path, label in labels.items() if label not in small}
    if not labels:
        return {}, left_out
    # A table, not the folder: a scan takes the names of folders for classes.
    table = folder / "all.csv"
    write_text(table, pd.DataFrame({"path": list(labels), "label": list(labels.values())}).to_csv(index=False))
    manifest = scan(table)
    table.unlink()
    frame = manifest.frame
    said = frame["label"].to_numpy(object)
    pairs = near_duplicates(manifest)
    torn = {int(row) for pair in pairs if said[pair[0]] != said[pair[1]] for row in pair}
    unreadable = set(frame.index[frame["error"] != ""])
    if torn:
        left_out["that look the same and have two labels"] = len(torn)
    if unreadable:
        left_out["that cannot be read"] = len(unreadable)
    # `torn` holds positions and `drop` takes labels of rows: they are the same, since a scan numbers its rows from 0.
    kept = frame.drop(index=sorted(torn | unreadable))
    return dict(zip(kept["path"], kept["label"], strict=True)), left_out
