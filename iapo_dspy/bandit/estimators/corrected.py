"""Predictions corrected by unbiased evidence: the reach of the one, the truth of the other.

For prompt p at scale n let f_x be the prediction for query x given all draws, g_x the prediction given all but the
cell's own draws, and u_x the unbiased subset estimate where the cell has at least n completions (k of V visited
queries). The prediction-powered (doubly robust) estimate

    mean over V of g_x  +  mean over k of (u_x - g_x)

is unbiased whatever the model says (Robins et al. 1994; Angelopoulos et al. 2023). It differs from the model's own
mean of f_x by a residual with mean delta and variance v. A model that is right makes residuals that are noise, and
then its own mean is the better estimate; a wrong one makes residuals that are more than noise. So residuals are
shrunk by empirical Bayes: by tau^2 / (tau^2 + v), tau^2 the variance of the model's bias over prompts at this scale
beyond the noise. tau has a floor, so that the unbiased estimate takes over as v goes to 0: the result is consistent
whatever the prior.

Residuals are carried from scale to scale: scale n starts from the residual of scale n - 1, and scales above the
number drawn inherit the residual of the largest scale with evidence, with a bias whose size grows with every
doubling.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from iapo_dspy.bandit.aggregators.port import Modelled, distinct_rows
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.estimators.additive import AdditivePredictor
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.estimators.subsets import cell_subsets
from iapo_dspy.bandit.models.port import Predictor
from iapo_dspy.bandit.models.surfaces import Patched
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import FloatArray, IntArray, Observations

LEAST_BIAS = 0.005  # floor of tau, as a share of the range of the rewards
EXTRAPOLATION = 0.005  # bias per doubling beyond the largest scale with evidence that ranks prompts, likewise
TYPICAL_GROWTH = 0.02  # where a standard error starts from before bias per doubling is measured, likewise
_LEAST_QUERIES = 5  # with fewer a scale has no evidence of its own


class CorrectedEstimator:
    """Predictive estimates with an unbiased correction and a variance for each.

    Args:
        problem: Gives the shape, the contexts and the aggregator.
        corrected: Whether residuals correct the predictions; without, the predictions are taken as they are.
    """

    def __init__(self, problem: Problem, *, corrected: bool = True) -> None:
        self._problem = problem
        self._corrected = corrected
        self._costs = AffineCosts(problem.n_prompts)
        self._observations: list[Observations] = []
        aggregator, weights = problem.aggregator, problem.contexts.weights
        self._rows = aggregator.rows(weights) if isinstance(aggregator, Modelled) else distinct_rows(weights)
        self._model: Predictor | None = None
        if isinstance(aggregator, Modelled):
            self._model = aggregator.model(self._rows.rows, problem.n_prompts, problem.max_n, problem.parts)
        self._additive = AdditivePredictor(problem.n_prompts, problem.max_n)

    def update(self, observations: Observations) -> None:
        """Implement `Estimator.update`."""
        self._costs.update(observations)
        if len(observations.pulls):
            self._observations.append(observations)

    def estimates(self) -> Estimates:
        """Implement `Estimator.estimates`; `count` is the number of queries with evidence of the scale."""
        return self.evidence().estimates()

    def evidence(self) -> Evidence:
        """Implement `ComparingEstimator.evidence`; the model is fitted to everything that was observed.

        Raises:
            ValueError: Nothing was observed yet.
        """
        if not self._observations:
            raise ValueError("There is no evidence before the first observation.")
        problem = self._problem
        cells = Cells.of(self._observations, problem.n_prompts, problem.contexts.n_objectives)
        rows, row, factor = self._rows
        unbiased = cell_subsets(cells, problem.aggregator, rows, problem.max_n)
        model = self._model
        found = self._additive.predict(cells, unbiased) if model is None else model.predict(cells)
        predictions = found.of_cells(cells)
        values, influence = predictions.given_all.copy(), predictions.given_all.copy()
        shape = len(rows), problem.n_prompts, problem.max_n
        bias, doubt = np.zeros((2, *shape))
        queries = np.zeros(shape[1:], dtype=np.int64)
        np.add.at(queries, cells.prompt, ~np.isnan(unbiased[0]))
        if self._corrected:
            for w in range(len(rows)):
                correction = _correct(values[w], predictions.given_others[w], unbiased[w], cells, queries)
                values[w] += correction.carried
                influence[w] += correction.influence
                bias[w], doubt[w] = correction.bias, correction.doubt
        surfaces = predictions.elsewhere
        return Evidence(
            values=tuple(Patched(surface=s, cells=cells, drawn=v) for s, v in zip(surfaces, values, strict=True)),
            influence=tuple(Patched(surface=s, cells=cells, drawn=i) for s, i in zip(surfaces, influence, strict=True)),
            n_visited=cells.n_visited,
            bias=bias,
            doubt=doubt,
            queries=queries,
            modelled=model is not None,
            row=row,
            factor=factor,
            cost=self._costs.arms(problem.max_n),
            model=predictions.model,
        )


class _Correction(NamedTuple):
    """The parts that residuals add to the predictions of one row of weights.

    Attributes:
        carried: To the values of the drawn cells [G, N].
        influence: To `Evidence.influence` of the drawn cells [G, N].
        bias: `Evidence.bias` [P, N].
        doubt: `Evidence.doubt` [P, N].
    """

    carried: FloatArray
    influence: FloatArray
    bias: FloatArray
    doubt: FloatArray


def _correct(
    values: FloatArray, others: FloatArray, unbiased: FloatArray, cells: Cells, queries: IntArray
) -> _Correction:
    """Work out the carried residuals. Cells without draws have none: both readings of them are the same.

    Args:
        values: Predictions of the drawn cells given all draws [G, N].
        others: The same given all draws but their own [G, N].
        unbiased: Their subset estimates [G, N]; NaN where a cell does not know a scale.
        cells: The drawn cells.
        queries: How many of a prompt's cells know a scale [P, N].
    """
    prompt, n_visited = cells.prompt, cells.n_visited
    n_prompts, max_n = queries.shape
    spread = float(np.nanmax(unbiased) - np.nanmin(unbiased)) or 1.0
    floor, growth = LEAST_BIAS * spread, EXTRAPOLATION * spread
    carried_all, influence_all = np.empty((2, *values.shape))
    carried, influence, before = np.zeros((3, len(values)))
    left, tau = np.zeros((n_prompts, max_n)), np.empty((n_prompts, max_n))
    last = np.zeros((n_prompts, max_n), dtype=np.int64)
    growths = [(TYPICAL_GROWTH * spread) ** 2]
    for n in range(1, max_n + 1):
        at = n - 1
        known = queries[:, at] >= (1 if n == 1 else _LEAST_QUERIES)
        past = max(at - 1, 0)
        left[:, at], tau[:, at], last[:, at] = left[:, past], tau[:, past] if at else growth, last[:, past]
        if known.any():
            weight = (n_visited / np.maximum(queries[:, at], 1))[prompt]
            miss = np.where(np.isnan(unbiased[:, at]), 0.0, weight * (unbiased[:, at] - others[:, at]))
            residual = miss + others[:, at] - values[:, at]
            delta, noise = _mean_over_queries(residual, cells)
            tau2 = _variance_beyond(delta[known], noise[known], spread) + floor**2
            trust = np.where(known, tau2 / (tau2 + noise), 0.0)
            carried = trust[prompt] * residual + (1.0 - trust[prompt]) * carried
            whole = np.where(known, 1.0, 0.0) if n == 1 else trust
            influence = whole[prompt] * residual + (1.0 - whole[prompt]) * influence
            left[known, at] = ((1.0 - trust) ** 2 * tau2)[known]
            tau[known, at], last[known, at] = max(np.sqrt(tau2), growth), n
            if n & (n - 1) == 0:  # a doubling
                if n > 1 and known.sum() > 2:
                    mean, error = _mean_over_queries(residual - before, cells)
                    growths.append(_variance_beyond(mean[known], error[known], spread))
                before = residual
        carried_all[:, at], influence_all[:, at] = carried, influence
    doublings = np.log2(np.arange(1, max_n + 1) / np.maximum(last, 1))
    honest = np.maximum(tau, np.sqrt(max(growths)))
    return _Correction(carried_all, influence_all, left + (doublings * tau) ** 2, left + (doublings * honest) ** 2)


def _mean_over_queries(values: FloatArray, cells: Cells) -> tuple[FloatArray, FloatArray]:
    """Return the mean of each prompt's values over all visited queries [P], and the variance of that mean [P].

    Values are those of the drawn cells [G]; elsewhere they are 0.
    """
    n_visited, drawn = cells.n_visited, np.bincount(cells.prompt, minlength=cells.n_prompts)
    mean = np.bincount(cells.prompt, values, cells.n_prompts) / n_visited
    square = np.bincount(cells.prompt, (values - mean[cells.prompt]) ** 2, cells.n_prompts)
    variance = (square + (n_visited - drawn) * mean**2) / n_visited
    return mean, variance / max(n_visited - 1, 1)


def _variance_beyond(delta: FloatArray, noise: FloatArray, spread: float) -> float:
    """Return the variance of the prompts' biases beyond the noise (method of moments), >= 0."""
    if len(delta) < 2:
        return 0.0
    weight = 1.0 / (noise + (0.01 * spread) ** 2) ** 2
    return max(float((weight * (delta**2 - noise)).sum() / weight.sum()), 0.0)
