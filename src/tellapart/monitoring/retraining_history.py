"""What was done in each retraining of a model, in the tables of a request store. Knows nothing about training."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from tellapart.request_store import RETRAINING_STEPS, RETRAININGS, RequestStore


@dataclass(frozen=True)
class Step:
    """One step that was done.

    Attributes:
        name: such as "gather".
        at: when it was done, in seconds since 1970, UTC.
        reason: what came out, or why it was done.
        values: that later steps need.
    """

    name: str
    at: float
    reason: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Retraining:
    """One retraining of a model.

    Attributes:
        id: eight hexadecimal digits.
        model: its name.
        began: seconds since 1970, UTC.
        ended: the same; None: it goes on.
        outcome: such as "promoted"; None: it goes on.
        place: the folder that it works in, after the name of the machine and a colon.
        steps: that were done, in their order.
    """

    id: str
    model: str
    began: float
    ended: float | None
    outcome: str | None
    place: str
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step | None:
        """Return a step that was done; None: it was not."""
        return next((step for step in self.steps if step.name == name), None)


class RetrainingHistory:
    """The retrainings of all models, in a request store. Several processes may use one.

    Every method raises SQLAlchemyError where the database fails; nothing was written then.

    Args:
        store: that they are kept in.
    """

    def __init__(self, store: RequestStore) -> None:
        self._engine = store.engine
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert

    def begin(self, model: str, place: str, reason: str) -> Retraining | None:
        """Begin a retraining, with its reason as the first step; None: another one of the model goes on."""
        id_, now = secrets.token_hex(4), time.time()
        try:
            with self._engine.begin() as connection:
                values = {"id": id_, "model": model, "began": now, "place": place}
                connection.execute(sa.insert(RETRAININGS).values(values))
                connection.execute(self._insert(RETRAINING_STEPS).values(_values(id_, "trigger", reason, {})))
        except IntegrityError:
            # The index allows one open row of each model: whoever was first goes on.
            return None
        return self.open_of(model)

    def open_of(self, model: str) -> Retraining | None:
        """Return the retraining of a model that goes on; None: there is none."""
        return next(iter(self._read(RETRAININGS.c.model == model, RETRAININGS.c.ended.is_(None))), None)

    def all_of(self, model: str | None = None) -> list[Retraining]:
        """Return the retrainings of a model, or of all, the latest first."""
        return self._read(*([] if model is None else [RETRAININGS.c.model == model]))

    def note(self, retraining: Retraining, step: str, reason: str, values: Mapping[str, Any] | None = None) -> None:
        """Note that a step was done; one that is noted already stays as it is."""
        row = _values(retraining.id, step, reason, values or {})
        with self._engine.begin() as connection:
            # A commit that was not confirmed is tried again by whoever waits for the database: its row may be there.
            connection.execute(self._insert(RETRAINING_STEPS).values(row).on_conflict_do_nothing())

    def end(self, retraining: Retraining, outcome: str, reason: str) -> None:
        """Note how a retraining ended; the first end counts."""
        of_it = (RETRAININGS.c.id == retraining.id) & RETRAININGS.c.ended.is_(None)
        row = _values(retraining.id, "end", reason, {})
        with self._engine.begin() as connection:
            connection.execute(self._insert(RETRAINING_STEPS).values(row).on_conflict_do_nothing())
            connection.execute(sa.update(RETRAININGS).where(of_it).values(ended=time.time(), outcome=outcome))

    def _read(self, *conditions: Any) -> list[Retraining]:
        query = sa.select(RETRAININGS).where(*conditions).order_by(RETRAININGS.c.began.desc())
        steps = RETRAINING_STEPS.c
        with self._engine.connect() as connection:
            rows: Sequence[Any] = connection.execute(query).mappings().all()
            retrainings = []
            for row in rows:
                of_it = sa.select(RETRAINING_STEPS).where(steps.retraining == row["id"]).order_by(steps.at)
                done = tuple(
                    Step(step["step"], step["at"], step["reason"], step["values"])
                    for step in connection.execute(of_it).mappings()
                )
                retrainings.append(Retraining(**row, steps=done))
        return retrainings


def _values(retraining: str, step: str, reason: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"retraining": retraining, "step": step, "at": time.time(), "reason": reason, "values": dict(values)}
