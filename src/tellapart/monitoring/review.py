"""Which photos a person should look at next, and labels from and to Label Studio. Knows nothing about pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.request_store import Feedback, RequestStore, Waiting

Why = Literal["disagreement", "unknown", "not sure", "other"]
ORDER: tuple[Why, ...] = ("disagreement", "unknown", "not sure", "other")

_LOOK_BACK = 5_000
"""Photos without a label that are looked at, the latest."""
_ALIKE = 0.98
"""Cosine of two embeddings from which on one photo stands for both: a burst, or a camera that stands still."""
_UNUSABLE, _WITHDRAWN = "unusable", "withdrawn"
VERDICTS = ("right", "wrong", _UNUSABLE, _WITHDRAWN)
"""What a reviewer may say; the last two are not for clients of a server: the photo is none, and take that back."""


@dataclass(frozen=True)
class Question:
    """A photo that a person should look at.

    Attributes:
        photo: what is known of it.
        why: it comes now.
    """

    photo: Waiting
    why: Why


def next_questions(store: RequestStore, model: str, *, count: int = 20, test: str | None = None) -> list[Question]:
    """Return the photos that a person should look at next, the most useful first.

    First those on which the champion and a challenger in shadow disagree: only their labels tell the two apart. They
    come in an order that has nothing to do with what is in them, for a part of them must be as good as drawn from all.
    Then photos of no known class, then those that the model is least sure of, then the others, the least sure first;
    of photos that look alike one.

    Args:
        store: that they are kept in.
        model: its name.
        count: at most.
        test: id of the A/B test that runs, whose disagreements come first; None: none runs.

    Raises:
        SQLAlchemyError: the database failed.
    """
    waiting = store.waiting(model, most=_LOOK_BACK, test=test)
    questions = [Question(photo, _why(photo)) for photo in waiting]
    questions.sort(key=lambda question: (ORDER.index(question.why), _urgency(question)))
    # Not thinned out by likeness as the others are: the test takes those that get a label for a draw from all.
    first = [question for question in questions if question.why == "disagreement"][:count]
    rest = questions[sum(question.why == "disagreement" for question in questions) :]
    return first + _different(rest, count - len(first), store)


def _why(photo: Waiting) -> Why:
    if photo.other is not None and photo.other != photo.label:
        return "disagreement"
    if photo.is_unknown:
        return "unknown"
    return "not sure" if photo.abstains else "other"


def _urgency(question: Question) -> float:
    photo = question.photo
    if question.why == "disagreement":
        # By a hash, not by chance: a page that asks again gets the same order, and it still has nothing to do with the
        # picture.
        return float(int.from_bytes(hashlib.blake2b(photo.id.encode(), digest_size=6).digest(), "big"))
    if question.why == "unknown":
        return photo.similarity if photo.similarity is not None else 0.0
    return photo.probability if photo.probability is not None else 0.0


def _different(questions: Sequence[Question], count: int, store: RequestStore) -> list[Question]:
    """Return the first questions whose photos do not look like one that was chosen already."""
    chosen: list[Question] = []
    seen: list[NDArray[np.float32]] = []
    # Embeddings are large: they are fetched for as many as are needed, some at a time.
    for start in range(0, len(questions), 4 * max(1, count)):
        if len(chosen) >= count:
            break
        part = questions[start : start + 4 * max(1, count)]
        embeddings = store.embeddings([question.photo.id for question in part])
        for question in part:
            embedding = embeddings.get(question.photo.id)
            if embedding is not None:
                unit = embedding.astype(np.float32) / max(float(np.linalg.norm(embedding.astype(np.float32))), 1e-12)
                if any(float(unit @ other) >= _ALIKE for other in seen):
                    continue
                seen.append(unit)
            chosen.append(question)
            if len(chosen) == count:
                break
    return chosen


def answer(store: RequestStore, said: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> int:
    """Store what a reviewer said, and return how many verdicts there were.

    Args:
        store: that the predictions are in.
        said: each with ``id``, ``verdict`` and, where it is wrong and the class is known, ``label``.
        classes: that a label may name.

    Raises:
        InputError: one of them is none; nothing is stored then.
        SQLAlchemyError: the database failed.
    """
    # All are checked before the first is stored: a list with a fault in it changes nothing.
    feedback, withdrawn = [], []
    for number, values in enumerate(said):
        id_, verdict, label = values.get("id"), values.get("verdict"), values.get("label")
        if not isinstance(id_, str) or not 0 < len(id_) <= 120:
            raise InputError(f"Verdict {number}, counted from 0, has the id {id_!r:.80}. Expected that of a photo.")
        if verdict not in VERDICTS:
            raise InputError(f"Verdict {number} is {verdict!r:.80}. Expected one of: {', '.join(VERDICTS)}.")
        if label is not None and (not isinstance(label, str) or label not in classes):
            raise InputError(f"Verdict {number} has the label {label!r:.80}. Expected one of: {', '.join(classes)}.")
        if verdict == _WITHDRAWN:
            withdrawn.append(id_)
        else:
            # A label beside "right" is dropped: what was predicted is the truth then, and the two could contradict each
            # other.
            feedback.append(Feedback(id_, verdict, label if verdict == "wrong" else None))
    # Two transactions. Sent again after a failure between them, the list comes to the same.
    store.add_feedback(feedback)
    store.withdraw_feedback(withdrawn)
    return len(feedback) + len(withdrawn)


# Label Studio ---------------------------------------------------------------------------------------------------


def label_studio_config(classes: Sequence[str]) -> str:
    """Return the labelling interface to paste into a Label Studio project, XML."""
    from xml.sax.saxutils import quoteattr

    choices = "".join(f"\n    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="class" toName="image" choice="single">'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def to_label_studio(questions: Sequence[Question], store: RequestStore) -> list[dict[str, Any]]:
    """Return tasks as Label Studio imports them: photos inside, and what the model predicted as a suggestion."""
    tasks = []
    for question in questions:
        photo = question.photo
        data = store.photo(photo.id)
        if data is None:
            continue
        task: dict[str, Any] = {
            "data": {
                "image": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
                "tellapart_id": photo.id,
                "why": question.why,
            }
        }
        if photo.label is not None:
            chosen = {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [photo.label]}}
            task["predictions"] = [{"model_version": photo.version, "score": photo.probability, "result": [chosen]}]
        tasks.append(task)
    return tasks


def from_label_studio(tasks: Any, predicted: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """Yield verdicts, as `answer` takes them, from what Label Studio exports as JSON.

    Args:
        tasks: the parsed file.
        predicted: id → the class that was predicted, of the photos that are stored.

    Raises:
        InputError: it is no such file, or a task is of another store.
    """
    if not isinstance(tasks, list):
        raise InputError("The file holds no list of tasks. Expected what Label Studio exports as JSON.")
    for number, task in enumerate(tasks):
        data = task.get("data") if isinstance(task, dict) else None
        id_ = data.get("tellapart_id") if isinstance(data, dict) else None
        if not isinstance(id_, str) or id_ not in predicted:
            raise InputError(
                f"Task {number}, counted from 0, is of {id_!r:.80}, which is not in this store. Expected tasks that "
                "tellapart review --export wrote."
            )
        # The last annotation that was not cancelled counts: Label Studio keeps all of them.
        chosen = [_choice(annotation) for annotation in task.get("annotations") or []]
        labels = [label for label in chosen if label is not None]
        if labels:
            is_right = labels[-1] == predicted[id_]
            yield {"id": id_, "verdict": "right" if is_right else "wrong", "label": None if is_right else labels[-1]}


def _choice(annotation: Any) -> str | None:
    """Return the class of an annotation; None: it has none, or was cancelled."""
    if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
        return None
    for result in annotation.get("result") or []:
        choices = (result.get("value") or {}).get("choices") if isinstance(result, dict) else None
        if choices:
            return str(choices[0])
    return None
