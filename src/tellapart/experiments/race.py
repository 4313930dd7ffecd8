"""Several ways to a classifier share one time: a fitted head, training from scratch, fine-tuning; validation decides.

No recipe wins everywhere, and only the validation photos can say which one does here. Each candidate is an ordinary run
in ``race/NAME`` of the run folder, on the same split. What is cheap comes first and tells the others what to beat;
whoever cannot reach that any more gives the rest of the time to the next. The test photos take no part in it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.data.cache import default_cache
from tellapart.data.scan import find_photos
from tellapart.errors import InputError, RunError, TrainingStoppedError
from tellapart.evaluation.averages import f1_macro
from tellapart.evaluation.balance import IMBALANCE
from tellapart.evaluation.wording import duration, points
from tellapart.experiments.backbone_choice import try_backbones
from tellapart.experiments.candidates import Entry, GivenUpError, Watch, best_of, measured, said
from tellapart.experiments.ensembling.ensemble_run import write_joined
from tellapart.experiments.ensembling.members import Member
from tellapart.experiments.ensembling.weighting import choose
from tellapart.experiments.finished_run import open_finished_run
from tellapart.files import read_json, write_json
from tellapart.models.weights import get, listed
from tellapart.preparation import prepare, refuse_one_class
from tellapart.records import Observer
from tellapart.run import Run, begin, reopen, run_stages
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Machine, Recipe, load_recipe, machine_from, with_settings
from tellapart.training.checkpoint import seconds_spent
from tellapart.training.environment import environment, peak_memory_mb
from tellapart.training.network import forget_networks
from tellapart.training.schedule import stages_of
from tellapart.training.time_plan import TimePlan, plan_for_time

SECONDS = 600.0
"""The time of a race that names none."""
FIRST_BACKBONE = "mobilenet_v2"
"""Whose weights are fetched where none are at hand: the only ones that this project's figures were measured with."""
_BALANCE = "train.balance=auto"
_NAMES = ("head", "from scratch", "fine-tuned")
_SHARED = ("data.split", "data.split_seed", "data.max_pixels", "train.seed", "train.deterministic")
"""Settings that all candidates can share; with any other a run has one recipe, and no race."""
_CHOOSING = 0.1
"""Of the time, in which pretrained networks are tried on a few photos, where several are at hand."""
_FEATURES = 0.5
"""Of the time, that the features of all photos may take: a network that is slower, in Keras, is not chosen."""
_USEFUL = 1.25
"""Times the smallest error: a network that errs no more often than that may still help in an ensemble. Not measured."""
_PAYS = 0.01
"""More validation photos named rightly, as a share, for which an ensemble's longer answers are worth it."""
_STEP = 4.0
"""Forward passes that a step of fine-tuning takes the time of: 18 ms to OpenVINO's 4.4 on trash6. Where Keras does
both it is 1.6, so that fine-tuning is judged too slow for few photos."""
_SECONDS_TO_BEGIN = 20.0
"""For a network that is built and whose step is compiled before the first epoch."""
_SECONDS_TO_JOIN = 8.0
"""For an ensemble's network that is built, saved and proved."""
_SHRUNK = 1.5e-3
"""Seconds for the convnet to see a picture that is shrunk in the network."""
_RESERVE = 1.5
"""Seconds for the winner to be put in its place."""


def is_race(recipe: Recipe | str | Path | None, changes: Sequence[str], request: RunRequest) -> bool:
    """Return whether what is asked leaves the choice of the recipe to a race."""
    shared = all(change.partition("=")[0].strip() in _SHARED for change in changes)
    return recipe is None and request.begin_from is None and shared


def begin_race(changes: Sequence[str], request: RunRequest, out: str | os.PathLike[str] | None) -> RunFolder:
    """Make the folder of a race; `run_race` does it.

    Args:
        changes: settings that all candidates share.
        request: what is asked; its time budget, if it has one, is the race's.
        out: the new folder; None: ``runs/NAME-DATE``.

    Raises:
        InputError: there are no such photos.
        RunError: `out` is not empty.
    """
    root, files, _ = find_photos(Path(request.photos))  # a wrong folder is found out before a run folder exists
    refuse_one_class(root, files["label"].unique().tolist())
    recipe = load_recipe("fast", changes)
    if not recipe.data.split[1]:
        raise InputError(
            "Without validation photos nothing can say which way to a classifier is best. Give data.split a share for "
            "them, or name a recipe: --recipe transfer or --recipe fast."
        )
    folder = RunFolder(new_folder(out, Path(request.photos)))
    asked = request.absolute(race=list(changes), time_budget=request.time_budget or SECONDS)
    folder.create(recipe, asked, environment())
    return folder


