"""Weights by hand, against brute force and SciPy, and what they promise for any probabilities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tellapart.experiments.ensembling.weighting import METHODS, choose, fitted, greedy, member_losses, mixture_loss


def library(seed: int, members: int, photos: int) -> np.ndarray:
    """Return probabilities of the truth, of members that are good at different photos."""
    return np.random.default_rng(seed).beta(2, 1, (members, photos)).clip(1e-7, 1)


def test_two_members_that_know_different_halves_by_hand():
    """Member 0 is right in three photos of four, member 1 in the other: by Lagrange the weights are 3/4 and 1/4."""
    of_truth = np.array([[1.0, 1.0, 1.0, 1e-7], [1e-7, 1e-7, 1e-7, 1.0]])
    assert fitted(of_truth) == pytest.approx([0.75, 0.25], abs=1e-4)
    assert greedy(of_truth) == pytest.approx([0.75, 0.25], abs=1e-6)
    assert mixture_loss(of_truth, np.array([0.75, 0.25])) == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_fitted_weights_are_those_that_scipy_finds(seed: int):
    of_truth = library(seed, 4, 300)
    found = minimize(
        lambda w: mixture_loss(of_truth, w), np.full(4, 0.25), method="SLSQP", bounds=[(1e-9, 1)] * 4, tol=1e-12,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert mixture_loss(of_truth, fitted(of_truth)) == pytest.approx(found.fun, abs=2e-4)
    assert mixture_loss(of_truth, fitted(of_truth)) >= found.fun - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_greedy_finds_what_brute_force_finds_in_tiny_libraries(seed: int):
    """Two members: a convex function of one number. All ensembles of up to six, by trying them."""
    of_truth = library(seed, 2, 40)
    every = [
        np.array([first, size - first]) / size for size in range(1, 7) for first in range(size + 1)
    ]  # fmt: skip
    best = min(mixture_loss(of_truth, weights) for weights in every)
    assert mixture_loss(of_truth, greedy(of_truth, steps=60)) <= best + 1e-4


def test_each_greedy_step_takes_the_best_of_all(monkeypatch: pytest.MonkeyPatch):
    """Written out with lists, from the best member on, for a library where one member is best to begin with."""
    of_truth = library(3, 4, 60)
    of_truth[2] = np.clip(of_truth[2] * 1.5, 0, 1)
    order = list(np.argsort(member_losses(of_truth)))
    taken = min((order[:n] for n in range(1, 5)), key=lambda some: -np.log(of_truth[some].mean(axis=0)).mean())
    seen = [list(taken)]
    for _ in range(7):
        taken = min(
            ([*taken, member] for member in range(4)), key=lambda some: -np.log(of_truth[some].mean(axis=0)).mean()
        )
        seen.append(taken)
    best = min(seen, key=lambda some: -np.log(of_truth[some].mean(axis=0)).mean())
    expected = np.bincount(best, minlength=4) / len(best)
    assert greedy(of_truth, steps=7) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 40), st.sampled_from([0.2, 1.0, 5.0]))
def test_any_weights_are_on_the_simplex_and_never_worse_than_the_best_member(seed, members, photos, shape):
    of_truth = np.random.default_rng(seed).beta(shape, 1, (members, photos)).clip(1e-7, 1)
    found = choose(of_truth, seed=seed)
    assert [each.method for each in found.candidates] == list(METHODS)
    for each in found.candidates:
        assert each.weights.shape == (members,)
        assert (each.weights >= 0).all()
        assert each.weights.sum() == pytest.approx(1)
        assert each.loss == pytest.approx(mixture_loss(of_truth, each.weights))
    assert found.chosen.loss <= member_losses(of_truth).min() + 1e-12
    assert found.best == int(member_losses(of_truth).argmin())


def test_what_held_out_photos_say_decides_and_a_useless_member_is_left_out():
    rng = np.random.default_rng(0)
    good = rng.beta(5, 1, (3, 1500)).clip(1e-7, 1)
    bad = rng.beta(1, 5, (1, 1500)).clip(1e-7, 1)
    found = choose(np.concatenate([good, bad]))
    assert found.chosen.weights[3] == 0
    assert (found.chosen.weights[:3] > 0).all()
    assert found.chosen.held_out_loss == min(each.held_out_loss for each in found.candidates)
    alone = choose(np.concatenate([np.full((1, 200), 0.99), rng.beta(1, 5, (4, 200)).clip(1e-7, 1)]))
    assert alone.chosen.method == "best member"


def test_copies_of_a_photo_are_never_on_both_sides_of_a_fold():
    """Ten photos, a hundred copies of each: two members tell them apart by luck, and only whole groups show it."""
    of_truth = np.repeat(library(7, 3, 10), 100, axis=1)
    apart = choose(of_truth)
    together = choose(of_truth, np.repeat(np.arange(10), 100))
    losses = [{each.method: each.held_out_loss for each in found.candidates} for found in (apart, together)]
    assert losses[1]["fitted"] > losses[0]["fitted"]
    assert losses[1]["uniform"] == pytest.approx(losses[0]["uniform"])


def test_bags_give_every_seed_its_own_weights():
    of_truth = library(1, 12, 200)
    assert not np.array_equal(greedy(of_truth, 0), greedy(of_truth, 1))
    assert np.array_equal(greedy(of_truth, 0), greedy(of_truth, 0))
    assert sum(weight > 0 for weight in greedy(of_truth, 0)) > 3


def test_no_members_and_no_photos_are_refused():
    for shape in itertools.product((0, 2), (0, 3)):
        if 0 in shape:
            with pytest.raises(ValueError, match=r"some members and photos"):
                choose(np.ones(shape))
    with pytest.raises(ValueError, match="above 0"):
        choose(np.zeros((2, 3)))
