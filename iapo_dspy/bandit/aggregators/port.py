"""The port of aggregators: how the completions of one block become one task reward (eq. 1, eq. 2).

An aggregator sees completions as `label [G, m]` and `score [G, m, K]`: G pulls of m completions. It returns task
rewards only; the cost is subtracted elsewhere. It must be a function of its arguments and finite everywhere: a failed
completion has NaN scores, is not a vote and never the best, and a block in which all failed is worth a floor. It raises
only in `check`, which is asked once, before anything is drawn. `blockwise.Blockwise` is a base class for aggregators
that know `reward` only.

Four hooks are optional. An aggregator that has their methods gets more out of the same draws:

- `ClosedForm`: the mean over all subsets of a cell, exactly. Without it, seeded subsets are aggregated.
- `Modelled`: a model that predicts rewards above the number drawn. Without it, effects of prompts and queries add.
- `Stoppable`: rules by which a deployed call may end early. Without it, all N completions are drawn at once.
- `Sure`: how sure an answer is. Without it, there are no cascades, and calls do not abstain.

Majority vote and Best-of-N use these hooks and nothing else.

Example:
    >>> from iapo_dspy.bandit.aggregators.blockwise import Blockwise
    >>> from iapo_dspy.errors import ConfigurationError
    >>> class Middle(Blockwise):
    ...     '''The median score of the completions that did not fail.'''
    ...     def check(self, n_objectives):
    ...         if n_objectives != 1:
    ...             raise ConfigurationError(f"Middle has 1 objective; contexts weigh {n_objectives}.")
    ...     def reward(self, label, score, weights):
    ...         middle = np.nan_to_num(np.nanmedian(score[:, :, 0], axis=1))
    ...         return weights[:, 0, None] * middle
    >>> middle = Middle()
    >>> score = np.array([[0.0, 1.0, 1.0]])[:, :, None]
    >>> middle.reward(np.zeros((1, 3), dtype=int), score, np.array([[0.5]])).tolist()
    [[0.5]]
    >>> isinstance(middle, Aggregator), isinstance(middle, Modelled)
    (True, False)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.port import Predictor
from iapo_dspy.types import FloatArray, IntArray, Stop


@dataclass(frozen=True)
class BlockLayout:
    """How pulls of m completions are cut into blocks (nested sample reuse across scales).

    Attributes:
        start: Where each block begins [B].
        end: Where it ends, exclusive [B].
        first: Position of the first block of each scale [N].
        count: Blocks of each scale [N].
        used: Completions in the blocks of each scale [N].
    """

    start: IntArray
    end: IntArray
    first: IntArray
    count: IntArray
    used: IntArray


@lru_cache(maxsize=1024)
def block_layout(m: int, max_n: int) -> BlockLayout:
    """Cut m completions into floor(m / n) consecutive disjoint blocks at each scale n = 1 .. min(m, max_n)."""
    scales = np.arange(1, min(m, max_n) + 1)
    blocks = m // scales
    first = np.cumsum(blocks) - blocks
    size = np.repeat(scales, blocks)
    start = (np.arange(int(blocks.sum())) - np.repeat(first, blocks)) * size
    return BlockLayout(start, start + size, first, blocks, blocks * scales)


@lru_cache(maxsize=1024)
def whole(m: int) -> BlockLayout:
    """Take all m completions as one block."""
    one, all_of_it = np.array([1]), np.array([m])
    return BlockLayout(np.array([0]), all_of_it, np.array([0]), one, all_of_it)


@runtime_checkable
class Aggregator(Protocol):
    """How the n completions of an arm become one task reward."""

    def check(self, n_objectives: int) -> None:
        """Raise `ConfigurationError` if this aggregator cannot serve K objectives."""

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        """Aggregate every block of every pull.

        Args:
            label: Answer classes [G, m], -1 where there is no vote; arbitrary integers otherwise.
            score: Scores [G, m, K]; NaN marks a failed completion.
            weights: Objective weights [C, K].
            layout: Which runs of completions are blocks.

        Returns:
            The expected task reward [C, B, G] of each block.
        """
        ...

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Aggregate all m completions of each pull: the expected task reward [C, G] at scale m."""
        ...


@runtime_checkable
class ClosedForm(Protocol):
    """An aggregator that knows the unbiased subset estimates of a cell without looking at its subsets."""

    @property
    def reach(self) -> int | None:
        """Completions of a cell that tell its reward at every scale; None where each scale needs as many as it has."""

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Return the mean reward over all subsets of each cell's completions.

        Args:
            cells: The completions.
            weights: Rows of objective weights [W, K].
            max_n: Largest scale.

        Returns:
            Task rewards [W, G, N]; NaN where a cell says nothing of a scale.
        """
        ...


class WeightRows(NamedTuple):
    """Rows of weights that stand for all contexts: context c is worth factor[c] times the reward of row[c].

    Attributes:
        rows: Objective weights [W, K].
        row: Which of them each context uses [C].
        factor: Multiplier of its rewards [C].
    """

    rows: FloatArray
    row: IntArray
    factor: FloatArray


def distinct_rows(weights: FloatArray) -> WeightRows:
    """Return each distinct row of the contexts' weights [C, K] once."""
    rows, row = np.unique(weights, axis=0, return_inverse=True)
    return WeightRows(rows, row.reshape(-1), np.ones(len(weights)))


@runtime_checkable
class Modelled(Protocol):
    """An aggregator with a model of the completions that were not drawn."""

    def rows(self, weights: FloatArray) -> WeightRows:
        """Return the rows that need predictions of their own; `distinct_rows` unless rewards are proportional."""
        ...

    def model(self, rows: FloatArray, n_prompts: int, max_n: int, parts: IntArray | None = None) -> Predictor:
        """Return a new model.

        Args:
            rows: Rows of objective weights [W, K].
            n_prompts: P.
            max_n: Largest scale.
            parts: The parts that prompts have in common [P, F], see `Problem.parts`; a model need not use them.
        """
        ...


@runtime_checkable
class Stoppable(Protocol):
    """An aggregator whose calls may end before all N completions are drawn."""

    def settling(self, n: int) -> Stop | None:
        """Return waves of a call of n that end where the rest cannot change the result; None where there are none."""

    def observed(self, cells: Cells, weights: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
        """Replay stopped calls on random orders of each cell's own completions.

        Args:
            cells: The completions.
            weights: Objective weights of one context [K].
            stops: The rules [M].

        Returns:
            Gain over all N completions, completions and waves [3, G, M]; NaN where a cell has fewer than N.
        """
        ...


@runtime_checkable
class Sure(Protocol):
    """An aggregator that tells how sure an answer is."""

    def sureness(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Return how sure the answer of each pull's m completions is [G]; see `types.Escalation`.

        Args:
            label: Answer classes [G, m], -1 where there is no vote.
            score: Scores [G, m, K]; NaN marks a failed completion.
            weights: Objective weights of one context [K].
        """
        ...

    def doubt(self, below: float, n: int) -> str:
        """Return in words, behind "where", when the answer of n completions is less sure than `below`."""
        ...
