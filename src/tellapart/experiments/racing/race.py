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
from numpy.typing import NDArray

from tellapart.data.cache import default_cache
from tellapart.data.scan import find_photos
from tellapart.errors import InputError, RunError, TrainingStoppedError
from tellapart.evaluation.averages import f1_macro
from tellapart.evaluation.balance import IMBALANCE
from tellapart.evaluation.wording import duration, points
from tellapart.experiments.ensembling.distill import student_recipe
from tellapart.experiments.ensembling.ensemble_run import write_joined
from tellapart.experiments.ensembling.members import Member
from tellapart.experiments.ensembling.weighting import choose
from tellapart.experiments.finished_run import FinishedRun, open_finished_run
from tellapart.experiments.racing.backbone_choice import try_backbones
from tellapart.experiments.racing.begin import BALANCE, FIRST_BACKBONE, SECONDS, backbone_at_hand, pretrained_recipe
from tellapart.experiments.racing.candidates import ENSEMBLE, Entry, GivenUpError, Watch, best_of, entry_line, measured
from tellapart.files import read_json, write_json
from tellapart.models.weights import get, listed
from tellapart.preparation import prepare
from tellapart.records import Observer
from tellapart.run import Run, begin, reopen, run_stages
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.sections import Backbone
from tellapart.settings import Machine, Recipe, load_recipe, machine_from, with_settings
from tellapart.training.checkpoint import seconds_spent
from tellapart.training.environment import peak_memory_mb
from tellapart.training.features import pretrained_extractor
from tellapart.training.network import forget_networks
from tellapart.training.schedule import stages_of
from tellapart.training.time_plan import TimePlan, at_size, plan_for_time

# Folders are called so too: under another name a race that was interrupted would not find what it has done.
_NAMES = ("head", "from scratch", "fine-tuned", "student")
_CHOOSING = 0.1
"""Of the time, in which pretrained networks are tried on a few photos, where several are at hand."""
_FEATURES = 0.5
"""Of the time, that the features of all photos may take: a network that is slower, in Keras, is not chosen."""
_USEFUL = 1.25
"""Times the smallest error: a network that errs no more often than that may still help in an ensemble. Not measured."""
_PAYS = 0.01
"""More validation photos named rightly, as a share, for which an ensemble's longer answers are worth it: more than the
best single network names, its own student among them."""
_STEP = {"openvino": 4.0, "keras": 1.6}
"""Forward passes in each runtime that a step of fine-tuning takes the time of, for a photo: 18 ms on trash6."""
_SECONDS_TO_BEGIN = 20.0
"""For a network that is built and whose step is compiled before the first epoch."""
_CHEAP = 20.0
"""Seconds that two epochs of fine-tuning may take to be tried before training from scratch: no more than it takes to
begin either. They are few photos then, of which a network from scratch learns little."""
_FIRST_SHARE = 0.5
"""Of what is left, for fine-tuning where it comes before training from scratch."""
_SECONDS_TO_JOIN = 8.0
"""For an ensemble's network that is built, saved and proved."""
_SHRUNK = 1.5e-3
"""Seconds for the convnet to see a picture that is shrunk in the network."""
_RESERVE = 1.5
"""Seconds for the winner to be put in its place."""


