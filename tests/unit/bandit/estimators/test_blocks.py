"""Estimates by blocks, against values worked out by hand."""

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.estimators.port import Estimator
from tests.support.draws import observe, small_problem

NAN = float("nan")


def test_block_estimates_by_hand():
    estimator = BlockEstimator(small_problem())
    assert isinstance(estimator, Estimator)
    estimator.update(observe([(0, 0, 3), (1, 0, 2), (0, 0, 2)], [1, 5, 3, 7, 8, 4, 2], cost=[1, 1, 2, 1, 1, 3, 1]))
    found = estimator.estimates()
    assert found.count.tolist() == [[5, 2, 1], [2, 1, 0]]
    np.testing.assert_allclose(found.reward[0], [[3.0, 4.5, 5.0], [7.5, 8.0, NAN]])
    # Costs count all five completions of prompt 0, also the one that is in no block of two.
    np.testing.assert_allclose(found.cost, [[1.6, 3.2, 4.8], [1.0, 2.0, NAN]])
    q = found.utility(small_problem().contexts, 0.5)
    np.testing.assert_allclose(q[0], found.reward[0])
    np.testing.assert_allclose(q[1, 0], [3.0 - 0.8, 4.5 - 1.6, 5.0 - 2.4])


def test_pulls_larger_than_max_n_are_cut_into_more_blocks():
    estimator = BlockEstimator(small_problem(max_n=2))
    estimator.update(observe([(1, 0, 5)], [1, 2, 3, 4, 9]))
    assert estimator.estimates().count.tolist() == [[0, 0], [5, 2]]
    assert estimator.estimates().reward[0, 1].tolist() == [19 / 5, 3.0]


@pytest.mark.parametrize("aggregator", [BestOfNAggregator(), MajorityVoteAggregator()])
def test_updates_add_up_whatever_the_batches(aggregator):
    rng = np.random.default_rng(2)
    pulls = [(int(p), 0, int(m)) for p, m in zip(rng.integers(4, size=60), rng.integers(1, 9, size=60), strict=True)]
    total = sum(m for _, _, m in pulls)
    scores, costs, labels = rng.integers(0, 2, total), rng.random(total), rng.integers(-1, 40, total)
    setting = small_problem(n_prompts=4, max_n=8, aggregator=aggregator)
    whole, parts = BlockEstimator(setting), BlockEstimator(setting)
    whole.update(observe(pulls, scores, labels, costs))
    ends = np.cumsum([m for _, _, m in pulls])
    for i, (pull, end) in enumerate(zip(pulls, ends, strict=True)):
        part = slice(end - pull[2], end)
        parts.update(observe([pulls[i]], scores[part], labels[part], costs[part]))
    np.testing.assert_array_equal(whole.estimates().count, parts.estimates().count)
    np.testing.assert_allclose(whole.estimates().reward, parts.estimates().reward)
    np.testing.assert_allclose(whole.estimates().cost, parts.estimates().cost)


def test_large_batches_are_worked_off_in_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    pulls = [(int(p), 0, 6) for p in rng.integers(3, size=200)]
    batch = observe(pulls, rng.random(1200), cost=rng.random(1200))
    setting = small_problem(n_prompts=3, max_n=6)
    plain, chunked = BlockEstimator(setting), BlockEstimator(setting)
    plain.update(batch)
    monkeypatch.setattr("iapo_dspy.bandit.estimators.blocks._CHUNK", 300)
    chunked.update(batch)
    np.testing.assert_allclose(plain.estimates().reward, chunked.estimates().reward)
    np.testing.assert_array_equal(plain.estimates().count, chunked.estimates().count)
