"""Means and medians: the closed forms of proposition 2 against all subsets, exact laws and by hand."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.centre import AffineAggregator, SquaredMeanAggregator, ValueAggregator
from iapo_dspy.bandit.aggregators.port import ClosedForm
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts, FloatArray, Observations, Pulls
from tests.support.draws import observe, over_all_subsets, problem_of

NAN = float("nan")
ONE = np.array([[1.0, 0.0, 0.0]])
SQUARED = SquaredMeanAggregator(scale=4.0, floor=-3.0)


def rows(values: list[float | None], gold: float, scale: float = 4.0) -> list[list[float]]:
    """Score columns of completions; None: failed."""
    return [[1 - (v - gold) ** 2 / scale, v, gold] if v is not None else [NAN] * 3 for v in values]


def cells_of(*cells: list[list[float]]) -> Cells:
    pulls = [(0, x, len(c)) for x, c in enumerate(cells)]
    return Cells.of([observe(pulls, np.array([r for c in cells for r in c]))], 1, len(cells[0][0]))


def test_rewards_of_means_and_medians_by_hand() -> None:
    score = np.array([rows([1.0, None, 2.0, 6.0], gold=2.0)])
    label = np.zeros((1, 4), dtype=np.int64)
    assert SQUARED.reward(label, score, ONE) == pytest.approx(1 - (3 - 2) ** 2 / 4)
    assert ValueAggregator(loss="absolute", scale=4).reward(label, score, 2 * ONE) == pytest.approx(2 * (1 - 1 / 4))
    median = ValueAggregator(centre="median", loss="absolute", scale=4.0)
    assert median.reward(label, score, ONE) == pytest.approx(1.0)
    even = np.array([rows([1.0, 9.0, 2.0, 6.0], gold=2.0)])
    assert median.reward(label, even, ONE) == pytest.approx(1 - 2 / 4)
    nothing = np.full((1, 3, 3), NAN)
    assert SQUARED.reward(label[:, :3], nothing, ONE) == -3.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1, 1)), min_size=1, max_size=6), st.floats(-1, 1))
def test_the_closed_form_is_the_mean_over_all_subsets(values: list[float | None], gold: float) -> None:
    score = np.array(rows(values, gold))
    found = cell_subsets(cells_of(score.tolist()), SQUARED, ONE, 8)[0, 0]
    expected = over_all_subsets(SQUARED, np.zeros(len(values), dtype=np.int64), score, ONE, 8)[0]
    np.testing.assert_allclose(found[: len(values)], expected, atol=1e-9)
    beyond = found[len(values) :]
    if None in values or len(values) == 1:  # a failure rate, or a variance, that is not known
        assert np.isnan(beyond).all()
    else:
        drawn = np.array(values, dtype=float)
        mean, variance = drawn.mean(), drawn.var(ddof=1)
        bias = (mean - gold) ** 2 - variance / len(values)
        np.testing.assert_allclose(beyond, 1 - (bias + variance / np.arange(len(values) + 1, 9)) / 4, atol=1e-9)


def test_two_completions_tell_every_scale_without_bias() -> None:
    """Over all pairs of draws from a known law, the estimate at scale n has the mean of the reward of n draws."""
    law, gold = {0.0: 0.5, 1.0: 0.3, 3.0: 0.2}, 1.5
    expected = np.zeros(4)
    for pair in product(law, repeat=2):
        chance = np.prod([law[v] for v in pair])
        expected += chance * cell_subsets(cells_of(rows(list(pair), gold)), SQUARED, ONE, 4)[0, 0]
    for n in range(1, 5):
        truth = 0.0
        for drawn in product(law, repeat=n):
            chance = np.prod([law[v] for v in drawn])
            truth += chance * (1 - (np.mean(drawn) - gold) ** 2 / 4)
        assert expected[n - 1] == pytest.approx(truth)


def test_scores_that_are_affine_do_not_depend_on_n() -> None:
    affine = AffineAggregator(floor=-1.0)
    cells = cells_of([[0.2]], [[0.4], [0.8]])
    found = cell_subsets(cells, affine, np.array([[2.0]]), 5)[0]
    np.testing.assert_allclose(found, [[0.4] * 5, [1.2] * 5])
    failing = cell_subsets(cells_of([[0.4], [NAN], [0.8]], [[0.5]]), affine, np.array([[1.0]]), 5)[0]
    by_hand = [2 / 3 * 0.6 - 1 / 3, 0.6, 0.6]  # of one, a third fails; of two or more, one remains
    np.testing.assert_allclose(failing[0, :3], by_hand)
    assert np.isnan(failing[:, 3:]).all() and np.isnan(failing[1, 1])  # the prompt fails, nobody knows how often
    score = np.array([[0.4], [NAN], [0.8]])
    np.testing.assert_allclose(
        failing[0, :3], over_all_subsets(affine, np.zeros(3, dtype=np.int64), score, np.ones((1, 1)), 5)[0]
    )


def test_the_reach_of_closed_forms() -> None:
    assert AffineAggregator().reach == 1 and SQUARED.reach == 2
    assert not isinstance(ValueAggregator(), ClosedForm)
    for bad in ({"scale": 0}, {"floor": NAN}, {"centre": "median"}):
        with pytest.raises(ConfigurationError):
            SquaredMeanAggregator(**bad)
    for aggregator, k in ((SQUARED, 2), (AffineAggregator(), 3)):
        with pytest.raises(ConfigurationError, match="column"):
            aggregator.check(k)


class Numbers:
    """Values of prompts around each query's right one: a bias and a standard deviation per prompt."""

    def __init__(self, bias: list[float], spread: list[float], n_queries: int, fail: float = 0.0) -> None:
        self.bias, self.spread, self.fail = np.array(bias), np.array(spread), fail
        self.n_prompts, self.n_queries = len(bias), n_queries
        self.rng = np.random.default_rng(5)
        self.gold = self.rng.normal(size=n_queries)
        self.sizes: list[int] = []

    def pull(self, pulls: Pulls) -> Observations:
        self.sizes.extend(pulls.size.tolist())
        p, x = np.repeat(pulls.prompt, pulls.size), np.repeat(pulls.query, pulls.size)
        value = self.gold[x] + self.bias[p] + self.rng.normal(size=len(p)) * self.spread[p]
        score = np.stack([1 - (value - self.gold[x]) ** 2 / 4, value, self.gold[x]], axis=1)
        score[self.rng.random(len(p)) < self.fail] = NAN
        return Observations(pulls=pulls, label=np.zeros(len(p), int), score=score, cost=np.ones(len(p)))

    def truth(self, max_n: int) -> FloatArray:
        n = np.arange(1, max_n + 1)
        return 1 - (self.bias[:, None] ** 2 + self.spread[:, None] ** 2 / n) / 4


