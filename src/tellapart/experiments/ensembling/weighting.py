"""How much each member of an ensemble has to say, fitted to photos that are new to all. Knows no models and no files.

The log loss of a mixture depends on nothing but the probability that each member gave to the true class of each photo.
Throughout: `of_truth` is (num_members, num_photos) float64 with these probabilities, above 0; weights are
(num_members,) float64, none below 0, adding up to 1; losses are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.randomness import generator

Floats = NDArray[np.float64]

BAGS = 20
BAGGED_FROM = 6
"""Members from which on greedy selection is bagged: half of fewer are too few to choose among."""
STEPS = 50
FOLDS = 5

_TRIFLE = 0.05
"""A member with less than this share of the largest weight is left out: it would cost as much time as any other."""
# In nats: the loss is then at most so far above the lowest one (Cover 1984, see `fitted`).
_GAP = 1e-7
_MOST_ROUNDS = 20_000


@dataclass(frozen=True)
class Candidate:
    """One way to weigh the members.

    Attributes:
        method: a name of `METHODS`.
        weights: fitted to all photos.
        loss: on the photos that the weights were fitted to.
        held_out_loss: on photos left out of the fit, in turn (cross-validated): what the methods are judged by.
    """

    method: str
    weights: Floats
    loss: float
    held_out_loss: float


@dataclass(frozen=True)
class Weighting:
    """The weights that were chosen, and the others.

    Attributes:
        chosen: the candidate with the lowest held-out loss that is no worse than the best member.
        candidates: all of `METHODS`, in that order.
        best: the position of the member with the lowest loss.
        member_losses: of each member alone, (num_members,).
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    best: int
    member_losses: Floats


def choose(of_truth: Floats, groups: Sequence[object] | None = None, *, seed: int = 0) -> Weighting:
    """Weigh the members in each way, and keep the way that does best on photos left out of its fit.

    A way whose loss on all photos is above that of the best single member is not kept, whatever its held-out loss.
    At equal losses the simpler way is kept: `METHODS` begins with the simplest.

    Args:
        of_truth: each member's probability of the true class.
        groups: (num_photos,) what must not be divided between fit and judgement: near copies; None: single photos.
        seed: of the folds and the bags.

    Raises:
        ValueError: no members, no photos, or a probability that is not above 0.
    """
    if 0 in of_truth.shape or not (of_truth > 0).all():
        raise ValueError(f"Expected probabilities above 0 of some members and photos; got shape {of_truth.shape}.")
    folds = _folds(np.arange(of_truth.shape[1]) if groups is None else groups, seed)
    candidates = tuple(
        Candidate(method, weights, mixture_loss(of_truth, weights), _held_out_loss(of_truth, folds, weigh, seed))
        for method, weigh in METHODS.items()
        for weights in [weigh(of_truth, seed)]
    )
    losses = member_losses(of_truth)
    # Never empty: the best member alone is one of the ways.
    allowed = [
        candidate for candidate in candidates if candidate.loss <= losses.min() + 1e-12
    ]  # sums in another order differ
    return Weighting(
        min(allowed, key=lambda candidate: candidate.held_out_loss), candidates, int(losses.argmin()), losses
    )


def mixture_loss(of_truth: Floats, weights: Floats) -> float:
    """Return the log loss of the weighted mean of the members' probabilities."""
    return float(-np.log(weights @ of_truth).mean())


def member_losses(of_truth: Floats) -> Floats:
    """Return each member's own log loss, (num_members,)."""
    return np.asarray(-np.log(of_truth).mean(axis=1))


def best_member(of_truth: Floats, seed: int = 0) -> Floats:
    """Give everything to the member with the lowest loss."""
    del seed
    return np.asarray(np.eye(len(of_truth))[member_losses(of_truth).argmin()])


def uniform(of_truth: Floats, seed: int = 0) -> Floats:
    """Give all members the same weight: nothing is fitted."""
    del seed
    return np.full(len(of_truth), 1 / len(of_truth))


