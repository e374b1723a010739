"""Votes with weights, and the best completion among those that agree with the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.aggregators.blockwise import Blockwise
from iapo_dspy.bandit.aggregators.majority import dense_answers, too_few_agree
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

UNITS = 1_000_000  # a vote of full weight, in whole units: sums are exact, so a tie is a tie in every order of drawing


def vote_units(weight: FloatArray, upper: float) -> IntArray:
    """Return weights in whole units of a millionth of the largest weight that there can be.

    Args:
        weight: Weights in [0, upper].
        upper: The largest weight, > 0.
    """
    return np.asarray(np.rint(weight / upper * UNITS), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class TallyAggregator(Blockwise):
    """A vote, weighted or not, whose winner is represented by its first or by its best completion.

    Every completion that did not fail and has a label >= 0 votes for its answer, with weight 1 or with the score in
    `weight`. The answer with the largest sum wins; of several, the one that was drawn first. As completions are
    exchangeable, a tied answer with c of the tied answers' completions wins with probability c over their number: 1/t
    where all weigh the same.

    Without `style` the winner's first completion is returned. With it, the winner's completion with the largest
    weighted sum of these objectives is, the first of equals. The reward is that of the returned completion: the
    context's weight times its score, summed over the objectives.

    Args:
        floors: Score per column in a call without a vote [K].
        weight: Column of the votes' weights; None: every vote weighs the same. Contexts weigh it 0.
        upper: The largest weight, > 0.
        style: Columns that decide among the winner's completions.
    """

    floors: Sequence[float]
    weight: int | None = None
    upper: float = 1.0
    style: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        floors = tuple(float(f) for f in self.floors)
        if not floors or not np.isfinite(floors).all():
            raise ConfigurationError(f"TallyAggregator: floors is {self.floors!r}; give K finite numbers.")
        columns = [*self.style, *([] if self.weight is None else [self.weight])]
        if any(not 0 < k < len(floors) for k in columns) or not self.upper > 0:
            raise ConfigurationError(f"TallyAggregator: columns {columns} of {len(floors)}, largest {self.upper!r}.")
        object.__setattr__(self, "floors", floors)

    def check(self, n_objectives: int) -> None:
        """Raise where `floors` does not have K entries."""
        if len(self.floors) != n_objectives:
            raise ConfigurationError(
                f"TallyAggregator has {len(self.floors)} columns, but contexts weigh {n_objectives}."
            )

    def sureness(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Sure.sureness`: the leading answer's share of the votes' weights, times the share of votes."""
        voted = (label >= 0) & ~np.isnan(score).any(axis=2)
        answer = dense_answers(label, voted)
        units = voted.astype(np.int64)
        if self.weight is not None:
            units = np.where(voted, vote_units(np.where(voted, score[:, :, self.weight], 0.0), self.upper), 0)
        n_answers = max(int(answer.max(initial=-1)) + 1, 1)
        tally = np.stack([(units * (answer == a)).sum(axis=1) for a in range(n_answers)])
        total = tally.sum(axis=0)
        share = np.divide(tally.max(axis=0), total, out=np.zeros(len(label)), where=total > 0)
        return np.asarray(share * voted.mean(axis=1))

    def doubt(self, below: float, n: int) -> str:
        """Implement `Sure.doubt`."""
        if self.weight is None:
            return too_few_agree(below, n)
        return f"the leading answer has less than {below:.3g} of the weight of {n}"

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        """Implement `Aggregator.reward`."""
        voted = (label >= 0) & ~np.isnan(score).any(axis=2)
        answer = dense_answers(label, voted)  # [G, m], -1 without a vote
        n_answers = max(int(answer.max(initial=-1)) + 1, 1)
        units = voted.astype(np.int64)
        if self.weight is not None:
            units = np.where(voted, vote_units(np.where(voted, score[:, :, self.weight], 0.0), self.upper), 0)
        pulls = len(label)
        flat = (np.arange(pulls)[:, None] * n_answers + answer)[voted]
        count = np.bincount(flat, minlength=pulls * n_answers).reshape(pulls, n_answers)
        tally = np.bincount(flat, weights=units[voted], minlength=count.size).reshape(count.shape)
        tally = np.where(count > 0, tally, -1.0)
        tied = (tally == tally.max(axis=1, keepdims=True)) & (count > 0)
        number = np.where(tied, count, 0)
        total = np.maximum(number.sum(axis=1), 1)
        worth = np.where(np.isnan(score), 0.0, score)
        out = np.zeros((len(weights), pulls))
        for a in range(n_answers):
            mine = (answer == a) & tied[:, a, None]
            if mine.any():
                out += number[:, a] / total * self._returned(mine, worth, weights)
        nobody = ~voted.any(axis=1)
        return np.where(nobody, (weights @ np.asarray(self.floors))[:, None], out)

    def _returned(self, mine: NDArray[np.bool_], worth: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the expected reward [C, G] of the completion that represents an answer, `mine` [G, m]."""
        first = weights[:, 0, None] * 1.0
        if not self.style:
            mean = (mine * worth[:, :, 0]).sum(axis=1) / np.maximum(mine.sum(axis=1), 1)
            return np.asarray(first * mean)
        style = np.zeros((len(weights), *mine.shape))
        for k in self.style:  # not matmul: a sum in fixed order is the same in every batch
            style += weights[:, k, None, None] * worth[:, :, k]
        style = np.where(mine, style, -np.inf)
        best = style.max(axis=2)
        chosen = mine & (style == best[:, :, None])
        mean = (chosen * worth[:, :, 0]).sum(axis=2) / np.maximum(chosen.sum(axis=2), 1)
        return np.asarray(first * mean + np.where(np.isneginf(best), 0.0, best))
