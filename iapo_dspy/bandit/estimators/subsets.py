"""Unbiased estimates at every scale up to the number drawn: the mean over all subsets of a cell's completions.

An aggregator may know this mean in closed form (`ClosedForm`). For any other, subsets are aggregated: all of them where
they are few, seeded random ones where they are many. Completions of a cell are exchangeable, so every fixed set of k
positions is an unbiased sample of scale k, and so is the mean over several such sets. Where C(n, k) is large, the n
positions are permuted and cut into disjoint blocks of k, permutation after permutation: disjoint blocks say more than
overlapping ones. The sets depend on n and k only, so a run that is repeated finds the same, and errors of different
cells are independent.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator, ClosedForm, distinct_rows
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, IntArray, Observations

SUBSETS = 32  # so many subsets of a cell are aggregated at each scale, all of them where there are no more
_CHUNK = 1 << 21  # array elements that one step may hold


class SubsetEstimator:
    """Means over queries of the unbiased subset estimates of each query's completions.

    All completions of a prompt on a query are pooled, whichever pull brought them. Queries with fewer completions
    than a scale say nothing about it.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._costs = AffineCosts(problem.n_prompts)
        self._observations: list[Observations] = []

    def update(self, observations: Observations) -> None:
        """Implement `Estimator.update`."""
        self._costs.update(observations)
        self._observations.append(observations)

    def estimates(self) -> Estimates:
        """Implement `Estimator.estimates`; `count` is the number of queries."""
        problem = self._problem
        contexts = problem.contexts
        rows, row, _ = distinct_rows(contexts.weights)
        cells = Cells.of(self._observations, problem.n_prompts, contexts.n_objectives)
        value = cell_subsets(cells, problem.aggregator, rows, problem.max_n)  # [W, G, N]
        known = ~np.isnan(value[0])
        count = np.zeros((problem.n_prompts, problem.max_n), dtype=np.int64)
        np.add.at(count, cells.prompt, known)
        total = np.zeros((len(rows), problem.n_prompts, problem.max_n))
        for w in range(len(rows)):
            np.add.at(total[w], cells.prompt, np.where(known, value[w], 0.0))
        queries = np.where(count > 0, count, np.nan)
        return Estimates(
            reward=(total / queries)[row],
            cost=np.where(count > 0, self._costs.arms(problem.max_n), np.nan),
            count=count,
        )


def cell_subsets(cells: Cells, aggregator: Aggregator, weights: FloatArray, max_n: int) -> FloatArray:
    """Return the subset estimates of every cell: in closed form where there is one, else over sampled subsets.

    Args:
        cells: The completions.
        aggregator: Any aggregator.
        weights: Rows of objective weights [W, K].
        max_n: Largest scale.

    Returns:
        Task rewards [W, G, N]; NaN at scales above a cell's number of completions, unless the aggregator knows them
        from fewer (`ClosedForm.reach`).
    """
    if isinstance(aggregator, ClosedForm):
        return aggregator.subsets(cells, weights, max_n)
    return sampled_subsets(cells, aggregator, weights, max_n)


@lru_cache(maxsize=1024)
def subset_positions(n: int, k: int, count: int = SUBSETS) -> IntArray:
    """Return sets of k of n positions [M, k]: all of them where these are at most `count`, else at least `count`."""
    if math.comb(n, k) <= count:
        return np.array(list(combinations(range(n), k)), dtype=np.int64)
    rng = np.random.default_rng([n, k])
    blocks = n // k
    orders = [rng.permutation(n)[: blocks * k].reshape(blocks, k) for _ in range(-(-count // blocks))]
    return np.concatenate(orders)


def sampled_subsets(cells: Cells, aggregator: Aggregator, weights: FloatArray, max_n: int) -> FloatArray:
    """Return the mean reward of `SUBSETS` or more subsets of every cell's completions, as far as there are so many.

    Args:
        cells: The completions.
        aggregator: Any aggregator.
        weights: Rows of objective weights [W, K].
        max_n: Largest scale.

    Returns:
        Task rewards [W, G, N]; NaN at scales above a cell's number of completions.
    """
    out = np.full((len(weights), len(cells), max_n), np.nan)
    for n in np.unique(cells.size).tolist():
        members = np.flatnonzero(cells.size == n)
        for k in range(1, min(n, max_n) + 1):
            chosen = subset_positions(n, k)
            step = max(1, _CHUNK // (chosen.size * max(len(weights), cells.score.shape[1])))
            for begin in range(0, len(members), step):
                part = members[begin : begin + step]
                index = (cells.start[part][:, None, None] + chosen).reshape(-1, k)
                reward = aggregator.reward(cells.label[index], cells.score[index], weights)
                out[:, part, k - 1] = reward.reshape(len(weights), len(part), len(chosen)).mean(axis=2)
    return out
