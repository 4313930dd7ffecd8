"""What a server was asked and what it answered, and the labels that come later, in a database.

SQLite in a file beside the server by default, PostgreSQL by its URL. Knows nothing about HTTP, bundles or networks.
A server writes by way of `tellapart.store_writer`, off the path of requests.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from tellapart.databases import patience_of, reason_of, without_password, write_without_waiting
from tellapart.errors import InputError, UnavailableError
from tellapart.store_migrations import HEAD

_LOCK_SECONDS = 5
"""For which a writer waits while another process writes."""
_ROWS_AT_ONCE = 500
_IDS_AT_ONCE = 500
"""SQLite takes no more than some thousand parameters in one statement."""
_TRIES, _TRY_SECONDS = 5, 0.5
"""To bring a schema up to date, since another process may be doing the same."""

# Tables are made by the steps in `store_migrations`, never from here: a change needs a step of its own, and a test
# compares the two.
METADATA = sa.MetaData()
PREDICTIONS = sa.Table(
    "predictions", METADATA,
    sa.Column("id", sa.String(120), primary_key=True), sa.Column("at", sa.Double, nullable=False),
    sa.Column("model", sa.String(100), nullable=False), sa.Column("version", sa.String(100), nullable=False),
    sa.Column("label", sa.Text), sa.Column("probability", sa.Double),
    sa.Column("probabilities", sa.LargeBinary), sa.Column("embedding", sa.LargeBinary),
    sa.Column("is_unknown", sa.Boolean, nullable=False), sa.Column("abstains", sa.Boolean, nullable=False),
    sa.Column("similarity", sa.Double), sa.Column("quality", sa.JSON, nullable=False),
    sa.Column("milliseconds", sa.Double, nullable=False), sa.Column("photo", sa.LargeBinary),
    sa.Column("test", sa.String(20)), sa.Column("subject", sa.String(120)),
    sa.Index("predictions_by_time", "model", "at"), sa.Index("predictions_by_test", "test", "at"),
)  # fmt: skip
# No foreign key: feedback may come before its prediction, which waits up to half a second to be written.
FEEDBACK = sa.Table(
    "feedback", METADATA,
    sa.Column("prediction_id", sa.String(120), primary_key=True), sa.Column("at", sa.Double, nullable=False),
    sa.Column("verdict", sa.String(20), nullable=False), sa.Column("label", sa.Text),
    sa.Index("feedback_by_time", "at"),
)  # fmt: skip
SHADOWS = sa.Table(
    "shadows", METADATA,
    sa.Column("prediction_id", sa.String(120), primary_key=True), sa.Column("test", sa.String(20), primary_key=True),
    sa.Column("at", sa.Double, nullable=False), sa.Column("label", sa.Text), sa.Column("probability", sa.Double),
)  # fmt: skip
RETRAININGS = sa.Table(
    "retrainings", METADATA,
    sa.Column("id", sa.String(20), primary_key=True), sa.Column("model", sa.String(100), nullable=False),
    sa.Column("began", sa.Double, nullable=False), sa.Column("ended", sa.Double),
    sa.Column("outcome", sa.String(20)), sa.Column("place", sa.Text, nullable=False),
    sa.Index(
        # `RetrainingHistory.begin` counts on it. The condition stands once for each dialect: where it were missing, a
        # model that was retrained once could never be again.
        "one_open_retraining", "model", unique=True,
        sqlite_where=sa.text("ended IS NULL"), postgresql_where=sa.text("ended IS NULL"),
    ),
)  # fmt: skip
RETRAINING_STEPS = sa.Table(
    "retraining_steps", METADATA,
    sa.Column("retraining", sa.String(20), primary_key=True), sa.Column("step", sa.String(20), primary_key=True),
    sa.Column("at", sa.Double, nullable=False), sa.Column("reason", sa.Text, nullable=False),
    sa.Column("values", sa.JSON, nullable=False),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredPrediction:
    """One image that a model answered.

    Attributes:
        id: of the request, a point, and the number of the image in it.
        at: when it was answered, in seconds since 1970, UTC.
        model: its name.
        version: its digits.
        label: the predicted class; None: the image could not be read.
        probability: of that class.
        probabilities: (num_classes,) float16, calibrated.
        embedding: (num_features,) float16, what the network saw.
        is_unknown: whether it is none of the known classes.
        abstains: whether the model was not sure.
        similarity: to the nearest known photo, -1 to 1.
        quality: measure → value.
        milliseconds: from arrival to answer.
        photo: a shrunk JPEG, where photos are kept.
        test: id of the A/B test that it was part of; None: of none.
        subject: who asked, in a test: by whom the version was chosen.
    """

    id: str
    at: float
    model: str
    version: str
    label: str | None = None
    probability: float | None = None
    probabilities: NDArray[np.float16] | None = None
    embedding: NDArray[np.float16] | None = None
    is_unknown: bool = False
    abstains: bool = False
    similarity: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    milliseconds: float = 0.0
    photo: bytes | None = None
    test: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class ShadowPrediction:
    """What a challenger said of a photo that the champion had answered.

    Attributes:
        prediction_id: `StoredPrediction.id` of the answer.
        test: id of the A/B test.
        at: when, in seconds since 1970, UTC.
        label: the class; None: the image could not be read.
        probability: of that class.
    """

    prediction_id: str
    test: str
    at: float
    label: str | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Waiting:
    """A stored photo of which nobody has said anything.

    Attributes:
        id: `StoredPrediction.id`.
        at: when it was answered, in seconds since 1970, UTC.
        version: digits of the version that answered.
        label: the class that it predicted; None: none.
        probability: of that class.
        is_unknown: whether it is none of the known classes.
        abstains: whether the model was not sure.
        similarity: to the nearest known photo, -1 to 1.
        other: the class that a challenger predicted in shadow; None: it has not seen the photo.
    """

    id: str
    at: float
    version: str
    label: str | None
    probability: float | None
    is_unknown: bool
    abstains: bool
    similarity: float | None
    other: str | None


@dataclass(frozen=True)
class Feedback:
    """What somebody said of a prediction.

    Attributes:
        prediction_id: `StoredPrediction.id`; it may arrive before its prediction is stored.
        verdict: "right", "wrong", or "unusable": nobody could label the photo, and it counts nowhere.
        label: the true class, where it was named.
        at: when, in seconds since 1970, UTC.
    """

    prediction_id: str
    verdict: str
    label: str | None = None
    at: float = field(default_factory=time.time)


class RequestStore:
    """A database of predictions and feedback. Several processes may use one; each call is one transaction.

    Args:
        url: as SQLAlchemy takes it, such as sqlite:///requests.db or postgresql+pg8000://user@host/name.

    Attributes:
        shown: the URL without a password.
        engine: that other tables of the same database are read and written by.

    Raises:
        UnavailableError: it does not answer, or cannot be written.
        InputError: the URL is none, or it was made by a newer version.

    Example:
        >>> store = RequestStore("sqlite:///requests.db")
        >>> store.add_feedback([Feedback("3f09.0", "wrong", "cat")])
    """

    def __init__(self, url: str) -> None:
        self.shown = without_password(url)
        patience = patience_of(url, lock_seconds=_LOCK_SECONDS)
        try:
            # Pings a connection before it is used: a database that was restarted costs nothing but the ping.
            self.engine = sa.create_engine(url, connect_args=patience, pool_pre_ping=True)
            if url.startswith("sqlite"):
                _keep_private(self.engine.url.database)
                write_without_waiting(self.engine)
            try:
                _bring_up_to_date(self.engine)
            except BaseException:
                self.engine.dispose()  # nobody else can: there is no store to close
                raise
        except (SQLAlchemyError, ImportError) as error:
            # These two may pass by themselves; a URL that is none, or a driver that is missing, does not.
            kind = UnavailableError if isinstance(error, OperationalError | InterfaceError) else InputError
            raise kind(
                f"The request store {self.shown} cannot be opened: {reason_of(error)}. Expected the URL of a database "
                "that can be written, as in sqlite:///requests.db or postgresql+pg8000://user@host/name."
            ) from error
        dialect: Any = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert

    def close(self) -> None:
        """Let the connections go."""
        self.engine.dispose()

    def add(self, predictions: Sequence[StoredPrediction]) -> None:
        """Store predictions; those that are there already stay as they are.

        Raises:
            SQLAlchemyError: the database failed; nothing was stored.
        """
        if not predictions:
            return
        rows = [_row(prediction) for prediction in predictions]
        # A batch whose commit was not confirmed is written again: its ids may be there.
        with self.engine.begin() as connection:
            connection.execute(self._insert(PREDICTIONS).on_conflict_do_nothing(), rows)

    def add_shadows(self, shadows: Sequence[ShadowPrediction]) -> None:
        """Store what a challenger said; what is there already stays as it is.

        Raises:
            SQLAlchemyError: the database failed; nothing was stored.
        """
        if not shadows:
            return
        with self.engine.begin() as connection:
            connection.execute(self._insert(SHADOWS).on_conflict_do_nothing(), [asdict(one) for one in shadows])

    def in_test(self, test: str) -> Iterator[tuple[StoredPrediction, ShadowPrediction | None, Feedback | None]]:
        """Yield the predictions of an A/B test, with what the challenger said in shadow and what people said.

        In the order in which feedback came, then those without: a sequential test counts labels as they arrive.

        Args:
            test: its id.
        """
        # Labelled, since the tables have columns of one name: by name alone one would stand for the other.
        said = [column.label(f"feedback_{column.name}") for column in FEEDBACK.c]
        shadowed = [column.label(f"shadow_{column.name}") for column in SHADOWS.c]
        is_shadow = (PREDICTIONS.c.id == SHADOWS.c.prediction_id) & (SHADOWS.c.test == test)
        joined = PREDICTIONS.outerjoin(FEEDBACK, PREDICTIONS.c.id == FEEDBACK.c.prediction_id)
        # Without the large columns: the page of a test that runs asks for all of its rows again and again.
        light = [column for column in PREDICTIONS.c if column.name not in ("photo", "embedding", "probabilities")]
        query = (
            sa.select(*light, *said, *shadowed)
            .select_from(joined.outerjoin(SHADOWS, is_shadow))
            .where(PREDICTIONS.c.test == test)
            # By whether there is one first: NULL comes before all numbers in SQLite and after them in PostgreSQL.
            .order_by(FEEDBACK.c.at.is_(None), FEEDBACK.c.at, PREDICTIONS.c.at, PREDICTIONS.c.id)
            .execution_options(yield_per=_ROWS_AT_ONCE)
        )
        with self.engine.connect() as connection:
            for row in connection.execute(query).mappings():
                shadow = None
                if row["shadow_prediction_id"] is not None:
                    shadow = ShadowPrediction(**{name: row[f"shadow_{name}"] for name in SHADOWS.c.keys()})  # noqa: SIM118
                values = {column.name: row[column.name] for column in light}
                yield StoredPrediction(**values), shadow, _feedback(row)

    def add_feedback(self, feedback: Sequence[Feedback]) -> None:
        """Store what people said; of one prediction the latest counts, whatever the order of arrival.

        Raises:
            SQLAlchemyError: the database failed; nothing was stored.
        """
        # In one statement a row may be touched once only.
        latest: dict[str, Feedback] = {}
        for one in sorted(feedback, key=lambda one: one.at):
            latest[one.prediction_id] = one
        if not latest:
            return
        statement = self._insert(FEEDBACK)
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["prediction_id"],
            set_={"at": new.at, "verdict": new.verdict, "label": new.label},
            where=FEEDBACK.c.at <= new.at,
        )
        with self.engine.begin() as connection:
            connection.execute(statement, [asdict(one) for one in latest.values()])

    def withdraw_feedback(self, ids: Sequence[str]) -> None:
        """Forget what was said of predictions.

        Raises:
            SQLAlchemyError: the database failed; nothing was changed.
        """
        with self.engine.begin() as connection:
            for start in range(0, len(ids), _IDS_AT_ONCE):
                part = ids[start : start + _IDS_AT_ONCE]
                connection.execute(sa.delete(FEEDBACK).where(FEEDBACK.c.prediction_id.in_(part)))

    def waiting(self, model: str, *, most: int, test: str | None = None) -> list[Waiting]:
        """Return photos of which nobody has said anything, the latest first, without the photos themselves.

        Args:
            model: its name.
            most: at most so many.
            test: id of the A/B test in which a challenger saw them too; None: of none.
        """
        columns = PREDICTIONS.c
        # No test has an empty id: where none is named nothing is joined, and nobody disagrees.
        is_shadow = (columns.id == SHADOWS.c.prediction_id) & (SHADOWS.c.test == (test or ""))
        query = (
            sa.select(
                columns.id, columns.at, columns.version, columns.label, columns.probability, columns.is_unknown,
                columns.abstains, columns.similarity, SHADOWS.c.label.label("other"),
            )
            .select_from(
                PREDICTIONS.outerjoin(FEEDBACK, columns.id == FEEDBACK.c.prediction_id).outerjoin(SHADOWS, is_shadow)
            )
            .where(columns.model == model, columns.photo.is_not(None), FEEDBACK.c.prediction_id.is_(None))
            .order_by(columns.at.desc(), columns.id)
            .limit(most)
        )  # fmt: skip
        with self.engine.connect() as connection:
            return [Waiting(**row) for row in connection.execute(query).mappings()]

    def num_labelled(self, model: str) -> int:
        """Return of how many predictions of a model somebody has said something."""
        query = (
            sa.select(sa.func.count())
            .select_from(PREDICTIONS.join(FEEDBACK, PREDICTIONS.c.id == FEEDBACK.c.prediction_id))
            .where(PREDICTIONS.c.model == model)
        )
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def labels(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the predicted class of stored predictions, by their ids; those that are not stored are left out."""
        return self._by_id(PREDICTIONS.c.label, ids)

    def embeddings(self, ids: Sequence[str]) -> dict[str, NDArray[np.float16]]:
        """Return (num_features,) float16 of stored predictions that have an embedding, by their ids."""
        found = self._by_id(PREDICTIONS.c.embedding, ids)
        return {id_: np.frombuffer(data, "<f2") for id_, data in found.items() if data is not None}

    def photo(self, id_: str) -> bytes | None:
        """Return the JPEG of a prediction; None: there is none."""
        photo: bytes | None = self._by_id(PREDICTIONS.c.photo, [id_]).get(id_)
        return photo

    def _by_id(self, column: Any, ids: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with self.engine.connect() as connection:
            for start in range(0, len(ids), _IDS_AT_ONCE):
                wanted = PREDICTIONS.c.id.in_(ids[start : start + _IDS_AT_ONCE])
                found |= {
                    row[0]: row[1] for row in connection.execute(sa.select(PREDICTIONS.c.id, column).where(wanted))
                }
        return found

    def predictions(
        self, model: str, *, since: float = 0.0, until: float = float("inf"), only_labelled: bool = False
    ) -> Iterator[tuple[StoredPrediction, Feedback | None]]:
        """Yield the predictions of a model with what was said of them, by time, in memory that does not grow.

        Args:
            model: its name.
            since: seconds since 1970, included.
            until: seconds since 1970, not included.
            only_labelled: leave out those of which nobody has said anything.
        """
        said = [column.label(f"feedback_{column.name}") for column in FEEDBACK.c]
        joined = PREDICTIONS.join(FEEDBACK, PREDICTIONS.c.id == FEEDBACK.c.prediction_id, isouter=not only_labelled)
        query = sa.select(PREDICTIONS, *said).select_from(joined).where(
            PREDICTIONS.c.model == model, PREDICTIONS.c.at >= since
        )  # fmt: skip
        if until != float("inf"):
            query = query.where(PREDICTIONS.c.at < until)
        query = query.order_by(PREDICTIONS.c.at, PREDICTIONS.c.id).execution_options(yield_per=_ROWS_AT_ONCE)
        # Open as long as the caller takes rows: with SQLite's log, and in PostgreSQL, writers go on meanwhile.
        with self.engine.connect() as connection:
            for row in connection.execute(query).mappings():
                yield _prediction(row), _feedback(row)

    def similarities(
        self, model: str, version: str, *, since: float = 0.0, most: int | None = None
    ) -> tuple[NDArray, NDArray]:
        """Return when photos came to a version, and how similar they were to known ones, in that order.

        Args:
            model: its name.
            version: its digits.
            since: seconds since 1970, included.
            most: the latest so many; None: all.

        Returns:
            (num_photos,) float64 seconds since 1970, and (num_photos,) float64; photos that could not be read are not
            among them.
        """
        columns = PREDICTIONS.c
        query = (
            sa.select(columns.at, columns.similarity)
            .where(columns.model == model, columns.version == version, columns.at >= since)
            .where(columns.similarity.is_not(None))
            .order_by(columns.at.desc(), columns.id.desc())
            .limit(most)
        )
        with self.engine.connect() as connection:
            # Turned round: the latest are asked for, and drift adds up its evidence in the order of arrival.
            rows = np.array(connection.execute(query).all(), np.float64).reshape(-1, 2)[::-1]
        return rows[:, 0], rows[:, 1]

    def recent_answers(self, model: str, version: str, *, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what was said of the photos that came to a version last, the latest last.

        Returns:
            (num_photos, num_classes) float64 probabilities and (num_photos,) float64 similarities to known photos; NaN
            where the version tells no unknown photos.
        """
        columns = PREDICTIONS.c
        query = (
            sa.select(columns.probabilities, columns.similarity)
            .where(columns.model == model, columns.version == version, columns.probabilities.is_not(None))
            .order_by(columns.at.desc(), columns.id.desc())
            .limit(most)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()[::-1]
        if not rows:
            return np.zeros((0, 0)), np.zeros(0)
        probabilities = np.stack([np.frombuffer(row.probabilities, "<f2") for row in rows]).astype(np.float64)
        return probabilities, np.array([row.similarity for row in rows], np.float64)

    def delete(self, ids: Iterable[str]) -> int:
        """Forget predictions, their photos and what was said of them; return how many predictions there were."""
        wanted, deleted = list(ids), 0
        with self.engine.begin() as connection:
            for start in range(0, len(wanted), _IDS_AT_ONCE):
                part = wanted[start : start + _IDS_AT_ONCE]
                # There are no foreign keys: nothing else would delete these rows.
                for table in (FEEDBACK, SHADOWS):
                    connection.execute(sa.delete(table).where(table.c.prediction_id.in_(part)))
                deleted += connection.execute(sa.delete(PREDICTIONS).where(PREDICTIONS.c.id.in_(part))).rowcount
        return deleted

    def expire(self, before: float) -> int:
        """Forget what is older than a time, in seconds since 1970; return how many predictions there were."""
        old = PREDICTIONS.c.at < before
        with self.engine.begin() as connection:
            of_old = sa.select(PREDICTIONS.c.id).where(old)
            # Before the predictions: once those are gone, nothing says whose these rows were.
            for table in (FEEDBACK, SHADOWS):
                connection.execute(sa.delete(table).where(table.c.prediction_id.in_(of_old)))
            return connection.execute(sa.delete(PREDICTIONS).where(old)).rowcount


def _keep_private(file: str | None) -> None:
    """Make a database's file, if it is not there, so that nobody else on this machine can read it."""
    # It holds photos. SQLite itself would make it readable by all; its log gets the rights of the file.
    if file:
        with contextlib.suppress(OSError):  # SQLite says what is wrong with the place
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _bring_up_to_date(engine: sa.Engine) -> None:
    """Make what a database lacks of the schema.

    Raises:
        InputError: it was made by a newer version.
        SQLAlchemyError: it cannot be written.
    """
    for number in range(_TRIES):
        if (revision := _revision(engine)) == HEAD:
            return
        # Compared as texts: the numbers of steps have four digits each.
        if revision is not None and revision > HEAD:
            raise InputError(
                f"The request store has the schema {revision}; this version knows {HEAD}. Expected a store of this "
                "version or an older one: install a newer tellapart."
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "store_migrations"))
        try:
            with engine.begin() as connection:
                # Python's driver begins no transaction before a CREATE: a step that was killed would stay half done,
                # and every later start would fail on the half that is there.
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            return
        except SQLAlchemyError:
            # Another server process that starts at the same time has made the tables meanwhile.
            if number == _TRIES - 1:
                raise
            time.sleep(_TRY_SECONDS)


def _revision(engine: sa.Engine) -> str | None:
    """Return the step that a database's schema has reached; None: it has none."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return revision


def _row(prediction: StoredPrediction) -> dict[str, Any]:
    values = {name: getattr(prediction, name) for name in PREDICTIONS.c.keys()}  # noqa: SIM118
    for name in ("probabilities", "embedding"):
        array = values[name]
        # Little-endian on every machine: a store may be read on another one than it was written on.
        values[name] = None if array is None else np.asarray(array, "<f2").tobytes()
    return values | {"quality": dict(prediction.quality)}


def _prediction(row: sa.RowMapping) -> StoredPrediction:
    values: dict[str, Any] = {name: row[name] for name in PREDICTIONS.c.keys()}  # noqa: SIM118
    for name in ("probabilities", "embedding"):
        data = values[name]
        values[name] = None if data is None else np.frombuffer(data, "<f2")
    return StoredPrediction(**values)


def _feedback(row: sa.RowMapping) -> Feedback | None:
    if row["feedback_prediction_id"] is None:
        return None
    return Feedback(**{name: row[f"feedback_{name}"] for name in FEEDBACK.c.keys()})  # noqa: SIM118
