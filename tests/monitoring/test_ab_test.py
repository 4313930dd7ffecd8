"""A test of two versions stops when the labels say so, whenever anybody looks, and not before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellapart.monitoring.ab_test import ABTest, Outcome, Rules, evaluate_test, outcomes_of
from tellapart.request_store import Feedback, RequestStore, ShadowPrediction, StoredPrediction

TEST = ABTest("0123abcd", "champion0000", "challenger00", "split", 0.1, "salt", 1000.0)
SHADOW = replace(TEST, mode="shadow", share=1.0)


def shadowed(champion: str, challenger: str, truth: str | None) -> Outcome:
    return Outcome(True, champion, challenger, truth)


def answered(by_challenger: bool, right: bool, milliseconds: float = 5.0) -> Outcome:
    labels = (None, "cat") if by_challenger else ("cat", None)
    return Outcome(by_challenger, *labels, "cat" if right else "dog", milliseconds=milliseconds)


def test_subjects_keep_their_version_and_another_test_draws_others():
    subjects = [f"user {number}" for number in range(20_000)]
    taken = np.array([TEST.takes(subject) for subject in subjects])
    assert abs(taken.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20_000)
    assert ABTest.from_json(TEST.to_json()) == TEST
    assert [ABTest.from_json(TEST.to_json()).takes(subject) for subject in subjects[:50]] == taken[:50].tolist()
    again = np.array([replace(TEST, salt="other").takes(subject) for subject in subjects])
    assert abs((taken & again).mean() - 0.01) < 0.003, "independent"
    # Whoever was in a smaller share is in a larger one: a test that is widened changes nobody's version back.
    assert all(replace(TEST, share=0.3).takes(subject) for subject in np.array(subjects)[taken])
    assert ABTest.from_json("") is None


def test_in_shadow_only_labels_of_disagreements_count():
    agreed = [shadowed("cat", "cat", None)] * 900 + [shadowed("cat", "cat", "dog")] * 50
    split = [*[shadowed("cat", "dog", "dog")] * 4, shadowed("dog", "cat", "dog")] * 10
    standing = evaluate_test(SHADOW, [*agreed, *split])
    assert (standing.num_photos, standing.num_disagreements, standing.num_labels) == (1000, 50, 50)
    assert standing.difference == pytest.approx(0.03), "40 less 10 of 1,000"
    assert standing.interval[0] < 0.03 < standing.interval[1]
    unlabelled = [replace(photo, true_label=None, is_wrong=True) for photo in split]
    assert evaluate_test(SHADOW, [*agreed, *unlabelled]).num_labels == 0, "wrong, and nobody knows what it is"
    assert evaluate_test(SHADOW, agreed).action == "continue"


@pytest.mark.parametrize(
    ("right", "action", "says"),
    [
        ("challenger", "promote", "better"),
        ("champion", "roll back", "worse"),
        ("neither", "continue", "after 60 labels"),
    ],
)
def test_a_shadow_test_ends_with_the_version_that_is_right(right: str, action: str, says: str):
    rng = np.random.default_rng(0)
    chance = {"challenger": 0.95, "champion": 0.05, "neither": 0.5}[right]
    truths = np.where(rng.random(60) < chance, "dog", "cat")
    standing = evaluate_test(SHADOW, [shadowed("cat", "dog", truth) for truth in truths])
    assert standing.action == action
    assert standing.reason.endswith(says)


def test_a_margin_promotes_what_is_not_worse_and_a_limit_of_labels_ends_what_says_nothing():
    # Two photos of 100 in disagreement: the whole interval is within 2 points.
    photos = [shadowed("cat", "cat", None)] * 98 + [shadowed("cat", "dog", "dog"), shadowed("cat", "dog", "cat")]
    assert evaluate_test(SHADOW, photos).action == "continue"
    assert evaluate_test(SHADOW, photos, Rules(margin=0.03)).action == "promote"
    ended = evaluate_test(SHADOW, photos, Rules(most_labels=2))
    assert (ended.action, "were to be enough" in ended.reason) == ("roll back", True)
    assert evaluate_test(SHADOW, photos, Rules(most_labels=3)).action == "continue"


def split_photos(count: int, accuracies: tuple[float, float], share: float = 0.1, seed: int = 0) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    which = rng.random(count) < share
    right = rng.random(count) < np.where(which, accuracies[1], accuracies[0])
    return [answered(bool(by), bool(good)) for by, good in zip(which, right, strict=True)]


def test_a_split_test_finds_a_large_difference_and_begins_after_a_hundred_labels():
    photos = split_photos(4000, (0.9, 0.6))
    standing = evaluate_test(TEST, photos)
    assert standing.action == "roll back"
    assert standing.interval[0] < -0.3 < standing.interval[1]
    early = evaluate_test(TEST, photos[:99])
    assert (early.interval, early.action) == ((-1.0, 1.0), "continue")
    assert evaluate_test(TEST, split_photos(4000, (0.6, 0.9))).action == "promote"
    unlabelled = [replace(photo, true_label=None) for photo in photos]
    assert evaluate_test(TEST, unlabelled).num_labels == 0


def test_a_split_that_is_not_what_was_asked_for_ends_the_test():
    """Requests that never reach the challenger, such as behind a cache, would make any comparison wrong."""
    photos = split_photos(2000, (0.9, 0.9), share=0.05)
    standing = evaluate_test(TEST, photos)
    assert standing.action == "roll back"
    assert "the assignment is broken" in standing.reason
    assert evaluate_test(TEST, split_photos(2000, (0.9, 0.9))).action == "continue"


def test_a_subject_counts_once_however_many_photos_it_sends():
    """One who sends a thousand photos to the challenger is no broken assignment, and no thousand observations."""
    photos = [replace(photo, subject=f"user {number}") for number, photo in enumerate(split_photos(300, (0.9, 0.9)))]
    heavy = [replace(answered(by_challenger=True, right=False), subject="heavy")] * 1000
    alone, both = evaluate_test(TEST, photos), evaluate_test(TEST, [*photos, *heavy])
    assert both.action == alone.action == "continue"
    assert both.num_labels == alone.num_labels + 1 == 301
    assert both.num_photos == 1300


def test_a_challenger_that_is_slow_at_the_tail_is_stopped():
    fast = split_photos(4000, (0.9, 0.9))
    slow = [replace(photo, milliseconds=30.0) if photo.by_challenger and number % 20 < 5 else photo
            for number, photo in enumerate(fast)]  # fmt: skip
    assert evaluate_test(TEST, fast).action == "continue"
    assert "p99 is 30.0 ms" in evaluate_test(TEST, slow).reason
    assert evaluate_test(TEST, slow, Rules(slowdown=6.0)).action == "continue"
    few = [photo for number, photo in enumerate(slow) if number % 4 == 0]
    assert evaluate_test(TEST, few).action == "continue", "a p99 of fewer than 200 is one slow request"


def test_of_two_that_are_equally_slow_one_in_twenty_at_most_is_stopped_for_it():
    """Answers whose tail is so heavy that the p99 of some hundreds is often twice that of others."""
    rng, stopped, would_have = np.random.default_rng(1), 0, 0
    half = replace(TEST, share=0.5)
    for _ in range(60):
        by_challenger, times = rng.random(2000) < 0.5, np.exp(rng.normal(2, 1.5, 2000))
        photos = [answered(by_challenger=bool(which), right=True, milliseconds=float(time))
                  for which, time in zip(by_challenger, times, strict=True)]  # fmt: skip
        looks = [500, 1000, 2000]
        stopped += any("p99" in evaluate_test(half, photos[:look]).reason for look in looks)
        would_have += any(
            np.quantile(times[:look][by_challenger[:look]], 0.99)
            > 2 * np.quantile(times[:look][~by_challenger[:look]], 0.99)
            for look in looks
        )
    assert stopped <= 3
    assert would_have >= 6, "or this shows nothing"


def test_a_challenger_that_leaves_more_unanswered_is_stopped_and_one_that_does_not_seldom():
    """Of 200 tests in which both fail alike, looked at after every hundred requests, one in twenty at most."""
    rng = np.random.default_rng(0)

    def requests(count: int, failing: tuple[float, float]) -> list[Outcome]:
        by_challenger = rng.random(count) < 0.3
        fails = rng.random(count) < np.where(by_challenger, failing[1], failing[0])
        return [Outcome(bool(taken), None, None, None, is_answered=not failed)
                for taken, failed in zip(by_challenger, fails, strict=True)]  # fmt: skip

    third = replace(TEST, share=0.3)
    standing = evaluate_test(third, requests(3000, (0.01, 0.08)))
    assert standing.action == "roll back"
    assert "% of the requests unanswered, the champion" in standing.reason
    assert evaluate_test(third, requests(3000, (0.08, 0.01))).action == "continue", "fewer is no reason"
    alarms = 0
    for _ in range(200):
        photos = requests(1500, (0.03, 0.03))
        alarms += any(evaluate_test(third, photos[:seen]).action == "roll back" for seen in range(300, 1501, 300))
    assert alarms <= 10 + 2 * 3


def test_what_a_store_holds_of_a_test_comes_in_the_order_of_the_labels(tmp_path: Path):
    store = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")

    def prediction(number: int, version: str, label: str | None = "cat", test: str | None = TEST.id):
        return StoredPrediction(f"r{number}.0", 1000.0 + number, "pets", version, label, test=test, milliseconds=number)

    champion, challenger = TEST.champion, TEST.challenger
    store.add([
        prediction(0, champion), prediction(1, challenger), prediction(2, champion, None), prediction(3, champion),
        prediction(4, champion, test=None), prediction(5, champion, test="another0"), prediction(6, champion),
    ])  # fmt: skip
    store.add_shadows([ShadowPrediction("r3.0", TEST.id, 1004.0, "dog", 0.9)] * 2)
    store.add_shadows([ShadowPrediction("r6.0", "another0", 1004.0, "owl", 0.9)])
    store.add_feedback([
        Feedback("r3.0", "wrong", "dog", at=2000.0), Feedback("r1.0", "right", at=1999.0),
        Feedback("r0.0", "wrong", at=2001.0), Feedback("r4.0", "right", at=1000.0),
    ])  # fmt: skip
    assert list(outcomes_of(store.in_test(TEST.id), TEST)) == [
        Outcome(True, None, "cat", "cat", False, 1.0),
        Outcome(True, "cat", "dog", "dog", True, 3.0),
        Outcome(False, "cat", None, None, True, 0.0),
        Outcome(False, None, None, None, False, 2.0, is_answered=False),
        Outcome(False, "cat", None, None, False, 6.0),
    ]
    store.delete(["r3.0"])
    assert len(list(store.in_test(TEST.id))) == 4
    store.add([prediction(3, champion)])
    assert [shadow for _, shadow, _ in store.in_test(TEST.id)] == [None] * 5, "deleted with its prediction"
    store.close()
