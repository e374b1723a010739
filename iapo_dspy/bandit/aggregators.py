"""How the completions of one block become one reward: Best-of-N (eq. 1) and majority vote (eq. 2).

An aggregator sees completions as `label [G, m]` and `score [G, m, K]`: G pulls of m completions. A failed completion
has NaN scores. Rewards are task rewards only; the cost is subtracted by `Estimates.utility`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

__all__ = [
    "Aggregator",
    "BestOfNAggregator",
    "BlockLayout",
    "MajorityVoteAggregator",
    "Ties",
    "block_layout",
    "dense_answers",
    "whole",
]

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


@dataclass(frozen=True)
class MajorityVoteAggregator:
    """Majority vote (eq. 2).

    Every completion that did not fail and has a label >= 0 casts one vote. Each answer with the most votes wins with
    probability 1/t, and is worth the mean score of its completions in the block (the first objective; 1 for right
    answers under an exact-match metric), times the context's first weight.

    Args:
        floor: Score where nobody voted.
        ties: See `Ties`.
    """

    floor: float = 0.0
    ties: Ties = "paper"

    def __post_init__(self) -> None:
        if not np.isfinite(self.floor):
            raise ConfigurationError(f"MajorityVoteAggregator: floor is {self.floor!r}; it must be finite.")
        if self.ties not in ("paper", "half"):
            raise ConfigurationError(f'MajorityVoteAggregator: ties is {self.ties!r}; give "paper" or "half".')

    def check(self, n_objectives: int) -> None:
        """Accept any K >= 1; objectives after the first one do not matter."""

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        """Implement `Aggregator.blocks`."""
        ballots, scores = self._ballots(label, score)
        credit = self._credit(_block_sums(ballots, layout), _block_sums(scores, layout))
        weighted: FloatArray = np.multiply.outer(weights[:, 0], credit)
        return weighted

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        return self.blocks(label, score, weights, whole(label.shape[1]))[:, 0]

    @staticmethod
    def _ballots(label: IntArray, score: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return votes and voted scores [m, A, G], with the A answers of each pull numbered densely."""
        voted = (label >= 0) & ~np.isnan(score).any(axis=2)
        answer = dense_answers(label, voted).T
        classes = np.arange(max(int(answer.max(initial=-1)) + 1, 1))
        ballot = answer[:, None, :] == classes[:, None]
        return ballot.astype(np.int64), np.where(ballot, score[:, :, 0].T[:, None, :], 0.0)

    def _credit(self, votes: IntArray, sums: FloatArray) -> FloatArray:
        """Return the expected score [k, G] of the vote from votes and summed scores [k, A, G]."""
        top = votes.max(axis=1)
        wins = votes == top[:, None]
        tied = wins.sum(axis=1)
        if self.ties == "half":
            best = np.where(wins, sums, -np.inf).max(axis=1)
            won = np.where(tied > 1, 0.5, 1.0) * best
        else:
            won = np.where(wins, sums, 0.0).sum(axis=1) / tied
        # Every winner has `top` votes, so the mean of its scores is its sum / top.
        return np.where(top > 0, won / np.maximum(top, 1), self.floor)


@dataclass(frozen=True)
class BestOfNAggregator:
    """Best-of-N (eq. 1): the largest weighted score among the completions that did not fail.

    Args:
        floors: Score per objective [K] where every completion failed; `None` means zeros.
    """

    floors: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.floors is not None:
            floors = tuple(float(f) for f in self.floors)
            if not floors or not np.isfinite(floors).all():
                raise ConfigurationError(f"BestOfNAggregator: floors is {self.floors!r}; give K finite numbers.")
            object.__setattr__(self, "floors", floors)

    def check(self, n_objectives: int) -> None:
        """Raise where `floors` does not have K entries."""
        if self.floors is not None and len(self.floors) != n_objectives:
            raise ConfigurationError(
                f"BestOfNAggregator has {len(self.floors)} floors, but there are {n_objectives} objectives."
            )

    def blocks(self, label: IntArray, score: FloatArray, weights: FloatArray, layout: BlockLayout) -> FloatArray:
        """Implement `Aggregator.blocks`."""
        best = _range_max(self._values(score, weights), layout)
        floors = np.zeros(weights.shape[1]) if self.floors is None else np.asarray(self.floors)
        reward: FloatArray = np.where(np.isneginf(best), (weights @ floors)[:, None], best).transpose(1, 0, 2)
        return reward

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        return self.blocks(label, score, weights, whole(score.shape[1]))[:, 0]

    @staticmethod
    def _values(score: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the weighted scores [m, C, G], -inf for failed completions."""
        total = np.zeros((score.shape[1], len(weights), score.shape[0]))
        for k in range(score.shape[2]):  # not matmul: a sum in fixed order is the same in every batch
            total += weights[:, k, None] * score[:, :, k].T[:, None, :]
        return np.where(np.isnan(total), -np.inf, total)


def _block_sums(values: ArrayT, layout: BlockLayout) -> ArrayT:
    """Return the sum of each block along the first axis [B, ...]."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums[layout.end] - sums[layout.start]


def _range_max(values: FloatArray, layout: BlockLayout) -> FloatArray:
    """Return the maximum of each block along the first axis [B, ...].

    Every block is the union of two runs of 2^j entries, so maxima of all such runs are enough.
    """
    size = layout.end - layout.start
    level = np.frexp(size)[1] - 1  # 2^level <= size < 2^(level + 1)
    runs, offset, table = values, [0], [values]
    for j in range(int(level.max())):
        offset.append(offset[-1] + len(runs))
        runs = np.maximum(runs[: len(runs) - (1 << j)], runs[1 << j :])
        table.append(runs)
    maxima, base = np.concatenate(table), np.array(offset)[level]
    best: FloatArray = np.maximum(maxima[base + layout.start], maxima[base + layout.end - (1 << level)])
    return best


def dense_answers(label: IntArray, voted: NDArray[np.bool_]) -> IntArray:
    """Number the answers of each pull [G, m] from 0, so that open answer sets need no more than m classes."""
    if label.shape[1] and label.max(initial=-1) >= label.shape[1]:
        order = np.argsort(label, axis=1, kind="stable")
        ascending = np.take_along_axis(label, order, axis=1)
        rank = np.zeros_like(label)
        rank[:, 1:] = np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1)
        dense = np.empty_like(label)
        np.put_along_axis(dense, order, rank, axis=1)
        return np.where(voted, dense, -1)
    return np.where(voted, label, -1)
