"""Aggregators without a model: subsets, additive predictions, and the default algorithm on top."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.blockwise import Blockwise
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, BlockLayout
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.additive import AdditivePredictor, TwoWay, two_way
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.subsets import (
    SUBSETS,
    SubsetEstimator,
    cell_subsets,
    sampled_subsets,
    subset_positions,
)
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli, synthetic_categorical
from iapo_dspy.types import FloatArray, IntArray
from tests.support.draws import Coins, observe, over_all_subsets, problem_of


class Unknown:
    """An aggregator in disguise: nothing but the port shows."""

    def __init__(self, inner: Aggregator) -> None:
        self._inner = inner

    def check(self, n_objectives: int) -> None:
        self._inner.check(n_objectives)

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        return self._inner.blocks(label, score, weights, layout)

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        return self._inner.reward(label, score, weights)


class SecondBest(Blockwise):
    """An aggregator that a user might write: the second highest score, the only one of one."""

    def check(self, n_objectives: int) -> None:
        pass

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        ordered = np.sort(np.nan_to_num(score[:, :, 0]), axis=1)
        return np.asarray(weights[:, :1] * ordered[:, max(-2, -ordered.shape[1])])


MV, BEST = MajorityVoteAggregator(), BestOfNAggregator()


# -- subsets


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (6, 3), (7, 3), (16, 1), (16, 5), (16, 9), (32, 16), (32, 31)])
def test_all_subsets_where_they_are_few_and_enough_where_they_are_many(n: int, k: int) -> None:
    chosen = subset_positions(n, k)
    assert chosen.shape[1] == k and all(len(set(row)) == k for row in chosen.tolist())
    assert chosen.min() >= 0 and chosen.max() < n
    if comb(n, k) <= SUBSETS:
        assert len({tuple(sorted(row)) for row in chosen.tolist()}) == len(chosen) == comb(n, k)
    else:
        assert SUBSETS <= len(chosen) < 2 * SUBSETS
        assert abs(np.bincount(chosen.ravel(), minlength=n) - chosen.size / n).max() <= chosen.size / n
    np.testing.assert_array_equal(chosen, subset_positions.__wrapped__(n, k))  # the same in every run


@pytest.mark.parametrize("aggregator", [MV, BEST, SecondBest()])
def test_sampled_subsets_are_exact_for_small_cells(aggregator: Aggregator) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 4, 6, 6]
    score = rng.random((sum(sizes), 2))
    score[3] = np.nan
    label = rng.integers(-1, 3, len(score))
    cells = Cells.of([observe([(0, x, m) for x, m in enumerate(sizes)], score, label)], 1, 2)
    weights = np.array([[1.0, 0.0], [0.3, 0.7]])
    found = sampled_subsets(cells, aggregator, weights, 5)
    begin = 0
    for g, m in enumerate(sizes):
        part = slice(begin, begin + m)
        expected = over_all_subsets(aggregator, label[part], score[part], weights, 5)
        np.testing.assert_allclose(found[:, g, : min(m, 5)], expected, atol=1e-12)
        assert np.isnan(found[:, g, m:]).all()
        begin += m


@pytest.mark.slow
def test_sampled_subsets_of_large_cells_are_unbiased() -> None:
    rng = np.random.default_rng(1)
    cells_n, m = 600, 12
    right = (rng.random((cells_n, m)) < 0.6).astype(int).ravel()
    cells = Cells.of([observe([(0, x, m) for x in range(cells_n)], right, 1 - right)], 1, 1)
    one = np.ones((1, 1))
    sampled, exact = sampled_subsets(cells, MV, one, m)[0], cell_subsets(cells, MV, one, m)[0]
    error = sampled - exact
    standard = error.std(axis=0) / np.sqrt(cells_n)
    assert (np.abs(error.mean(axis=0)) <= 4 * standard + 1e-12).all()
    truth = majority_vote_rewards(np.array([[0.6, 0.4]]), np.array([[1.0, 0.0]]), m)[0]
    np.testing.assert_allclose(sampled.mean(axis=0), truth, atol=0.05)


def test_blocks_follow_from_the_reward() -> None:
    rng = np.random.default_rng(2)
    from iapo_dspy.bandit.aggregators.port import block_layout

    class Plain(Blockwise):
        def check(self, n_objectives: int) -> None:
            pass

        def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
            return MV.reward(label, score, weights)

    label, score = rng.integers(-1, 3, (4, 7)), rng.random((4, 7, 1))
    for layout in (block_layout(7, 5), block_layout(7, 7)):
        arguments = label, score, np.array([[1.0], [0.5]]), layout
        np.testing.assert_allclose(Plain().blocks(*arguments), MV.blocks(*arguments), atol=1e-12)


# -- additive predictions


def effects(found: TwoWay) -> FloatArray:
    """mu + a_p + b_x of the first row [P, V]."""
    return np.asarray(found.of_prompt[0][:, None] + found.of_query[0])


def refit(value: FloatArray, prompt: IntArray, query: IntArray, p: int, v: int, penalties: tuple) -> FloatArray:
    """Effects by brute force: a penalised least squares problem in full."""
    design = np.zeros((len(prompt), 1 + p + v))
    rows = np.arange(len(prompt))
    design[:, 0] = 1
    design[rows, 1 + prompt] = 1
    design[rows, 1 + p + query] = 1
    penalty = np.diag([0.0, *[penalties[0]] * p, *[penalties[1]] * v])
    theta = np.linalg.solve(design.T @ design + penalty, design.T @ value)
    return theta[0] + theta[1 : 1 + p, None] + theta[None, 1 + p :]


def test_what_is_said_without_a_cell_is_what_a_fit_without_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from iapo_dspy.bandit.estimators import additive

    penalties: list[tuple[float, float]] = []
    fit = additive._Fit

    def noted(seen: FloatArray, a: float, b: float) -> additive._Fit:
        penalties.append((a, b))
        return fit(seen, a, b)

    monkeypatch.setattr(additive, "_Fit", noted)
    rng = np.random.default_rng(3)
    p, v = 4, 9
    drawn = rng.random((p, v)) < 0.6
    prompt, query = np.nonzero(drawn)
    value = rng.normal(size=p)[prompt] + rng.normal(size=v)[query] + 0.3 * rng.normal(size=len(prompt))
    found = two_way(value[None], prompt, query, p, v)
    np.testing.assert_allclose(effects(found), refit(value, prompt, query, p, v, penalties[-1]), atol=1e-8)
    for i in range(len(value)):
        others = np.arange(len(value)) != i
        without = refit(value[others], prompt[others], query[others], p, v, penalties[-1])
        assert found.left_out[0, i] == pytest.approx(without[prompt[i], query[i]], abs=1e-8)


def test_variances_are_learnt_from_the_cells() -> None:
    """Effects that are there are trusted; where there are none, cells are shrunk to the mean."""
    rng = np.random.default_rng(4)
    p, v = 20, 60
    prompt, query = np.repeat(np.arange(p), v), np.tile(np.arange(v), p)
    a, b = rng.normal(size=p), 2 * rng.normal(size=v)
    noise = 0.5 * rng.normal(size=p * v)
    found = effects(two_way((a[prompt] + b[query] + noise)[None], prompt, query, p, v))
    assert np.abs(found - (a[:, None] + b)).std() < 0.2
    flat = effects(two_way(noise[None], prompt, query, p, v))
    assert np.abs(flat - noise.mean()).max() < 0.15


def test_a_prompt_without_draws_of_a_scale_grows_as_the_others_do() -> None:
    rng = np.random.default_rng(5)
    p, v = 6, 80
    level = np.linspace(0.2, 0.7, p)
    pulls = [(q, x, 4 if q < 5 else 1) for q in range(p) for x in range(v)]
    score = np.concatenate([level[q] + 0.1 * rng.normal(size=m) for q, _, m in pulls])
    cells = Cells.of([observe(pulls, score)], p, 1)
    unbiased = cell_subsets(cells, Unknown(BEST), np.ones((1, 1)), 8)
    found = AdditivePredictor(p, 8).predict(cells, unbiased).dense(cells).given_all[0].mean(axis=1)
    np.testing.assert_allclose(found[:, 0], level, atol=0.03)
    grown = found[:, 3] - found[:, 0]
    np.testing.assert_allclose(grown, 0.103, atol=0.02)  # E max of 4 normals is 1.03 sd
    beyond = found[:, 7] - found[:, 3]  # half of the last doubling's growth
    np.testing.assert_allclose(beyond, 0.5 * (found[:, 3] - found[:, 1]), atol=0.01)


def test_everything_without_a_model_gets_the_additive_predictor() -> None:
    pulls = [(p, x, 3) for p in range(2) for x in range(4)]
    for aggregator, modelled in ((SecondBest(), False), (MV, True)):
        estimator = CorrectedEstimator(problem_of(aggregator, n_prompts=2, max_n=3))
        estimator.update(observe(pulls, [0.0, 1.0, 1.0] * 8, [1, 0, 0] * 8))
        assert estimator.evidence().modelled == modelled


def test_one_cell_and_cells_that_all_fail_have_finite_predictions() -> None:
    for score in ([0.5], [np.nan], [0.5, 0.5]):
        cells = Cells.of([observe([(0, 0, len(score))], score, [0] * len(score))], 2, 1)
        with np.errstate(all="raise", under="ignore"):
            unbiased = cell_subsets(cells, Unknown(MV), np.ones((1, 1)), 4)
            found = AdditivePredictor(2, 4).predict(cells, unbiased).dense(cells)
        assert np.isfinite(found.given_all).all() and np.isfinite(found.given_others).all()


# -- estimates and choices


@pytest.mark.slow
def test_estimates_tend_to_the_truth() -> None:
    p, m = 5, 4
    errors = []
    for v in (50, 500, 2_500):
        theta = np.random.default_rng(6).beta(1.0, 1.0, (p, v))
        prompt, query = np.repeat(np.arange(p), v), np.tile(np.arange(v), p)
        right = (np.random.default_rng(7).random((p * v, m)) < theta[prompt, query][:, None]).astype(int)
        pulls = [(a, b, m) for a, b in zip(prompt.tolist(), query.tolist(), strict=True)]
        law = np.stack([theta, 1 - theta], axis=2).reshape(-1, 2)
        credit = np.tile([1.0, 0.0], (len(law), 1))
        truth = majority_vote_rewards(law, credit, m).reshape(p, v, m).mean(axis=1)
        worst = []
        for make in (CorrectedEstimator, SubsetEstimator):
            estimator = make(problem_of(Unknown(MV), n_prompts=p, n_queries=v, max_n=m))
            estimator.update(observe(pulls, right.ravel(), 1 - right.ravel()))
            worst.append(np.abs(estimator.estimates().reward[0] - truth).max())
        errors.append(worst)
    assert max(errors[2]) < 0.02 and max(errors[2]) < min(errors[0])


@pytest.mark.slow
def test_intervals_of_the_default_algorithm_cover_the_truth() -> None:
    hits = total = 0
    for seed in range(12):
        theta = np.random.default_rng([8, seed]).beta(2.0, 1.5, (4, 300))
        env = Coins(theta, seed=seed)
        problem = problem_of(Unknown(MV), n_prompts=4, n_queries=300, max_n=8)
        outcome = drive(Auto().start(problem, budget=1_500, seed=seed), env)
        arm = outcome.policy.arms[0]
        law = np.stack([theta[arm.prompt], 1 - theta[arm.prompt]], axis=1)
        truth = majority_vote_rewards(law, np.tile([1.0, 0.0], (300, 1)), 8)[:, arm.n - 1].mean()
        se = outcome.estimates.standard_error
        assert se is not None
        hits += abs(outcome.reward[0, arm.prompt, arm.n - 1] - truth) <= 2.6 * se[0, arm.prompt, arm.n - 1]
        total += 1
    assert hits >= total - 1


def regret(recording: Recording, budget: int, seed: int, hidden: bool) -> float:
    problem = recording.problem(16)
    if hidden:
        problem = replace(problem, aggregator=Unknown(problem.aggregator))
    outcome = drive(Auto().start(problem, budget=budget, seed=seed), recording.environment(seed))
    q = recording.exact(16).q()
    found = np.mean([q[c, a.prompt, a.n - 1] for c, a in enumerate(outcome.policy.arms)])
    return float(q.max(axis=(1, 2)).mean() - found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vote", "best of n"])
def test_arms_are_as_good_as_those_of_the_models(kind: str) -> None:
    """Up to a twentieth of the range of utilities, on average over worlds with deceptive prompts."""
    worlds: list[Recording] = [synthetic_bernoulli(seed, n_prompts=10, n_queries=120) for seed in range(5)]
    if kind == "best of n":
        whole = [synthetic_categorical(seed, n_prompts=8, n_queries=60) for seed in range(3)]
        worlds = [replace(w, weights=w.weights[[1, 12, 26]]) for w in whole]
    unknown = np.array([regret(w, 2_500, seed, hidden=True) for seed, w in enumerate(worlds)])
    known = np.array([regret(w, 2_500, seed, hidden=False) for seed, w in enumerate(worlds)])
    spread = float(np.mean([np.ptp(w.exact(16).q().mean(axis=0)) for w in worlds]))
    assert (unknown.mean() - known.mean()) / spread < 0.05


@pytest.mark.parametrize("start", [Auto, PSST])
def test_an_aggregator_of_the_user_runs_under_both_algorithms(start) -> None:
    env = Coins(np.array([[0.9] * 40, [0.2] * 40]), seed=9)
    problem = problem_of(SecondBest(), n_prompts=2, n_queries=40, max_n=4)
    outcome = drive(start().start(problem, budget=400, seed=0), env)
    assert outcome.spent <= 400 and outcome.policy.arms[0].prompt == 0
    n = outcome.policy.arms[0].n
    truth = [0.9, 0.81, 0.972, 0.9963][n - 1]  # P(at least two of n are right); of one, that it is
    assert outcome.reward[0, 0, n - 1] == pytest.approx(truth, abs=0.06)


def test_pulls_grow_to_the_largest_scale_where_nothing_predicts_it() -> None:
    env = Coins(np.random.default_rng(0).uniform(0.4, 0.6, (6, 200)), seed=1)
    problem = problem_of(Unknown(MV), n_prompts=6, n_queries=200, max_n=16)
    outcome = drive(Auto().start(problem, budget=4_000, seed=0), env)
    sizes = [int(o.pulls.size.max()) for o in outcome.observations]
    assert sizes[0] == 3 and sizes == sorted(sizes)
    assert sizes[-1] == 16 or len(sizes) < 8
    assert outcome.spent <= 4_000
