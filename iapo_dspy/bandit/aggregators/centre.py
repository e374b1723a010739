"""Numbers that are averaged: the reward of the mean or the median of n values.

The reward of an aggregated value v where g is right is w (1 - loss(v, g) / scale). Two cases need no simulation of n
(proposition 2 of the paper: affine aggregation):

- The score is affine in the value and the values' mean is returned: by linearity the expected reward is that of a
  single completion, at every n.
- Squared error and the mean: E (mean of n - g)^2 = bias^2 + variance / n, affine in 1/n. From s values with mean m and
  variance S^2 (denominator s - 1), (m - g)^2 - S^2 / s and S^2 are unbiased for both coefficients, so two completions
  of a query tell its reward at every n.

Failed completions do not take part: of n, a random number j remains. Up to the number drawn its law over subsets is
hypergeometric and the estimates stay unbiased. Above it, a power of the failure rate has no unbiased estimate: there a
cell counts as evidence only if its prompt has not failed at all, which is decided for a prompt and not for a cell, so
that it selects no queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.blockwise import Blockwise
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

Centre = Literal["mean", "median"]
Loss = Literal["squared", "absolute"]
_SCORE, _VALUE, _GOLD = range(3)


def loss_of(value: FloatArray, gold: FloatArray, loss: Loss) -> FloatArray:
    """Return (value - gold)^2 or |value - gold|."""
    miss = np.abs(value - gold)
    return miss * miss if loss == "squared" else miss


@dataclass(frozen=True, kw_only=True)
class ValueAggregator(Blockwise):
    """The mean or the median of n values; columns: the completion's own score, its value, the right value.

    Args:
        centre: The statistic of the values that is returned.
        loss: How a miss is counted.
        scale: The loss that costs a whole point, > 0.
        floor: Score where every completion failed.
    """

    centre: Centre = "mean"
    loss: Loss = "squared"
    scale: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and np.isfinite(self.scale) and np.isfinite(self.floor)):
            raise ConfigurationError(f"{type(self).__name__}: scale {self.scale!r}, floor {self.floor!r}.")

    def check(self, n_objectives: int) -> None:
        """Raise unless there are three columns."""
        if n_objectives != 3:
            raise ConfigurationError(f"{type(self).__name__} has 3 columns, but contexts weigh {n_objectives}.")

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        failed: NDArray[np.bool_] = np.asarray(np.isnan(score).any(axis=2))
        usable = np.flatnonzero(~failed.all(axis=1))
        number = (~failed).sum(axis=1)[usable]
        value = np.where(failed, np.inf, score[:, :, _VALUE])[usable]
        gold = np.where(failed, -np.inf, score[:, :, _GOLD])[usable].max(axis=1, initial=-np.inf)
        centre = np.where(np.isinf(value), 0.0, value).sum(axis=1) / number
        if self.centre == "median":
            row, ascending = np.arange(len(value)), np.sort(value, axis=1)  # failed ones last
            centre = (ascending[row, (number - 1) // 2] + ascending[row, number // 2]) / 2
        out = np.full(len(score), self.floor)
        out[usable] = 1.0 - loss_of(centre, gold, self.loss) / self.scale
        return np.asarray(weights[:, _SCORE, None] * out)


@dataclass(frozen=True, kw_only=True)
class SquaredMeanAggregator(ValueAggregator):
    """The mean under squared error, in closed form."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.centre, self.loss) != ("mean", "squared"):
            raise ConfigurationError("SquaredMeanAggregator is about the mean under squared error.")

    @property
    def reach(self) -> int | None:
        """Two: one completion says nothing of the variance."""
        return 2

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Implement `ClosedForm.subsets`."""
        valid, mean = _moments(cells, _VALUE)
        gold = np.full(len(cells), -np.inf)
        np.maximum.at(gold, cells.owner, np.where(cells.failed, -np.inf, cells.score[:, _GOLD]))
        gold = np.where(valid > 0, gold, 0.0)
        deviation = np.where(cells.failed, 0.0, cells.score[:, _VALUE] - mean[cells.owner])
        variance = np.bincount(cells.owner, deviation**2, len(cells)) / np.maximum(valid - 1, 1)
        bias = (mean - gold) ** 2 - variance / np.maximum(valid, 1)
        # Of a k-subset with j valid ones the expected loss is bias + variance / j: for a random k, with E[1/j; j > 0].
        some, inverse = _remaining(cells, max_n)
        value = some - (bias[:, None] * some + variance[:, None] * inverse) / self.scale + (1.0 - some) * self.floor
        alone = (cells.size == 1)[:, None] & (np.arange(1, max_n + 1) > 1)
        return np.asarray(weights[:, _SCORE, None, None] * np.where(alone, np.nan, value))


@dataclass(frozen=True, kw_only=True)
class AffineAggregator(Blockwise):
    """The mean of n values under a score that is affine in the value: the mean of the completions' scores.

    Args:
        floor: Score where every completion failed.
    """

    floor: float = 0.0

    @property
    def reach(self) -> int | None:
        """One completion tells the reward of every n."""
        return 1

    def check(self, n_objectives: int) -> None:
        """Raise unless there is one column."""
        if n_objectives != 1:
            raise ConfigurationError(f"AffineAggregator has 1 column, but contexts weigh {n_objectives}.")

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        known = ~np.isnan(score[:, :, 0])
        number = known.sum(axis=1)
        total = np.where(known, score[:, :, 0], 0.0).sum(axis=1)
        mean = np.where(number > 0, total / np.maximum(number, 1), self.floor)
        return np.asarray(weights[:, 0, None] * mean)

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Implement `ClosedForm.subsets`."""
        _, mean = _moments(cells, 0)
        some, _ = _remaining(cells, max_n)
        value = some * mean[:, None] + (1.0 - some) * self.floor
        return np.asarray(weights[:, 0, None, None] * value)


