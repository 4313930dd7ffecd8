"""Versions of models in MLflow's registry: bundles, what was measured of them, and which of them is the champion.

SQLite in a file beside the runs by default, an MLflow server or PostgreSQL by URL. `mlflow ui` shows the same models.
MLflow is imported when a `Registry` is made, never before: a server must not carry it (it follows a registry from a
process beside it).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.bundles.bundle import NAME, Bundle, open_bundle
from tellapart.databases import reason_of, url_of, without_password
from tellapart.errors import InputError, UnavailableError
from tellapart.run_folder import RunFolder

CHAMPION, CHALLENGER = "champion", "challenger"
DEFAULT_FILE = Path("runs") / "registry.db"
_BUNDLE, _RUN = "bundle", "run"
"""Folders of a version's artefacts: the bundle, and the small files of the run that it was made from."""
_CHANGES = "tellapart.changes"
"""Tag of a model: who was champion before, the last one last."""
_MOST_CHANGES = 20
"""So many steps back are kept: the tag must not grow for ever."""
_CHUNK = 100
"""MLflow takes so many parameters at once, and 1,000 metrics."""
_LONGEST = 500
"""Characters of a setting or a reason; more would be hard to read in a table."""
_RUN_FILES = (
    "recipe.toml", "environment.json", "manifest.csv", "predictions.csv", "metrics.json", "history.csv", "health.json",
)  # fmt: skip
"""What comparisons need, and what tells how a model came to be; its weights are in the bundle."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a model.

    Attributes:
        name: of the model.
        number: 1 for the first one.
        digest: the version of its bundle, twelve hexadecimal digits.
        created: seconds since 1970, UTC.
        aliases: such as "champion".
        metrics: name → value, such as "test.accuracy".
        tags: about its data and its origin.
        run: id of MLflow's run, which holds its files.
    """

    name: str
    number: int
    digest: str
    created: float
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    tags: dict[str, str]
    run: str

    @property
    def has_run(self) -> bool:
        """Whether the files of its training run were added: without them it cannot be compared photo by photo."""
        return self.tags.get("tellapart.has_run") == "true"


@dataclass(frozen=True)
class Change:
    """A change of champion.

    Attributes:
        before: number of the version that was champion; None: there was none.
        after: that of the one that became champion.
        at: seconds since 1970, UTC.
        reason: in words.
    """

    before: int | None
    after: int
    at: float
    reason: str