def describe_race(changes: Sequence[str], request: RunRequest) -> list[str]:
    """Return lines that say what a race would do, without making a folder; a few photos are read and decoded.

    Args:
        changes: settings that all candidates share.
        request: what is asked.

    Raises:
        InputError: there are no such photos.
    """
    root, files, _ = find_photos(Path(request.photos))
    paths, num_classes = [root / path for path in files["path"]], files["label"].nunique()
    seconds, backbone = request.time_budget or SECONDS, _at_hand()
    lines = [f"Photos: {len(paths):,} in {num_classes} classes, in {root}."]
    recipe = _pretrained(backbone, changes) if backbone else load_recipe("fast", changes)
    plan = plan_for_time(paths, num_classes, recipe, seconds)
    once = len(paths) * plan.share * (plan.costs.scan + plan.costs.decode + plan.costs.forward)
    if backbone:
        lines.append(
            f"First: a head on what {backbone} sees of pictures of {plan.recipe.data.image_px} px, about "
            f"{duration(once)} for the features."
        )
    else:
        lines.append(f"No pretrained weights are at hand: they would be fetched ({FIRST_BACKBONE}).")
    lines.append("Then: the convnet from scratch, as long as validation says that it can still win.")
    if backbone:
        lines.append("Then: fine-tuning, if two epochs fit into what is left.")
    if plan.share < 1:
        lines.append(f"The time allows about {plan.share:.0%} of the photos: the rest would be left out.")
    return [*lines, f"Time: at most {duration(seconds)}. Nothing was written."]


def _at_hand() -> str:
    """Return the network to begin from whose weights are at hand; "": there is none."""
    found = [weights.name for weights in listed() if weights.path is not None]
    return FIRST_BACKBONE if FIRST_BACKBONE in found else found[0] if found else ""


def _pretrained(backbone: str, changes: Sequence[str]) -> Recipe:
    return load_recipe("transfer", [*changes, f"model.name={backbone}", _BALANCE])


def run_race(
    folder: RunFolder,
    cache: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    *,
    machine: Machine | None = None,
    started: float | None = None,
) -> Run:
    """Do a race, or what is left of it.

    Args:
        folder: made by `begin_race`, or interrupted.
        cache: the folder for decoded pictures and features; None: the user's cache folder.
        observer: whom to tell; it watches the epochs of every candidate.
        machine: threads and disk space.
        started: when its time began to count, by `time.time`; None: now.

    Raises:
        InputError: the photos cannot be used.
        TrainingStoppedError: no candidate could be trained.
    """
    observer = observer or Observer()
    if folder.is_finished:
        observer.announce(f"{folder.path} is already finished.")
        return Run(folder.path, folder.metrics())
    race = _Race(folder, Path(cache) if cache is not None else default_cache(), observer, machine or machine_from())
    return race.run(started or time.time())


