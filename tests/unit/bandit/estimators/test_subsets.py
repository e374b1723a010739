"""Subset estimates against every subset, every sequence of draws, and exact integers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.estimators.port import Estimator
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator, cell_subsets
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Observations
from tests.support.draws import observe, over_all_subsets, problem_of

NAN = float("nan")
MV = MajorityVoteAggregator()
ROWS = np.array([[1.0, 0.0], [0.3, 0.7], [0.0, 0.0], [0.5, 2.0]])


@st.composite
def drawn(draw: st.DrawFn) -> tuple[list[Observations], int]:
    """Cells of 1 to 7 completions of two prompts on three queries; two objectives, failures and silent completions."""
    size = st.integers(1, 7)
    pulls = [(p, x, draw(size)) for p, x in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1))]
    total = sum(m for _, _, m in pulls)
    label = draw(st.lists(st.integers(-1, 4), min_size=total, max_size=total))
    value = st.sampled_from([-0.5, 0.0, 0.25, 1.0])
    score = np.array(draw(st.lists(st.tuples(value, value), min_size=total, max_size=total)), dtype=float)
    score[draw(st.lists(st.booleans(), min_size=total, max_size=total))] = NAN
    return [observe(pulls, score, label)], draw(st.integers(1, 8))


AGGREGATORS = [MV, MajorityVoteAggregator(floor=-0.7), BestOfNAggregator(), BestOfNAggregator(floors=(0.5, -2.0))]


@settings(max_examples=60, deadline=None)
@given(drawn(), st.sampled_from(AGGREGATORS))
def test_every_cell_at_every_scale_is_the_mean_over_all_subsets(
    given: tuple[list[Observations], int], aggregator: Aggregator
) -> None:
    observations, max_n = given
    cells = Cells.of(observations, 2, 2)
    found = cell_subsets(cells, aggregator, ROWS, max_n)
    assert found.shape == (len(ROWS), len(cells), max_n)
    for g, (start, size) in enumerate(zip(cells.start, cells.size, strict=True)):
        inside = slice(start, start + size)
        label, score = cells.label[inside], cells.score[inside]
        brute = over_all_subsets(aggregator, label, score, ROWS, max_n)
        np.testing.assert_allclose(found[:, g, : brute.shape[1]], brute, atol=1e-12)
        assert np.isnan(found[:, g, brute.shape[1] :]).all()
        if size <= max_n:  # all that was drawn is its own only subset
            whole = aggregator.reward(label[None], score[None], ROWS)[:, 0]
            np.testing.assert_allclose(found[:, g, size - 1], whole, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=9), st.sampled_from(["paper", "half"]))
def test_votes_with_either_rule_for_ties(label: list[int], ties: str) -> None:
    aggregator = MajorityVoteAggregator(ties=ties)  # type: ignore[arg-type]
    answer, score = np.array(label), (np.array(label) == 0).astype(float)[:, None]
    cells = Cells.of([observe([(0, 0, len(label))], score, answer)], 1, 1)
    found = cell_subsets(cells, aggregator, np.ones((1, 1)), 9)[0, 0]
    brute = over_all_subsets(aggregator, answer, score, np.ones((1, 1)), 9)[0]
    np.testing.assert_allclose(found[: len(label)], brute, atol=1e-12)


def test_an_answer_is_worth_its_own_completions_scores() -> None:
    """A metric may see more than the answer: the same answer of another prompt says nothing about this one's worth."""
    batch = observe([(0, 0, 2), (1, 0, 2)], [1, 0.5, 0, 0], [7, 7, 7, 7])
    found = cell_subsets(Cells.of([batch], 2, 1), MV, np.ones((1, 1)), 2)[0]
    np.testing.assert_allclose(found, [[0.75, 0.75], [0.0, 0.0]])


def test_half_needs_one_scored_answer() -> None:
    """As exact values do: half the best winner's credit is not a sum over answers."""
    cells = Cells.of([observe([(0, 0, 2)], [1, 0.5], [0, 1])], 1, 1)
    with pytest.raises(ConfigurationError, match="half"):
        cell_subsets(cells, MajorityVoteAggregator(ties="half"), np.ones((1, 1)), 2)


@pytest.mark.parametrize("law", [[0.5, 0.3, 0.2], [0.4, 0.4, 0.1]])  # the second one fails now and then
def test_votes_are_unbiased_over_all_sequences_of_draws(law: list[float]) -> None:
    n, outcomes = 5, [*range(len(law)), -1]
    chance = np.array([*law, 1 - sum(law)])
    label = np.array(list(product(outcomes, repeat=n)))
    probability = chance[label].prod(axis=1)  # label -1 is the last entry
    credit = np.array([0.2, 1.0, 0.0, NAN])
    pulls = [(0, x, n) for x in range(len(label))]
    cells = Cells.of([observe(pulls, credit[label.ravel()], label.ravel())], 1, 1)
    found = cell_subsets(cells, MV, np.ones((1, 1)), n)[0]
    exact = majority_vote_rewards(np.array([law]), credit[None, : len(law)], n)[0]
    np.testing.assert_allclose(probability @ found, exact, atol=1e-12)