def _moments(cells: Cells, column: int) -> tuple[IntArray, FloatArray]:
    """Return how many completions of each cell did not fail [G], and the mean of a column over them [G]; 0 for none."""
    valid = cells.size - np.bincount(cells.owner, cells.failed, len(cells)).astype(np.int64)
    total = np.bincount(cells.owner, np.where(cells.failed, 0.0, cells.score[:, column]), len(cells))
    return valid, total / np.maximum(valid, 1)


def _remaining(cells: Cells, max_n: int) -> tuple[FloatArray, FloatArray]:
    """Return P(j > 0) and E[1/j; j > 0] [G, N], where j completions of a random k-subset of the cell did not fail.

    Above the cell's size: 1 and 1/k where the cell's prompt has never failed, else NaN.
    """
    valid = cells.size - np.bincount(cells.owner, cells.failed, len(cells)).astype(np.int64)
    clean = np.bincount(cells.prompt, cells.size - valid, cells.n_prompts) == 0
    scales = np.arange(1, max_n + 1)
    beyond = np.where(clean[cells.prompt], 1.0, np.nan)[:, None]
    some = np.where(scales <= cells.size[:, None], 1.0, beyond)
    inverse = some / scales
    kinds, kind = np.unique(np.stack([cells.size, valid]), axis=1, return_inverse=True)
    kind = kind.reshape(-1)
    for i, (n, s) in enumerate(kinds.T.tolist()):
        if s < n:
            mine = np.flatnonzero(kind == i)
            law = _hypergeometric(n, s, min(n, max_n))
            some[mine, : len(law)] = 1.0 - law[:, 0]
            inverse[mine, : len(law)] = law[:, 1:] @ (1.0 / np.arange(1, law.shape[1]))
    return some, inverse


def _hypergeometric(n: int, valid: int, largest: int) -> FloatArray:
    """Return P(j of a random k-subset of n are among the `valid` ones), k = 1 .. largest [k, j = 0 .. valid]."""
    law = np.zeros((largest + 1, valid + 1))
    law[0, 0] = 1.0
    for k in range(largest):  # draw one more without replacement
        j = np.arange(valid + 1)
        hit = np.clip((valid - j) / (n - k), 0.0, 1.0)
        law[k + 1] = law[k] * (1.0 - hit)
        law[k + 1, 1:] += (law[k] * hit)[:-1]
    return law[1:]