class _Race:
    """The candidates of one run folder, in their order."""

    def __init__(self, folder: RunFolder, cache: Path, observer: Observer, machine: Machine) -> None:
        self.folder, self.cache, self.observer, self.machine = folder, cache, observer, machine
        self.request = folder.record().request
        self.changes = self.request.race or []
        self.log = folder.path / "race.json"
        self.entries: list[Entry] = []
        self.spent, self.winner = 0.0, ""
        if self.log.is_file():
            kept = read_json(self.log)
            self.entries, self.spent = [Entry(**entry) for entry in kept["entries"]], kept["seconds"]
            self.winner = kept.get("winner", "")
        for place in (self._place(name) for name in _NAMES if not self._is_over(name)):
            # A candidate that was killed, or over just before its entry was written.
            self.spent += place.metrics().get("seconds_total") or seconds_spent(place.last_checkpoint)

    def run(self, started: float) -> Run:
        """Do what is not done yet."""
        if self.winner:  # killed while its files were moved: what would be looked at again may be moved already
            self.started = started - self.spent
            return self._finish()
        backbone = _at_hand()
        if not backbone:
            fetching = time.time()
            backbone = self._fetched()
            started += time.time() - fetching  # a download is no part of the time
        self.started = started - self.spent
        self.ends = self.started + (self.request.time_budget or SECONDS)
        self.observer.announce(f"Run folder: {self.folder.path}")
        self.observer.announce(self._intention(backbone))
        self._prepare(backbone)
        if backbone:
            backbone = self._best_backbone(backbone)
            self._head(backbone)
        self._from_scratch(backbone)
        if backbone:
            self._fine_tuned(backbone)
        self._joined()
        return self._finish()

    # The candidates --------------------------------------------------------------------------------------------

    def _head(self, backbone: str) -> None:
        """A head on features that are computed once: the cheapest, and often the best."""
        recipe = with_settings(_pretrained(backbone, self.changes), {"model.unfreeze": 0.0})
        self._run("head", recipe, self._plan())

    def _from_scratch(self, backbone: str) -> None:
        """The convnet, as long as its error may still fall below what the others reach."""
        place = "from scratch"
        if self._best() is not None and not self._num_validation():
            self.observer.announce(
                "Without validation photos nothing can say what is better than the head: it is kept."
            )
            return
        if self._is_over(place) or (backbone and self.left < 2 * _SECONDS_TO_BEGIN):
            return
        recipe, plan = load_recipe("fast", [*self.changes, _BALANCE]), None
        if not self._place(place).is_begun:
            fitted = self._plan_again(recipe)
            if backbone and fitted.share < 1:
                self.observer.announce("The time left is too short to train a network from scratch on all photos.")
                return
            recipe, plan = fitted.recipe, fitted.to_dict()
        best, target = self._best(), None
        if best is not None and best.accuracy is not None:
            target = _USEFUL * (1 - best.accuracy)
        reserve = self._seconds_to_join() if best is not None else 0.0
        self._run(place, recipe, plan, target, reserve)

    def _fine_tuned(self, backbone: str) -> None:
        """The head's network, its upper layers trained on: what is left of the time, if that is enough."""
        if not self._is_over("fine-tuned") and self._num_validation() and self._can_fine_tune(self.left):
            self._run("fine-tuned", _pretrained(backbone, self.changes), self._plan())

    def _run(
        self,
        name: str,
        recipe: Recipe,
        plan: dict[str, Any] | None,
        target: float | None = None,
        reserve: float = 0.0,
    ) -> None:
        """Run a candidate, or go on with it.

        Args:
            name: of the candidate.
            recipe: its own.
            plan: what was measured for it.
            target: the validation error that it must be able to reach; None: it is never given up.
            reserve: seconds that it leaves to what comes after it.
        """
        if self._is_over(name):
            return
        place, began = self._place(name), time.time()
        if place.is_begun and place.has_photos:
            reopen(place.path, self.request.photos)
        else:
            shutil.rmtree(place.path, ignore_errors=True)
            request = RunRequest(photos=self.request.photos, time_budget=self.left - _RESERVE - reserve)
            begin(recipe, request, place.path, prepared=self.folder.path)
            if plan is not None:
                place.update_record(time_plan=plan)
        watch = Watch(self.observer, target, self._num_validation())
        told = Observer(self.observer.progress, self.observer.announce, watch)
        before, outcome, why = seconds_spent(place.last_checkpoint), "beaten", ""
        self.observer.announce(f"Candidate: {name} ({recipe.model.name}, {recipe.data.image_px} px).")
        try:
            run_stages(place, self.cache, told, machine=self.machine)
        except GivenUpError as error:
            outcome, why = "given up", str(error)
        except TrainingStoppedError as error:
            outcome, why = "failed", str(error)
        finally:
            forget_networks()
        entry = self._entry(name, recipe, time.time() - began + before, watch, outcome, why)
        self.entries.append(entry)
        self.observer.announce(said(entry))
        self._save()

    def _joined(self) -> None:
        """All that were measured as one network, where validation says that it pays and the time allows it."""
        finished = [entry for entry in self.entries if entry.correct is not None]
        best = self._best()
        if best is None or len(finished) < 2 or not self._num_validation() or self._is_over("ensemble"):
            return
        began = time.time()
        places = [self._place(entry.name) for entry in finished]
        runs = [open_finished_run(place.path, place.path.name) for place in places]
        photos = runs[0].photos[runs[0].photos["split"] == "validation"]
        true = np.array([runs[0].classes.index(label) for label in photos["label"]], np.int64)
        given = np.stack([run.probabilities[photos.index] for run in runs])
        of_truth = given[:, np.arange(len(true)), true].clip(1e-7, 1.0)
        weights = choose(of_truth, photos["unit"].tolist(), seed=self.folder.record().seed).chosen.weights
        # By what decides who is kept: where classes are ten to one, photos named rightly would be the large classes'.
        joined = np.tensordot(weights, given, 1).argmax(axis=1)
        if self._is_balanced():
            gain = float((joined == true).mean()) - (best.accuracy or 0.0)
        else:
            gain = f1_macro(true, joined, len(runs[0].classes)).value - (best.f1 or 0.0)
        if gain < _PAYS:
            self.observer.announce(f"An ensemble would bring {points(gain)} points on validation: not worth its time.")
            return
        if self.left < self._seconds_to_join():
            self.observer.announce(f"An ensemble would bring {points(gain)} points on validation: no time is left.")
            return
        place = self._place("ensemble")
        shutil.rmtree(place.path, ignore_errors=True)
        members = [(Member(run), float(weight)) for run, weight in zip(runs, weights, strict=True) if weight > 0]
        chosen, shares = zip(*members, strict=True)
        self.observer.announce(f"Candidate: an ensemble of {' and '.join(m.finished_run.name for m in chosen)}.")
        try:
            write_joined(place.path, chosen, shares, runs, cache=self.cache, progress=self.observer.progress)
        except RunError as error:  # the best single candidate is there all the same
            self.observer.announce(f"warning: {error}")
            return
        networks = " + ".join(entry.network for entry, weight in zip(finished, weights, strict=True) if weight > 0)
        entry = Entry("ensemble", networks, place.recipe().data.image_px, time.time() - began, 0, None, None, None)
        self.entries.append(measured(entry, place))
        self.observer.announce(said(self.entries[-1]))
        self._save()

    # What they need --------------------------------------------------------------------------------------------

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.time()

    def _fetched(self) -> str:
        """Fetch the first network's weights, and return its name; "": there is no way to them."""
        if os.environ.get("TELLAPART_OFFLINE"):
            self.observer.announce(
                "warning: no pretrained weights are at hand, and TELLAPART_OFFLINE forbids to fetch any: training from "
                "scratch. tellapart weights add FILE brings them to this machine."
            )
            return ""
        try:
            self.observer.announce(f"Fetching the pretrained weights of {FIRST_BACKBONE} …")
            get(FIRST_BACKBONE)
        except InputError:
            self.observer.announce(
                "warning: no pretrained weights are at hand, and none could be fetched: training from scratch, which "
                "mostly needs more time and more photos. tellapart weights add FILE brings them to this machine."
            )
            return ""
        return FIRST_BACKBONE

    def _best_backbone(self, first: str) -> str:
        """Return which of the networks whose weights are at hand to begin from, by a head on a few photos."""
        if self._place("head").is_begun:
            return str(self._place("head").recipe().model.name)
        names = [first, *(weights.name for weights in listed() if weights.path and weights.name != first)]
        if len(names) == 1:
            return first
        until = time.time() + _CHOOSING * self.left
        image_px = int(self._plan()["image_px"])
        tried = try_backbones(names, self.folder, image_px, self.cache, until=until, observer=self.observer)
        photos = len(self.folder.readable())
        fast = [each for each in tried if photos * each.seconds_per_photo < _FEATURES * self.left]
        best = min(fast, key=lambda each: each.loss, default=tried[0]).name
        if best != first:
            self.folder.update_record(time_plan=self._plan_again(_pretrained(best, self.changes)).to_dict())
        return best

    def _intention(self, backbone: str) -> str:
        first = f"a head on what {backbone} sees, then " if backbone else ""
        last = ", then fine-tuning with what is left" if backbone else ""
        while_it_can = " while it can still win" if backbone else ""
        return f"Time: {duration(self.left)} for {first}a network from scratch{while_it_can}{last}."

    def _prepare(self, backbone: str) -> None:
        """Scan, check and split the photos, as many as the time allows."""
        if self.folder.has_photos:
            return
        root, files, _ = find_photos(Path(self.request.photos))
        paths = [root / path for path in files["path"]]
        recipe = _pretrained(backbone, self.changes) if backbone else load_recipe("fast", [*self.changes, _BALANCE])
        plan = plan_for_time(paths, files["label"].nunique(), recipe, self.left)
        if plan.share < 1:
            self.observer.announce(
                f"warning: the time allows about {plan.share:.0%} of the {len(files):,} photos: the rest is left out."
            )
        self.folder.update_record(time_plan=plan.to_dict())
        kept = self.cache if self.machine.cache_limit_gb else None
        prepare(self.folder, self.folder.recipe(), self.observer, kept)

    def _plan(self) -> dict[str, Any]:
        """Return what was measured before the photos were scanned, for the pretrained network."""
        return dict(self.folder.record().time_plan or {})

    def _plan_again(self, recipe: Recipe) -> TimePlan:
        """Fit a recipe into what is left; the photos are scanned already."""
        root, photos = self.folder.root, self.folder.readable()
        paths = [root / path for path in photos["path"]]
        plan = plan_for_time(paths, photos["label"].nunique(), recipe, self.left - _RESERVE)
        return replace(plan, costs=replace(plan.costs, scan=0.0))

    def _can_fine_tune(self, seconds: float) -> bool:
        """Whether two epochs of fine-tuning fit, by what a forward pass takes."""
        forward = float(self._plan()["seconds_per_photo"]["forward"])
        photos = self.folder.readable()["split"]
        epochs = 2 * _STEP * forward * int((photos == "train").sum())
        return seconds > _SECONDS_TO_BEGIN + forward * len(photos) + epochs

    def _seconds_to_join(self) -> float:
        """Return about how long it takes to ask an ensemble: the head's network has said what it says already."""
        return _SECONDS_TO_JOIN + _SHRUNK * len(self.folder.readable())

    def _num_validation(self) -> int:
        return int((self.folder.readable()["split"] == "validation").sum())

    def _place(self, name: str) -> RunFolder:
        return RunFolder(self.folder.path / "race" / name.replace(" ", "-"))

    def _is_over(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def _entry(self, name: str, recipe: Recipe, seconds: float, watch: Watch, outcome: str, why: str) -> Entry:
        place = self._place(name)
        image_px = stages_of(place.recipe())[-1].image_px
        entry = Entry(
            name, recipe.model.name, image_px, seconds, watch.epochs, None, watch.accuracy, None, None, outcome, why
        )
        if not place.is_finished:
            return entry
        return measured(entry, place)

    def _best(self) -> Entry | None:
        return best_of(self.entries, balanced=self._is_balanced())

    def _is_balanced(self) -> bool:
        counts = self.folder.readable().query("split == 'train'")["label"].value_counts()
        return bool(counts.max() < IMBALANCE * counts.min())

    def _save(self) -> None:
        self.spent = time.time() - self.started
        entries = [asdict(entry) for entry in self.entries]
        write_json(self.log, {"seconds": self.spent, "entries": entries, "winner": self.winner})

    # The end ----------------------------------------------------------------------------------------------------

    def _finish(self) -> Run:
        """Put the winner's files in their place; ``metrics.json`` comes last: where it stands, the race is over."""
        best = self._best()
        if best is None:
            reasons = "; ".join(f"{entry.name}: {entry.why}" for entry in self.entries)
            raise TrainingStoppedError(f"No candidate could be trained ({reasons}).")
        self.entries = [replace(e, outcome="won") if e.name == best.name else e for e in self.entries]
        self.winner = best.name
        self._save()
        winner = self._place(best.name)
        metrics, record = winner.metrics(), winner.record()
        if winner.checkpoints.is_dir():  # else they were moved by a process that was killed after it
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        for path in sorted(winner.path.iterdir()):
            if path.name not in _KEPT:
                path.replace(self.folder.path / path.name)
        if record.request.ensemble:
            request = self.request.model_copy(update={"ensemble": record.request.ensemble})
            self.folder.update_record(request=request.model_dump(mode="json", exclude_none=True))
        self.folder.update_record(
            **record.known("precision", "segments", "planned_steps", "time_plan", "seed", "precision_why",
                           "precision_ms_per_image", "cached_photos")
        )  # fmt: skip
        for entry in self.entries:
            if entry.name != best.name:
                _forget_weights(self._place(entry.name))
        metrics |= {
            "seconds_total": time.time() - self.started,
            "peak_memory_mb": peak_memory_mb(),
            "race": [asdict(entry) for entry in self.entries],
        }
        self.observer.announce(f"Kept: {best.name}, the best on validation.")
        write_json(self.folder.metrics_path, metrics)
        self.folder.log("finished", seconds_total=metrics["seconds_total"], kept=best.name)
        return Run(self.folder.path, metrics)


_KEPT = frozenset({"environment.json", "manifest.csv", "health.json", "log.jsonl", "metrics.json"})
"""Files of the winner that stay where they are: the race has its own, or needs them to go on after a kill."""


def _forget_weights(place: RunFolder) -> None:
    """Delete what takes room of a candidate that lost; its history and its metrics stay."""
    shutil.rmtree(place.checkpoints, ignore_errors=True)
    shutil.rmtree(place.tensorboard, ignore_errors=True)
    for path in (place.model_path, place.features_path):
        path.unlink(missing_ok=True)
