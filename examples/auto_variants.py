"""The default algorithm with one part of it taken out at a time, for ablations.

`auto` runs with any `ComparingEstimator`. Beside its own there are here one that does not say what it does not know of
the prompts' traits, and unbiased estimates alone, which do not reach scales above the number of completions drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import distinct_rows
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, IntArray, Observations

__all__ = ["VARIANTS", "PairedEstimator", "PairedEvidence", "UninformedEstimator", "without_parts"]


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
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
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
        values[:, cells.prompt, cells.query] = cell_subsets(cells, problem.aggregator, rows, problem.max_n)
        return PairedEvidence(values=values, row=row, cost=self._costs.arms(problem.max_n))


class UninformedEstimator:
    """The default estimates without what is not known of the traits: pulls have sizes by a schedule.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
    """

    def __init__(self, problem: Problem) -> None:
        self._inner = CorrectedEstimator(problem)

    def update(self, observations: Observations) -> None:
        """Implement `ComparingEstimator.update`."""
        self._inner.update(observations)

    def evidence(self) -> Evidence:
        """Implement `ComparingEstimator.evidence`."""
        return replace(self._inner.evidence(), model=None)


def without_parts(problem: Problem) -> CorrectedEstimator:
    """Return the default estimator, to which prompts have no parts in common."""
    return CorrectedEstimator(replace(problem, parts=None))


VARIANTS = {
    "default": Auto(),
    "pulls by a schedule": Auto(estimator=UninformedEstimator),
    "pulls of one": Auto(estimator=UninformedEstimator, first_pull=1, growth=1),
    "independent queries": Auto(shared_queries=False),
    "no parts": Auto(estimator=without_parts),
    "predictions alone": Auto(estimator=partial(CorrectedEstimator, corrected=False)),
    "subsets alone": Auto(estimator=PairedEstimator),
    "rest without a price": Auto(calls=10**15),
}
"""The default algorithm, and what is left of it without one part each."""


def _variance(values: FloatArray, known: NDArray[np.bool_], axis: int) -> FloatArray:
    """Return the variance of the mean of the known values; the others are 0. One value varies by the whole range."""
    count = known.sum(axis=axis)
    mean = values.sum(axis=axis) / np.maximum(count, 1)
    squares = ((values - np.expand_dims(mean, axis)) ** 2 * known).sum(axis=axis)
    widest = float(values.max(initial=0.0) - values.min(initial=0.0)) ** 2
    return np.asarray(np.where(count > 1, squares / np.maximum(count * (count - 1), 1), np.where(count, widest, 0.0)))