def test_best_of_is_unbiased_over_all_sequences_of_draws() -> None:
    n, values, law = 5, np.array([0.1, 0.6, 2.0, NAN]), np.array([0.2, 0.4, 0.1, 0.3])
    outcome = np.array(list(product(range(4), repeat=n)))
    cells = Cells.of([observe([(0, x, n) for x in range(len(outcome))], values[outcome.ravel()])], 1, 1)
    found = cell_subsets(cells, BestOfNAggregator(floors=(0.4,)), np.ones((1, 1)), n)[0]
    exact = best_of_n_rewards(values[None, :3], law[None, :3], n, floor=0.4)[0]
    np.testing.assert_allclose(law[outcome].prod(axis=1) @ found, exact, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(NAN), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_more_completions_never_make_the_best_worse_and_their_order_does_not_matter(scores: list[float], r) -> None:
    first = cell_subsets(
        Cells.of([observe([(0, 0, len(scores))], scores)], 1, 1), BestOfNAggregator(), ROWS[:1, :1], 30
    )
    r.shuffle(scores)
    other = cell_subsets(
        Cells.of([observe([(0, 0, len(scores))], scores)], 1, 1), BestOfNAggregator(), ROWS[:1, :1], 30
    )
    np.testing.assert_allclose(first, other, atol=1e-12)
    assert (np.diff(first[0, 0, : len(scores)]) >= -1e-12).all()


@settings(max_examples=60, deadline=None)
@given(drawn(), st.sampled_from(AGGREGATORS), st.randoms(use_true_random=False))
def test_how_completions_were_split_into_pulls_and_batches_does_not_matter(
    given: tuple[list[Observations], int], aggregator: Aggregator, r
) -> None:
    (whole,), max_n = given
    problem = problem_of(aggregator, n_prompts=2, max_n=max_n, weights=ROWS)
    one = SubsetEstimator(problem)
    assert isinstance(one, Estimator)
    one.update(whole)
    pieces = []
    at = np.cumsum(whole.pulls.size) - whole.pulls.size
    for start, pull in zip(at.tolist(), whole.pulls, strict=True):
        for s in range(start, start + pull.size):
            pieces.append(observe([(pull.prompt, pull.query, 1)], whole.score[s : s + 1], whole.label[s : s + 1]))
    r.shuffle(pieces)
    many = SubsetEstimator(problem)
    for piece in pieces:
        many.update(piece)
    np.testing.assert_allclose(many.estimates().reward, one.estimates().reward, atol=1e-12)
    np.testing.assert_array_equal(many.estimates().count, one.estimates().count)


def test_estimates_are_means_over_the_queries_that_have_enough() -> None:
    weights = np.array([[2.0], [0.0], [2.0]])
    estimator = SubsetEstimator(problem_of(BestOfNAggregator(), n_prompts=2, max_n=3, weights=weights))
    empty = estimator.estimates()
    assert np.isnan(empty.reward).all() and np.isnan(empty.cost).all() and not empty.count.any()
    estimator.update(observe([(0, 0, 1), (0, 5, 3)], [1, 0, 2, 4], cost=[1, 1, 1, 5], overhead=[10, 20]))
    found = estimator.estimates()
    assert found.count.tolist() == [[2, 1, 1], [0, 0, 0]]
    mean = [2 * (1 + 2) / 2, 2 * (2 + 4 + 4) / 3, 8]
    np.testing.assert_allclose(found.reward[:, 0], [mean, [0.0, 0.0, 0.0], mean])
    assert np.isnan(found.reward[:, 1]).all()
    np.testing.assert_allclose(found.cost, [[17.0, 19.0, 21.0], [NAN] * 3])


@pytest.mark.parametrize("aggregator", [MV, BestOfNAggregator()], ids=["vote", "best"])
def test_subsets_expect_what_blocks_expect_and_vary_less(aggregator: Aggregator) -> None:
    runs, m, law = 3_000, 7, np.array([0.45, 0.35, 0.2])
    rng = np.random.default_rng(5)
    label = rng.choice(3, size=runs * m, p=law)
    score = np.array([1.0, 0.0, 0.3])[label]
    batch = observe([(p, 0, m) for p in range(runs)], score, label)
    rewards = []
    for kind in (BlockEstimator, SubsetEstimator):
        estimator = kind(problem_of(aggregator, n_prompts=runs, max_n=m))
        estimator.update(batch)
        rewards.append(estimator.estimates().reward[0])
    if isinstance(aggregator, MajorityVoteAggregator):
        exact = majority_vote_rewards(law[None], np.array([[1.0, 0.0, 0.3]]), m)[0]
    else:
        exact = best_of_n_rewards(np.array([[1.0, 0.0, 0.3]]), law[None], m)[0]
    for reward in rewards:
        assert (np.abs(reward.mean(axis=0) - exact) < 4 * reward.std(axis=0) / np.sqrt(runs)).all()
    blocks, subsets = (reward.var(axis=0) for reward in rewards)
    np.testing.assert_allclose(blocks[[0, 6]], subsets[[0, 6]])  # all singles, and the whole pull
    assert (subsets[1:6] < 0.97 * blocks[1:6]).all()  # between: blocks of 2 and 3 leave one out, 4 to 6 several
