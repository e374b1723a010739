"""Unbiased estimates at every scale up to the number drawn: the mean over all subsets of a cell's completions.

An aggregator may know this mean in closed form (`ClosedForm`); for any other, subsets are aggregated (`sampled`).
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator, ClosedForm, distinct_rows
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.estimators.sampled import sampled_subsets
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, Observations

__all__ = ["SubsetEstimator", "cell_subsets"]


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
