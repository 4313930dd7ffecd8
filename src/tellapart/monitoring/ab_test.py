"""An A/B test of the champion and a challenger: who answers whom, what the labels say so far, and whether to stop.

Split: a share of the subjects is answered by the challenger. Shadow: the champion answers all, and the challenger sees
the same photos afterwards. Pure values and NumPy; the numbers may be looked at after every label
(`confidence_sequences`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from tellapart.monitoring.confidence_sequences import (
    asymptotic_sequence,
    betting_sequence,
    sample_ratio_evidence,
    split_effects,
)

if TYPE_CHECKING:
    from tellapart.request_store import Feedback, ShadowPrediction, StoredPrediction

SPLIT, SHADOW = "split", "shadow"
TEST_NOTE = "tellapart.ab_test"
"""Where a registry notes the test of a model, as `ABTest.to_json` writes it."""
_FEWEST_FOR_GUARDS = 200
"""Predictions of each version before their latencies are compared: a p99 of fewer is one slow request."""

_FEWEST_FAILURES = 5
"""Of the challenger, before they are compared: the sequence is asymptotic, and of fewer it knows too little."""
_COURSE = 120
"""Points of a curve."""

Action = Literal["continue", "promote", "roll back"]


@dataclass(frozen=True)
class ABTest:
    """A test that runs.

    Attributes:
        id: eight hexadecimal digits.
        champion: digest of the version that serves.
        challenger: digest of the version that is tried.
        mode: "split" or "shadow".
        share: of the subjects that the challenger answers, or of the requests that it sees in shadow, above 0 to 1.
        salt: so that other subjects get the challenger in the next test.
        started: seconds since 1970, UTC.
    """

    id: str
    champion: str
    challenger: str
    mode: str
    share: float
    salt: str
    started: float

    def takes(self, subject: str) -> bool:
        """Return whether a subject belongs to the challenger: always the same answer for the same subject."""
        # Not Python's `hash`, which differs between processes: all of a server's must choose alike.
        digest = hashlib.blake2b(f"{self.salt}:{subject}".encode(), digest_size=8).digest()
        # Below a limit that grows with the share: a test that is widened takes no subject back.
        return int.from_bytes(digest, "big") < self.share * 2**64

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> ABTest | None:
        """Return what `to_json` wrote; None: there is none."""
        # Another process wrote it, perhaps an older one: a field that is added needs a default, or a test that runs
        # could not be read.
        return cls(**json.loads(text)) if text else None


@dataclass(frozen=True)
class Outcome:
    """One photo of a test.

    Attributes:
        by_challenger: whether the challenger answered it (split), or saw it too (shadow).
        champion_label: what the champion predicted; None: it did not see it, or could not read it.
        challenger_label: the same of the challenger.
        true_label: None: nobody has said.
        is_wrong: that what was answered is wrong, where no true label was given with it.
        milliseconds: of the answer.
        subject: who asked.
        is_answered: False: the image could not be read, or the server failed.
    """

    by_challenger: bool
    champion_label: str | None
    challenger_label: str | None
    true_label: str | None
    is_wrong: bool = False
    milliseconds: float = 0.0
    subject: str | None = None
    is_answered: bool = True


@dataclass(frozen=True)
class Standing:
    """How a test stands.

    Attributes:
        mode: of the test.
        num_photos: that were predicted.
        num_challenger: of which the challenger predicted.
        num_labels: that count.
        num_disagreements: shadow: photos to which the two gave different classes.
        difference: in accuracy, challenger less champion; None: no label yet.
        interval: 95 % confidence sequence of it, valid at every look.
        action: what to do now.
        reason: why.
        course: (labels, difference, low, high) after some numbers of labels, the last one last: a curve.
    """

    mode: str
    num_photos: int
    num_challenger: int
    num_labels: int
    num_disagreements: int
    difference: float | None
    interval: tuple[float, float]
    action: Action
    reason: str
    course: tuple[tuple[int, float, float, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Rules:
    """When a test stops.

    Attributes:
        alpha: chance of a wrong stop, over the whole test, of each thing that is looked at: the difference, the
            assignment, the failures.
        margin: of accuracy that the challenger may be worse and is promoted all the same, 0 to 1.
        slowdown: largest ratio of the p99 of milliseconds, in a split test; that of the champion is taken as known.
        most_labels: after which a test that says nothing keeps the champion; None: it goes on.
    """

    alpha: float = 0.05
    margin: float = 0.0
    slowdown: float = 2.0
    most_labels: int | None = None


def evaluate_test(test: ABTest, outcomes: Iterable[Outcome], rules: Rules | None = None) -> Standing:
    """Return how a test stands.

    Shadow: where both name the same class their difference is 0, whatever the truth is, so labels of the photos on
    which they disagree are all that is needed. The mean difference on these is bounded by betting (Waudby-Smith &
    Ramdas 2024), and scaled by the share of photos on which they disagree. That share is taken as known, so the ends of
    the interval are those of the mean; its sign, which alone decides, needs no scale. The photos that are labelled must
    be as good as drawn from all disagreements: not those alone that users complained about.

    Split: what the challenger gains by inverse propensity weighting, bounded by an asymptotic confidence sequence
    (Waudby-Smith et al. 2024), after 100 labels at the soonest. It needs independent observations, and subjects are
    what is divided: of each subject the photo that was labelled first counts. Subjects that are not divided as was
    asked for (Lindon & Malek 2022) say nothing about the models, and stop the test for repair. A challenger that
    leaves more requests unanswered, by the same kind of sequence, or is too slow is sent back.

    Args:
        test: what is tested.
        outcomes: in the order in which their labels are to be counted.
        rules: None: the usual ones.
    """
    photos, rules = list(outcomes), rules or Rules()
    if test.mode == SHADOW:
        return _shadow(photos, rules)
    return _split(test, photos, rules)


def _shadow(photos: list[Outcome], rules: Rules) -> Standing:
    # What failed here failed the champion, who alone answers: it says nothing about the challenger.
    photos = [photo for photo in photos if photo.is_answered]
    seen = [photo for photo in photos if photo.by_challenger and photo.champion_label and photo.challenger_label]
    disagreements = [photo for photo in seen if photo.champion_label != photo.challenger_label]
    gains = np.array([gain for photo in disagreements if (gain := _gain(photo)) is not None], np.float64)
    share = len(disagreements) / len(seen) if seen else 0.0
    sequence = betting_sequence(gains, (-1.0, 1.0), alpha=rules.alpha)
    # A photo on which both agree counts 0: what is said of disagreements is scaled to all photos.
    scaled = [share * values for values in (sequence.mean, sequence.lower, sequence.upper)]
    return _standing(SHADOW, rules, scaled, len(photos), len(seen), len(disagreements), "")


def _gain(photo: Outcome) -> float | None:
    """Return 1 where the challenger alone is right, -1 where the champion alone is; None: nobody knows."""
    if photo.true_label is not None:
        return float(photo.challenger_label == photo.true_label) - float(photo.champion_label == photo.true_label)
    # "Wrong" without the right class says nothing about another class.
    return None


def _split(test: ABTest, photos: list[Outcome], rules: Rules) -> Standing:
    # In this order: a subject whose first photo nobody has labelled counts by a later one.
    labelled = _first_of_subjects([photo for photo in photos if photo.true_label is not None or photo.is_wrong])
    right = np.array([_is_right(photo) for photo in labelled], np.float64)
    by_challenger = np.array([photo.by_challenger for photo in labelled], bool)
    sequence = asymptotic_sequence(split_effects(right, by_challenger, test.share), alpha=rules.alpha)
    values = [sequence.mean, np.maximum(sequence.lower, -1.0), np.minimum(sequence.upper, 1.0)]
    # Subjects, not photos: one who sends thousands would look like a broken assignment.
    subjects = _first_of_subjects(photos)
    num_taken = sum(photo.by_challenger for photo in subjects)
    # Asked first: where the division is broken, no other comparison is right either.
    if sample_ratio_evidence(num_taken, len(subjects), test.share) > np.log(1 / rules.alpha):
        problem = (
            f"{num_taken:,} of {len(subjects):,} subjects went to the challenger, where {100 * test.share:g} % should: "
            "the assignment is broken, so nothing can be said"
        )
    else:
        problem = _failing(subjects, test, rules) or _slower(photos, rules)
    num_challenger = sum(photo.by_challenger for photo in photos)
    return _standing(SPLIT, rules, values, len(photos), num_challenger, 0, problem)


def _first_of_subjects(photos: list[Outcome]) -> list[Outcome]:
    """Return the first photo of each subject; one without a subject stands for itself."""
    known: set[str] = set()
    firsts = []
    for photo in photos:
        if photo.subject is None:
            firsts.append(photo)
        elif photo.subject not in known:
            firsts.append(photo)
            known.add(photo.subject)
    return firsts


def _is_right(photo: Outcome) -> bool:
    predicted = photo.challenger_label if photo.by_challenger else photo.champion_label
    return not photo.is_wrong and predicted == photo.true_label


def _failing(subjects: list[Outcome], test: ABTest, rules: Rules) -> str:
    """Say how much more often the challenger gives no answer; "": it does not."""
    by_challenger = np.array([photo.by_challenger for photo in subjects], bool)
    failed = np.array([not photo.is_answered for photo in subjects], np.float64)
    if failed[by_challenger].sum() < _FEWEST_FAILURES:
        return ""
    sequence = asymptotic_sequence(split_effects(failed, by_challenger, test.share), alpha=rules.alpha)
    if sequence.lower[-1] <= 0:
        return ""
    before, after = (100 * float(failed[by_challenger == which].mean()) for which in (False, True))
    return f"the challenger leaves {after:.1f} % of the requests unanswered, the champion {before:.1f} %"


def _slower(photos: list[Outcome], rules: Rules) -> str:
    """Say by how much the challenger is too slow; "": it is not."""
    times = [
        np.array([photo.milliseconds for photo in photos if photo.by_challenger is which and photo.is_answered])
        for which in (False, True)
    ]
    if min(map(len, times)) < _FEWEST_FOR_GUARDS:
        return ""
    before, after = (float(np.quantile(part, 0.99)) for part in times)
    # A p99 that is looked at again and again exceeds any limit at some time by chance. So it is asked whether more than
    # one answer of the challenger in a hundred is too slow, by a sequence that holds at every look.
    is_too_slow = (times[1] > rules.slowdown * before).astype(np.float64)
    if is_too_slow.sum() < _FEWEST_FAILURES or asymptotic_sequence(is_too_slow, alpha=rules.alpha).lower[-1] <= 0.01:
        return ""
    return f"the challenger's p99 is {after:.1f} ms, the champion's {before:.1f}; at most {rules.slowdown:g} times"


def _standing(
    mode: str, rules: Rules, sequence: list[np.ndarray], num_photos: int, num_challenger: int, num_disagreements: int,
    problem: str,
) -> Standing:  # fmt: skip
    mean, lower, upper = sequence
    num_labels = len(mean)
    difference = float(mean[-1]) if num_labels else None
    low, high = (float(lower[-1]), float(upper[-1])) if num_labels else (-1.0, 1.0)
    action, reason = _decide(rules, num_labels, difference, low, high, problem)
    counts = num_photos, num_challenger, num_labels, num_disagreements
    shown = np.unique(np.linspace(0, num_labels - 1, _COURSE).astype(int)) if num_labels else ()
    course = tuple((int(at) + 1, float(mean[at]), float(lower[at]), float(upper[at])) for at in shown)
    return Standing(mode, *counts, difference, (low, high), action, reason, course)


def _decide(
    rules: Rules, num_labels: int, difference: float | None, low: float, high: float, problem: str
) -> tuple[Action, str]:
    if problem:
        return "roll back", problem
    if difference is None:
        return "continue", "no label counts yet"
    said = f"{_points(difference)} points ({_points(low)} to {_points(high)}) after {num_labels:,} labels"
    # Before "worse": a challenger that is surely worse, but by less than the margin, is what a margin lets through.
    if low > -rules.margin:
        margin = f", no worse than {100 * rules.margin:g} points" if rules.margin else ", better"
        return "promote", said + margin
    if high < 0:
        return "roll back", said + ", worse"
    if rules.most_labels is not None and num_labels >= rules.most_labels:
        return "roll back", said + f", and {rules.most_labels:,} labels were to be enough"
    return "continue", said


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def outcomes_of(
    rows: Iterable[tuple[StoredPrediction, ShadowPrediction | None, Feedback | None]], test: ABTest
) -> Iterator[Outcome]:
    """Yield what a store holds of a test (`RequestStore.in_test`)."""
    for prediction, shadow, feedback in rows:
        is_challenger = prediction.version == test.challenger
        label, true_label, is_wrong = prediction.label, None, False
        if feedback is not None and label is not None:
            is_wrong = feedback.verdict == "wrong"
            # "unusable" has no label and is not "wrong", so that it counts nowhere.
            true_label = label if feedback.verdict == "right" else feedback.label
        shadow_label = None if shadow is None else shadow.label
        yield Outcome(
            by_challenger=is_challenger or shadow is not None,
            champion_label=None if is_challenger else label,
            challenger_label=label if is_challenger else shadow_label,
            true_label=true_label,
            is_wrong=is_wrong,
            milliseconds=prediction.milliseconds,
            subject=prediction.subject,
            is_answered=label is not None,
        )
