"""How the completions of one block become one reward: Best-of-N (eq. 1) and majority vote (eq. 2).

An aggregator sees completions as `label [G, m]` and `score [G, m, K]`: G pulls of m completions. A failed completion
has NaN scores. Rewards are task rewards only; the cost is subtracted by `Estimates.utility`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from iapo_dspy.types import FloatArray, IntArray

__all__ = ["Aggregator", "BlockLayout", "Ties", "block_layout", "whole"]

ArrayT = TypeVar("ArrayT", IntArray, FloatArray)

Ties = Literal["paper", "half"]
"""How a tied vote is credited: "paper" predicts one of the t winners at random, so each counts 1/t. "half" gives half
the best winner's credit whatever t is, as the authors' published figures do; only the simulator offers it."""


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


def _block_sums(values: ArrayT, layout: BlockLayout) -> ArrayT:
    """Return the sum of each block along the first axis [B, ...]."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums[layout.end] - sums[layout.start]
