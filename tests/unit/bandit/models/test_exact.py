"""Exact values against brute force, against the paper's examples and against the curves of its Figure 3."""

import itertools
import math

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.errors import ConfigurationError


def every_outcome(probs, n):
    """All sequences of n outcomes with their probabilities; the last outcome is a failure."""
    law = np.append(probs, max(0.0, 1 - sum(probs)))
    for drawn in itertools.product(range(len(law)), repeat=n):
        yield drawn, float(np.prod(law[list(drawn)]))


def brute_vote(probs, credit, n, ties, floor):
    total, failure = 0.0, len(probs)
    for drawn, p in every_outcome(probs, n):
        label = np.array([[a if a != failure else -1 for a in drawn]])
        score = np.array([[credit[a] if a != failure else np.nan for a in drawn]])[:, :, None]
        aggregator = MajorityVoteAggregator(ties=ties, floor=floor)
        total += p * aggregator.reward(label, score, np.ones((1, 1)))[0, 0]
    return total


@pytest.mark.parametrize(("n_answers", "total"), [(1, 1.0), (1, 0.6), (2, 1.0), (3, 1.0), (4, 0.7), (5, 1.0)])
@pytest.mark.parametrize("ties", ["paper", "half"])
def test_majority_vote_equals_brute_force(n_answers, total, ties):
    rng = np.random.default_rng(n_answers)
    probs = rng.dirichlet(np.ones(n_answers), size=3) * total
    probs[0, -1] = 0.0 if n_answers > 1 else probs[0, -1]
    credit = np.zeros_like(probs)
    credit[:, rng.integers(n_answers)] = 1.0
    found = majority_vote_rewards(probs, credit, 4, ties=ties, floor=-0.25)
    for row, n in itertools.product(range(3), range(1, 5)):
        assert found[row, n - 1] == pytest.approx(brute_vote(probs[row], credit[row], n, ties, -0.25), abs=1e-12)


def test_graded_votes_equal_brute_force():
    rng = np.random.default_rng(0)
    probs, credit = rng.dirichlet(np.ones(3), size=2), rng.random((2, 3))
    found = majority_vote_rewards(probs, credit, 5)
    for row, n in itertools.product(range(2), (1, 2, 5)):
        assert found[row, n - 1] == pytest.approx(brute_vote(probs[row], credit[row], n, "paper", 0.0), abs=1e-12)


def test_ties_of_many_answers_at_a_scale_worked_by_hand():
    # Three answers, two draws: both right .25, right and another .5 * .5 * 2 = .5 tied.
    probs, credit = np.array([[0.5, 0.3, 0.2]]), np.array([[1.0, 0.0, 0.0]])
    assert majority_vote_rewards(probs, credit, 2)[0, 1] == pytest.approx(0.25 + 0.5 / 2)
    # Three draws: all different with probability 6 * .03, then 1/3 each; "half" says .5.
    clear = 0.5**3 + 3 * 0.5**2 * 0.5
    assert majority_vote_rewards(probs, credit, 3)[0, 2] == pytest.approx(clear + 0.18 / 3)
    assert majority_vote_rewards(probs, credit, 3, ties="half")[0, 2] == pytest.approx(clear + 0.18 / 2)


def test_binary_votes_are_binomial_at_large_scales():
    theta, n = 0.53, 501
    log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    tail = sum(math.exp(log[k] + k * math.log(theta) + (n - k) * math.log(1 - theta)) for k in range(n // 2 + 1, n + 1))
    found = majority_vote_rewards(np.array([[theta, 1 - theta]]), np.array([[1.0, 0.0]]), 600)
    assert found[0, n - 1] == pytest.approx(tail, rel=1e-9)
    assert ((found >= 0) & (found <= 1 + 1e-9)).all()


def test_scales_out_of_range_and_ambiguous_halves_are_refused():
    cell = np.array([[0.5, 0.5]])
    for max_n in (0, 601):
        with pytest.raises(ConfigurationError, match="max_n"):
            majority_vote_rewards(cell, cell, max_n)
    with pytest.raises(ConfigurationError, match="half"):
        majority_vote_rewards(cell, np.array([[1.0, 0.5]]), 2, ties="half")


@pytest.mark.parametrize("total", [1.0, 0.7])
def test_best_of_n_equals_brute_force(total):
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(4), size=2) * total
    values = rng.normal(size=(2, 4))
    values[0, 1] = values[0, 2]  # equal values
    found = best_of_n_rewards(values, probs, 4, floor=-5.0)
    for row, n in itertools.product(range(2), range(1, 5)):
        expected = 0.0
        for drawn, p in every_outcome(probs[row], n):
            score = np.array([[values[row, a] if a < 4 else np.nan for a in drawn]])[:, :, None]
            aggregator = BestOfNAggregator(floors=(-5.0,))
            expected += p * aggregator.reward(np.zeros((1, n), dtype=int), score, np.ones((1, 1)))[0, 0]
        assert found[row, n - 1] == pytest.approx(expected, abs=1e-12)


def test_best_of_one_is_the_mean_and_best_of_many_the_maximum():
    values, probs = np.array([[0.0, 1.0, 4.0]]), np.array([[0.5, 0.4, 0.1]])
    found = best_of_n_rewards(values, probs, 200)
    assert found[0, 0] == pytest.approx(0.8)
    assert found[0, -1] == pytest.approx(4.0, abs=1e-6)
    assert (np.diff(found[0]) > 0).all()


# The paper's motivating example: Prompt 1 is right with .40 and .90 on two queries, Prompt 2 with .62 on both.
PROMPTS = np.array([[[0.40, 0.60], [0.90, 0.10]], [[0.62, 0.38], [0.62, 0.38]]])


def test_the_papers_prompts_change_places_under_a_vote():
    right = np.tile([1.0, 0.0], (4, 1))
    value = majority_vote_rewards(PROMPTS.reshape(4, 2), right, 10).reshape(2, 2, 10).mean(axis=1)
    assert value[:, 0] == pytest.approx([0.65, 0.62])
    assert value[:, 9] == pytest.approx([0.63, 0.77], abs=0.005)


def test_figure_3_vote_drops_sharply_below_one_half():
    theta = np.linspace(0.0, 1.0, 101)
    curves = majority_vote_rewards(np.column_stack([theta, 1 - theta]), np.tile([1.0, 0.0], (101, 1)), 32)
    np.testing.assert_allclose(curves[50], 0.5)  # theta = .5: a coin at every scale
    np.testing.assert_allclose(curves, 1 - curves[::-1], atol=1e-12)  # symmetric about it
    np.testing.assert_allclose(curves[:, 0], theta, atol=1e-12)
    odd = np.diff(curves[:, ::2], axis=1)
    assert (odd[51:90] > 0).all() and (odd[11:50] < 0).all()
    assert curves[40, 31] < 0.15 and curves[60, 31] > 0.85
    slope = np.diff(curves[:, 31])
    assert slope.argmax() in (49, 50) and slope.max() > 4 * 0.01  # far steeper than theta itself


def test_figure_3_best_of_n_is_strictly_concave():
    theta = np.linspace(0.0, 1.0, 101)
    values = np.tile([0.0, 1.0], (101, 1))
    curves = best_of_n_rewards(values, np.column_stack([1 - theta, theta]), 32)
    np.testing.assert_allclose(curves, 1 - (1 - theta[:, None]) ** np.arange(1, 33), atol=1e-12)
    bend = np.diff(curves[:, 1:], n=2, axis=0)
    assert (bend <= 1e-12).all() and (bend[:20] < 0).all()
