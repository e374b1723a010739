"""How much the draws leave open about the traits of each prompt, and how much further draws would tell of them.

The traits of a prompt are eta = (level, slope, log of the interaction's standard deviation). With P(k | d, eta) the
probability of k events among the m completions of a cell whose query has difficulty d, its Fisher information is

    I_m(d) = sum over k of P'(k) P'(k)^T / P(k),    P' = dP / d eta,

and the covariance of the traits is about the inverse of a prior precision plus the information of all cells. P is
averaged over the posterior of the query's difficulty. One completion of a cell tells nothing of the interaction,
because its probability is nearly the same for any; several do. So the covariance shows whether an arm is unknown
because its prompt has answered few queries, or because every query was asked once. An arm's value is a mean of its
worth over the law of theta; by the delta method its variance is g^T C g, g its gradient in eta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.traits import THETA, Traits, difficulties, laws
from iapo_dspy.bandit.models.winning import binomial
from iapo_dspy.types import FloatArray, IntArray

PRIOR_VARIANCE = np.array([0.5, 0.1, 2.0])  # of level, slope and log interaction between prompts, before any draw
_STEP = 0.05  # of the numerical derivatives
_LARGEST = 32  # completions of a cell that are counted: more tell little else
_TYPICAL = 64  # visited queries that stand for a new one

Worth = Callable[[IntArray, IntArray], FloatArray]
"""(prompts [M], scales [M]) -> worth of an event's probability on the theta grid [B, M, T]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """What one fit knows of the traits of every prompt; B events, whose errors are taken to go together.

    Attributes:
        traits: The fit.
        cells: The cells it was fitted to.
        worth: What each event is worth to an arm.
    """

    traits: Traits
    cells: Cells
    worth: Worth
    _expected: dict[int, FloatArray] = field(default_factory=dict, init=False)

    @cached_property
    def _law_slopes(self) -> FloatArray:
        """Derivatives of the laws of theta in the traits [3, B, P, D, T]."""
        found = []
        for trait in range(3):
            step = np.zeros(3)
            step[trait] = _STEP
            found.append((laws(self.traits.eta + step) - laws(self.traits.eta - step)) / (2.0 * _STEP))
        return np.stack(found)

    def _laws_of(self, size: int) -> FloatArray:
        """Return P(events | prompt, difficulty) and its derivatives in the traits [4, B, P, D, size + 1]."""
        likelihood = binomial(np.full(len(THETA), size), THETA, size).T  # [T, size + 1]
        return np.stack([self.traits.law @ likelihood, *(slope @ likelihood for slope in self._law_slopes)])

    @cached_property
    def precision(self) -> FloatArray:
        """Prior precision plus the information of all cells [B, P, 3, 3]."""
        cells, known = self.cells, difficulties(self.traits)
        total = np.eye(3) / (PRIOR_VARIANCE * self.traits.unexplained)[..., None]
        counted = np.minimum(cells.size, _LARGEST)
        for size in np.unique(counted).tolist():
            by_size = self._laws_of(size)
            for p in np.unique(cells.prompt[counted == size]).tolist():
                mine = np.flatnonzero((cells.prompt == p) & (counted == size))
                total[:, p] += _information(known[:, cells.query[mine]] @ by_size[:, :, p])
        return np.asarray(total)

    @cached_property
    def covariance(self) -> FloatArray:
        """Covariance of the traits [B, P, 3, 3]."""
        return np.asarray(np.linalg.inv(self.precision))

    def of_new_query(self, size: int) -> FloatArray:
        """Return the expected information of so many completions on a query like the visited ones [B, P, 3, 3]."""
        known = difficulties(self.traits)
        typical = known[:, np.linspace(0, known.shape[1] - 1, min(known.shape[1], _TYPICAL)).astype(int)]
        return np.asarray(_information(typical[:, None] @ self._laws_of(size)) / typical.shape[1])

    def after(self, prompts: IntArray, size: int, queries: float) -> FloatArray:
        """Return the covariance that pulls of some size on so many new queries leave [B, M, 3, 3]."""
        if size not in self._expected:
            self._expected[size] = self.of_new_query(size)
        return np.asarray(np.linalg.inv(self.precision[:, prompts] + queries * self._expected[size][:, prompts]))

    def gradient(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Return the derivatives of the arms' values in the traits of their prompts, event by event [B, M, 3]."""
        return np.asarray((self._mean_slopes[:, prompts] @ self.worth(prompts, scales)[..., None])[..., 0])

    @cached_property
    def _mean_slopes(self) -> FloatArray:
        """Derivatives of the laws of theta, mean over the visited queries [B, P, 3, T]."""
        typical = difficulties(self.traits).mean(axis=1)[:, None, None]
        return np.stack([(typical @ slopes)[:, :, 0] for slopes in self._law_slopes], axis=2)


def _information(laws_of: FloatArray) -> FloatArray:
    """Return the information [..., 3, 3] of queries with these laws and derivatives [4, ..., V, K], all together."""
    scaled = laws_of[1:] / np.sqrt(np.maximum(laws_of[0], 1e-12))
    flat = np.moveaxis(scaled, 0, -3).reshape(*scaled.shape[1:-2], 3, -1)
    return np.asarray(flat @ np.swapaxes(flat, -1, -2))


def error(gradient: FloatArray, covariance: FloatArray) -> FloatArray:
    """Return the standard errors of values with these gradients [B, M, 3] and covariances [B, M, 3, 3] -> [M]."""
    variance = np.einsum("bmi,bmij,bmj->bm", gradient, covariance, gradient)
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)).sum(axis=0))
