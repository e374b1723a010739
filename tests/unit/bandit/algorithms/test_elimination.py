"""Estimates, allocation, trimming and screening, against values worked out by hand."""

from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.psst import allocate, largest_scales
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.algorithms.trimming import best_arms, keep_best, trim
from iapo_dspy.bandit.costs.scale import CostScale
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.estimators.port import Estimator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Contexts, Observations, Pulls

NAN = float("nan")


def problem(**changes):
    settings: dict[str, Any] = {
        "n_prompts": 2,
        "n_queries": 3,
        "max_n": 3,
        "contexts": Contexts(np.ones((2, 1)), np.array([0.0, 1.0])),
        "aggregator": BestOfNAggregator(),
        "cost_scale": 1.0,
    }
    return Problem(**(settings | changes))


def observe(pulls, scores, costs=None, labels=None):
    """Observations of pulls [(prompt, size)], single objective."""
    scores = np.array(scores, dtype=float)
    return Observations(
        pulls=Pulls(np.array([p for p, _ in pulls]), np.zeros(len(pulls), int), np.array([m for _, m in pulls])),
        label=np.zeros(len(scores), int) if labels is None else np.array(labels),
        score=scores[:, None],
        cost=np.zeros(len(scores)) if costs is None else np.array(costs, dtype=float),
    )


def test_block_estimates_by_hand():
    estimator = BlockEstimator(problem())
    assert isinstance(estimator, Estimator)
    estimator.update(observe([(0, 3), (1, 2), (0, 2)], [1, 5, 3, 7, 8, 4, 2], [1, 1, 2, 1, 1, 3, 1]))
    found = estimator.estimates()
    assert found.count.tolist() == [[5, 2, 1], [2, 1, 0]]
    np.testing.assert_allclose(found.reward[0], [[3.0, 4.5, 5.0], [7.5, 8.0, NAN]])
    # Costs count all five completions of prompt 0, also the one that is in no block of two.
    np.testing.assert_allclose(found.cost, [[1.6, 3.2, 4.8], [1.0, 2.0, NAN]])
    q = found.utility(problem().contexts, 0.5)
    np.testing.assert_allclose(q[0], found.reward[0])
    np.testing.assert_allclose(q[1, 0], [3.0 - 0.8, 4.5 - 1.6, 5.0 - 2.4])


def test_pulls_larger_than_max_n_are_cut_into_more_blocks():
    estimator = BlockEstimator(problem(max_n=2))
    estimator.update(observe([(1, 5)], [1, 2, 3, 4, 9]))
    assert estimator.estimates().count.tolist() == [[0, 0], [5, 2]]
    assert estimator.estimates().reward[0, 1].tolist() == [19 / 5, 3.0]


@pytest.mark.parametrize("aggregator", [BestOfNAggregator(), MajorityVoteAggregator()])
def test_updates_add_up_whatever_the_batches(aggregator):
    rng = np.random.default_rng(2)
    pulls = [(int(p), int(m)) for p, m in zip(rng.integers(4, size=60), rng.integers(1, 9, size=60), strict=True)]
    total = sum(m for _, m in pulls)
    scores, costs, labels = rng.integers(0, 2, total), rng.random(total), rng.integers(-1, 40, total)
    setting = problem(n_prompts=4, max_n=8, aggregator=aggregator)
    whole, parts = BlockEstimator(setting), BlockEstimator(setting)
    whole.update(observe(pulls, scores, costs, labels))
    ends = np.cumsum([m for _, m in pulls])
    for i, (pull, end) in enumerate(zip(pulls, ends, strict=True)):
        part = slice(end - pull[1], end)
        parts.update(observe([pulls[i]], scores[part], costs[part], labels[part]))
    np.testing.assert_array_equal(whole.estimates().count, parts.estimates().count)
    np.testing.assert_allclose(whole.estimates().reward, parts.estimates().reward)
    np.testing.assert_allclose(whole.estimates().cost, parts.estimates().cost)


def test_large_batches_are_worked_off_in_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    pulls = [(int(p), 6) for p in rng.integers(3, size=200)]
    batch = observe(pulls, rng.random(1200), rng.random(1200))
    setting = problem(n_prompts=3, max_n=6)
    plain, chunked = BlockEstimator(setting), BlockEstimator(setting)
    plain.update(batch)
    monkeypatch.setattr("iapo_dspy.bandit.estimators.blocks._CHUNK", 300)
    chunked.update(batch)
    np.testing.assert_allclose(plain.estimates().reward, chunked.estimates().reward)
    np.testing.assert_array_equal(plain.estimates().count, chunked.estimates().count)