def kept_for_ensemble(needed: float, left: float) -> float:
    """Return the seconds that training from scratch leaves for an ensemble, of those that are left in all.

    None where it would take most of them: of 100,000 photos it did, and a network that was still learning got one
    epoch.
    """
    return 0.0 if needed > left / 2 else needed


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
            saved = read_json(self.log)
            self.entries, self.spent = [Entry(**entry) for entry in saved["entries"]], saved["seconds"]
            self.winner = saved.get("winner", "")
        # Candidates without an entry were killed in training, or just before their entry was written: their time
        # counts.
        for candidate in (self._folder_of(name) for name in _NAMES if not self._is_over(name)):
            self.spent += candidate.metrics().get("seconds_total") or seconds_spent(candidate.last_checkpoint)

    def run(self, started: float) -> Run:
        """Do what is not done yet."""
        if self.winner:  # killed while its files were moved: what would be looked at again may be moved already
            self.started = started - self.spent
            return self._finish()
        backbone = backbone_at_hand()
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
            if self._are_few(backbone):
                # It begins with the head: fitting and measuring that one by itself would take a third of a minute.
                self._fine_tuned(backbone, is_first=True)
            if self._best() is None:
                self._head(backbone)
                self._fine_tuned(backbone, is_first=True)
        self._from_scratch(backbone)
        if backbone:
            self._fine_tuned(backbone)
        self._joined()
        # After the ensemble, which is its teacher; before `_finish`, which deletes the losers' weights.
        self._student()
        return self._finish()

    # The candidates --------------------------------------------------------------------------------------------

    def _head(self, backbone: str) -> None:
        """A head on features that are computed once: the cheapest, and often the best."""
        self._run("head", with_settings(self._pretrained_recipe(backbone), {"model.unfreeze": 0.0}), self._plan())

    def _from_scratch(self, backbone: str) -> None:
        """The convnet, as long as its error may still fall below what the others reach."""
        name = "from scratch"
        if self._best() is not None and not self._num_validation():
            self.observer.announce(
                "Without validation photos nothing can say what is better than the head: it is kept."
            )
            return
        if self._is_over(name) or (backbone and self.left < 2 * _SECONDS_TO_BEGIN):
            return
        recipe, plan = self._scratch_recipe(), None
        if not self._folder_of(name).is_begun:
            # The first plan was made for the pretrained network, before others took their time.
            fitted = self._plan_again(recipe)
            if backbone and fitted.share < 1:
                self.observer.announce("The time left is too short to train a network from scratch on all photos.")
                return
            recipe, plan = fitted.recipe, fitted.to_dict()
        best, target = self._best(), None
        if best is not None and best.accuracy is not None:
            target = _USEFUL * (1 - best.accuracy)
        # With another candidate there may be an ensemble.
        reserve = kept_for_ensemble(self._seconds_to_join(), self.left) if best is not None else 0.0
        self._run(name, recipe, plan, target, reserve)

    def _fine_tuned(self, backbone: str, *, is_first: bool = False) -> None:
        """The head's network, its upper layers trained on, if two epochs fit into what is left.

        Args:
            backbone: the head's.
            is_first: before training from scratch, and only where that keeps half of the time or would learn little.
        """
        if self._is_over("fine-tuned") or not self._num_validation():
            return
        recipe, reserve = self._pretrained_recipe(backbone), 0.0
        epoch_seconds, other_seconds = self._seconds_to_fine_tune(recipe)
        needed_seconds, first_seconds = epoch_seconds + other_seconds, _FIRST_SHARE * self.left
        # What was begun is ended, though less is left now than when it was begun.
        if not self._folder_of("fine-tuned").is_begun:
            seconds_after = self.left - max(first_seconds, needed_seconds)
            leaves_time = seconds_after > 2 * _SECONDS_TO_BEGIN
            if needed_seconds > self.left or (
                is_first and epoch_seconds > _CHEAP and (needed_seconds > first_seconds or not leaves_time)
            ):
                return
            # A rest in which nothing can be trained is not worth leaving.
            reserve = seconds_after if is_first and leaves_time else 0.0
        self._run("fine-tuned", recipe, self._plan(), reserve=reserve)

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
        candidate, began = self._folder_of(name), time.time()
        if candidate.is_begun and candidate.has_photos:
            # The photos may have moved since: the race's record has been told, the candidate's not yet.
            reopen(candidate.path, self.request.photos)
        else:
            # Killed before its photos were there: nothing in it is worth keeping, and `begin` wants an empty folder.
            shutil.rmtree(candidate.path, ignore_errors=True)
            request = RunRequest(photos=self.request.photos, time_budget=self.left - _RESERVE - reserve)
            begin(recipe, request, candidate.path, prepared=self.folder.path)
            # With a plan in its record the candidate does not time its network again.
            if plan is not None:
                candidate.update_record(time_plan=plan)
        watch = Watch(self.observer, target, self._num_validation())
        candidate_observer = Observer(self.observer.progress, self.observer.announce, watch)
        # What earlier tries took; asked before this one adds to it.
        earlier_seconds, outcome, why = seconds_spent(candidate.last_checkpoint), "beaten", ""
        self.observer.announce(f"Candidate: {name} ({recipe.model.name}, {recipe.data.image_px} px).")
        try:
            run_stages(candidate, self.cache, candidate_observer, machine=self.machine)
        # Whatever else is raised (Ctrl-C, a full disk) leaves no entry: the candidate goes on when the race is resumed.
        except GivenUpError as error:
            outcome, why = "given up", str(error)
        except TrainingStoppedError as error:
            outcome, why = "failed", str(error)
        finally:
            # Before the next candidate builds its own: Keras keeps every network of a process otherwise.
            forget_networks()
        entry = self._entry(name, recipe, time.time() - began + earlier_seconds, watch, outcome, why)
        self.entries.append(entry)
        self.observer.announce(entry_line(entry))
        # At once: that a candidate was given up is written nowhere else, and a kill would let it train on.
        self._save()

    def _joined(self) -> None:
        """All that were measured as one network, where validation says that it pays and the time allows it."""
        finished = [entry for entry in self.entries if entry.correct is not None]
        best = self._best()
        if best is None or len(finished) < 2 or not self._num_validation() or self._is_over(ENSEMBLE):
            return
        began = time.time()
        candidates = [self._folder_of(entry.name) for entry in finished]
        runs = [open_finished_run(candidate.path, candidate.path.name) for candidate in candidates]
        weights, gain = self._weighed(runs, best)
        # Asked of tables, before any network is built. Whether the ensemble is kept is decided by what it says itself.
        if gain < _PAYS:
            self.observer.announce(f"An ensemble would bring {points(gain)} points on validation: not worth its time.")
            return
        if self.left < self._seconds_to_join():
            self.observer.announce(f"An ensemble would bring {points(gain)} points on validation: no time is left.")
            return
        ensemble = self._folder_of(ENSEMBLE)
        # Left by a process that was killed before the entry was saved.
        shutil.rmtree(ensemble.path, ignore_errors=True)
        members = [(Member(run), float(weight)) for run, weight in zip(runs, weights, strict=True) if weight > 0]
        chosen, shares = zip(*members, strict=True)
        self.observer.announce(f"Candidate: an ensemble of {' and '.join(m.finished_run.name for m in chosen)}.")
        try:
            write_joined(
                ensemble.path, chosen, shares, runs, cache=self.cache, limit_bytes=self.machine.cache_limit_bytes,
                progress=self.observer.progress,
            )  # fmt: skip
        except RunError as error:  # the best single candidate is there all the same
            shutil.rmtree(ensemble.path, ignore_errors=True)  # it looks finished
            self.observer.announce(f"warning: {error}")
            return
        networks = " + ".join(entry.network for entry, weight in zip(finished, weights, strict=True) if weight > 0)
        entry = Entry(ENSEMBLE, networks, ensemble.recipe().data.image_px, time.time() - began, 0, None, None, None)
        self.entries.append(measured(entry, ensemble))
        self.observer.announce(entry_line(self.entries[-1]))
        self._save()

    def _weighed(self, runs: Sequence[FinishedRun], best: Entry) -> tuple[NDArray[np.float64], float]:
        """Return weights for the runs, chosen on validation, and what their mean gains there over the best of them."""
        # All candidates copied one table, so the first one's row numbers hold for all.
        photos = runs[0].photos[runs[0].photos["split"] == "validation"]
        true = np.array([runs[0].classes.index(label) for label in photos["label"]], np.int64)
        probabilities = np.stack([run.probabilities[photos.index] for run in runs])
        # Clipped: a probability of 0 has no finite logarithm.
        of_truth = probabilities[:, np.arange(len(true)), true].clip(1e-7, 1.0)
        weights = choose(of_truth, photos["unit"].tolist(), seed=self.folder.record().seed).chosen.weights
        # By what decides who is kept: where classes are ten to one, photos named rightly would be the large classes'.
        predicted = np.tensordot(weights, probabilities, 1).argmax(axis=1)
        if self._is_balanced():
            return weights, float((predicted == true).mean()) - (best.accuracy or 0.0)
        return weights, f1_macro(true, predicted, len(runs[0].classes)).value - (best.f1 or 0.0)

    def _student(self) -> None:
        """A network like the best single one that learns what the ensemble says, where as much time is left again.

        It answers in the time of one, so that it is kept unless the ensemble is better by what pays.
        """
        best = self._best()
        single = best_of([entry for entry in self.entries if entry.name != ENSEMBLE], balanced=self._is_balanced())
        if best is None or best.name != ENSEMBLE or single is None or self._is_over("student"):
            return
        teacher, needed_seconds, plan = self._folder_of(ENSEMBLE).path, single.seconds, None
        # Begun before an interruption: it keeps its recipe and plan, however little time is left.
        if self._folder_of("student").is_begun:
            self._run("student", self._folder_of("student").recipe(), None)
            return
        if single.name == "from scratch":
            recipe = self._scratch_recipe()
        else:
            recipe, plan = self._pretrained_recipe(single.network), self._plan()
            needed_seconds = max(needed_seconds, sum(self._seconds_to_fine_tune(recipe)))
        if self.left - _RESERVE < needed_seconds:
            self.observer.announce(
                f"No student of the ensemble: {duration(max(self.left, 0.0))} are left, and it would take "
                f"{duration(needed_seconds)}."
            )
            return
        if plan is None:
            fitted = self._plan_again(recipe)
            recipe, plan = fitted.recipe, fitted.to_dict()
        self._run("student", student_recipe(recipe, teacher), plan)

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
        for candidate in ("head", "fine-tuned"):
            if self._folder_of(candidate).is_begun:
                # The choice was made before the race was interrupted.
                return str(self._folder_of(candidate).recipe().model.name)
        names = [first, *(weights.name for weights in listed() if weights.path and weights.name != first)]
        if len(names) == 1:
            return first
        until = time.time() + _CHOOSING * self.left
        image_px = int(self._plan()["image_px"])
        trials = try_backbones(
            names, self.folder, image_px, self.cache, self.machine, until=until, observer=self.observer
        )
        num_photos = len(self.folder.readable())
        affordable = [trial for trial in trials if num_photos * trial.seconds_per_photo < _FEATURES * self.left]
        best = min(affordable, key=lambda trial: trial.loss, default=trials[0]).name
        if best != first:
            # The plan was measured with the first network; the head takes its costs from it.
            self.folder.update_record(time_plan=self._plan_again(pretrained_recipe(best, self.changes)).to_dict())
        return best

    def _intention(self, backbone: str) -> str:
        first = f"a head on what {backbone} sees, then " if backbone else ""
        last = "; fine-tuning where it fits" if backbone else ""
        while_it_can = " while it can still win" if backbone else ""
        return f"Time: {duration(self.left)} for {first}a network from scratch{while_it_can}{last}."

    def _prepare(self, backbone: str) -> None:
        """Scan, check and split the photos, as many as the time allows."""
        if self.folder.has_photos:
            return
        root, files, _ = find_photos(Path(self.request.photos))
        paths = [root / path for path in files["path"]]
        recipe = pretrained_recipe(backbone, self.changes) if backbone else self._scratch_recipe()
        plan = plan_for_time(paths, files["label"].nunique(), recipe, self.left)
        if plan.share < 1:
            self.observer.announce(
                f"warning: the time allows about {plan.share:.0%} of the {len(files):,} photos: the rest is left out."
            )
        # Before the scan, which reads from the record what share of the photos to take.
        self.folder.update_record(time_plan=plan.to_dict())
        scan_cache = self.cache if self.machine.cache_limit_gb else None
        prepare(self.folder, self.folder.recipe(), self.observer, scan_cache)

    def _plan(self) -> dict[str, Any]:
        """Return what was measured before the photos were scanned, for the pretrained network."""
        return dict(self.folder.record().time_plan or {})

    def _plan_again(self, recipe: Recipe) -> TimePlan:
        """Fit a recipe into what is left; the photos are scanned already."""
        root, photos = self.folder.root, self.folder.readable()
        paths = [root / path for path in photos["path"]]
        plan = plan_for_time(paths, photos["label"].nunique(), recipe, self.left - _RESERVE)
        # These costs are recorded as those of a candidate, which scans nothing.
        return replace(plan, costs=replace(plan.costs, scan=0.0))

    def _seconds_to_fine_tune(self, recipe: Recipe) -> tuple[float, float]:
        """Return the seconds of two epochs and of what comes before and after them, by what a forward pass takes."""
        plan, splits = self._plan(), self.folder.readable()["split"]
        settings, forward = recipe.model, float(plan["seconds_per_photo"]["forward"])
        assert isinstance(settings, Backbone)
        # The one that the plan timed, and so built already.
        runtime = pretrained_extractor(settings, int(plan["image_px"]), len(splits)).forward.runtime
        epoch_seconds = 2 * _STEP[runtime] * forward * int((splits == "train").sum())
        return epoch_seconds, _SECONDS_TO_BEGIN + forward * len(splits)

    def _pretrained_recipe(self, backbone: str) -> Recipe:
        """Return the recipe at the size that was planned: pictures no larger than the photos."""
        return at_size(pretrained_recipe(backbone, self.changes), int(self._plan()["image_px"]))

    def _are_few(self, backbone: str) -> bool:
        """Whether the photos are so few that fine-tuning costs hardly more than beginning it."""
        return self._num_validation() > 0 and self._seconds_to_fine_tune(self._pretrained_recipe(backbone))[0] < _CHEAP

    def _scratch_recipe(self) -> Recipe:
        return load_recipe("fast", [*self.changes, BALANCE])

    def _seconds_to_join(self) -> float:
        """Return about how long it takes to ask an ensemble: the head's network has said what it says already."""
        return _SECONDS_TO_JOIN + _SHRUNK * len(self.folder.readable())

    def _num_validation(self) -> int:
        return int((self.folder.readable()["split"] == "validation").sum())

    def _folder_of(self, name: str) -> RunFolder:
        return RunFolder(self.folder.path / "race" / name.replace(" ", "-"))

    def _is_over(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def _entry(self, name: str, recipe: Recipe, seconds: float, watch: Watch, outcome: str, why: str) -> Entry:
        candidate = self._folder_of(name)
        image_px = stages_of(candidate.recipe())[-1].image_px
        entry = Entry(
            name, recipe.model.name, image_px, seconds, watch.epochs, None, watch.accuracy, None, None, outcome, why
        )
        if not candidate.is_finished:
            return entry
        return measured(entry, candidate)

    def _best(self) -> Entry | None:
        return best_of(self.entries, balanced=self._is_balanced(), pays=_PAYS)

    def _is_balanced(self) -> bool:
        counts = self.folder.readable().query("split == 'train'")["label"].value_counts()
        return bool(counts.max() < IMBALANCE * counts.min())

    def _save(self) -> None:
        # `started` was moved back by what earlier processes spent, so this is the time of all of them.
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
        # The name first, then the files: a process that goes on after a kill finds the winner named and moves the rest.
        self.winner = best.name
        self._save()
        winner = self._folder_of(best.name)
        metrics, record = winner.metrics(), winner.record()
        if winner.checkpoints.is_dir():  # else they were moved by a process that was killed after it
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        for path in sorted(winner.path.iterdir()):
            if path.name not in _KEPT:
                path.replace(self.folder.path / path.name)
        if record.request.ensemble:
            # The record of the race says that its network is an ensemble: it was not trained by one recipe.
            request = self.request.model_copy(update={"ensemble": record.request.ensemble})
            self.folder.update_record(request=request.model_dump(mode="json", exclude_none=True))
        self.folder.update_record(
            **record.known("precision", "segments", "planned_steps", "time_plan", "seed", "precision_why",
                           "precision_ms_per_image", "cached_photos")
        )  # fmt: skip
        # Only now: a kill before this line leaves all weights, one after it a winner in its place.
        for entry in self.entries:
            if entry.name != best.name:
                _forget_weights(self._folder_of(entry.name))
        metrics |= {
            "seconds_total": time.time() - self.started,
            "peak_memory_mb": peak_memory_mb(),
            "race": [asdict(entry) for entry in self.entries],
        }
        self.observer.announce(f"Kept: {best.name}, the best on validation.")
        # Last of all: where this file is, the race is finished.
        write_json(self.folder.metrics_path, metrics)
        self.folder.log("finished", seconds_total=metrics["seconds_total"], kept=best.name)
        return Run(self.folder.path, metrics)


_KEPT = frozenset({"environment.json", "manifest.csv", "health.json", "log.jsonl", "metrics.json"})
"""Files of the winner that stay where they are: the race has its own, or needs them to go on after a kill."""


def _forget_weights(candidate: RunFolder) -> None:
    """Delete what takes room of a candidate that lost; its history and its metrics stay."""
    shutil.rmtree(candidate.checkpoints, ignore_errors=True)
    shutil.rmtree(candidate.tensorboard, ignore_errors=True)
    for path in (candidate.model_path, candidate.features_path):
        path.unlink(missing_ok=True)