def task(env: Numbers, price: list[float], max_n: int = 16) -> Problem:
    return Problem(
        n_prompts=env.n_prompts,
        n_queries=env.n_queries,
        max_n=max_n,
        contexts=Contexts(np.repeat(ONE, len(price), axis=0), np.array(price)),
        aggregator=SQUARED,
        cost_scale=0.01,
    )


def test_every_n_is_estimated_from_pulls_of_two() -> None:
    """A prompt that is noisy and right on average needs a large N; none larger than 2 is ever drawn."""
    env = Numbers(bias=[0.9, 0.0, 0.8], spread=[0.1, 1.2, 0.5], n_queries=150)
    outcome = drive(Auto().start(task(env, [0.0, 1.0, 30.0]), budget=1_500, seed=0), env)
    assert max(env.sizes) == 2
    np.testing.assert_allclose(outcome.reward[0], env.truth(16), atol=0.06)
    assert (outcome.policy.arms[0].prompt, outcome.policy.arms[0].n) == (1, 16)
    middle = env.truth(16)[1] - 0.01 * np.arange(1, 17)
    assert outcome.policy.arms[1].prompt == 1 and abs(outcome.policy.arms[1].n - (middle.argmax() + 1)) <= 1
    assert outcome.policy.arms[2].n == 1


def test_failing_prompts_are_estimated_from_what_was_drawn_and_extended_with_care() -> None:
    env = Numbers(bias=[0.3, 0.0], spread=[0.2, 0.6], n_queries=400, fail=0.2)
    estimator = CorrectedEstimator(problem_of(SQUARED, n_prompts=2, n_queries=400, max_n=4, weights=ONE))
    pulls = Pulls(np.repeat([0, 1], 400), np.tile(np.arange(400), 2), np.full(800, 4))
    estimator.update(env.pull(pulls))
    found = estimator.estimates()
    assert (found.count == 400).all()
    law = [[_binomial(k, j, 0.8) for j in range(5)] for k in range(1, 5)]
    for p in range(2):
        given = [-3.0] + [1 - (env.bias[p] ** 2 + env.spread[p] ** 2 / j) / 4 for j in range(1, 5)]
        np.testing.assert_allclose(found.reward[0, p], np.array(law) @ given, atol=0.08)


def test_affine_rewards_are_measured_by_single_completions_and_served_by_one() -> None:
    class Ratings(Numbers):
        def pull(self, pulls: Pulls) -> Observations:
            seen = super().pull(pulls)
            return Observations(pulls=seen.pulls, label=seen.label, score=seen.score[:, :1], cost=seen.cost)

    env = Ratings(bias=[1.0, 0.2, 0.6], spread=[0.1, 0.3, 0.1], n_queries=400)
    problem = Problem(
        n_prompts=3,
        n_queries=400,
        max_n=8,
        contexts=Contexts(np.ones((2, 1)), np.array([0.0, 1.0])),
        aggregator=AffineAggregator(),
        cost_scale=0.01,
    )
    outcome = drive(Auto().start(problem, budget=900, seed=0), env)
    assert set(env.sizes) == {1}
    assert [(a.prompt, a.n) for a in outcome.policy.arms] == [(1, 1), (1, 1)]
    np.testing.assert_allclose(np.ptp(outcome.reward[0], axis=1), 0.0, atol=1e-9)  # flat in n


def _binomial(n: int, j: int, p: float) -> float:
    return comb(n, j) * p**j * (1 - p) ** (n - j)