def test_allocation_by_hand():
    active = np.zeros((2, 3, 4), dtype=bool)
    active[0, 0, [0, 3]] = True  # prompt 0 lives at 1 and 4 in one context
    active[1, 0, 1] = True
    active[1, 2, 1] = True  # prompt 2 lives at 2; prompt 1 is gone
    scales = largest_scales(active)
    assert scales.tolist() == [4, 0, 2]
    assert [allocate(scales, b) for b in (5, 6, 11, 12, 100)] == [0, 1, 1, 2, 16]  # floor(b / 6)


def test_trimming_keeps_the_better_half_rounded_up_per_context():
    q = np.array([[[5.0, 1.0], [4.0, 3.0], [2.0, 6.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    cost = np.ones((3, 2))
    active = np.ones((2, 3, 2), dtype=bool)
    active[0, 2, 1] = False
    kept = trim(q, cost, active)
    assert np.argwhere(kept[0]).tolist() == [[0, 0], [1, 0], [1, 1]]  # 3 of 5
    assert np.argwhere(kept[1]).tolist() == [[1, 1], [2, 0], [2, 1]]  # 3 of 6
    for _ in range(2):
        kept = trim(q, cost, kept)
    assert kept.sum(axis=(1, 2)).tolist() == [1, 1]
    np.testing.assert_array_equal(trim(q, cost, kept), kept)
    assert best_arms(q, cost, active).arms == (Arm(0, 1), Arm(2, 2))


def test_ties_go_to_the_cheaper_arm_then_to_the_smaller_scale():
    q = np.zeros((1, 2, 3))
    active = np.ones((1, 2, 3), dtype=bool)
    assert best_arms(q, np.array([[2.0, 3.0, 4.0], [1.0, 0.5, 9.0]]), active)[0] == Arm(1, 2)
    assert best_arms(q, np.ones((2, 3)), active)[0] == Arm(0, 1)
    kept = keep_best(q, np.array([[2.0, 2.0, 2.0], [2.0, 2.0, 1.0]]), active, np.array([3]))
    assert np.argwhere(kept[0]).tolist() == [[0, 0], [1, 0], [1, 2]]


def test_arms_without_evidence_rank_last_and_dead_ones_never_return():
    q = np.array([[[NAN, -9.0], [NAN, -8.0]]])
    cost = np.array([[NAN, 1.0], [NAN, 1.0]])
    active = np.array([[[True, True], [True, False]]])
    assert best_arms(q, cost, active)[0] == Arm(0, 2)
    kept = keep_best(q, cost, active, np.array([4]))
    np.testing.assert_array_equal(kept, active)


def test_screening_budget_and_least():
    screening = Screening(k=4)
    assert screening.budget(1000) == 200
    setting = problem(n_prompts=25, max_n=32, contexts=Contexts(np.ones((3, 1)), np.zeros(3)))
    # 25 looks ask for 125 completions; up to 12 kept prompts ask for 384 of the other 80 %.
    assert screening.least(setting) == 479
    assert [t - screening.budget(t) for t in (478, 479)] == [383, 384]
    assert Screening(k=1, rho=0.01).least(problem()) == 200  # two looks at one percent


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 1.5}, {"k": 2, "rho": 0.0}, {"k": 2, "rho": 1.0}])
def test_bad_screening_is_refused(settings):
    with pytest.raises(ConfigurationError, match="Screening"):
        Screening(**settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_prompts": 0},
        {"n_queries": 0},
        {"max_n": 0},
        {"max_n": 2.5},
        {"cost_scale": -1.0},
        {"cost_scale": NAN},
        {"aggregator": BestOfNAggregator(floors=(0.0, 0.0))},
    ],
)
def test_bad_problems_are_refused(changes):
    with pytest.raises(ConfigurationError):
        problem(**changes)


def test_the_cost_scale_is_learnt_once_every_prompt_was_pulled():
    scale = CostScale(problem(cost_scale=None))
    assert scale.value == 0.0
    scale.observe(observe([(0, 2)], [1, 1], [30, 10]))
    scale.observe(observe([(1, 1), (1, 1)], [1, 1], [50, 70]))
    assert scale.value == pytest.approx(0.01 / 40)  # prompt means 20 and 60
    scale.observe(observe([(0, 1)], [1], [9999]))
    assert scale.value == pytest.approx(0.01 / 40)


def test_a_free_run_has_cost_scale_zero_and_a_given_scale_is_kept():
    free = CostScale(problem(cost_scale=None))
    free.observe(observe([(0, 1), (1, 1)], [1, 1], [0, 0]))
    assert free.value == 0.0
    given = CostScale(problem(cost_scale=3.0))
    given.observe(observe([(0, 1), (1, 1)], [1, 1], [5, 5]))
    assert given.value == 3.0