class Registry:
    """A registry of models. Several processes may use one.

    Args:
        where: a file for SQLite, or a URL as MLflow takes it (http://host:5000, postgresql://…); None:
            ``runs/registry.db``.

    Raises:
        InputError: it cannot be opened.

    Example:
        >>> registry = Registry("runs/registry.db")
        >>> version = registry.add("bundle", run="runs/pets")
        >>> registry.promote(version, reason="the first one")
    """

    def __init__(self, where: str | os.PathLike[str] | None = None) -> None:
        self.url = url_of(where or DEFAULT_FILE)
        self.shown = without_password(self.url)
        path = self.url.removeprefix("sqlite:///")
        # MLflow puts artefacts of SQLite into the current folder: beside the file they are found again from anywhere.
        self._artefacts = None if path == self.url else Path(os.path.abspath(path)).with_suffix("").as_uri() + "-files"
        with self._explained("be opened"):
            if self._artefacts is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._client = _client(self.url)
            self._client.search_registered_models(max_results=1)

    # Reading ------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all models."""
        with self._explained("be read"):
            return sorted(model.name for model in _all_pages(self._client.search_registered_models))

    def versions(self, name: str) -> list[RegisteredVersion]:
        """Return the versions of a model, the latest first.

        Raises:
            InputError: there is no such model.
        """
        with self._explained("be read"):
            aliases = self._aliases(name)
            found = _all_pages(self._client.search_model_versions, filter_string=f"name = '{name}'")
            versions = [self._version(version, aliases) for version in found]
        return sorted(versions, key=lambda version: version.number, reverse=True)

    def version(self, name: str, which: str) -> RegisteredVersion:
        """Return a version by its number, its alias or the digest of its bundle.

        Raises:
            InputError: there is none.
        """
        versions = self.versions(name)
        for version in versions:
            # Of twelve digits alone: a version without the tag has an empty digest, which an empty text would match.
            if which in (str(version.number), *version.aliases) or (len(which) == 12 and which == version.digest):
                return version
        known = ", ".join(str(version.number) for version in versions)
        aliases = ", ".join(alias for version in versions for alias in version.aliases)
        raise InputError(
            f"{name} has no version {which!r:.80}. Expected one of {known}" + (f", or {aliases}." if aliases else ".")
        )

    def champion(self, name: str) -> RegisteredVersion | None:
        """Return the version that serves; None: there is none yet."""
        # Not by way of `versions`: servers ask every second, and a model may have hundreds.
        with self._explained("be read"):
            aliases = self._aliases(name)
            if CHAMPION not in aliases:
                return None
            return self._version(self._client.get_model_version(name, str(aliases[CHAMPION])), aliases)

    def champion_digest(self, name: str) -> str | None:
        """Return the digest of the version that serves; None: there is none yet.

        Without its metrics, of which there are hundreds: whoever follows a model asks every second, beside a server.
        """
        with self._explained("be read"):
            number = self._aliases(name).get(CHAMPION)
            if number is None:
                return None
            return str(self._client.get_model_version(name, str(number)).tags.get("tellapart.digest", ""))

    def changes(self, name: str) -> list[Change]:
        """Return the last changes of champion, the latest last."""
        with self._explained("be read"):
            return self._changes(name)

    # Changing -----------------------------------------------------------------------------------------------

    def add(
        self,
        bundle: str | os.PathLike[str],
        *,
        run: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> RegisteredVersion:
        """Add a bundle as a version. One that is there already is returned as it is.

        Args:
            bundle: its folder.
            run: the run that it was made from: its metrics, curves, settings and report are logged, and versions can be
                compared photo by photo.
            name: of the model; None: the bundle's.

        Raises:
            BundleError: it is damaged.
            InputError: it was made from another run, or the registry cannot be written.
        """
        opened = open_bundle(bundle)
        folder = None if run is None else RunFolder(Path(run))
        if folder is not None:
            _refuse_other_run(opened, folder)
        name = name or opened.record.name
        # It becomes a folder and a part of addresses.
        if not re.fullmatch(NAME, name):
            raise InputError(f"The name is {name!r}. Expected up to 100 letters, digits, points, hyphens, underscores.")
        with self._explained("be written"):
            for version in self.versions(name) if name in self.names() else []:
                if version.digest == opened.version:
                    if folder is not None and not version.has_run:
                        return self._attach(version, folder)
                    return version
            return self._add(opened, folder, name)

    def _attach(self, version: RegisteredVersion, run: RunFolder) -> RegisteredVersion:
        """Add the run to a version that was added without it."""
        self._log_run(version.run, run)
        # Last: what says that the run is there must not stand before it is.
        for key, value in _about_run(run).items():
            self._client.set_model_version_tag(version.name, str(version.number), key, value)
        return self.version(version.name, str(version.number))

    def promote(self, version: RegisteredVersion, reason: str) -> None:
        """Make a version the champion."""
        with self._explained("be written"):
            before = self._aliases(version.name).get(CHAMPION)
            if before == version.number:
                return
            # First who was champion before: after a kill between the two there is still a way back.
            self._write_changes(version.name, [*self._changes(version.name),
                                               Change(before, version.number, time.time(), reason)])  # fmt: skip
            self._client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
            if self._aliases(version.name).get(CHALLENGER) == version.number:
                self._client.delete_registered_model_alias(version.name, CHALLENGER)

    def rollback(self, name: str, reason: str) -> RegisteredVersion:
        """Make the version champion that was it before, and return it.

        Raises:
            InputError: there was none before.
        """
        with self._explained("be written"):
            now, changes = self._aliases(name).get(CHAMPION), self._changes(name)
            # A change that was noted but not done, by a process that was killed between the two, is not undone.
            while changes and changes[-1].after != now:
                changes.pop()
            before = changes[-1].before if changes else None
            if before is None:
                raise InputError(f"{name} has had no other champion. Expected a version that was promoted before.")
            # The alias first: after a kill the list ends with a change that is none any more, which the loop above
            # leaves out.
            self._client.set_registered_model_alias(name, CHAMPION, str(before))
            self._client.set_model_version_tag(name, str(now), "tellapart.rolled_back", reason[:_LONGEST])
            self._write_changes(name, changes[:-1])
        return self.version(name, str(before))

    def set_challenger(self, version: RegisteredVersion) -> None:
        """Make a version the challenger."""
        with self._explained("be written"):
            self._client.set_registered_model_alias(version.name, CHALLENGER, str(version.number))

    def remove_challenger(self, name: str) -> None:
        """Have no challenger any more."""
        with self._explained("be written"):
            if CHALLENGER in self._aliases(name):
                self._client.delete_registered_model_alias(name, CHALLENGER)

    def note(self, name: str, key: str) -> str | None:
        """Return what was noted at a model under a key; None: nothing."""
        with self._explained("be read"):
            text: str | None = self._client.get_registered_model(name).tags.get(key)
        return text or None

    def write_note(self, name: str, key: str, text: str | None) -> None:
        """Note something at a model; None: forget it."""
        with self._explained("be written"):
            # An empty tag, not a deleted one: deleting what is not there is an error.
            self._client.set_registered_model_tag(name, key, text or "")

    # Files --------------------------------------------------------------------------------------------------

    def fetch_bundle(self, version: RegisteredVersion, folder: Path) -> Path:
        """Copy a version's bundle to ``folder/DIGEST``, where it is not there yet, and return that.

        Raises:
            BundleError: what came is not what was added.
        """
        target = folder / version.digest
        if not target.exists():
            self._fetch(version, _BUNDLE, target)
        opened = open_bundle(target)  # checks every file against its checksum
        if opened.version != version.digest:
            raise InputError(
                f"{version.name} {version.number} came as bundle {opened.version}. Expected {version.digest}: its "
                f"files in {self.shown} were changed."
            )
        return target

    def fetch_run(self, version: RegisteredVersion, folder: Path) -> Path:
        """Copy the small files of the run that a version was made from, and return their folder.

        Raises:
            InputError: it was added without its run.
        """
        if not version.has_run:
            raise InputError(
                f"{version.name} {version.number} was added without its run, so what it predicts of which photo is not "
                "known. Add it with: tellapart models add BUNDLE --run RUN."
            )
        # Unlike a bundle, these files have no checksums: what lies there is taken as it is.
        target = folder / f"{version.name} {version.number}"
        if not target.exists():
            self._fetch(version, _RUN, target)
        return target

    def _fetch(self, version: RegisteredVersion, what: str, target: Path) -> None:
        with self._explained("be read"):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: a killed download leaves nothing that looks like a bundle.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
                came = Path(self._client.download_artifacts(version.run, what, folder))
                # Another process may have been faster: into a folder that exists `shutil.move` would put this one
                # inside.
                if not target.exists():
                    shutil.move(came, target)

    # MLflow -------------------------------------------------------------------------------------------------

    def _add(self, bundle: Bundle, run: RunFolder | None, name: str) -> RegisteredVersion:
        experiment = self._client.get_experiment_by_name(name)
        # MLflow keeps the place of an experiment's files from when it was made: a new place is for new experiments
        # alone.
        number = experiment.experiment_id if experiment else self._client.create_experiment(
            name, artifact_location=None if self._artefacts is None else f"{self._artefacts}/{name}"
        )  # fmt: skip
        if name not in self.names():
            self._client.create_registered_model(name)
        source = bundle.record.source
        about = {
            "tellapart.digest": bundle.version,
            "tellapart.data_sha256": str(source.get("data_sha256", "")),
            "tellapart.run_id": str(source.get("run_id", "")),
            "tellapart.commit": str(source.get("commit", "")),
            "tellapart.classes": json.dumps(list(bundle.record.classes))[:_LONGEST],
            **({"tellapart.has_run": "false"} if run is None else _about_run(run)),
        }
        logged = self._client.create_run(number, run_name=str(source.get("run", name)), tags=about)
        run_id = logged.info.run_id
        self._client.log_artifacts(run_id, str(bundle.folder), _BUNDLE)
        self._log_metrics(run_id, bundle, run)
        if run is not None:
            self._log_run(run_id, run)
        self._client.set_terminated(run_id)
        # Last of all: a version that can be seen is whole. Registered with the run's id, since a server refuses paths
        # of this machine.
        made = self._client.create_model_version(name, f"runs:/{run_id}/{_BUNDLE}", run_id, tags=about)
        return self._version(made, self._aliases(name))

    def _log_metrics(self, run_id: str, bundle: Bundle, run: RunFolder | None) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        size = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
        values = {**flat_metrics(bundle.record.metrics), "bundle_mb": size / 1e6}
        metrics = [Metric(metric, value, now, 0) for metric, value in values.items()]
        if run is not None and run.history_path.is_file():
            for row in run.history().to_dict("records"):
                epoch = int(row.pop("epoch", 0))
                metrics += [
                    Metric(f"curve.{column}", float(value), now, epoch)
                    for column, value in row.items()
                    if isinstance(value, int | float) and value == value  # noqa: PLR0124  # not a NaN
                ]
        for start in range(0, len(metrics), 10 * _CHUNK):
            self._client.log_batch(run_id, metrics=metrics[start : start + 10 * _CHUNK])

    def _log_run(self, run_id: str, run: RunFolder) -> None:
        from mlflow.entities import Param

        settings = run.recipe().model_dump(mode="json")
        flat = {
            f"{section}.{key}": str(value)[:_LONGEST]
            for section, part in settings.items()
            if isinstance(part, dict)
            for key, value in part.items()
        }
        params = [Param(key, value) for key, value in flat.items()]
        for start in range(0, len(params), _CHUNK):
            self._client.log_batch(run_id, params=params[start : start + _CHUNK])
        for file in _RUN_FILES:
            if (run.path / file).is_file():
                self._client.log_artifact(run_id, str(run.path / file), _RUN)
        report = run.path / "report" / "report.html"
        if report.is_file():
            self._client.log_artifact(run_id, str(report), "report")

    def _version(self, found: Any, aliases: dict[str, int]) -> RegisteredVersion:
        number = int(found.version)
        run = self._client.get_run(found.run_id)
        return RegisteredVersion(
            name=found.name,
            number=number,
            digest=found.tags.get("tellapart.digest", ""),
            created=found.creation_timestamp / 1000,
            aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
            metrics={key: value for key, value in run.data.metrics.items() if not key.startswith("curve.")},
            tags=dict(found.tags),
            run=found.run_id,
        )

    def _aliases(self, name: str) -> dict[str, int]:
        return {alias: int(number) for alias, number in self._client.get_registered_model(name).aliases.items()}

    def _changes(self, name: str) -> list[Change]:
        text = self._client.get_registered_model(name).tags.get(_CHANGES, "[]")
        return [Change(**values) for values in json.loads(text)]

    def _write_changes(self, name: str, changes: list[Change]) -> None:
        rows = [{**vars(change), "reason": change.reason[:150]} for change in changes[-_MOST_CHANGES:]]
        self._client.set_registered_model_tag(name, _CHANGES, json.dumps(rows))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Say in words what MLflow says in its own."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                known = ", ".join(self.names()) or "none yet"
                raise InputError(
                    f"The registry {self.shown} has no such model or version: {_first_line(error.message)}. It has "
                    f"these models: {known}. tellapart models add BUNDLE adds one."
                ) from error
            # MLflow has one kind for all else: whether it passes is not known.
            raise UnavailableError(self._failed(what, _first_line(error.message))) from error
        except (RequestException, SQLAlchemyError, OSError) as error:
            raise UnavailableError(self._failed(what, reason_of(error))) from error

    def _failed(self, what: str, reason: str) -> str:
        return (
            f"The registry {self.shown} cannot {what}: {reason}. Expected a file, an MLflow server that answers, or "
            "the URL of a database that can be written."
        )


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the single numbers of a run's metrics and the ends of their intervals, as in "test.accuracy.low".

    What is measured class by class stays in the run's files.
    """
    values: dict[str, float] = {}
    for split in ("test", "validation"):
        measured = metrics.get(split) or {}
        values |= {f"{split}.{name}": float(value) for name, value in measured.items()
                   if isinstance(value, int | float)}  # fmt: skip
        for name, ends in (measured.get("intervals") or {}).items():
            if isinstance(ends, list | tuple) and len(ends) == 2:
                values |= {
                    f"{split}.{name}.{end}": float(value) for end, value in zip(("low", "high"), ends, strict=True)
                }
    return values


def _client(url: str) -> Any:
    # Read when MLflow is imported: no report to its makers, and no bars of its own across ours.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=url, registry_uri=url)


def _all_pages(search: Any, **arguments: Any) -> list[Any]:
    """Return what a search finds, page after page."""
    found, token = [], None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "no reason is given"


def _about_run(run: RunFolder) -> dict[str, str]:
    """Return the tags of a version whose run is there."""
    return {
        # With its weights, as long as it is there: what is learned next may begin from them.
        "tellapart.run_path": os.path.abspath(run.path),
        "tellapart.parents": ", ".join(run.record().parents)[:_LONGEST],
        "tellapart.has_run": "true",
    }


def _refuse_other_run(bundle: Bundle, run: RunFolder) -> None:
    wanted, is_ = bundle.record.source.get("run_id"), run.record().run_id
    if wanted and is_ and wanted != is_:
        raise InputError(
            f"{bundle.folder} was made from the run {wanted[:12]}, and {run.path} is {is_[:12]}. Expected the run that "
            "was exported."
        )
