"""Means over all subsets of counted answers."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from iapo_dspy.bandit.cells import Ballots
from iapo_dspy.bandit.models.subset_means import best_of_subsets, vote_subsets

NAN = float("nan")


def counted(votes: list[list[int]], silent: list[int]) -> Ballots:
    array = np.array(votes)
    return Ballots(
        votes=array,
        silent=np.array(silent),
        worth=np.zeros(array.shape),
        credit=np.zeros((1, array.shape[1])),
        seen=array,
    )


def test_votes_by_hand() -> None:
    # Two right, one wrong, one silent. Pairs: RR 1, RW 1/2 (twice), R- 1 (twice), W- 0: (1 + 1 + 2) / 6.
    # Triples: RRW 1, RR- 1, RW- 1/2 (twice): 3/4. All four: 1.
    right_first = vote_subsets(counted([[2, 1]], [1]), np.array([[1.0, 0.0]]), 5)[0]
    np.testing.assert_allclose(right_first, [1 / 2, 4 / 6, 3 / 4, 1, NAN])
    # Three answers once each: any pair is a tie of two, all three a tie of three.
    np.testing.assert_allclose(vote_subsets(counted([[1, 1, 1]], [0]), np.array([[1.0, 0, 0]]), 3)[0], [1 / 3] * 3)
    half = vote_subsets(counted([[1, 1, 1]], [0]), np.array([[1.0, 0, 0]]), 3, ties="half")[0]
    np.testing.assert_allclose(half, [1 / 3, 1 / 3, 1 / 2])
    # Graded answers: .8 and .2 share a tie.
    np.testing.assert_allclose(vote_subsets(counted([[1, 1]], [0]), np.array([[0.8, 0.2]]), 2)[0], [0.5, 0.5])
    # One vote, two silent, floor .3: singles (1 + .6) / 3; pairs: two with the vote and one without, (2 + .3) / 3.
    floor = vote_subsets(counted([[1]], [2]), np.array([[1.0]]), 3, floor=0.3)[0]
    np.testing.assert_allclose(floor, [1.6 / 3, 2.3 / 3, 1.0])


def test_best_of_by_hand() -> None:
    # 1, 3, 4 and a failure; floor 2 counts only where all failed. Pairs: 3, 4, 4 and 1, 3, 4 with the failure.
    found = best_of_subsets(np.array([[[4.0, -np.inf, 1.0, 3.0]]]), np.array([2.0]), 4)[0, 0]
    np.testing.assert_allclose(found, [10 / 4, (3 + 4 + 4 + 1 + 3 + 4) / 6, (4 + 3 + 4 + 4) / 4, 4])


@pytest.mark.parametrize(
    ("right", "wrong", "max_n"),
    [(300, 500, 32), (260, 250, 400), (3, 997, 64), (9_000, 21_000, 32), (50_001, 50_000, 9)],
)
def test_large_counts_of_two_answers(right: int, wrong: int, max_n: int) -> None:
    n = right + wrong
    found = vote_subsets(counted([[right, wrong]], [0]), np.array([[1.0, 0.0]]), max_n)[0]
    for k in {1, 2, 5, max_n - 1, max_n}:
        won = 2 * sum(comb(right, j) * comb(wrong, k - j) for j in range(k // 2 + 1, k + 1))
        won += comb(right, k // 2) * comb(wrong, k // 2) if k % 2 == 0 else 0
        assert found[k - 1] == pytest.approx(won / (2 * comb(n, k)), rel=1e-9)


@pytest.mark.slow
def test_large_counts_of_many_answers_and_of_best_of() -> None:
    votes = counted([[150, 140, 90, 60, 2, 1], [0, 0, 700, 1, 0, 0]], [57, 0])
    found = vote_subsets(votes, np.array([[1.0, 0, 0, 0, 0, 0]] * 2), 300)
    assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1 + 1e-9).all()
    np.testing.assert_allclose(found[:, 0], [150 / 500, 0])
    # The credits of all answers and of an empty vote are one vote.
    everything = vote_subsets(votes, np.ones((2, 6)), 300, floor=1.0)
    np.testing.assert_allclose(everything, 1.0, atol=1e-9)
    values = np.arange(3_000.0)[None, None]
    best = best_of_subsets(values, np.zeros(1), 128)[0, 0]
    k = np.arange(1, 129)
    np.testing.assert_allclose(best, k * 3_001 / (k + 1) - 1)  # mean of the largest of k out of 1 .. n, less one