def greedy(of_truth: Floats, seed: int = 0, *, steps: int = STEPS, bags: int = BAGS) -> Floats:
    """Select members one at a time (Caruana et al. 2004, "Ensemble Selection from Libraries of Models", section 2).

    Forward selection with replacement, so that a member can be taken more than once; it begins with as many of the
    best members as together have the lowest loss (sorted initialisation), and ends with the best ensemble on the way.
    From `BAGGED_FROM` members on this is done in `bags` random halves of the members, and the weights are averaged.

    Args:
        of_truth: each member's probability of the true class.
        seed: of the bags.
        steps: members that are added to the first ones.
        bags: how many.
    """
    count = len(of_truth)
    if count < BAGGED_FROM:
        return _drop_small_weights(_climbed(of_truth, steps))
    rng, total = generator(seed, "bags"), np.zeros(count)
    for _ in range(bags):
        # Half of the members each time: what one validation set prefers by chance is averaged out.
        bag = np.sort(rng.choice(count, math.ceil(count / 2), replace=False))
        total[bag] += _climbed(of_truth[bag], steps)
    return _drop_small_weights(total / bags)


def fitted(of_truth: Floats, seed: int = 0) -> Floats:
    """Return the weights with the lowest loss of all on these photos.

    Mixture weights of maximum likelihood are a convex problem on the simplex; expectation-maximisation (Dempster et al.
    1977) never leaves it and never gets worse. It ends when the largest mean ratio of a member to the mixture is near
    1: that bounds the distance from the optimum (Cover 1984, "An Algorithm for Maximizing Expected Log Investment
    Return"). Trifling members are left out, so the loss may end a little above the optimum.
    """
    del seed
    weights = uniform(of_truth)
    for _ in range(_MOST_ROUNDS):
        # All begin with a weight: expectation-maximisation multiplies, and would never raise one from 0.
        ratio = (of_truth / (weights @ of_truth)).mean(axis=1)
        if ratio.max() < 1 + _GAP:
            break
        weights = weights * ratio
        weights /= weights.sum()
    return _drop_small_weights(weights)


METHODS: dict[str, Callable[[Floats, int], Floats]] = {
    "best member": best_member,
    "uniform": uniform,
    "greedy": greedy,
    "fitted": fitted,
}
"""Ways to weigh members, the simplest first."""


def _climbed(of_truth: Floats, steps: int) -> Floats:
    order = np.argsort(member_losses(of_truth), kind="stable")
    # Sums of the best member, the best two and so on: the sorted beginning is read off in one pass.
    sums = np.cumsum(of_truth[order], axis=0)
    first = int((-np.log(sums / np.arange(1, len(order) + 1)[:, None])).mean(axis=1).argmin()) + 1
    counts = np.zeros(len(of_truth))
    counts[order[:first]] = 1
    total = sums[first - 1]
    # Each step adds the member that helps most, but may make things worse: the best on the way is kept.
    best, lowest = counts.copy(), float(-np.log(total / first).mean())
    for size in range(first + 1, first + steps + 1):
        # Every member is tried as the next one at once, a row each.
        losses = -np.log((total + of_truth) / size).mean(axis=1)
        taken = int(losses.argmin())
        counts[taken] += 1
        total = total + of_truth[taken]
        if losses[taken] < lowest:
            best, lowest = counts.copy(), float(losses[taken])
    return np.asarray(best / best.sum())


def _drop_small_weights(weights: Floats) -> Floats:
    large = np.where(weights < _TRIFLE * weights.max(), 0.0, weights)
    return np.asarray(large / large.sum())


def _folds(groups: Sequence[object] | NDArray, seed: int) -> NDArray[np.int64]:
    """Return the fold of each photo; groups stay whole."""
    numbers = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    count = int(numbers.max()) + 1
    # Folds differ by one group at most; with fewer groups than folds each group is a fold.
    return np.asarray((generator(seed, "folds").permutation(count) % min(FOLDS, count))[numbers], np.int64)


def _held_out_loss(
    of_truth: Floats, folds: NDArray[np.int64], weigh: Callable[[Floats, int], Floats], seed: int
) -> float:
    if folds.max() == 0:  # a single group: nothing can be held out
        return mixture_loss(of_truth, weigh(of_truth, seed))
    total = 0.0
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        total += int(held_out.sum()) * mixture_loss(of_truth[:, held_out], weigh(of_truth[:, ~held_out], seed))
    return total / len(folds)
