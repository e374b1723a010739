"""The default algorithm with parts of it replaced, for ablations.

`auto` runs with any `ComparingEstimator`. Beside its own there are here the unbiased ones alone, the paper's disjoint
blocks and the subset estimates, which do not reach scales above the number of completions drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import Aggregator, block_layout, distinct_rows
from iapo_dspy.bandit.algorithms.auto import FIRST_PULL, Auto
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.port import ComparingEstimator, Estimates
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.simulation.entrants import Entrant
from iapo_dspy.types import FloatArray, IntArray, Observations

__all__ = ["VARIANTS", "CellValues", "PairedEstimator", "PairedEvidence", "Variant", "cell_blocks", "variant"]

CellValues = Callable[[Cells, Aggregator, FloatArray, int], FloatArray]
"""(cells, aggregator, weight rows [W, K], N) -> task reward of each cell at each scale [W, G, N], NaN where unknown."""

Variant = Literal["blocks", "subsets", "predictive", "corrected"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedEvidence:
    """Unbiased values of single queries, averaged and compared where prompts were drawn.

    Attributes:
        values: Task rewards [W, P, V, N]; NaN where a prompt has no evidence of a scale on a query.
        row: Which of the W rows each context uses [C].
        cost: Raw cost of an arm [P, N]; NaN for prompts without evidence.
    """

    values: FloatArray
    row: IntArray
    cost: FloatArray

    @property
    def n_visited(self) -> int:
        """Implement `ArmEvidence.n_visited`."""
        return int(self.values.shape[2])

    def reward(self) -> FloatArray:
        """Implement `ArmEvidence.reward`."""
        known = ~np.isnan(self.values)
        count = known.sum(axis=2)
        mean = np.where(known, self.values, 0.0).sum(axis=2) / np.where(count > 0, count, np.nan)
        return np.asarray(mean[self.row])

    def standard_error(self) -> FloatArray:
        """Implement `ArmEvidence.standard_error`; 0 where there is no evidence."""
        known = ~np.isnan(self.values)
        return np.asarray(np.sqrt(_variance(np.where(known, self.values, 0.0), known, axis=2))[self.row])

    def against(
        self, context: int, prompts: IntArray, scales: IntArray, prompt: int, scale: int, *, model: bool = False
    ) -> FloatArray:
        """Implement `ArmEvidence.against`: the covariance counts as far as the arms share queries."""
        values = self.values[self.row[context]]
        one, many = values[prompt, :, scale - 1], values[prompts, :, scales - 1]
        known_one, known = ~np.isnan(one), ~np.isnan(many)
        one, many = np.where(known_one, one, 0.0), np.where(known, many, 0.0)
        common = known & known_one
        n, n_one, n_common = known.sum(axis=1), int(known_one.sum()), common.sum(axis=1)
        shared = np.maximum(n_common, 1)
        mean, mean_one = (many * common).sum(axis=1) / shared, (one * common).sum(axis=1) / shared
        product = ((many - mean[:, None]) * (one - mean_one[:, None]) * common).sum(axis=1)
        covariance = product / np.maximum(n_common - 1, 1) * n_common / np.maximum(n * n_one, 1)
        variance = _variance(many, known, axis=1) + _variance(one, known_one, axis=0) - 2.0 * covariance
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    def estimates(self) -> Estimates:
        """Implement `ArmEvidence.estimates`; `count` is the number of queries."""
        reward = self.reward()
        count = (~np.isnan(self.values[0])).sum(axis=1)
        error = np.where(np.isnan(reward), np.nan, self.standard_error())
        return Estimates(reward=reward, cost=self.cost, count=count, standard_error=error)


class PairedEstimator:
    """Unbiased estimates alone: means over the queries on which an arm has evidence.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
        values: How a cell's completions are turned into rewards at each scale.
    """

    def __init__(self, problem: Problem, *, values: CellValues = cell_subsets) -> None:
        self._problem = problem
        self._values = values
        self._costs = AffineCosts(problem.n_prompts)
        self._observations: list[Observations] = []

    def update(self, observations: Observations) -> None:
        """Implement `ComparingEstimator.update`."""
        self._costs.update(observations)
        self._observations.append(observations)

    def evidence(self) -> PairedEvidence:
        """Implement `ComparingEstimator.evidence`."""
        problem, contexts = self._problem, self._problem.contexts
        cells = Cells.of(self._observations, problem.n_prompts, contexts.n_objectives)
        rows, row, _ = distinct_rows(contexts.weights)
        values = np.full((len(rows), problem.n_prompts, cells.n_visited, problem.max_n), np.nan)
        values[:, cells.prompt, cells.query] = self._values(cells, problem.aggregator, rows, problem.max_n)
        return PairedEvidence(values=values, row=row, cost=self._costs.arms(problem.max_n))


def cell_blocks(cells: Cells, aggregator: Aggregator, weights: FloatArray, max_n: int) -> FloatArray:
    """Return the mean over disjoint blocks of every cell's completions: the paper's reuse across scales.

    Args:
        cells: The completions.
        aggregator: How a block becomes a reward.
        weights: Rows of objective weights [W, K].
        max_n: Largest scale.

    Returns:
        Task rewards [W, G, N]; NaN at scales above a cell's number of completions.
    """
    out = np.full((len(weights), len(cells), max_n), np.nan)
    for n in np.unique(cells.size).tolist():
        members = np.flatnonzero(cells.size == n)
        index = cells.start[members][:, None] + np.arange(n)
        label = np.where(cells.failed, -1, cells.label)[index]
        layout = block_layout(n, max_n)
        blocks = aggregator.blocks(label, cells.score[index], weights, layout)  # [W, B, G]
        mean = np.add.reduceat(blocks, layout.first, axis=1) / layout.count[:, None]
        out[:, members, : mean.shape[1]] = mean.transpose(0, 2, 1)
    return out


VARIANTS: dict[Variant, Callable[[Problem], ComparingEstimator]] = {
    "blocks": partial(PairedEstimator, values=cell_blocks),
    "subsets": PairedEstimator,
    "predictive": partial(CorrectedEstimator, corrected=False),
    "corrected": CorrectedEstimator,
}


def variant(estimator: Variant, *, shared_queries: bool = True, first_pull: int = FIRST_PULL) -> Entrant:
    """Return `auto` with another estimator, independent queries or another pull size, as an entrant of a simulation.

    Args:
        estimator: One of `VARIANTS`.
        shared_queries: Whether all prompts answer the same queries.
        first_pull: Completions per query in the first two rounds, >= 1.
    """
    name = f"{estimator}/{'shared' if shared_queries else 'independent'}/{first_pull}"
    algorithm = Auto(estimator=VARIANTS[estimator], shared_queries=shared_queries, first_pull=first_pull)
    return Entrant(name, algorithm)


def _variance(values: FloatArray, known: NDArray[np.bool_], axis: int) -> FloatArray:
    """Return the variance of the mean of the known values; the others are 0. One value varies by the whole range."""
    count = known.sum(axis=axis)
    mean = values.sum(axis=axis) / np.maximum(count, 1)
    squares = ((values - np.expand_dims(mean, axis)) ** 2 * known).sum(axis=axis)
    widest = float(values.max(initial=0.0) - values.min(initial=0.0)) ** 2
    return np.asarray(np.where(count > 1, squares / np.maximum(count * (count - 1), 1), np.where(count, widest, 0.0)))
