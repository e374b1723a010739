"""Majority vote over blocks of completions (eq. 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.port import BlockLayout, WeightRows
from iapo_dspy.bandit.cells import Cells, ballots
from iapo_dspy.bandit.models.subset_means import vote_subsets
from iapo_dspy.bandit.models.votes import VotePredictor
from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.bandit.stopping.replays import observed_votes
from iapo_dspy.bandit.stopping.rules import exact_waves
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Stop

_FEW = 128  # answers that need no numbers of their own in each pull

ArrayT = TypeVar("ArrayT", IntArray, FloatArray)


@dataclass(frozen=True)
class MajorityVoteAggregator:
    """Majority vote (eq. 2).

    Every completion that did not fail and has a label >= 0 casts one vote. Each answer with the most votes wins with
    probability 1/t, and is worth the mean score of its completions in the block (the first objective; 1 for right
    answers under an exact-match metric), times the context's first weight.

    Args:
        floor: Score of a call without a vote.
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
        """Implement `Aggregator.reward`: as one block of `blocks`, counted at once."""
        voted = (label >= 0) & ~np.isnan(score).any(axis=2)
        votes, flat = _votes(label, voted)
        sums = np.bincount(flat, weights=score[voted, 0], minlength=votes.size).astype(float).reshape(votes.shape)
        credit = self._credit(votes[None], sums[None])[0]
        return np.asarray(np.multiply.outer(weights[:, 0], credit))

    @property
    def reach(self) -> int | None:
        """Implement `ClosedForm.reach`."""
        return None

    def subsets(self, cells: Cells, weights: FloatArray, max_n: int) -> FloatArray:
        """Implement `ClosedForm.subsets`.

        Raises:
            ConfigurationError: "half" with several scored answers in a cell.
        """
        votes = ballots(cells)
        value = vote_subsets(votes, votes.worth, max_n, ties=self.ties, floor=self.floor)
        return np.asarray(weights[:, 0, None, None] * value)

    def rows(self, weights: FloatArray) -> WeightRows:
        """Implement `Modelled.rows`: the first weight multiplies the reward, and the others do not matter."""
        row = np.zeros((1, weights.shape[1]))
        row[0, 0] = 1.0
        return WeightRows(row, np.zeros(len(weights), dtype=np.int64), weights[:, 0])

    def model(self, rows: FloatArray, n_prompts: int, max_n: int, parts: IntArray | None = None) -> VotePredictor:
        """Implement `Modelled.model`."""
        return VotePredictor(n_prompts, max_n, floor=self.floor, ties=self.ties, parts=parts)

    def settling(self, n: int) -> Stop | None:
        """Implement `Stoppable.settling`."""
        return Stop(waves=exact_waves(n)) if n > 1 else None

    def observed(self, cells: Cells, weights: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
        """Implement `Stoppable.observed`."""
        calls = observed_votes(cells, stops)
        calls[0] *= weights[0]
        return calls

    def sureness(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Sure.sureness`: the leading answer's share of all completions."""
        votes, _ = _votes(label, (label >= 0) & ~np.isnan(score).any(axis=2))
        return np.asarray(votes.max(axis=0) / label.shape[1])

    def doubt(self, below: float, n: int) -> str:
        """Implement `Sure.doubt`."""
        return too_few_agree(below, n)

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


def too_few_agree(below: float, n: int) -> str:
    """Return in words when the leading answer's share of n completions is less than `below`."""
    least = math.ceil(round(below * n, 9))  # .6 of 5 is 3, in spite of rounding
    if least == n:
        return f"not all {n} agree" if n > 1 else "it has no answer"
    return f"fewer than {least} of {n} agree"


def _votes(label: IntArray, voted: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """Return the votes for each answer of each pull [A, G], and the position there of each vote, pull after pull."""
    few = label.max(initial=-1) < _FEW
    answer = np.where(voted, label, -1) if few else dense_answers(label, voted)
    n_answers, pulls = max(int(answer.max(initial=-1)) + 1, 1), len(label)
    flat = (answer * pulls + np.arange(pulls)[:, None])[voted]
    return np.bincount(flat, minlength=n_answers * pulls).reshape(n_answers, pulls), flat


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


def _block_sums(values: ArrayT, layout: BlockLayout) -> ArrayT:
    """Return the sum of each block along the first axis [B, ...]."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums[layout.end] - sums[layout.start]
